"""What a user sees while a network trains, on stderr only: stdout belongs to results."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from histo_export.spec import percent
from histo_export.training.module import TileTraining

REFRESH = 0.25
"""Seconds between two readings of the running loss: each reading waits for the GPU."""

CHATTER = ("pytorch_lightning", "lightning_fabric")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['rate']:.0f} tiles/s" if task.fields["rate"] else "")


class TrainingProgress(pl.Callback):
    """A bar over the whole run with loss, accuracy, rate and time left, and a line for each finished epoch.

    Where the console is not a terminal there are only the lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TileTraining)
        self.batches = int(trainer.num_training_batches)
        if not (trainer.is_global_zero and self.console.is_terminal):
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[figures]}"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            transient=True,
        )
        done = len(pl_module.history) * self.batches
        self.task = self.bar.add_task(
            "training", total=pl_module.epochs * self.batches, completed=done, figures="", rate=0.0
        )
        self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = self.last_reading = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self.bar is None:
            return
        assert isinstance(pl_module, TileTraining)
        batch = args[-1]
        done = len(pl_module.history) * self.batches + batch + 1
        now = time.perf_counter()
        if now - self.last_reading < REFRESH and batch + 1 < self.batches:
            self.bar.update(self.task, completed=done)
            return
        self.last_reading = now
        loss, correct, count = pl_module.running.tolist()
        self.bar.update(
            self.task,
            completed=done,
            description=f"epoch {len(pl_module.history) + 1}/{pl_module.epochs}",
            figures=f"loss {loss / count:.3f}  accuracy {percent(correct / count)}",
            rate=count * trainer.world_size / (now - self.start),
        )

    def epoch_done(self, row: dict[str, Any], epochs: int, best: bool) -> None:
        """The line of a finished epoch."""
        self.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"train loss {row['train_loss']:.3f}, accuracy {percent(row['train_accuracy'])}  "
            f"val loss {row['val_loss']:.3f}, accuracy {percent(row['val_accuracy'])}  "
            f"{row['seconds']:.1f} s" + ("  best so far" if best else ""),
            highlight=False,
            soft_wrap=True,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bar away; may be called twice."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hides Lightning's greetings, tips and advice; its errors and other warnings are shown."""
    loggers = [logging.getLogger(name) for name in CHATTER]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # Loader processes are our own choice, documented at TrainConfig.workers.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # Lightning 2.6 uses a name that torch deprecated in 2.12.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # Training on one CPU or one process although the machine has more is the caller's choice.
            warnings.filterwarnings("ignore", message="GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*srun. command is available on your system.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
