"""How good a trained network is on tiles that it never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec

if TYPE_CHECKING:
    from histo_export.data.transforms import TorchTiles

RESAMPLES = 2000


@dataclass(frozen=True)
class TestReport:
    """Accuracy and what it is made of; class by class in the order of `classes`.

    Attributes:
        tiles: size of the test split.
        accuracy: fraction of tiles whose largest logit is at the true class.
        interval: its 95 % percentile bootstrap interval over tiles. Tiles of one slide or patient are not
            independent, so between patients the spread is wider.
        loss: mean cross entropy in nats.
        precision, recall, f1: per class; 0 where undefined.
        support: test tiles per class.
        confusion: counts, rows true class, columns predicted class.
    """

    __test__ = False  # not a pytest class

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


def predict(
    net: TileNet,
    spec: ModelSpec,
    tiles: TorchTiles,
    device: torch.device,
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> npt.NDArray[np.float32]:
    """Logits `(len(tiles), classes)` in fp32 (TF32 off) and evaluation mode, in the order of the tiles."""
    net = net.to(device, memory_format=torch.channels_last).eval()
    logits = []
    done = 0
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for batch, _ in DataLoader(tiles, batch_size, num_workers=workers, pin_memory=device.type == "cuda"):
            batch = batch.to(device).contiguous(memory_format=torch.channels_last)
            logits.append(net(normalise(batch, spec)).float().cpu().numpy())
            done += len(batch)
            on_batch(done)
    return np.concatenate(logits)


def bootstrap_interval(correct: int, tiles: int, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap interval of an accuracy (Efron and Tibshirani 1993, chapter 13).

    Drawing `tiles` tiles with replacement and counting the correct ones is a binomial draw, so no tile moves.
    """
    resampled = np.random.default_rng(seed).binomial(tiles, correct / tiles, resamples) / tiles
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def report_of(
    classes: tuple[str, ...], logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int = 0
) -> TestReport:
    """The figures of logits `(n, classes)` against labels `(n,)`."""
    scores, truth = torch.from_numpy(logits), torch.from_numpy(np.array(labels, dtype=np.int64))
    predicted = scores.argmax(1)
    confusion = multiclass_confusion_matrix(predicted, truth, len(classes))

    def per_class(metric: Callable[..., torch.Tensor]) -> tuple[float, ...]:
        return tuple(metric(predicted, truth, len(classes), average=None).tolist())

    correct = int((predicted == truth).sum())
    return TestReport(
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
