"""Pictures as PNG: learning curves, confusion matrix and probabilities of a run, and an empty figure for others.

Names that come from a user are drawn as `shown` gives them. They may have any characters, and any length.
"""

from __future__ import annotations

import bisect
import io
import math
import threading
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from histo_export.errors import not_written
from histo_export.files import atomic_file
from histo_export.measures import BINS, calibration_bins, calibration_error
from histo_export.metrics import SPLIT_TILES
from histo_export.spec import percent

if TYPE_CHECKING:
    from histo_export.measures import Floats, Labels
    from histo_export.metrics import AccuracyReport

DPI = 200
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f", "#8b4513", "#4b0092")
"""Of lines, points and bars in all pictures. The first seven are Okabe and Ito's, which colour-blind readers can tell
apart; line styles and `MARKERS` repeat the difference for grey print. With more classes than colours there is the line
of each, without its name."""
MARKERS = "osD^vP*Xhp"
TRAIN, VAL, INK, CHANCE = COLOURS[0], COLOURS[1], "#333333", "#7a7a7a"
GRID, COLUMNS = "#dddddd", "#e6e6e6"
TITLE, LABEL, TICK = 9.5, 9, 8
"""Sizes of text in points: of the title and its note, of axes and panels, and of ticks and legends."""
SHARED, NUMBERED, NAMED = 20, 60, 150
"""Most classes of a confusion matrix with counts and shares in its fields, with counts, and with each class named."""
LEAST_SPAN = 0.1
"""Of the axis of the accuracy."""
DECADES = 30
"""How many times the smallest loss the largest one is where the axis of the loss is logarithmic."""
NOT_FOR_TEXT = ("Last Resort", "cm")
"""Beginnings of the names of matplotlib's own fonts that draw boxes, or TeX's symbols in place of Unicode's."""


def save_curves(
    path: Path, history: Sequence[dict[str, Any]], *, title: str, chance: float, keep: str = "best", kept: int
) -> None:
    """Accuracy and loss of training and validation over the epochs, the kept epoch and the accuracy of chance marked.

    Args:
        path: the PNG.
        history: rows as in metrics.csv.
        title: one line above.
        chance: share of the largest class in validation, the accuracy of always answering it.
        keep: see `TrainConfig`.
        kept: the epoch (from 1) whose weights the run keeps.
    """
    best = next(row for row in history if row["epoch"] == kept)
    validation = f"{percent(best['val_accuracy'])} validation accuracy"
    label_of_kept = {
        "best": f"best epoch: {kept} ({validation}{', optimistic' if len(history) > 1 else ''})",
        "last": f"kept, the last epoch: {kept} ({validation})",
        "ema": f"kept, the moving average after epoch {kept} ({validation})",
    }[keep]
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
        axes.axvline(best["epoch"], color=INK, linewidth=0.8, linestyle=":", zorder=0)
        axes.plot(
            best["epoch"],
            best[f"val_{quantity}"],
            "o:",
            color=INK,
            mfc="none",
            markersize=7,
            linewidth=0.8,
            label=label_of_kept,
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        margin = max(0.3, 0.02 * len(history))
        axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
        if quantity == "accuracy":
            axes.set_ylabel("accuracy")
            axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(percent_ticks())
            label = f"chance: {percent(chance)}"
            axes.axhline(chance, color=CHANCE, linewidth=0.9, linestyle="-.", zorder=3, label=label)
            _widen_accuracy(axes)
        else:
            axes.set_ylabel("cross entropy (nats)")
            _scale_loss(axes, [row[f"{split}_loss"] for row in history for split in ("train", "val")])
        tidy(axes)
    add_legend(figure, figure.axes[0], 3)
    add_title(figure, title)
    save_figure(figure, path)


def _widen_accuracy(axes: Axes) -> None:
    """Gives the axis of the accuracy at least `LEAST_SPAN`: a change of two tiles must not look steep."""
    low, high = axes.get_ylim()
    if high - low < LEAST_SPAN:
        margin = 0.05 * LEAST_SPAN
        low = min(max((low + high - LEAST_SPAN) / 2, -margin), 1 + margin - LEAST_SPAN)
        axes.set_ylim(low, low + LEAST_SPAN)


def _scale_loss(axes: Axes, losses: Sequence[float]) -> None:
    """The axis of the loss: logarithmic where the losses span decades, else from 0."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    if not finite or finite[-1] <= 0:
        axes.set_ylim(0, 1)
        return
    if finite[0] > 0 and finite[-1] > DECADES * finite[0]:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if finite[-1] < 1000 * finite[0] else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    # The loss of the first epoch can be ten times the later ones, which would flatten the rest of the curve.
    top = finite[-1] if len(losses) < 8 else min(finite[-1], 3 * finite[int(0.9 * (len(finite) - 1))])
    axes.set_ylim(0, 1.05 * top)
    if finite[-1] > 1.05 * top:
        axes.set_title(f"(peaks up to {finite[-1]:.1f} cut off)", color=INK)


def save_confusion(path: Path, report: AccuracyReport, *, title: str, split: str) -> None:
    """The confusion matrix: counts and their share of the true class (rows sum to 100 %), which is the colour too.

    The picture stays below 16 inches for any number of classes: above 20 it has no shares, above 60 no numbers, and
    above 150 only some of the classes are named.

    Args:
        path: the PNG.
        report: the figures.
        title: one line above.
        split: a key of `metrics.SPLIT_TILES`.
    """
    counts = np.array(report.confusion)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n = len(report.classes)
    side = 1.9 + min(0.62 * n, 12.0)
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    cell = 72 * min(0.62, 12.0 / n)  # points
    size = 9 if n <= 10 else max(4, min(6, 0.8 * cell))
    if n <= NUMBERED:
        for row, column in np.argwhere((counts > 0) | (n <= SHARED)).tolist():  # zeros would fill a large matrix
            colour = "white" if fractions[row, column] > 0.55 else INK
            text = f"{counts[row, column]:,}"
            fitting = min(size, 1.5 * cell / len(text))
            if n <= SHARED and counts[row, column]:
                text += f"\n{percent(fractions[row, column])}"
                fitting = min(fitting, size - 1)
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fitting)
    _name_classes(axes, [shown(name, 24) for name in report.classes], size)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class", fontsize=LABEL)
    axes.set_ylabel("true class", fontsize=LABEL)
    low, high = report.interval
    axes.set_title(
        f"{title}\n{report.tiles:,} {SPLIT_TILES[split]}: accuracy {percent(report.accuracy)} "
        f"(95 % interval {percent(low)} to {percent(high)})",
        fontsize=TITLE,
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=percent_ticks())
    bar.set_label("share of the true class", fontsize=TICK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TICK, length=2)
    save_figure(figure, path)


def _name_classes(axes: Axes, names: Sequence[str], size: float) -> None:
    """Names the rows and columns of a confusion matrix, and separates them by white lines where there is room."""
    n = len(names)
    upright = sum(map(len, names)) <= 9 * n and max(map(len, names)) <= 10 and n <= 10
    tilt: dict[str, Any] = {} if upright else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    if n > 20:
        tilt["rotation"] = 90
    step = 1 if n <= NAMED else math.ceil(n / 50)
    axes.set_xticks(range(0, n, step), names[::step], **tilt)
    axes.set_yticks(range(0, n, step), names[::step])
    axes.tick_params(length=0 if step == 1 else 2, labelsize=size if step == 1 else 6)
    if n <= NUMBERED:
        axes.set_xticks(np.arange(n - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(n - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5 if n <= 20 else 0.5)
        axes.tick_params(which="minor", length=0)


def save_probabilities(
    path: Path, report: AccuracyReport, probabilities: Floats, labels: Labels, *, title: str, split: str
) -> None:
    """ROC and precision-recall curves of each class against the rest, and the reliability diagram; by scikit-learn.

    Args:
        path: the PNG.
        report: of the same tiles, with `measures`.
        probabilities: `(n, classes)`.
        labels: `(n,)`.
        title: one line above.
        split: a key of `metrics.SPLIT_TILES`.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    assert report.measures is not None
    figure = new_figure(10.2, 3.9)
    roc, recall, reliability = figure.subplots(1, 3)
    few = len(report.classes) <= len(COLOURS)
    for column, name in enumerate(report.classes):
        truth = labels == column
        auc, precision = report.measures.roc_auc[column].value, report.measures.average_precision[column].value
        if auc is None or precision is None:
            continue
        false, true, _ = roc_curve(truth, probabilities[:, column])
        precisions, recalls, _ = precision_recall_curve(truth, probabilities[:, column])
        look: dict[str, Any] = {"color": COLOURS[column] if few else CHANCE, "linewidth": 1.3 if few else 0.4}
        label = f"{shown(name, 18)}: AUC {auc:.3f}, AP {precision:.3f}" if few else None
        roc.plot(false, true, label=label, **look)
        recall.plot(recalls, precisions, drawstyle="steps-post", **look)
    roc.plot([0, 1], [0, 1], "-.", color=CHANCE, linewidth=0.9, label="chance (ROC)")
    roc.set(xlabel="false positives, share of the rest", ylabel="true positives, share of the class")
    recall.set(xlabel="recall", ylabel="precision")
    draw_reliability(reliability, probabilities, labels)
    for axes, name in ((roc, "ROC"), (recall, "precision and recall"), (reliability, "reliability")):
        axes.set_title(name)
        share_axes(axes)
    add_legend(figure, roc, 4)
    add_title(figure, title, f"{report.tiles:,} {SPLIT_TILES[split]}, each class against the rest")
    save_figure(figure, path)


def save_calibration(
    path: Path, before: Floats, after: Floats, labels: Labels, *, title: str, temperature: float, split: str
) -> None:
    """The reliability diagrams before and after calibration, side by side.

    Args:
        path: the PNG.
        before, after: probabilities `(n, classes)`.
        labels: `(n,)`.
        title: one line above.
        temperature: by which the logits were divided.
        split: a key of `metrics.SPLIT_TILES`.
    """
    figure = new_figure(7.2, 3.9)
    sides = figure.subplots(1, 2)
    names = ("before", f"after: logits / {temperature:.3g}")
    for axes, probabilities, name in zip(sides, (before, after), names, strict=True):
        draw_reliability(axes, probabilities, labels)
        axes.set_title(f"{name}\ncalibration error {percent(calibration_error(probabilities, labels))}")
        share_axes(axes)
    add_title(figure, title, f"{len(labels):,} {SPLIT_TILES[split]}")
    save_figure(figure, path)


def draw_reliability(axes: Axes, probabilities: Floats, labels: Labels) -> None:
    """Accuracy over the probability of the top class, in bins; grey columns are the share of the tiles in each bin."""
    bins, confidence, right = calibration_bins(probabilities, labels)
    tiles = np.bincount(bins, minlength=BINS)
    used = tiles > 0
    mean, accuracy = (np.bincount(bins, values, BINS)[used] / tiles[used] for values in (confidence, right))
    axes.bar((np.arange(BINS) + 0.5) / BINS, tiles / tiles.sum(), width=0.9 / BINS, color=COLUMNS)
    axes.plot([0, 1], [0, 1], "-.", color=CHANCE, linewidth=0.9)
    axes.plot(mean, accuracy, "-", color=TRAIN, linewidth=1.0)
    axes.scatter(mean, accuracy, s=8 + 60 * tiles[used] / tiles.max(), color=TRAIN, zorder=3)
    axes.set(xlabel="probability of the top class", ylabel="accuracy; columns: share of the tiles")


def share_axes(axes: Axes) -> None:
    """Both axes from 0 % to 100 %."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent_ticks())
    tidy(axes)


def tidy(axes: Axes) -> None:
    """The look of all diagrams: text of one size, a pale grid, no frame."""
    axes.tick_params(labelsize=TICK)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_fontsize(LABEL)
    axes.grid(linewidth=0.4, color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_title(figure: Figure, title: str, note: str = "") -> None:
    """One line above a figure, and perhaps a second one on how to read it."""
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=TITLE)


def add_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """The legend of a diagram, below the figure and without a frame."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=TICK)


def percent_ticks() -> PercentFormatter:
    """For an axis of fractions: "27.5 %", with as many decimals at each tick of the axis."""
    return PercentFormatter(1, symbol=" %")


def shown(name: str, most: int = 60) -> str:
    """A name as a text of a picture: on one line, and without a character that no installed font has.

    Args:
        name: of a file or a class, from a user.
        most: longer names lose their middle; wide characters count twice.

    Returns:
        Text for `new_figure`. Characters that can't be drawn are written like "\\u817f".
    """
    drawn = [character if _drawable(character) else _escaped(character) for character in name]
    widths = [2 * len(text) if unicodedata.east_asian_width(text[0]) in "FW" else len(text) for text in drawn]
    if sum(widths) > most:
        head = bisect.bisect(list(accumulate(widths)), (most - 1) // 2)
        tail = bisect.bisect(list(accumulate(reversed(widths))), most // 2)
        drawn[head : len(drawn) - tail] = ["…"]
    return "".join(drawn)


def _drawable(character: str) -> bool:
    return character.isprintable() and _family_with(character) is not None


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    # Not pyplot: no global state, no display, safe in any thread.
    figure = _Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.09))
    FigureCanvasAgg(figure)
    return figure


class _Figure(Figure):
    """A figure that shows dollar signs as they are, because names are no formulas, and that takes characters which a
    font lacks from other installed fonts."""

    def draw(self, renderer: RendererBase) -> None:
        for axes in self.axes:  # makes their texts, which are made late
            axes.get_xticklabels()
            axes.get_yticklabels()
        for text in self.findobj(Text):
            assert isinstance(text, Text)
            text.set_parse_math(False)
            needed = {family for character in text.get_text() if (family := _family_with(character))}
            if further := sorted(needed - set(text.get_fontfamily())):
                text.set_fontfamily([*text.get_fontfamily(), *further])
        super().draw(renderer)


@cache
def _family_with(character: str) -> str | None:
    """The family of an installed font that has a character; "" where it is the default; None where there is none."""
    if ord(character) in _characters(font_manager.findfont(font_manager.FontProperties())):
        return ""
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith(NOT_FOR_TEXT)]
    # Regular fonts without serifs come first, as the default is one.
    fonts.sort(key=lambda font: (font.style != "normal", abs(int(font.weight) - 400), "Sans" not in font.name))
    for font in fonts:
        if ord(character) in _characters(font.fname):
            return font.name
    return None


@cache
def _characters(font_file: str) -> frozenset[int]:
    """The code points that a font has."""
    try:
        return frozenset(font_manager.get_font(font_file).get_charmap())
    except (OSError, RuntimeError):  # deleted since matplotlib listed it, or damaged
        return frozenset()


_drawing = threading.Lock()
"""Matplotlib's caches of fonts and texts are not safe in two threads."""


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG atomically; HistoError where it can't be written."""
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(png_of(figure))
    except OSError as error:
        raise not_written(path, error) from error


def png_of(figure: Figure, compression: int = 6) -> bytes:
    """A figure, as `new_figure` made it, as PNG. Photographs hardly get smaller by more than compression 1."""
    file = io.BytesIO()
    options = {"compress_level": compression}
    with _drawing:
        # "tight", because constrained layout forgets the y label of an image with a colour bar.
        figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08, pil_kwargs=options)
    return file.getvalue()
