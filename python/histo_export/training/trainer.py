"""Lightning's Trainer, and what is written while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from histo_export.errors import UsageError, not_written
from histo_export.machine import why_no_cuda
from histo_export.model.checkpoint import write_checkpoint
from histo_export.training.folder import COLUMNS, RunFolder
from histo_export.training.module import TileTraining
from histo_export.training.precision import LIGHTNING
from histo_export.training.progress import TrainingProgress
from histo_export.training.recipes import TrainConfig
from histo_export.training.result import best_row


def make_trainer(
    config: TrainConfig,
    epochs: int,
    device: torch.device,
    precision: str,
    callbacks: list[pl.Callback],
    out: Path,
) -> pl.Trainer:
    """Lightning's Trainer without what we do ourselves: logs, bars, sharding, which checkpoints are kept."""
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=config.strategy,
        precision=LIGHTNING[precision],  # type: ignore[arg-type]
        max_epochs=epochs,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=False,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # EpochSampler shards
        default_root_dir=out,
    )


def choose_device(asked: str) -> torch.device:
    """ "auto" is CUDA where torch finds a GPU; UsageError where "cuda" is asked for and unavailable."""
    missing = why_no_cuda()
    if asked == "cuda" and missing:
        raise UsageError("--device cuda", missing, "Check nvidia-smi, or use --device cpu")
    return torch.device("cuda" if asked != "cpu" and not missing else "cpu")


class AtomicCheckpoints(CheckpointIO):
    """Lightning's checkpoints, written atomically and read without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class EpochFiles(pl.callbacks.Checkpoint):
    """Writes after each epoch: best.ckpt (if it is the best so far), then last.ckpt, then the tables.

    The order matters: a kill in between repeats the epoch, which writes the same best.ckpt again.
    """

    def __init__(self, folder: RunFolder, bar: TrainingProgress) -> None:
        self.folder, self.bar = folder, bar
        self.events: Any = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TileTraining)
        history = pl_module.history
        best = best_row(history) is history[-1]
        if best:
            trainer.save_checkpoint(self.folder.best, weights_only=True)
        trainer.save_checkpoint(self.folder.last, weights_only=False)
        if not trainer.is_global_zero:
            return
        self.folder.write_metrics(history)
        self._log(history[-1])
        self.bar.epoch_done(history[-1], pl_module.epochs, best)

    def _log(self, row: Mapping[str, Any]) -> None:
        """Adds a row to TensorBoard's event file."""
        try:
            if self.events is None:
                from torch.utils.tensorboard import SummaryWriter  # imports slowly

                self.events = SummaryWriter(str(self.folder.path), purge_step=row["epoch"])
            for key in COLUMNS[1:]:
                self.events.add_scalar(key.replace("_", "/", 1), row[key], row["epoch"])
            self.events.flush()
        except OSError as error:
            raise not_written(self.folder.path, error) from error

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.events is not None:
            self.events.close()
            self.events = None
