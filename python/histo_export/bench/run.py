"""One run of `histo bench`, from its settings to a report."""

from __future__ import annotations

import datetime
import platform
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from histo_export.bench.measure import Circumstances, measure
from histo_export.bench.progress import OnProgress, Progress
from histo_export.bench.report import Report, SubjectFacts, check_same_machine
from histo_export.bench.settings import Settings
from histo_export.bench.stages import StageTable, measure_limits, measure_stages
from histo_export.bench.subjects import Subject, open_subjects, untrained_subjects
from histo_export.bundle_files import NATIVE
from histo_export.extras import install, installed, needs
from histo_export.machine import this_machine, versions
from histo_export.runtimes import NATIVE_RUNTIMES, check_installed, open_runtime
from histo_export.runtimes.native import NativeRuntime


def check_packages(bundles: Sequence[Path], settings: Settings) -> None:
    """MissingExtraError where models, runtimes that were named, or a check below fp32 need what is not installed."""
    if not bundles:
        needs("Untrained networks (histo bench without bundles)", "train")
    for runtime in () if settings.may_lack else settings.runtimes:
        check_installed(runtime.runtime)
    if low := next((runtime for runtime in settings.runtimes if runtime.precision != "fp32"), None):
        needs(f"The check of {low}", "train", modules=["torch", "torchvision"])


def run_bench(
    bundles: Sequence[Path],
    pools: Sequence[int],
    settings: Settings,
    *,
    command: str,
    old: Report | None = None,
    progress: OnProgress = lambda progress: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Measures bundles, or untrained networks with the given pools where there are no bundles.

    Args:
        bundles: folders that `histo export` wrote.
        pools: for untrained networks, which are made in a temporary folder.
        settings: how to measure.
        command: recorded in the report.
        old: a report to compare with; that it is of this machine is checked before anything is measured.
        progress: called with what is done and how long the rest will take.
        warn: told at once what will make the figures worse.

    Raises:
        KeyboardInterrupt: see `measure`.
        HistoError: see `measure`; or `old` can't be compared.
    """
    circumstances = Circumstances()
    if busy := circumstances.meter.warning():
        warn(busy)
    if not installed("matplotlib"):
        warn(f"the report will have no plots, which need {install('report')}")
    machine = this_machine(settings.device)
    if old is not None:
        check_same_machine(old, machine)
    with tempfile.TemporaryDirectory(prefix="histo-bench-") as folder:
        if bundles:
            subjects = open_subjects(bundles, {runtime.precision for runtime in settings.runtimes})
        else:
            subjects = _make_subjects(pools, Path(folder), settings, progress)
        rows, left_out = measure(subjects, settings, progress, circumstances=circumstances)
        stages = _stages(subjects[0], settings, left_out, progress) if not circumstances.stopped else []
    report = Report(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        machine=machine,
        versions=versions(),
        rounds=settings.rounds,
        seconds=settings.seconds,
        seed=settings.seed,
        subjects=[SubjectFacts(label=s.label, pool=s.spec.pool, accuracy=s.accuracy) for s in subjects],
        rows=rows,
        left_out=left_out,
        host=platform.node(),
        load=circumstances.meter.load(),
        stopped=circumstances.stopped,
        stages=stages,
    )
    report.conclude()
    if old is not None:
        report.compare_with(old)
    return report


def _stages(subject: Subject, settings: Settings, left_out: Collection[str], progress: OnProgress) -> list[StageTable]:
    """The stages of a model in each native runtime that was timed, where they are wanted; nothing else runs by now."""
    tables: list[StageTable] = []
    for threads in settings.threads if settings.stages else ():
        progress(Progress("measuring what this machine can do at most", 1.0, float("nan")))
        limits = measure_limits(threads)
        for variant in settings.runtimes:
            if variant.runtime in NATIVE_RUNTIMES and str(variant) not in left_out:
                progress(Progress(f"timing the stages of {variant}", 1.0, float("nan")))
                file = subject.file(variant.file)
                runtime = open_runtime(variant.runtime, file, threads=threads, precision=variant.precision)
                assert isinstance(runtime, NativeRuntime)
                tables += measure_stages(runtime, subject.label, limits, sorted(settings.batches))
    return tables


def _make_subjects(pools: Sequence[int], folder: Path, settings: Settings, progress: OnProgress) -> list[Subject]:
    """Untrained networks with the given pools, and those of their files in `folder` that the runtimes open."""
    precisions = {runtime.precision for runtime in settings.runtimes}
    files = {runtime.file for runtime in settings.runtimes}
    if precisions != {"fp32"}:
        files.add(NATIVE)  # gives the error that a lower precision may have
    return untrained_subjects(
        pools,
        folder,
        files,
        lambda step: progress(Progress(step, 0.0, float("nan"))),
        int8="int8" in precisions,
    )
