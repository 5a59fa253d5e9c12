"""Pictures as PNG: the learning curves and the confusion matrix of a run, and an empty figure for others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from histo_export.errors import not_written
from histo_export.files import atomic_file

if TYPE_CHECKING:
    from histo_export.metrics import TestReport

TRAIN, VAL, INK = "#2f6db3", "#d1672c", "#333333"
"""Colour-blind readers can tell blue and orange apart; line styles repeat the difference for grey print."""
DPI = 200


def save_curves(path: Path, history: Sequence[dict[str, Any]], *, title: str) -> None:
    """Accuracy and loss of training and validation over the epochs, the best epoch marked.

    Args:
        path: the PNG.
        history: rows as in metrics.csv.
        title: one line above.
    """
    best = max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    epochs = [row["epoch"] for row in history]
    figure = new_figure(7.2, 3.2)
    for axes, quantity in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for split, colour, style, label in (
            ("train", TRAIN, "-", "training"),
            ("val", VAL, "--", "validation"),
        ):
            values = [row[f"{split}_{quantity}"] for row in history]
            marker = "o" if len(history) <= 30 else None
            axes.plot(epochs, values, style, color=colour, label=label, linewidth=1.6, marker=marker, markersize=2.8)
        label = f"best epoch: {best['epoch']} ({best['val_accuracy']:.1%} validation accuracy)"
        axes.axvline(best["epoch"], color=INK, linewidth=0.8, linestyle=":", zorder=0)
        axes.plot(
            best["epoch"],
            best[f"val_{quantity}"],
            "o:",
            color=INK,
            mfc="none",
            markersize=7,
            linewidth=0.8,
            label=label,
        )
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        margin = max(0.3, 0.02 * len(history))
        axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if quantity == "accuracy":
            axes.set_ylabel("accuracy", fontsize=9)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        else:
            axes.set_ylabel("cross entropy (nats)", fontsize=9)
            # The loss of the first epoch can be ten times the later ones, which would flatten the rest of the curve.
            finite = sorted(row[f"{split}_loss"] for row in history for split in ("train", "val"))
            top = finite[-1] if len(history) < 4 else min(finite[-1], 3 * finite[int(0.9 * (len(finite) - 1))])
            axes.set_ylim(0, 1.05 * top)
            if finite[-1] > 1.05 * top:
                axes.set_title(f"(peaks up to {finite[-1]:.1f} cut off)", fontsize=7.5, color=INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9.5)
    save_figure(figure, path)


def save_confusion(path: Path, report: TestReport, *, title: str) -> None:
    """The confusion matrix: counts, coloured by their fraction of the true class (rows sum to 1)."""
    counts = np.array(report.confusion)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n = len(report.classes)
    side = 1.9 + 0.62 * n
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    size = 9 if n <= 10 else 6
    for row in range(n):
        for column in range(n):
            colour = "white" if fractions[row, column] > 0.55 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=size)
    upright = sum(len(name) for name in report.classes) <= 9 * n and max(map(len, report.classes)) <= 10
    tilt: dict[str, Any] = {} if upright else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(n), report.classes, **tilt)
    axes.set_yticks(range(n), report.classes)
    axes.tick_params(length=0, labelsize=size)
    axes.set_xticks(np.arange(n - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(n - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    low, high = report.interval
    axes.set_title(
        f"{title}\ntest accuracy {report.accuracy:.1%} (95% interval {low:.1%} to {high:.1%}), {report.tiles:,} tiles",
        fontsize=8.5,
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    # Not pyplot: no global state, no display, safe in any thread.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG atomically; HistoError where it can't be written."""
    try:
        with atomic_file(path) as partial:
            # "tight", because constrained layout forgets the y label of an image with a colour bar.
            figure.savefig(partial, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08)
    except OSError as error:
        raise not_written(path, error) from error
