"""The pictures of a report, as PNG: latency, throughput, and accuracy against speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import NullFormatter

from histo_export.bench.report import RankedRow, Report, Table
from histo_export.bench.rows import Row
from histo_export.figures import new_figure, percent_ticks, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f", "#8b4513")
"""Okabe and Ito's, which colour-blind readers can tell apart; markers repeat the difference for grey print."""
MARKERS = "osD^vP*Xh"
SHADES = (1.0, 0.75, 0.55, 0.4, 0.3)
"""Opacity of a runtime's bars, model by model."""
INK = "#333333"
DPI = 180


def draw(report: Report, folder: Path) -> list[Path]:
    """Draws every picture that the report has data for; returns the files in the order in which they are best read."""
    plots = [_latency(report, folder / "latency.png")]
    if len({row.batch for row in report.rows}) > 1:
        plots.append(_throughput(report, folder / "throughput.png"))
    if len({row.threads for row in report.rows}) > 1:
        plots.append(_threads(report, folder / "threads.png"))
    fp32 = next((table for table in report.tables if table.conditions.precision == "fp32"), None)
    if fp32 is not None and any(subject.accuracy for subject in report.subjects):
        plots.append(_accuracy(report, fp32, folder / "accuracy.png"))
    return plots


def _latency(report: Report, path: Path) -> Path:
    """Bars of ms per tile with 95 % intervals: one panel per table, one group per runtime, one bar per model."""
    tables = report.tables
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    names = _names(report)
    labels = [subject.label for subject in report.subjects]
    figure = new_figure(max(6.4, 3.9 * columns), lines * (1.3 + 0.16 * len(names) * (1 + len(labels))))
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    height = 0.84 / len(labels)
    for index, panel in enumerate(panels.flat):
        if index >= len(tables):
            panel.set_axis_off()
            continue
        table = tables[index]
        for place, (runtime, (_, colour, _)) in enumerate(names.items()):
            for number, label in enumerate(labels):
                matching = [s for s in table.ranked if (s.runtime, s.subject) == (runtime, label)]
                if matching:
                    y = place - 0.42 + (number + 0.5) * height
                    _bar(panel, matching[0], y, height, colour, SHADES[min(number, len(SHADES) - 1)])
        panel.set_title(str(table.conditions), fontsize=9, loc="left")
        panel.set_xlabel("ms per tile (shorter is better)", fontsize=9)
        panel.set_yticks(range(len(names)), [name for name, _, _ in names.values()], fontsize=9)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlim(0, 1.2 * max(s.ms_per_tile * s.seconds.high / s.seconds.median for s in table.ranked))
        panel.grid(axis="x", linewidth=0.4, color="#dddddd")
        panel.set_axisbelow(True)
        panel.tick_params(axis="x", labelsize=8)
    models = f"Bars from top to bottom: {', '.join(map(shown, labels))}. " if len(labels) > 1 else ""
    return _save(figure, path, "Latency", f"{models}Whiskers: 95 % interval of the median. {report.machine}")


def _bar(panel: Axes, row: RankedRow, y: float, height: float, colour: str, opacity: float) -> None:
    batch_ms = row.ms_per_tile / row.seconds.median
    low, high = row.seconds.low * batch_ms, row.seconds.high * batch_ms
    error = [[row.ms_per_tile - low], [high - row.ms_per_tile]]
    panel.barh(y, row.ms_per_tile, height * 0.92, color=colour, alpha=opacity, linewidth=0)
    panel.errorbar(row.ms_per_tile, y, xerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=1.5)
    text = f"{row.ms_per_tile:.1f}"
    panel.annotate(text, (high, y), (4, 0), textcoords="offset points", va="center", fontsize=7)


def _throughput(report: Report, path: Path) -> Path:
    """Tiles per second over the batch, one line per runtime, for the first model and the largest number of threads."""
    threads = max(row.threads for row in report.rows)
    first = report.subjects[0].label
    rows = [row for row in report.rows if (row.threads, row.subject) == (threads, first)]
    title = f"Throughput against batch: {shown(first)}, {threads} thread{'s' * (threads > 1)}"
    return _lines(report, rows, "batch", "tiles per call", title, path)


def _threads(report: Report, path: Path) -> Path:
    """The same over the number of threads, at the largest batch."""
    batch = max(row.batch for row in report.rows)
    first = report.subjects[0].label
    rows = [row for row in report.rows if (row.batch, row.subject) == (batch, first)]
    title = f"Throughput against threads: {shown(first)}, batch {batch}"
    return _lines(report, rows, "threads", "threads", title, path)


def _lines(report: Report, rows: list[Row], over: str, label: str, title: str, path: Path) -> Path:
    figure = new_figure(6.8, 4.0)
    axes = figure.subplots()
    seconds = {(s.runtime, s.subject, t.conditions): s.seconds for t in report.tables for s in t.ranked}
    for runtime, (name, colour, marker) in _names(report).items():
        mine = sorted((row for row in rows if row.runtime == runtime), key=lambda row: int(getattr(row, over)))
        if not mine:
            continue
        of_row = [(row, seconds[runtime, row.subject, row.conditions]) for row in mine]
        rate, low, high = np.array([[row.batch / t for t in (s.median, s.high, s.low)] for row, s in of_row]).T
        at = [getattr(row, over) for row in mine]
        errors = np.abs([rate - low, high - rate])
        axes.errorbar(at, rate, errors, marker=marker, color=colour, label=name, linewidth=1.6, markersize=5, capsize=2)
    values = sorted({getattr(row, over) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel("tiles per second (more is better)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.4, color="#dddddd")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _save(figure, path, title, f"Whiskers: 95 % interval of the median. {report.machine}")


def _accuracy(report: Report, table: Table, path: Path) -> Path:
    """Test accuracy over ms per tile in a table of fp32: one point per model and runtime.

    A model's accuracy is the same in every fp32 runtime, so its interval is drawn once, at the fastest.
    """
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    fastest: dict[str, float] = {}
    for runtime, (name, colour, marker) in _names(report).items():
        points = [
            (ranked.ms_per_tile, subject.accuracy[0], subject.label)
            for subject in report.subjects
            for ranked in table.ranked
            if subject.accuracy and (ranked.runtime, ranked.subject) == (runtime, subject.label)
        ]
        if not points:  # a runtime of another precision
            continue
        times, accuracies, labels = zip(*points, strict=True)
        axes.plot(times, accuracies, marker, color=colour, label=name, markersize=7)
        fastest |= {label: min(ms, fastest.get(label, ms)) for label, ms in zip(labels, times, strict=True)}
    for subject in report.subjects:
        if subject.accuracy and subject.label in fastest:
            accuracy, low, high = subject.accuracy
            error = [[accuracy - low], [high - accuracy]]
            axes.errorbar(fastest[subject.label], accuracy, error, color=INK, elinewidth=0.8, capsize=3, zorder=0)
            axes.axhline(accuracy, color=INK, linewidth=0.5, linestyle=":", zorder=0)
            where = ("axes fraction", "data")
            text = axes.annotate(shown(subject.label), (1, accuracy), (4, 0), where, "offset points", va="center")
            text.set(fontsize=8, color=INK)
    axes.set_xlim(0, 1.06 * max(ranked.ms_per_tile for ranked in table.ranked))
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel("ms per tile (left is better)", fontsize=9)
    axes.set_ylabel("test accuracy (up is better)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.3, color="#dddddd")
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=4)
    return _save(
        figure,
        path,
        f"Accuracy and speed: {table.conditions}",
        f"Whiskers: 95 % interval of the accuracy. {report.machine}",
    )


def _names(report: Report) -> dict[str, tuple[str, str, str]]:
    """Runtime → its name, colour and marker, which are its own and the same in every picture."""
    runtimes = dict.fromkeys(row.runtime for row in report.rows)
    names = {row.runtime: row.name for row in report.rows}
    return {
        runtime: (names[runtime], COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, runtime in enumerate(runtimes)
    }


def _save(figure: Figure, path: Path, title: str, below: str) -> Path:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    figure.supxlabel(below, x=0.01, ha="left", fontsize=7, color=INK)
    figure.savefig(path, dpi=DPI)
    return path
