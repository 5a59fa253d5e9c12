"""How good a classifier is: accuracy with its interval, the figures of each class, and those of the probabilities.

The latter (`measures`) need scikit-learn; without it, they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.extras import installed
from histo_export.measures import Measures, Positive, log_losses, measures_of
from histo_export.spec import percent
from histo_export.statistics import FEW_GROUPS, bootstrap_interval, mean_interval

SPLIT_TILES = {
    "train": "training tiles",
    "val": "validation tiles",
    "test": "test tiles",
    "labelled": "labelled tiles",
}
"""What the tiles of a split are called. "labelled": tiles of which it is unknown whether the network has seen them."""


@dataclass(frozen=True)
class AccuracyReport:
    """Accuracy and what it is made of; class by class in the order of `classes`.

    Attributes:
        tiles: how many were judged.
        accuracy: fraction of tiles whose largest logit is at the true class.
        interval: its 95 % percentile bootstrap interval over groups, or over tiles where there are no groups. Tiles of
            one slide or patient are not independent, so between patients the spread is wider.
        groups: number of groups (slides or patients); None: unknown.
        loss: mean cross entropy in nats.
        precision, recall, f1: per class; 0 where undefined.
        support: tiles per class.
        confusion: counts, rows true class, columns predicted class.
        measures: of the probabilities; None without scikit-learn, and where a logit is not finite.
    """

    classes: tuple[str, ...]
    tiles: int
    accuracy: float
    interval: tuple[float, float]
    loss: float
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    groups: int | None = None
    measures: Measures | None = None

    @property
    def macro_f1(self) -> float:
        """Mean of the F1 of the classes that have tiles."""
        return self._mean(self.f1)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recall of the classes that have tiles: each class counts the same, however many tiles it has."""
        return self._mean(self.recall)

    @property
    def chance(self) -> float:
        """The accuracy of a guess, each class as likely."""
        return 1 / len(self.classes)

    @property
    def majority_accuracy(self) -> float:
        """The accuracy of always answering the class that has most tiles."""
        return majority_share(self.support)

    def _mean(self, per_class: tuple[float, ...]) -> float:
        values = [value for value, tiles in zip(per_class, self.support, strict=True) if tiles]
        return sum(values) / len(values)

    def remarks(self) -> list[str]:
        """What accuracy alone hides, as sentences: classes that are never predicted."""
        predicted = [sum(column) for column in zip(*self.confusion, strict=True)]
        answered = [name for name, count in zip(self.classes, predicted, strict=True) if count]
        if len(answered) == 1:
            return [f"the network answers {answered[0]} for every tile: it tells no classes apart"]
        missed = [
            name
            for name, count, tiles in zip(self.classes, predicted, self.support, strict=True)
            if tiles and not count
        ]
        return [f"never predicted: {', '.join(missed)}"] if missed else []

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(v) for key, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        derived = ("macro_f1", "balanced_accuracy", "majority_accuracy", "chance")
        return {key: plain(value) for key, value in asdict(self).items()} | {key: getattr(self, key) for key in derived}


def majority_share(tiles: Sequence[int]) -> float:
    """Chance: the accuracy of always answering the class that has most tiles, given the tiles of each class."""
    return max(tiles) / sum(tiles)


def chance_remark(
    split: str,
    right: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    groups: npt.NDArray[np.generic] | None = None,
    balanced: bool = False,
) -> str | None:
    """A sentence for a network that may have learnt nothing; None where its accuracy is surely above chance.

    Args:
        split: what to call the tiles.
        right: bool `(n,)`, whether the network is right.
        labels: `(n,)`.
        classes: names.
        groups: `(n,)`, see `report_of`.
        balanced: judge by the balanced accuracy, of a network that was trained for it; its chance is a guess.
    """
    tiles = np.bincount(labels, minlength=len(classes))
    by_class = labels if balanced else None
    accuracy = class_mean(right, labels) if balanced else float(right.mean())
    chance = 1 / np.count_nonzero(tiles) if balanced else majority_share(tiles.tolist())
    low, high = mean_interval(right.astype(np.float64), groups=groups, labels=by_class)
    known = groups is None or len(np.unique(groups)) > 1
    if (low if known else accuracy) > chance:
        return None
    how = "a guess" if balanced else f"always answering {classes[int(tiles.argmax())]}"
    interval = f"95 % interval {percent(low)} to {percent(high)}, {_interval_is(groups)}" if known else "one group"
    return (
        f"{split} {'balanced ' if balanced else ''}accuracy {percent(accuracy)} ({interval}, {len(labels):,} tiles) "
        f"is not above chance: {how} gives {percent(chance)}. Train longer, and check the tiles and their labels"
    )


def _interval_is(groups: npt.NDArray[np.generic] | None) -> str:
    """What an interval rests on."""
    if groups is None:
        return "by tile"
    count = len(np.unique(groups))
    return f"by {count:,} groups" + (", which says little" if count < FEW_GROUPS else "")


def class_mean(values: npt.NDArray[np.generic], labels: npt.NDArray[np.int64]) -> float:
    """The mean over classes of the mean of a value of their tiles; of right answers it is the balanced accuracy."""
    tiles = np.bincount(labels)
    return float((np.bincount(labels, values.astype(np.float64))[tiles > 0] / tiles[tiles > 0]).mean())


def against_colour(colour: Mapping[str, Any]) -> str:
    """What the comparison with the colour floor says against a network, given `ColourFloor.to_dict()`.

    Returns:
        Words that follow "the network is … points from it"; "" where the network is surely better.
    """
    groups, low = colour.get("groups"), colour["ahead_interval"][0]
    if groups == 1:
        return "this decides nothing: the test has one group, so that no interval is known"
    if groups is not None and groups < FEW_GROUPS:
        return f"this says little: an interval over {groups} groups"
    if low > 0:
        return ""
    if colour["interval"][0] <= colour.get("no_skill", 0):
        return "it does not beat it, and colour alone tells no classes apart"
    return "it does not beat it, and may have learnt nothing but the stain"


def report_of(
    classes: tuple[str, ...],
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    seed: int = 0,
    groups: npt.NDArray[np.generic] | None = None,
    *,
    positive: Positive | None = None,
) -> AccuracyReport:
    """The figures of logits `(n, classes)` against labels `(n,)`.

    Args:
        classes: names.
        logits, labels: of the tiles.
        seed: of the bootstrap.
        groups: `(n,)`, the slide or patient of each tile, by which intervals are then made; None: unknown.
        positive: of two classes the one that is looked for, and the specificity at which the sensitivity is told.
    """
    n, k = len(labels), len(classes)
    predicted = logits.argmax(1)
    confusion = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    right, support, answers = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    correct = int(right.sum())
    hits = (predicted == labels).astype(np.float64)
    report = AccuracyReport(
        classes=tuple(classes),
        tiles=n,
        accuracy=correct / n,
        interval=bootstrap_interval(correct, n, seed) if groups is None else mean_interval(hits, seed, groups),
        loss=_cross_entropy(logits, labels),
        precision=_shares(right, answers),
        recall=_shares(right, support),
        f1=_shares(2 * right, support + answers),
        support=tuple(support.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
        groups=None if groups is None else len(np.unique(groups)),
    )
    if not installed("sklearn"):
        return report
    counted = report.balanced_accuracy, report.macro_f1
    rest = measures_of(classes, logits, labels, counted=counted, seed=seed, groups=groups, positive=positive)
    return replace(report, measures=rest)


def _shares(parts: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Part over whole, class by class; 0 where the whole is 0."""
    return tuple((parts / np.maximum(wholes, 1)).tolist())


def _cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The mean over tiles of -log softmax(logits)[label], in nats."""
    with np.errstate(invalid="ignore"):  # infinite logits give NaN
        return float(log_losses(logits, labels).mean())
