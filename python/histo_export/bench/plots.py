"""The pictures of a report, as PNG: latency, throughput, and accuracy against speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import NullFormatter

from histo_export.bench.report import RankedRow, Report, Table
from histo_export.bench.rows import Row
from histo_export.figures import (
    COLOURS,
    INK,
    MARKERS,
    TICK,
    add_legend,
    add_title,
    new_figure,
    percent_ticks,
    save_figure,
    shown,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_COLUMNS = 4
FRONT = "not beaten in both"
SHADES = (1.0, 0.75, 0.55, 0.4, 0.3)
"""Opacity of a runtime's bars, model by model."""


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
        panel.set_title(str(table.conditions))
        panel.set_xlabel("ms per tile (shorter is better)")
        panel.set_yticks(range(len(names)), [name for name, _, _ in names.values()])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlim(0, 1.2 * max(s.ms_per_tile * s.seconds.high / s.seconds.median for s in table.ranked))
        tidy(panel)
        panel.grid(visible=False, axis="y")
    models = f"bars from top to bottom: {', '.join(map(shown, labels))}; " if len(labels) > 1 else ""
    return _save(figure, path, "Latency", f"{models}whiskers: 95 % interval of the median; {report.machine}")


def _bar(panel: Axes, row: RankedRow, y: float, height: float, colour: str, opacity: float) -> None:
    batch_ms = row.ms_per_tile / row.seconds.median
    low, high = row.seconds.low * batch_ms, row.seconds.high * batch_ms
    error = [[row.ms_per_tile - low], [high - row.ms_per_tile]]
    panel.barh(y, row.ms_per_tile, height * 0.92, color=colour, alpha=opacity, linewidth=0)
    panel.errorbar(row.ms_per_tile, y, xerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=1.5)
    text = f"{row.ms_per_tile:.1f}"
    panel.annotate(text, (high, y), (4, 0), textcoords="offset points", va="center", fontsize=TICK - 1)


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
    axes.set_xlabel(label)
    axes.set_ylabel("tiles per second (more is better)")
    tidy(axes)
    add_legend(figure, axes, LEGEND_COLUMNS)
    return _save(figure, path, title, f"whiskers: 95 % interval of the median; {report.machine}")


def _accuracy(report: Report, table: Table, path: Path) -> Path:
    """Test accuracy over ms per tile in a table of fp32: a point per model and runtime, and which nothing beats.

    A model's accuracy is the same in every fp32 runtime, so its interval is drawn once, beside its name.
    """
    figure = new_figure(7.2, 4.6)
    axes = figure.subplots()
    judged = {subject.label: subject.accuracy for subject in report.subjects if subject.accuracy}
    points: list[tuple[float, float]] = []
    for runtime, (name, colour, marker) in _names(report).items():
        own = [
            (ranked.ms_per_tile, judged[ranked.subject][0])
            for ranked in table.ranked
            if ranked.runtime == runtime and ranked.subject in judged
        ]
        if not own:  # a runtime of another precision
            continue
        axes.plot(*zip(*own, strict=True), marker, color=colour, label=name, markersize=7)
        points += own
    best = front(points)
    axes.step(*zip(*best, strict=True), "--", where="post", color=INK, linewidth=1, zorder=0, label=FRONT)
    for place, (label, (accuracy, low, high)) in enumerate(judged.items()):
        # Right of the diagram, where the intervals of several models do not cover each other or the points.
        right: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        error = [[accuracy - low], [high - accuracy]]
        axes.errorbar(1.02 + 0.02 * place, accuracy, error, fmt=".", color=INK, elinewidth=0.8, capsize=2, **right)
        axes.axhline(accuracy, color=INK, linewidth=0.5, linestyle=":", zorder=0)
        axes.text(1.03 + 0.02 * len(judged), accuracy, shown(label), va="center", fontsize=TICK, color=INK, **right)
    lowest, highest = min(low for _, low, _ in judged.values()), max(high for *_, high in judged.values())
    margin = 0.05 * (highest - lowest) + 1e-3
    axes.set_xlim(0, 1.06 * max(ranked.ms_per_tile for ranked in table.ranked))
    axes.set_ylim(lowest - margin, highest + margin)
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel("ms per tile (left is better)")
    axes.set_ylabel("test accuracy (up is better)")
    tidy(axes)
    add_legend(figure, axes, LEGEND_COLUMNS)
    title = f"Accuracy and speed: {table.conditions}"
    return _save(figure, path, title, f"right: 95 % interval of each model's accuracy; {report.machine}")


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats: (ms, accuracy), from the fastest to the most accurate (Pareto's front)."""
    best: list[tuple[float, float]] = []
    for ms, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((ms, accuracy))
    return best


def _names(report: Report) -> dict[str, tuple[str, str, str]]:
    """Runtime → its name, colour and marker, which are its own and the same in every picture."""
    runtimes = dict.fromkeys(row.runtime for row in report.rows)
    names = {row.runtime: row.name for row in report.rows}
    return {
        runtime: (names[runtime], COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, runtime in enumerate(runtimes)
    }


def _save(figure: Figure, path: Path, title: str, note: str) -> Path:
    add_title(figure, title, note)
    save_figure(figure, path)
    return path
