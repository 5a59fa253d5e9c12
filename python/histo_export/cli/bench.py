"""`histo bench`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn
from rich.progress import Progress as ProgressBar

from histo_export.cli import show
from histo_export.cli.options import OutputOptions, counts, one_of, precisions, usable_cpus
from histo_export.errors import HistoError, InterruptedRunError, UsageError
from histo_export.spec import PRECISIONS, Precision

if TYPE_CHECKING:
    from histo_export.bench.document import Document
    from histo_export.bench.progress import Progress
    from histo_export.bench.report import Report
    from histo_export.bench.settings import Settings


@dataclass(frozen=True)
class MeasurementOptions:
    """What is timed, and for how long."""

    runtimes: Annotated[
        str | None, typer.Option(metavar="R,R,…", help="Which to time.  [dim]\\[default: all that run here][/dim]")
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P,P,…",
            help="Of fp32, bf16x3, bf16 and int8, each in tables of its own; [b]auto[/b]: the fastest that the bundles "
            "allow on this CPU.  [dim]\\[default: fp32][/dim]",
        ),
    ] = None
    batches: Annotated[str, typer.Option(metavar="N,N,…", help="Tiles per call.")] = "1,8,32"
    threads: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Of each runtime.  [dim]\\[default: all usable CPUs][/dim]")
    ] = None
    device: Annotated[
        str, typer.Option(metavar="DEV", help="[b]cpu[/b] or [b]cuda[/b]. An error if it is not usable.")
    ] = "cpu"
    rounds: Annotated[int, typer.Option(metavar="N", help="Every row is timed once in each; 7 or more.")] = 15
    time: Annotated[float, typer.Option(metavar="S", help="Timed seconds of each row in all, at least.")] = 3.0
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order within rounds.")] = 0
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            metavar="",
            help="Also where the native engine's time goes, and its share of what this machine can do at most.",
        ),
    ] = False


def bench(
    *,
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE…]", help="Folders that [b]histo export[/b] wrote.")
    ] = None,
    pools: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Untrained networks instead of bundles.  [dim]\\[default: 1,2,4,8][/dim]"),
    ] = None,
    measurement: MeasurementOptions,
    compare: Annotated[
        Path | None, typer.Option(metavar="OLD.json", help="A report.json of this machine to set beside this run.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets report.json, .md, .html and plots.")] = Path("bench"),
    output: OutputOptions,
) -> None:
    """Time every runtime on the same tiles, interleaved, and say which differences are real.

    Without bundles it makes untrained networks that share all but their heads: --pools 1,2,4,8.
    """
    if bundles and pools:
        raise UsageError("--pools", "makes networks of its own, and bundles are named", "Leave one of them out")
    one_of("--device", measurement.device, ("cpu", "cuda"))
    from histo_export.bench.document import document
    from histo_export.bench.report import Report
    from histo_export.bench.write import check_destination
    from histo_export.files import own_folder

    told = _resolved(bundles or [], measurement)
    settings = _settings(measurement, told.precisions)
    check_destination(out, output.force)
    old = Report.read(compare) if compare else None
    from histo_export.bench.run import check_packages, run_bench

    sizes = counts("--pools", pools or "1,2,4,8")
    check_packages(bundles or [], settings)
    with own_folder(out) as still_own:
        with _progress(output.quiet) as progress:
            report = run_bench(
                bundles or [],
                sizes,
                settings,
                command=show.command_line("histo", *sys.argv[1:]),
                old=old,
                progress=progress,
                warn=(lambda sentence: None) if output.quiet else _warn,
            )
        try:
            written = _write(report, out, output.force, still_own)
        finally:  # the result is not lost where it can't be written
            if output.as_json:
                show.print_json(report.model_dump(mode="json"))
            else:
                _print(document(report))
    if not output.quiet and not output.as_json:
        show.log.print(*(f"note: {line}\n" for line in told.remarks), sep="", end="", markup=False, soft_wrap=True)
        show.out_console.print(f"\n{out}: {', '.join(path.name for path in written)}", soft_wrap=True)
    if report.stopped:
        cause = f"the run was interrupted {report.stopped}, and the report covers what was complete"
        raise InterruptedRunError(out, cause, "Run it again with --force for all rounds")


def _warn(sentence: str) -> None:
    show.log.print(f"[yellow]note:[/] {escape(sentence)}", soft_wrap=True)


def _write(report: Report, out: Path, force: bool, still_own: Callable[[], None]) -> list[Path]:
    """Writes the report; where that fails, report.json goes to the folder for temporary files.

    Args:
        report: of this run.
        out: the folder.
        force: replace an old report.
        still_own: raises HistoError where another process has taken the folder over.
    """
    from histo_export.bench.write import keep_report, write_report

    try:
        still_own()
        return write_report(report, out, force)
    except HistoError as error:
        try:
            kept = f"The figures are in {keep_report(report)}"
        except OSError:
            kept = "The figures are on the standard output alone"
        raise type(error)(error.thing, error.cause, f"{kept}. {error.next_step}") from error


@dataclass(frozen=True)
class _Precisions:
    """The precisions to time, from the most exact on, and what to tell of them."""

    precisions: tuple[Precision, ...]
    remarks: list[str]


def _resolved(bundles: Sequence[Path], options: MeasurementOptions) -> _Precisions:
    """The precisions of the options, with the one that the bundles allow in place of "auto"."""
    asked = [part.strip() for part in (options.precision or "fp32").split(",")]
    named = [part for part in asked if part != "auto"]
    wanted = precisions(",".join(named)) if named else ()
    if not bundles:
        if "auto" in asked:
            raise UsageError("--precision auto", "is what a bundle allows, and none is named", "Name a bundle")
        return _Precisions(wanted, [])
    from histo_export.export.bundle import open_bundle
    from histo_export.export.precision_choice import fastest, remark

    if "auto" not in asked:
        if options.precision is not None or options.runtimes is not None:
            return _Precisions(wanted, [])
        hints = [remark(open_bundle(bundle).config, None, "fp32") for bundle in bundles]
        return _Precisions(wanted, [f"{b}: {hint}" for b, hint in zip(bundles, hints, strict=True) if hint])
    choices = [fastest(open_bundle(bundle).config) for bundle in bundles]
    if len({choice.precision for choice in choices}) > 1:
        listed = ", ".join(f"{bundle} {c.precision}" for bundle, c in zip(bundles, choices, strict=True))
        raise UsageError("--precision auto", f"differs among the bundles ({listed})", "Bench them one by one")
    both = {*wanted, choices[0].precision}
    remarks = [f"{b}: --precision auto is {c.precision}: {c.why}" for b, c in zip(bundles, choices, strict=True)]
    return _Precisions(tuple(name for name in PRECISIONS if name in both), remarks)


def _settings(options: MeasurementOptions, wanted: tuple[Precision, ...]) -> Settings:
    from histo_export.bench.settings import Settings
    from histo_export.runtimes import all_variants, default_variants, variants

    chosen = default_variants(options.device, wanted)
    if options.runtimes:
        names = [name.strip() for name in options.runtimes.split(",")]
        for name in names:
            one_of("--runtimes", name, [str(variant) for variant in all_variants()])
        chosen = variants(*names)
        if options.precision is not None:
            chosen = tuple(variant.in_precision(precision) for precision in wanted for variant in chosen)
    if not chosen:
        raise UsageError(
            f"--precision {options.precision}",
            f"has no runtime on {options.device}",
            "Use another, or --device cpu",
        )
    return Settings(
        runtimes=tuple(dict.fromkeys(chosen)),
        batches=counts("--batches", options.batches),
        threads=counts("--threads", options.threads or str(usable_cpus())),
        rounds=options.rounds,
        seconds=options.time,
        device=options.device,
        seed=options.seed,
        may_lack=options.runtimes is None,
        stages=options.stages,
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A live line on stderr with what is done and how long it will take."""
    if quiet:
        yield lambda progress: None
        return
    bar = ProgressBar("[progress.description]{task.description}", BarColumn(), "{task.fields[left]}", console=show.log)
    with bar:
        task = bar.add_task("starting", total=1, left="")

        def update(progress: Progress) -> None:
            minutes, seconds = divmod(0 if math.isnan(progress.left_s) else round(progress.left_s), 60)
            left = "" if math.isnan(progress.left_s) else f"about {minutes}:{seconds:02} left"
            bar.update(task, description=progress.doing, completed=progress.done, left=left)

        yield update


def _print(document: Document) -> None:
    """The sections of a report that are short enough for a terminal."""
    for warning in document.warnings:
        show.out_console.print(f"[b yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    for conclusion in document.conclusions:
        show.out_console.print(f"[b]{escape(conclusion)}[/b]", soft_wrap=True)
    for line in document.lead:
        show.out_console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    show.print_sections(document.sections)
    for note in document.notes:
        show.out_console.print(f"[yellow]note:[/] {escape(note)}")
