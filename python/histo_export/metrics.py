"""How good a classifier is: accuracy with its interval, and the figures of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from histo_export.spec import percent
from histo_export.statistics import bootstrap_interval


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
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        derived = ("macro_f1", "balanced_accuracy", "majority_accuracy")
        return {key: plain(value) for key, value in asdict(self).items()} | {key: getattr(self, key) for key in derived}


def majority_share(tiles: Sequence[int]) -> float:
    """Chance: the accuracy of always answering the class that has most tiles, given the tiles of each class."""
    return max(tiles) / sum(tiles)


def chance_remark(split: str, accuracy: float, classes: Sequence[str], tiles: Sequence[int]) -> str | None:
    """A sentence for a network that may have learnt nothing; None where its accuracy is surely above chance.

    Args:
        split: what to call the tiles.
        accuracy: on them.
        classes: names.
        tiles: of each class.
    """
    chance = majority_share(tiles)
    low, high = bootstrap_interval(round(accuracy * sum(tiles)), sum(tiles))
    if low > chance:
        return None
    largest = classes[max(range(len(tiles)), key=tiles.__getitem__)]
    return (
        f"{split} accuracy {percent(accuracy)} (95 % interval {percent(low)} to {percent(high)}, {sum(tiles):,} tiles) "
        f"is not above chance: always answering {largest} gives {percent(chance)}. Train longer, and check the tiles "
        "and their labels"
    )


def report_of(
    classes: tuple[str, ...], logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int = 0
) -> AccuracyReport:
    """The figures of logits `(n, classes)` against labels `(n,)`."""
    scores, truth = torch.from_numpy(logits), torch.from_numpy(np.array(labels, dtype=np.int64))
    predicted = scores.argmax(1)
    confusion = multiclass_confusion_matrix(predicted, truth, len(classes))

    def per_class(metric: Callable[..., torch.Tensor]) -> tuple[float, ...]:
        return tuple(metric(predicted, truth, len(classes), average=None).tolist())

    correct = int((predicted == truth).sum())
    return AccuracyReport(
        classes=tuple(classes),
        tiles=len(truth),
        accuracy=correct / len(truth),
        interval=bootstrap_interval(correct, len(truth), seed),
        loss=float(torch.nn.functional.cross_entropy(scores, truth)),
        precision=per_class(multiclass_precision),
        recall=per_class(multiclass_recall),
        f1=per_class(multiclass_f1_score),
        support=tuple(confusion.sum(1).tolist()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )
