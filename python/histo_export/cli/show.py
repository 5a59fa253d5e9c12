"""What is printed: the two consoles, live progress, and what several commands show."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.segment import Segment, Segments
from rich.table import Table

from histo_export.cli.options import usable_cpus
from histo_export.spec import percent
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.bench.sections import Section
    from histo_export.export.bundle import Calibration, LowPrecision, OnnxCheck, PrecisionCosts
    from histo_export.export.checks import Checks
    from histo_export.parity import FileParity
    from histo_export.training.result import TrainResult

NARROW = 70
"""Columns below which nobody can read a table."""

UNBROKEN = 10_000
"""Columns of a file or pipe: no line is broken there, whatever COLUMNS says."""


def _console(stream: TextIO | None, stderr: bool) -> Console:
    terminal = stream is not None and stream.isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else UNBROKEN)


log = _console(sys.stderr, stderr=True)
"""For progress and messages."""
out_console = _console(sys.stdout, stderr=False)
"""For results."""


@contextmanager
def status(doing: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A live line on stderr; gives what changes its text."""
    if quiet:
        yield lambda step: None
        return
    with log.status(doing) as line:
        yield line.update


def print_json(value: Any) -> None:
    """Writes indented JSON to stdout, with escapes where the terminal's encoding lacks characters."""
    unicode = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    sys.stdout.write(dump_json(value, indent=2, ascii_only=not unicode) + "\n")


def command_line(*words: object) -> str:
    """A command as a shell reads it: words with spaces and the like in quotes."""
    return shlex.join(map(str, words))


def table(title: str | None = None, show_header: bool = True) -> Table:
    """An empty table; its title is printed at once, because rich would wrap it to the table's width."""
    if title:
        out_console.print(f"[b]{escape(title)}[/b]", soft_wrap=True)
    return Table(show_header=show_header, box=None, pad_edge=False, padding=(0, 1))


def print_table(table: Table) -> None:
    """Prints a table in its own width, so that nothing is cut.

    A terminal below `NARROW` columns that is narrower than the table gets each row as lines of "heading: value";
    a wider one breaks the lines.
    """
    unlimited = out_console.options.update(max_width=UNBROKEN)
    if out_console.width < min(NARROW, out_console.measure(table, options=unlimited).maximum):
        _print_rows(table)
    else:
        out_console.print(Segments(_stripped(out_console.render(table, unlimited))), crop=False)


def _stripped(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Lines without blanks at their ends, which rich adds up to the width of the last column."""
    for line in Segment.split_lines(segments):
        while line and not line[-1].text.strip():
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
        yield from line
        yield Segment.line()


def _print_rows(table: Table) -> None:
    """A line for each cell that is not empty, and an empty line after each row; without headings, a line for a row."""
    headings = [str(column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        filled = [(heading, str(cell)) for heading, cell in zip(headings, cells, strict=True) if str(cell)]
        if not table.show_header:
            out_console.print(": ".join(cell for _, cell in filled), soft_wrap=True)
            continue
        for heading, cell in filled:
            out_console.print(f"{heading}: {cell}" if heading else cell, soft_wrap=True)
        out_console.print()


def print_sections(sections: Iterable[Section]) -> None:
    """The tables of a report that are short enough for a terminal."""
    for section in sections:
        if section.brief:
            out_console.print()
            shown = table(section.title)
            for column in section.columns:
                justify: Any = "left" if column.startswith("<") else "right"
                shown.add_column(escape(column.removeprefix("<")), justify=justify, no_wrap=True)
            for row in section.rows:
                shown.add_row(*map(escape, row))
            print_table(shown)
            if section.note:
                out_console.print(f"[dim]{escape(section.note)}[/]")


def file_facts(folder: Path, result: FileParity) -> dict[str, Any]:
    """A checked file of the bundle `folder`, as plain values."""
    return dataclasses.asdict(result) | {"bytes": (folder / result.file).stat().st_size, "passed": result.passed}


def print_accuracy(result: TrainResult) -> None:
    """The best epoch of a training run, and its accuracy on the test split."""
    test, floors = result.test, result.floors
    balanced = " (balanced accuracy)" if floors["colour"].get("balanced") else ""
    low, high = test.interval
    keep = result.training.get("keep", "best")
    which = f"Moving average after epoch {result.best_epoch}" if keep == "ema" else f"Epoch {result.best_epoch}"
    chosen = " (optimistic: the epoch was chosen by it)" if keep == "best" and result.epochs > 1 else ""
    out_console.print(
        f"{which} of {result.epochs}: validation accuracy {percent(result.val_accuracy)}{chosen}, "
        f"test accuracy [b]{percent(test.accuracy)}[/b]\n"
        f"(95 % bootstrap interval {percent(low)} to {percent(high)}, {test.tiles:,} tiles)\n"
        f"Floors on the same tiles: chance {percent(floors['chance'])}, always the largest class "
        f"{percent(floors['majority'])}, colour alone {percent(floors['colour']['accuracy'])}{balanced}\n"
        f"Balanced accuracy {percent(test.balanced_accuracy)}, macro F1 {percent(test.macro_f1)}\n"
    )
    if split := result.training.get("data", {}).get("split"):
        out_console.print(f"Split: {split}\n", markup=False, soft_wrap=True)
    for remark in result.remarks:
        out_console.print(f"[yellow]note:[/] {escape(remark)}\n", soft_wrap=True)


def print_measures(test: Mapping[str, Any] | None, calibration: Mapping[str, Any] | None, *, exported: bool) -> None:
    """The figures of the probabilities on the test split with their intervals, and the calibration.

    Args:
        test: the fields of `AccuracyReport`, as recorded; None where there was no test.
        calibration: the fields of `Calibrated`; None where there is none.
        exported: the calibration is in the weights.
    """
    from histo_export.export.card import describe_calibration, measure_rows

    if rows := measure_rows(test or {}):
        figures = table()
        figures.add_column("measure")
        for heading in ("value", "95 % interval"):
            figures.add_column(heading, justify="right")
        for name, *cells in rows:
            figures.add_row(escape(name), *cells)
        out_console.print()
        print_table(figures)
    if calibration is not None:
        text = describe_calibration(calibration, exported=exported)
        out_console.print(f"\nCalibrated: {text}", soft_wrap=True)


def print_files(title: str, folder: Path, checks: Checks, training: Mapping[str, Any]) -> None:
    """The files of the bundle `folder`: size, error and time in each runtime; `training` is the bundle's provenance."""
    from histo_export.export.card import golden_tiles_are, reference_is

    results = checks.results
    files = table(title)
    files.add_column("file", no_wrap=True)
    for heading in ("MB", "error", "allowed", "top-1", "ms at 1", "at 32"):
        files.add_column(heading, justify="right", no_wrap=True)
    files.add_column("run in", no_wrap=True)
    for r in results:
        files.add_row(
            r.file if r.passed else f"[red]{r.file}[/]",
            f"{(folder / r.file).stat().st_size / 1e6:.1f}",
            f"{r.max_relative:.1e}",
            f"{r.tolerance:.1e}",
            f"{percent(r.agreement)}",
            f"{r.ms_per_tile[1]:.1f}",
            f"{r.ms_per_tile[32]:.1f}",
            r.runtime,
        )
    print_table(files)
    executed: dict[str, list[str]] = {}
    for r in results:
        executed.setdefault(r.executed, []).append(r.runtime)
    out_console.print(
        f"[dim]error: largest difference of a logit from {escape(reference_is(training))} in float64, on "
        f"{golden_tiles_are(training)} tiles\nand on noise, in units of the tile's largest logit. "
        f"ms per tile at batch 1 and 32, {usable_cpus()} threads:\n"
        + "\n".join(f"{', '.join(runtimes)}: {how}" for how, runtimes in executed.items())
        + "[/]",
        soft_wrap=True,
    )
    for runtime_id, reason in checks.unchecked.items():
        out_console.print(f"[yellow]Not checked in {runtime_id}:[/] {escape(reason)}", soft_wrap=True)


def print_passed(checks: int, unproven: Sequence[str] = ()) -> None:
    """Says in words what passed; call it where no check failed. `unproven`: files that could not be run."""
    if unproven:
        passed = f"{checks} check{'s' if checks != 1 else ''} passed"
        out_console.print(f"[b]{passed}. Not run by anything here: {escape(', '.join(unproven))}.[/b]", soft_wrap=True)
        return
    out_console.print(f"[b]All {checks} checks passed.[/b]" if checks > 1 else "[b]The check passed.[/b]")


def print_low_precision(precision: str, low: LowPrecision, layers: bool = False) -> None:
    """What a precision costs, and for int8 how its scales were chosen; `layers`: the error of each layer too."""
    losses = table(f"For {precision}: accuracy on the {low.tiles:,} validation tiles")
    losses.add_column("precision")
    for heading in ("accuracy", "95 % interval", "as fp32", "points lost"):
        losses.add_column(heading, justify="right", no_wrap=True)
    losses.add_column("measured with", no_wrap=True)
    for measured, figures in low.precisions.items():
        interval = f"{percent(figures.interval[0])} to {percent(figures.interval[1])}"
        cells = (f"{percent(figures.accuracy)}", interval, f"{percent(figures.agreement)}", f"{figures.drop:.2f}")
        losses.add_row(f"[b]{measured}[/b]" if measured == precision else measured, *cells, figures.measured_with)
    print_table(losses)
    accepted = ", more was accepted" if low.drop_accepted else ""
    out_console.print(
        f"[dim]as fp32: tiles with the same top class. Allowed to lose: {low.max_drop:g} points{accepted}.[/]"
    )
    for reason in dict.fromkeys(low.not_native.values()):
        names = ", ".join(name for name, why in low.not_native.items() if why == reason)
        out_console.print(f"[yellow]{names} not measured with the native engine:[/] {escape(reason)}", soft_wrap=True)
    if low.calibration is not None:
        _print_calibration(low.calibration, layers)
    if low.onnx is not None:
        print_int8_onnx(low.onnx)


def print_precision_costs(costs: PrecisionCosts) -> None:
    """What the precisions below fp32 cost, a line for each."""
    from histo_export.export.precision_choice import described

    for precision, cost in costs.measured.items():
        out_console.print(f"{precision} {described(cost, costs)}.", markup=False, soft_wrap=True)
    out_console.print(
        f"[dim]Beside fp32, in percentage points of accuracy with the 95 % interval; {costs.max_drop:g} may be lost. "
        "Tiles count as independent.[/]",
        soft_wrap=True,
    )


def _print_calibration(calibration: Calibration, layers: bool) -> None:
    kept = f"{len(calibration.kept)} of {len(calibration.layers)} convolutions kept in bf16"
    kept += f" ({percent(calibration.kept_multiply_adds)} of multiply-adds)" if calibration.kept else ""
    out_console.print(
        f"[dim]Calibrated on {calibration.tiles} training tiles: {calibration.chosen}; {kept}. Error of the logits "
        f"on {calibration.held_out} others {percent(calibration.error)} of their spread (bf16 "
        f"{percent(calibration.bf16_error)}).[/]",
        soft_wrap=True,
    )
    if not layers:
        return
    errors = table()
    for heading in ("calibration", "logits' error"):
        errors.add_column(heading)
    for pair, error in calibration.errors.items():
        errors.add_row(pair, f"{percent(error)}")
    print_table(errors)
    by_layer = table()
    by_layer.add_column("convolution")
    by_layer.add_column("precision")
    for heading in ("SQNR dB", "logits' error", "multiply-adds"):
        by_layer.add_column(heading, justify="right")
    for layer in calibration.layers:
        cells = (f"{layer.sqnr_db:.1f}", f"{percent(layer.logit_error, 2)}", f"{percent(layer.multiply_adds)}")
        by_layer.add_row(layer.layer, layer.precision, *cells)
    print_table(by_layer)
    out_console.print("[dim]SQNR and error of the logits with only this convolution, or its input, in int8.[/]")


def print_int8_onnx(check: OnnxCheck) -> None:
    """How far `model-int8.onnx` in ONNX Runtime is from the same arithmetic in torch."""
    out_console.print(
        f"[dim]model-int8.onnx in {check.runtime}: {percent(check.error)} from the same arithmetic in torch "
        f"(allowed {percent(check.allowed)}), {percent(check.agreement)} of top classes the same.[/]",
        soft_wrap=True,
    )
