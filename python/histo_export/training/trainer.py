"""Lightning's Trainer, and what is written while it trains."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from histo_export import _core
from histo_export.errors import UsageError, not_written
from histo_export.machine import why_no_cuda
from histo_export.model.checkpoint import write_checkpoint
from histo_export.model.provenance import best_row
from histo_export.system import ending_signals
from histo_export.training.folder import COLUMNS, RunFolder
from histo_export.training.module import TileTraining
from histo_export.training.precision import LIGHTNING
from histo_export.training.progress import TrainingProgress
from histo_export.training.recipes import TrainConfig
from histo_export.training.starts import Start


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


def check_machine(config: TrainConfig) -> torch.device:
    """The device on which a run of these settings trains.

    Raises:
        UsageError: this machine lacks the device or so many of them, or nothing has started the processes of the other
            machines.
    """
    device = choose_device(config.device)
    cuda = device.type == "cuda"
    there = torch.cuda.device_count() if cuda else _core.usable_cpus()
    if config.devices > there:
        kind = "GPU" if cuda else "CPU"
        raise UsageError(
            f"--devices {config.devices}",
            f"is more than the {there} {kind}{'' if there == 1 else 's'} that this process can use",
            f"Use --devices {there} or less",
        )
    # Each machine must know its own number. Without one, every machine would wait for the others for ever.
    if config.nodes > 1 and not {"RANK", "SLURM_PROCID"} & os.environ.keys():
        raise UsageError(
            f"--nodes {config.nodes}",
            "needs a process on each machine, and neither torchrun nor Slurm has started this one",
            f"Start it on each machine with torchrun --nnodes {config.nodes} --nproc-per-node {config.devices} …, "
            "or with srun",
        )
    return device


class SignalsEndConnecting(pl.callbacks.Callback):
    """Lets Ctrl-C and the signals that end programs end a process that waits for other machines.

    The wait is inside torch, where Python's own handlers don't run, so the system's are set for so long.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}

    def begin(self) -> None:
        """Call this before `Trainer.fit`."""
        self.handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, *ending_signals())}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lightning calls this when the machines are connected."""
        self.end()

    def end(self) -> None:
        """Sets the handlers back; may be called twice."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


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
    """Writes after each epoch: best.ckpt (if its weights are to be kept so far), then last.ckpt, then the tables.

    The order matters: a kill in between repeats the epoch, which writes the same best.ckpt again.
    """

    def __init__(
        self,
        folder: RunFolder,
        bar: TrainingProgress,
        *,
        options: Mapping[str, Any] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        starts: Callable[[int], Sequence[Start]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """What is written besides the results.

        Args:
            folder: of the run.
            bar: told of each epoch.
            options: content of options.json; None writes none.
            hyperparameters: plain values by name, for TensorBoard.
            starts: content of starts.json, given the number of complete epochs.
            check: called before files are written; raises where the folder belongs to another process.
        """
        self.folder, self.bar, self.check = folder, bar, check
        self.options, self.hyperparameters, self.starts = options, dict(hyperparameters or {}), starts
        self.events: Any = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TileTraining)
        self.check()
        history = pl_module.history
        selects = pl_module.config.keep == "best"
        best = selects and best_row(history) is history[-1]
        if best or not selects:
            trainer.save_checkpoint(self.folder.best, weights_only=True)
        if self.options is not None and trainer.is_global_zero:
            self.folder.write_options(self.options)
            self.options = None
        trainer.save_checkpoint(self.folder.last, weights_only=False)
        if not trainer.is_global_zero:
            return
        self.folder.write_starts(self.starts(len(history)))
        self.folder.write_metrics(history)
        self._log(history[-1])
        self.bar.epoch_done(history[-1], pl_module.epochs, best)

    def _log(self, row: Mapping[str, Any]) -> None:
        """Adds a row to TensorBoard's event file."""
        try:
            if self.events is None:
                from torch.utils.tensorboard import SummaryWriter  # imports slowly

                self.events = SummaryWriter(str(self.folder.path), purge_step=row["epoch"])
                self._log_hyperparameters()
            for key in COLUMNS[1:]:
                self.events.add_scalar(key.replace("_", "/", 1), row[key], row["epoch"])
            self.events.flush()
        except OSError as error:
            raise not_written(self.folder.path, error) from error

    def _log_hyperparameters(self) -> None:
        """As a text, and for TensorBoard's table of runs. Its own `add_hparams` would make a folder for that."""
        from torch.utils.tensorboard.summary import hparams

        values = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in self.hyperparameters.items()
        }
        rows = "\n".join(f"| {key} | {value} |" for key, value in values.items())
        self.events.add_text("options", f"| option | value |\n|---|---|\n{rows}")
        for summary in hparams(values, {"val/accuracy": 0, "val/loss": 0}):
            self.events.file_writer.add_summary(summary)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.events is not None:
            self.events.close()
            self.events = None
