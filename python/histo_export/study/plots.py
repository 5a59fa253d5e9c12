"""The pictures of a study, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from histo_export.figures import (
    CHANCE,
    COLOURS,
    COLUMNS,
    INK,
    MARKERS,
    TICK,
    add_legend,
    add_title,
    draw_reliability,
    new_figure,
    percent_ticks,
    save_figure,
    share_axes,
    shown,
    tidy,
)
from histo_export.measures import calibration_error, probabilities_of
from histo_export.spec import percent
from histo_export.study.design import Arm
from histo_export.study.runs import Answer, Study
from histo_export.study.timings import rounds_of, summaries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 4
"""In a row."""


def draw(study: Study, answer: Answer, timings: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws every picture that there are data for; returns the files in the order in which they are best read."""
    files = [_curves(study, folder / "curves.png")]
    if any(answer.comparisons.values()):
        files.append(_differences(study, answer, folder / "differences.png"))
    if "inference" in timings:
        files.append(_accuracy(study, answer, timings, folder / "accuracy.png"))
    files.append(draw_calibration(study, answer, folder / "calibration.png"))
    return files


def _colour(study: Study, pool: int) -> str:
    return COLOURS[study.design.pools.index(pool) % len(COLOURS)]


def _title(study: Study, what: str) -> str:
    quick = ", heads on frozen feature maps" if study.design.quick else ""
    synthetic = " (synthetic tiles)" if study.data.synthetic else ""
    return f"{shown(study.data.name)}{synthetic}: {what}{quick}"


def _curves(study: Study, path: Path) -> Path:
    """Accuracy and loss of training and validation over the epochs: mean over seeds, and a band from least to most."""
    design = study.design
    rows = [(recipe, quantity) for recipe in design.recipes for quantity in ("accuracy", "loss")]
    figure = new_figure(8.4, 2.7 * len(rows))
    panels = figure.subplots(len(rows), 2, squeeze=False, sharey="row", sharex=False)
    for line, (recipe, quantity) in zip(panels, rows, strict=True):
        for axes, split, name in zip(line, ("train", "val"), ("training", "validation"), strict=True):
            for pool in design.pools:
                _band(study, axes, Arm(recipe, pool), f"{split}_{quantity}")
            axes.set_title(f"{recipe}: {name}" if len(design.recipes) > 1 else name)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            tidy(axes)
        line[0].set_ylabel("accuracy" if quantity == "accuracy" else "cross entropy (nats)")
        if quantity == "accuracy":
            line[0].yaxis.set_major_formatter(percent_ticks())
    add_legend(figure, panels[0][0], len(design.pools))
    seeds = max(len(own) for own in study.right().values())
    add_title(figure, _title(study, "learning curves"), f"mean of {seeds} seeds, band from least to most")
    save_figure(figure, path)
    return path


def _band(study: Study, axes: Axes, arm: Arm, column: str) -> None:
    histories = [outcome.history for (each, _), outcome in sorted(study.outcomes.items()) if each == arm]
    if not histories:
        return
    values = np.array([[row[column] for row in history] for history in histories])
    epochs = [row["epoch"] for row in histories[0]]
    colour, marker = _colour(study, arm.pool), MARKERS[study.design.pools.index(arm.pool) % len(MARKERS)]
    axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    few = marker if len(epochs) <= 30 else None
    axes.plot(epochs, values.mean(0), color=colour, linewidth=1.5, marker=few, markersize=3, label=f"pool {arm.pool}")


def _differences(study: Study, answer: Answer, path: Path) -> Path:
    """Each pair: the difference of each seed, its mean, both intervals, and the margin as a band."""
    pairs = [each for each in answer.comparisons.values() if each is not None]
    figure = new_figure(7.6, 1.5 + 0.42 * len(pairs))
    axes = figure.subplots()
    margin = 100 * study.design.margin
    axes.axvspan(
        -margin, margin, color=COLUMNS, linewidth=0, label=f"margin: ±{margin:g} point{'' if margin == 1 else 's'}"
    )
    axes.axvline(0, color=CHANCE, linewidth=0.8)
    for place, pair in enumerate(pairs):
        interval, bootstrap = (100 * np.array(each) for each in (pair.interval, pair.bootstrap))
        colour = _colour(study, pair.arm.pool)
        axes.plot(bootstrap, [place + 0.16] * 2, color=colour, linewidth=1, alpha=0.7)
        axes.plot(interval, [place] * 2, color=colour, linewidth=2.6, solid_capstyle="butt")
        axes.plot(100 * np.array(pair.by_seed), [place - 0.2] * len(pair.by_seed), "|", color=INK, markersize=6)
        axes.plot(100 * pair.difference, place, "o", color=colour, markersize=6)
        axes.annotate(
            pair.verdict, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", size=TICK
        )
    several = len(study.design.recipes) > 1
    names = [f"{_name(pair.arm, several)} against {_name(pair.baseline, several)}" for pair in pairs]
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(len(pairs) - 0.5, -0.6)
    axes.set_xlabel("difference of test accuracy, points (right: the first one is better)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    tidy(axes)
    add_legend(figure, axes, 1)
    resampled = "groups" if study.data.test.groups is not None else "tiles"
    note = f"thick: 95 % of the posterior; thin: bootstrap over seeds and {resampled}; ticks: single seeds"
    add_title(figure, _title(study, "paired differences"), note)
    save_figure(figure, path)
    return path


def _name(arm: Arm, with_recipe: bool) -> str:
    return f"{arm.recipe}, pool {arm.pool}" if with_recipe else f"pool {arm.pool}"


def _accuracy(study: Study, answer: Answer, timings: Mapping[str, Any], path: Path) -> Path:
    """Test accuracy over the latency of one tile, with the recommended arm marked."""
    batch = min(timings["inference"]["batches"], key=int)
    times = summaries(rounds_of(timings["inference"]["batches"][batch]))
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    right = study.right()
    for arm in study.design.arms:
        accuracies = [float(own.mean()) for own in right[arm].values()]
        if not accuracies or arm.pool not in times:
            continue
        summary, mean = times[arm.pool][0], float(np.mean(accuracies))
        marker = MARKERS[study.design.recipes.index(arm.recipe) % len(MARKERS)]
        x, colour = 1e3 * summary.median / int(batch), _colour(study, arm.pool)
        error_x = [[x - 1e3 * summary.low / int(batch)], [1e3 * summary.high / int(batch) - x]]
        error_y = [[mean - min(accuracies)], [max(accuracies) - mean]]
        look: dict[str, Any] = {"elinewidth": 0.9, "capsize": 3, "markersize": 7}
        axes.errorbar(x, mean, error_y, error_x, fmt=marker, color=colour, label=str(arm), **look)
        if arm == answer.recommendation.arm:
            word = "recommended" if answer.recommendation.decided else "recommended so far"
            axes.plot(x, mean, "o", mfc="none", color=INK, markersize=15, label=word, linestyle="none")
    axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel(f"ms for one tile, native engine, {timings['inference']['threads']} threads")
    axes.set_ylabel("test accuracy")
    tidy(axes)
    add_legend(figure, axes, 3)
    note = "whiskers: least and most of the seeds; 95 % interval of the median"
    add_title(figure, _title(study, "accuracy and latency"), note)
    save_figure(figure, path)
    return path


def mean_calibration_error(study: Study, arm: Arm) -> float:
    """Mean over the seeds of an arm that has a complete run."""
    own = [study.logits(outcome) for (each, _), outcome in sorted(study.outcomes.items()) if each == arm]
    return float(np.mean([calibration_error(probabilities_of(logits), study.labels) for logits in own]))


def draw_calibration(study: Study, answer: Answer, path: Path) -> Path:
    """The reliability diagram of each pool with the recommended recipe: the points of all seeds together.

    The error in its title is the mean over the seeds, as in the table; that of all tiles together would be smaller.
    """
    recipe = answer.recommendation.arm.recipe
    arms = [arm for arm in study.design.arms if arm.recipe == recipe and study.right()[arm]]
    columns = min(MOST_PANELS, len(arms))
    lines = -(-len(arms) // columns)
    figure = new_figure(2.9 * columns, 3.3 * lines)
    panels: Sequence[Axes] = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(arms) :]:
        axes.set_axis_off()
    for axes, arm in zip(panels, arms, strict=False):
        own = [study.logits(outcome) for (each, _), outcome in sorted(study.outcomes.items()) if each == arm]
        draw_reliability(axes, probabilities_of(np.concatenate(own)), np.tile(study.labels, len(own)))
        error = percent(mean_calibration_error(study, arm))
        axes.set_title(f"pool {arm.pool}\ncalibration error {error}")
        share_axes(axes)
        axes.label_outer()
    note = "all seeds together; calibration error: mean over the seeds"
    add_title(figure, f"{_title(study, 'calibration')}, recipe {recipe}", note)
    save_figure(figure, path)
    return path
