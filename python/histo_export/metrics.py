"""How good a classifier is: accuracy with its interval, and the figures of each class."""

from __future__ import annotations

from collections.abc import Callable
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
        """Mean of the classes' F1."""
        return sum(self.f1) / len(self.f1)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""

        def plain(value: Any) -> Any:
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return {**{key: plain(value) for key, value in asdict(self).items()}, "macro_f1": self.macro_f1}


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
