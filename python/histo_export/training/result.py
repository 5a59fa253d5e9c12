"""What a training run comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histo_export.metrics import AccuracyReport


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        out: the folder.
        checkpoint: `best.ckpt` in it.
        best_epoch: the epoch (from 1) that it holds.
        val_accuracy: of that epoch.
        test: on the tiles of the test split that are in no other split, in fp32.
        epochs: length of the run.
        seconds_per_epoch: wall time, training and validation, writing files not included.
        device: what it ran on, in words.
        precision: see `precision.choose_precision`.
        history: a row an epoch, as in metrics.csv: plain cross entropy in nats, `lr` of the last step.
        training: the checkpoint's provenance.
    """

    out: Path
    checkpoint: Path
    best_epoch: int
    val_accuracy: float
    test: AccuracyReport
    epochs: int
    seconds_per_epoch: list[float]
    device: str
    precision: dict[str, Any]
    history: list[dict[str, Any]]
    training: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json.

        `checkpoint` (file name), `best_epoch`, `val_accuracy`, `epochs`, `seconds_per_epoch`, `device`, `precision`,
        `history`; `test`: the fields of `AccuracyReport` and `macro_f1`; `training`: provenance (`recipe`, `settings`,
        `augmentation`, `epochs`, `batch_size`, `lr`, `seed`, `weights`, `weights_report`, `channels_last`,
        `processes`, `data`, `notes`, `versions`, and of the best epoch `epoch`, `val_accuracy`, `val_loss`).
        """
        training = {k: v for k, v in self.training.items() if k not in ("history", "test", "precision", "device")}
        return {
            "checkpoint": self.checkpoint.name,
            "best_epoch": self.best_epoch,
            "val_accuracy": self.val_accuracy,
            "test": self.test.to_dict(),
            "epochs": self.epochs,
            "seconds_per_epoch": self.seconds_per_epoch,
            "device": self.device,
            "precision": self.precision,
            "history": self.history,
            "training": training,
        }


def best_row(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the best epoch: highest validation accuracy; of equals the lower validation loss, then the earlier."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
