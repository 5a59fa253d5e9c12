"""What a training run comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from histo_export.metrics import AccuracyReport
from histo_export.spec import ModelSpec


@dataclass(frozen=True)
class RunFacts:
    """When, where and how a run was made.

    Attributes:
        command: as the user typed it; "" where Python called `train`.
        began, finished: UTC, ISO 8601. Of the process that tested the network: it may have resumed the run.
        seconds: between them.
        host: name of the machine.
    """

    command: str
    began: str
    finished: str
    seconds: float
    host: str


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
        spec: the network.
        facts: when, where and how.
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
    spec: ModelSpec
    facts: RunFacts

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json.

        `format` (2; files of format 1 lack this entry, `spec` and `run`); `spec`: the fields of `ModelSpec` (`pool`,
        `classes`, `crop`, `tile_size`, `mpp`, …); `run`: the fields of `RunFacts`; `checkpoint` (file name),
        `best_epoch`, `val_accuracy`, `epochs`, `seconds_per_epoch`, `device`, `precision`, `history`; `test`: the
        fields of `AccuracyReport`, `macro_f1`, `balanced_accuracy`, `majority_accuracy`; `training`: provenance
        (`recipe`, `settings`, `augmentation`, `epochs`, `batch_size`, `lr`, `seed`, `weights`, `weights_report`,
        `channels_last`, `processes`, `data`, `notes`, `versions`, `extended` where epochs were added, and of the best
        epoch `epoch`, `val_accuracy`, `val_loss`).
        """
        training = {k: v for k, v in self.training.items() if k not in ("history", "test", "precision", "device")}
        return {
            "format": 2,
            "spec": self.spec.to_dict(),
            "run": asdict(self.facts),
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
