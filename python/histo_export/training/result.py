"""What a training run comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histo_export.metrics import AccuracyReport
from histo_export.spec import ModelSpec
from histo_export.training.starts import Start, run_facts


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        out: the folder.
        checkpoint: `best.ckpt` in it.
        best_epoch: the epoch (from 1) that it holds.
        val_accuracy: of that epoch. Optimistic where the epoch was chosen by it (`TrainConfig.keep`).
        test: on the tiles of the test split that are in no other split, in fp32; of a calibrated run after calibration.
        floors: accuracies on the same tiles that a network must beat: `chance` (each class as likely), `majority`
            (always the largest class), `colour` (the fields of `ColourFloor`).
        calibration: the fields of `Calibrated`; None where the run is not calibrated.
        epochs: length of the run.
        seconds_per_epoch: wall time, training and validation, writing files not included.
        device: what it ran on, in words.
        precision: see `precision.choose_precision`.
        history: a row an epoch, as in metrics.csv: plain cross entropy in nats, `lr` of the last step.
        training: the checkpoint's provenance.
        spec: the network.
        starts: when, where and how; all processes that took part, in order.
        remarks: what the accuracies alone hide, as sentences.
    """

    out: Path
    checkpoint: Path
    best_epoch: int
    val_accuracy: float
    test: AccuracyReport
    floors: dict[str, Any]
    calibration: dict[str, Any] | None
    epochs: int
    seconds_per_epoch: list[float]
    device: str
    precision: dict[str, Any]
    history: list[dict[str, Any]]
    training: dict[str, Any]
    spec: ModelSpec
    starts: tuple[Start, ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json.

        `format` (2; files of format 1 lack this entry, `spec`, `run` and `remarks`); `spec`: the fields of `ModelSpec`
        (`pool`, `classes`, `crop`, `tile_size`, `mpp`, …); `run`: see `run_facts`; `checkpoint` (file name),
        `best_epoch`, `val_accuracy`, `epochs`, `seconds_per_epoch`, `device`, `precision`, `history`; `test`: the
        fields of `AccuracyReport`, `macro_f1`, `balanced_accuracy`, `majority_accuracy`, `chance`; `floors`;
        `calibration`; `remarks`; `training`: provenance (`recipe`, `described_recipe`, `settings`, `augmentation`,
        `keep`, `epochs`, `batch_size`, `lr`, `seed`, `weights`, `weights_report`, `channels_last`, `processes`,
        `balance`, `data`, `notes`, `versions`, `extended` where epochs were added, `averaged` where the weights are the
        moving average, and of the kept epoch `epoch`, `val_accuracy`, `val_loss`). Older files of format 2 lack
        `floors`, `calibration`, `keep`, `balance` and the test's `measures`, `groups` and `chance`.
        """
        elsewhere = ("history", "test", "floors", "calibration", "precision", "device")
        training = {k: v for k, v in self.training.items() if k not in elsewhere}
        return {
            "format": 2,
            "spec": self.spec.to_dict(),
            "run": run_facts(self.starts),
            "checkpoint": self.checkpoint.name,
            "best_epoch": self.best_epoch,
            "val_accuracy": self.val_accuracy,
            "test": self.test.to_dict(),
            "floors": self.floors,
            "calibration": self.calibration,
            "remarks": list(self.remarks),
            "epochs": self.epochs,
            "seconds_per_epoch": self.seconds_per_epoch,
            "device": self.device,
            "precision": self.precision,
            "history": self.history,
            "training": training,
        }
