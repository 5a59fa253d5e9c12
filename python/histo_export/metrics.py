"""How good a classifier is: accuracy with its interval, and the figures of each class."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.statistics import bootstrap_interval

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
        interval: its 95 % percentile bootstrap interval over tiles. Tiles of one slide or patient are not
            independent, so between patients the spread is wider.
        loss: mean cross entropy in nats.
        precision, recall, f1: per class; 0 where undefined.
        support: tiles per class.
        confusion: counts, rows true class, columns predicted class.
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

    @property
    def macro_f1(self) -> float:
        """Mean of the F1 of the classes that have tiles."""
        return self._mean(self.f1)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recall of the classes that have tiles: each class counts the same, however many tiles it has."""
        return self._mean(self.recall)

    @property
    def majority_accuracy(self) -> float:
        """The accuracy of always answering the class that has most tiles."""
        return max(self.support) / self.tiles

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
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        derived = ("macro_f1", "balanced_accuracy", "majority_accuracy")
        return {key: plain(value) for key, value in asdict(self).items()} | {key: getattr(self, key) for key in derived}


def report_of(
    classes: tuple[str, ...], logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int = 0
) -> AccuracyReport:
    """The figures of logits `(n, classes)` against labels `(n,)`."""
    n, k = len(labels), len(classes)
    predicted = logits.argmax(1)
    confusion = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    right, support, answers = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    correct = int(right.sum())
    return AccuracyReport(
        classes=tuple(classes),
        tiles=n,
        accuracy=correct / n,
        interval=bootstrap_interval(correct, n, seed),
        loss=_cross_entropy(logits, labels),
        precision=_shares(right, answers),
        recall=_shares(right, support),
        f1=_shares(2 * right, support + answers),
        support=tuple(support.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def _shares(parts: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Part over whole, class by class; 0 where the whole is 0."""
    return tuple((parts / np.maximum(wholes, 1)).tolist())


def _cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The mean over tiles of -log softmax(logits)[label], in nats."""
    with np.errstate(invalid="ignore"):  # infinite logits give NaN
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
        chosen = shifted[np.arange(len(labels)), labels]
        return float((np.log(np.exp(shifted).sum(1)) - chosen).mean())
