"""Every file of a bundle in every runtime that is installed, against the checkpoint. Needs no torch itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from histo_export.bundle_files import GOLDEN
from histo_export.errors import HistoError
from histo_export.export.bundle import LowPrecision, PrecisionCosts
from histo_export.export.formats import format_of
from histo_export.extras import MissingExtraError
from histo_export.parity import FileParity, Golden, check_file
from histo_export.runtimes import runtime_class
from histo_export.spec import STAGES, percent


@dataclass(frozen=True)
class Checks:
    """What the checks of a bundle's files gave.

    Attributes:
        results: of every file in every runtime that is available here.
        unchecked: runtime → why it is unavailable here.
        unproven: files that no runtime here could run; their sha256 alone is known to be right.
        low_precision: of a bundle below fp32, what that costs.
        precision_costs: what every precision below fp32 costs that was measured; None where none was.
    """

    results: list[FileParity] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    unproven: list[str] = field(default_factory=list)
    low_precision: LowPrecision | None = None
    precision_costs: PrecisionCosts | None = None


def check_files(
    folder: Path,
    files: Sequence[str],
    threads: int,
    device: str = "cpu",
    report: Callable[[str], None] = lambda step: None,
    only: Collection[str] | None = None,
) -> Checks:
    """`parity.check_file` for each of `files` in each of its runtimes, one by one so that timings are undisturbed.

    Args:
        folder: the bundle.
        files: names of its model files.
        threads: of the runtimes.
        device: "cpu" or "cuda".
        report: told of each step.
        only: ids of the runtimes that are wanted, and then no other file counts; None: all.
    """
    golden_path = folder / GOLDEN
    golden = Golden.read(golden_path)
    if set(golden.stages) != set(STAGES):
        raise HistoError(golden_path, "does not hold the reference of every stage", "Export again")
    checks = Checks()
    for file in files:
        entry = format_of(file)
        wanted = [runtime for runtime in entry.checked_by if only is None or runtime in only]
        available = [runtime for runtime in wanted if _is_available(runtime, device, checks.unchecked)]
        for runtime_id in available:
            report(f"checking {file} in {runtime_class(runtime_id).names['fp32']} against the checkpoint")
            arguments = (folder / file, runtime_id, golden_path, golden, threads, device, entry.tolerance)
            checks.results.append(check_file(*arguments))
        if wanted and not available:
            checks.unproven.append(file)
    return checks


def _is_available(runtime_id: str, device: str, unchecked: dict[str, str]) -> bool:
    """Whether a runtime runs here; otherwise `unchecked` gets the reason."""
    try:
        reason = runtime_class(runtime_id).unavailable(device)
    except MissingExtraError as error:
        reason = f"{error.cause}. {error.next_step}"
    if reason:
        unchecked[runtime_id] = reason
    return not reason


def raise_if_unproven(checks: Checks) -> None:
    """HistoError where a file has been run by nothing: it must not be shipped as proven."""
    if checks.unproven:
        reasons = "; ".join(f"{runtime}: {reason}" for runtime, reason in checks.unchecked.items())
        cause = f"cannot be checked here, because no runtime can run it ({reasons})"
        raise HistoError(checks.unproven[0], cause, "Install one, or leave its format out with --formats")


def raise_if_diverged(results: Sequence[FileParity]) -> None:
    """Turns the first failed check into an error that names the stage."""
    for result in results:
        if not result.passed:
            raise HistoError(
                f"{result.file} in {result.runtime}",
                f"is not the checkpoint's model: logits differ by {result.max_relative:.2g} of a tile's largest "
                f"where {result.tolerance:.0e} is allowed, {percent(result.agreement)} of top classes agree, "
                f"first diverging stage: {result.diverges}",
                "Do not ship it; histo doctor shows the runtimes",
            )
