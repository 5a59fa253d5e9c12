"""One training run, from tiles to a tested checkpoint: `train`.

What it leaves in its folder:

- `best.ckpt`   the epoch of highest validation accuracy (of several the one of lower loss, then the earlier),
                with the test figures; what `histo export --checkpoint` takes. No optimiser state.
- `last.ckpt`   the last whole epoch with everything that `resume` needs.
- `metrics.csv` one row an epoch; `events.out.tfevents.*` the same for TensorBoard.
- `report.json` see `TrainResult.to_dict`.
- `curves.png`, `confusion.png`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
import torchvision
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from torch.utils.data import default_collate

import histo_export
from histo_export.errors import HistoError, UsageError
from histo_export.files import write_atomic
from histo_export.metrics import TestReport, report_of
from histo_export.model.net import TileNet
from histo_export.model.weights import load_weights
from histo_export.spec import ModelSpec
from histo_export.training.checkpoint import (
    GOLDEN_TILES,
    add_training_facts,
    read_checkpoint,
    write_checkpoint,
)
from histo_export.training.evaluation import predict
from histo_export.training.module import TileTraining, derived_seed
from histo_export.training.precision import LIGHTNING, choose_precision
from histo_export.training.progress import TrainingProgress, quiet_lightning
from histo_export.training.recipes import TrainConfig, recipe_named

if TYPE_CHECKING:
    from histo_export.data import TileData, TileSet

__all__ = ["TrainConfig", "TrainResult", "is_main_process", "train"]

BEST, LAST, METRICS, REPORT = "best.ckpt", "last.ckpt", "metrics.csv", "report.json"
FIGURES = ("curves.png", "confusion.png")
EVENTS = "events.out.tfevents.*"
COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        out: the folder.
        checkpoint: `best.ckpt` in it.
        best_epoch: the epoch (from 1) that it holds.
        val_accuracy: of that epoch.
        test: on the test split, in fp32.
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
    test: TestReport
    epochs: int
    seconds_per_epoch: list[float]
    device: str
    precision: dict[str, Any]
    history: list[dict[str, Any]]
    training: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json.

        `checkpoint` (file name), `best_epoch`, `val_accuracy`, `epochs`, `seconds_per_epoch`, `device`,
        `precision`, `history`; `test`: the fields of `TestReport` and `macro_f1`; `training`: provenance
        (`recipe`, `settings`, `epochs`, `batch_size`, `lr`, `seed`, `weights`, `weights_report`,
        `channels_last`, `processes`, `data`, `versions`, and of the best epoch `epoch`, `val_accuracy`,
        `val_loss`).
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


def is_main_process() -> bool:
    """False in the helpers that Lightning or torchrun start for several devices; only the main one prints."""
    return not getattr(rank_zero_only, "rank", 0)


def train(
    data: TileData,
    spec: ModelSpec,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: bool | Console = True,
) -> TrainResult:
    """Trains a network, keeps the best epoch and tests it.

    Args:
        data: the tiles; `spec.classes` must be its classes.
        spec: the network.
        config: the run.
        out: folder for what the run leaves, see the module's docstring. Created if need be.
        resume: continue from `last.ckpt` in `out`; the result has the bits of an uninterrupted run on the
            same machine with as many threads. A run that is complete is tested again.
        force: replace a run that `out` holds already.
        progress: True draws on stderr, False is silent, or a console of the caller's.

    Returns:
        On every process where there are several.

    Raises:
        UsageError: options that contradict each other, the device or the run to resume.
        HistoError: a loss that is not finite, unreadable weights, files that cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; checkpoints up to the last whole epoch are kept.
    """
    console = progress if isinstance(progress, Console) else Console(stderr=True, quiet=not progress)
    if tuple(data.classes) != tuple(spec.classes):
        raise UsageError(
            f"classes {list(spec.classes)}",
            f"are not those of {data.name}: {list(data.classes)}",
            "Make them agree",
        )
    if spec.tile_size > data.tile_size:
        raise UsageError(
            f"tile size {spec.tile_size}",
            f"is larger than the smallest tile of {data.name} ({data.tile_size} pixels)",
            f"Use {data.tile_size} or less",
        )
    if config.batch_size == 1 and spec.map_size == 1:
        raise UsageError(
            "--batch-size 1", f"leaves batch norm one value per channel at crop {spec.crop}", "Use 2 or more"
        )
    device = choose_device(config.device)
    main = is_main_process()
    recorded = _recorded_run(data, spec, config, out) if resume else None
    epochs = recorded["epochs"] if recorded else config.epochs or recipe_named(config.recipe).epochs
    if main and not resume and not force:
        _refuse_another_run(out)

    cuda = [device] if device.type == "cuda" else []
    with quiet_lightning(), torch.random.fork_rng(cuda):
        torch.manual_seed(derived_seed(config.seed))
        net = TileNet.of(spec)
        weights_report = load_weights(net, config.weights).summary() if not recorded else recorded["weights_report"]
        module, workers = _module(data, spec, config, epochs, net, device)
        module.provenance |= {"weights_report": weights_report}
        if recorded:
            precision = recorded["precision"]
            if config.autocast not in ("auto", precision["executed"]):
                raise _changed("autocast", precision["executed"], config.autocast)
        else:
            sample = [module.train_tiles[i] for i in range(min(config.batch_size, len(data.train)))]
            precision = choose_precision(net, spec, config, device, tuple(default_collate(sample)))
        module.provenance |= {"precision": precision, "device": _device_name(device)}
        if main and not resume:  # only now: what could be wrong with the request is known
            _make_room(out)
        if main:
            _announce(console, data, config, epochs, module.provenance, recorded)

        bar = TrainingProgress(console)
        trainer = make_trainer(config, epochs, device, precision["executed"], [bar, Keeper(out, bar)], out)
        try:
            trainer.fit(module, ckpt_path=out / LAST if recorded else None, weights_only=True)
        except SystemExit as stop:  # Lightning makes one of Ctrl-C and of SIGTERM
            raise KeyboardInterrupt("training was interrupted") from stop

        result = _test(data, spec, config, epochs, out, device, workers, console) if main else None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            result = trainer.strategy.broadcast(result)
        assert result is not None
        return result


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
        plugins=[WholeFiles()],
        logger=False,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # EpochSampler shards
        default_root_dir=out,
    )


def choose_device(asked: str) -> torch.device:
    """ "auto" is CUDA where torch finds a GPU; UsageError where "cuda" is asked for and absent."""
    if asked == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise UsageError(
            "--device cuda",
            f"torch {torch.__version__} ({built}) finds no GPU",
            "Check nvidia-smi, or use --device cpu",
        )
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


class WholeFiles(CheckpointIO):
    """Lightning's checkpoints, written atomically and read without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Keeper(pl.callbacks.Checkpoint):
    """After each epoch: best.ckpt (if it is), then last.ckpt, then the tables.

    The order matters: a kill in between repeats the epoch, which writes the same best.ckpt again.
    """

    def __init__(self, out: Path, bar: TrainingProgress) -> None:
        self.out, self.bar = out, bar
        self.events: Any = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TileTraining)
        history = pl_module.history
        best = best_row(history) is history[-1]
        if best:
            trainer.save_checkpoint(self.out / BEST, weights_only=True)
        trainer.save_checkpoint(self.out / LAST, weights_only=False)
        if not trainer.is_global_zero:
            return
        _write_text(self.out / METRICS, _csv(history))
        self._log(history[-1])
        self.bar.epoch_done(history[-1], pl_module.epochs, best)

    def _log(self, row: Mapping[str, Any]) -> None:
        try:
            if self.events is None:
                from torch.utils.tensorboard import SummaryWriter  # imports slowly

                self.events = SummaryWriter(str(self.out), purge_step=row["epoch"])
            for key in COLUMNS[1:]:
                self.events.add_scalar(key.replace("_", "/", 1), row[key], row["epoch"])
            self.events.flush()
        except OSError as error:
            raise HistoError(
                self.out,
                f"could not be written to ({error.strerror})",
                "Free some space, or choose another --out",
            ) from error

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.events is not None:
            self.events.close()
            self.events = None


def best_row(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Highest validation accuracy; of equals the lower validation loss, then the earlier epoch."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))


def golden_tiles(tiles: TileSet, size: int, count: int = GOLDEN_TILES) -> npt.NDArray[np.uint8]:
    """Up to `count` tiles spread over the classes, centre-cropped: uint8 `(g, size, size, 3)`."""
    from histo_export.data.transforms import center_crop

    by_class = [np.flatnonzero(tiles.labels == label) for label in range(len(tiles.classes))]
    wanted = [count // len(by_class) + (i < count % len(by_class)) for i in range(len(by_class))]
    chosen = [
        int(index)
        for own, number in zip(by_class, wanted, strict=True)
        for index in own[np.linspace(0, len(own) - 1, min(number, len(own))).round().astype(int)]
    ]
    return np.stack([center_crop(tiles.tile(i), size) for i in chosen])


def _module(
    data: TileData, spec: ModelSpec, config: TrainConfig, epochs: int, net: TileNet, device: torch.device
) -> tuple[TileTraining, int]:
    from histo_export.data.transforms import Augmentation, TorchTiles

    workers = config.workers
    if workers is None:
        workers = min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0
    augmentation = Augmentation(spec.crop) if recipe_named(config.recipe).augmentation else None
    module = TileTraining(
        net,
        spec,
        config,
        epochs,
        train_tiles=TorchTiles(data.train, spec.crop, augmentation, config.seed),
        val_tiles=TorchTiles(data.val, spec.crop),
        golden=golden_tiles(data.test, spec.tile_size),
        provenance={**config.identity(epochs), "data": _data_facts(data), "versions": _versions()},
        workers=workers,
    )
    return module, workers


def _data_facts(data: TileData) -> dict[str, Any]:
    return {
        "name": data.name,
        "description": data.description,
        "synthetic": data.synthetic,
        "fingerprint": data.fingerprint,
        "tiles": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "tile_size": data.tile_size,
        "mpp": data.mpp,
        "notes": list(data.notes),
    }


def _versions() -> dict[str, str]:
    return {
        "histo-export": histo_export.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pytorch-lightning": version("pytorch-lightning"),
        "python": platform.python_version(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"cpu: {name}, {torch.get_num_threads()} threads"


def _recorded_run(data: TileData, spec: ModelSpec, config: TrainConfig, out: Path) -> dict[str, Any]:
    """The provenance of `out/last.ckpt`; UsageError unless this run is the same."""
    last = out / LAST
    if not last.is_file():
        raise UsageError(last, "does not exist, so there is no run to resume", "Train without --resume")
    checkpoint = read_checkpoint(last)
    recorded = checkpoint.training
    try:
        before = {**checkpoint.spec.to_dict(), "data": recorded["data"]["fingerprint"]}
        now = {**spec.to_dict(), "data": data.fingerprint}
        for key, value in config.identity(config.epochs or recorded["epochs"]).items():
            before[key], now[key] = recorded[key], value
    except (KeyError, TypeError) as error:
        raise HistoError(last, f"lacks the record of its run ({error})", "Train again without --resume") from error
    for key, value in now.items():
        if before[key] != value:
            raise _changed(key, before[key], value)
    return recorded


def _changed(key: str, before: object, now: object) -> UsageError:
    return UsageError(
        "--resume",
        f"{key} is {now} now, but was {before} in the run to resume",
        f"Use the same {key}, or start anew",
    )


def _files_of_a_run(out: Path) -> list[Path]:
    names = [BEST, LAST, METRICS, REPORT, *FIGURES]
    return [out / name for name in names if (out / name).exists()] + sorted(out.glob(EVENTS))


def _refuse_another_run(out: Path) -> None:
    found = _files_of_a_run(out)
    if found:
        raise UsageError(
            out,
            f"already holds a training run ({found[0].name})",
            "Continue it with --resume, replace it with --force, or choose another --out",
        )


def _make_room(out: Path) -> None:
    """Makes the folder, and removes a run that is there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in _files_of_a_run(out):
            path.unlink()
        probe = out / ".histo-writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise HistoError(out, f"cannot be written to ({error.strerror})", "Choose another --out") from error


def _announce(
    console: Console,
    data: TileData,
    config: TrainConfig,
    epochs: int,
    facts: Mapping[str, Any],
    recorded: Mapping[str, Any] | None,
) -> None:
    precision = facts["precision"]
    synthetic = ", synthetic" if data.synthetic else ""
    console.print(
        f"training on {data.name} ({len(data.train):,} tiles{synthetic}), recipe {config.recipe}, "
        f"{epochs} epoch{'' if epochs == 1 else 's'}, {facts['device']}, "
        f"{precision['executed']} ({precision['reason']})",
        highlight=False,
        soft_wrap=True,
    )
    if config.weights != "none":
        console.print(facts["weights_report"], highlight=False, soft_wrap=True)
    if recorded:
        console.print(f"continuing after epoch {recorded['epoch']}", highlight=False, soft_wrap=True)


def _test(
    data: TileData,
    spec: ModelSpec,
    config: TrainConfig,
    epochs: int,
    out: Path,
    device: torch.device,
    workers: int,
    console: Console,
) -> TrainResult:
    """Tests best.ckpt and writes the report; reads all from the files, so it may follow any strategy."""
    from histo_export.data.transforms import TorchTiles
    from histo_export.figures import save_confusion, save_curves

    best, last = read_checkpoint(out / BEST), read_checkpoint(out / LAST)
    with console.status(f"testing on {len(data.test):,} tiles"):
        logits = predict(best.net(), spec, TorchTiles(data.test, spec.crop), device, workers=workers)
    test = report_of(spec.classes, logits, data.test.labels, config.seed)
    add_training_facts(out / BEST, {"test": test.to_dict()})
    history = last.training["history"]
    result = TrainResult(
        out=out,
        checkpoint=out / BEST,
        best_epoch=best.training["epoch"],
        val_accuracy=best.training["val_accuracy"],
        test=test,
        epochs=epochs,
        seconds_per_epoch=[row["seconds"] for row in history],
        device=best.training["device"],
        precision=best.training["precision"],
        history=history,
        training=best.training,
    )
    _write_text(out / REPORT, json.dumps(result.to_dict(), indent=2) + "\n")
    synthetic = " (synthetic tiles)" if data.synthetic else ""
    subtitle = f"{data.name}{synthetic}, ResNet34 pool {spec.pool}, recipe {config.recipe}"
    save_curves(out / FIGURES[0], history, title=subtitle)
    save_confusion(out / FIGURES[1], test, title=subtitle)
    return result


def _csv(history: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in history:
        numbers = {key: f"{row[key]:.6g}" for key in COLUMNS[1:]}
        writer.writerow({"epoch": row["epoch"], **numbers})
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise HistoError(
            path, f"could not be written ({error.strerror})", "Free some space, or choose another --out"
        ) from error
