"""One training run, from tiles to a tested checkpoint: `train`.

What it leaves in its folder:

- `best.ckpt`   the weights that the run keeps (`TrainConfig.keep`): by default the epoch of highest validation
                accuracy (of equals that of the lower loss, then the earlier one), with the test figures; what
                `histo export --checkpoint` takes. No optimiser state.
- `last.ckpt`   the last complete epoch with everything that `resume` needs.
- `options.json` the options of the command, so that the folder is all that `histo train --resume` needs.
- `starts.json` when, where and by which command the run was started and resumed; kept from epoch to epoch.
- `duplicates.csv` tiles that occur twice, if there are any.
- `metrics.csv` one row an epoch; `events.out.tfevents.*` the same for TensorBoard.
- `report.json` see `TrainResult.to_dict`.
- `curves.png`, `confusion.png`, `probabilities.png`, and with `calibrate` `calibration.png`.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from torch.utils.data import default_collate

from histo_export.errors import HistoError, UsageError
from histo_export.files import own_folder
from histo_export.measures import probabilities_of
from histo_export.metrics import chance_remark, majority_share, report_of
from histo_export.model.checkpoint import GOLDEN_TILES, Checkpoint, add_training_facts, read_checkpoint
from histo_export.model.net import TileNet
from histo_export.model.weights import load_weights
from histo_export.spec import ModelSpec
from histo_export.system import allowed_cpus
from histo_export.training.calibration import Calibrated, calibrate
from histo_export.training.duplicates import judge_duplicates
from histo_export.training.evaluation import predict
from histo_export.training.floors import ColourFloor, colour_floor
from histo_export.training.folder import RunFolder, check_place
from histo_export.training.module import TileTraining, derived_seed, steps_per_epoch
from histo_export.training.precision import choose_precision, without_tf32
from histo_export.training.progress import TrainingProgress, quiet_lightning
from histo_export.training.provenance import (
    data_facts,
    device_name,
    run_notes,
    run_to_resume,
    training_versions,
)
from histo_export.training.recipes import TrainConfig
from histo_export.training.result import TrainResult
from histo_export.training.starts import Start
from histo_export.training.trainer import EpochFiles, SignalsEndConnecting, check_machine, make_trainer

if TYPE_CHECKING:
    from histo_export.data import TileData, TileSet

Existing = Literal["refuse", "replace", "resume", "reuse"]
"""What becomes of a run that the folder holds already, see `train`."""

__all__ = ["Existing", "TrainConfig", "TrainResult", "golden_tiles", "is_main_process", "train"]


def is_main_process() -> bool:
    """False in the helpers that Lightning or torchrun start for several devices; only the main one prints."""
    return not getattr(rank_zero_only, "rank", 0)


def train(
    data: TileData,
    spec: ModelSpec,
    config: TrainConfig,
    out: Path,
    *,
    existing: Existing = "refuse",
    options: Mapping[str, Any] | None = None,
    command: str = "",
    progress: bool | Console = True,
) -> TrainResult:
    """Trains a network, keeps the best epoch (or what `config.keep` says) and tests it.

    Args:
        data: the tiles; `spec.classes` must be its classes.
        spec: the network.
        config: the run.
        out: folder for what the run leaves, see the module's docstring. Created if need be. One process at a time
            works in it, among all machines that share it.
        existing: what becomes of a run that `out` holds already.
            "refuse": UsageError.
            "replace": it is removed.
            "resume": it is continued from `last.ckpt`, and must be there; the result has the bits of an uninterrupted
            run on the same machine with as many threads. A run that is complete is tested again. More epochs than it
            had extend it: from there on, the rate is that of a run of so many epochs.
            "reuse": as "resume" if it is there, but not extended; a new run otherwise.
        options: plain values that the caller wants back from `RunFolder.read_options` to resume the run.
        command: as the user typed it, for report.json.
        progress: True draws on stderr, False is silent, or a console of the caller's.

    Returns:
        What the run came to, on every process where several train.

    Raises:
        UsageError: options that contradict each other, the device or the run to resume; or another process works in
            `out`.
        HistoError: a loss that is not finite, unreadable weights, files that cannot be written, tiles that lie in two
            splits (unless `config` allows them), or a test split of training tiles only.
        KeyboardInterrupt: Ctrl-C or SIGTERM; checkpoints up to the last complete epoch are kept.
    """
    console = progress if isinstance(progress, Console) else Console(stderr=True, quiet=not progress)
    began = datetime.now(UTC)
    _check_agreement(data, spec, config)
    if config.steps is not None:
        epochs = math.ceil(config.steps / steps_per_epoch(len(data.train), config))
        config = replace(config, epochs=epochs, steps=None)
    device = check_machine(config)
    check_place(out)
    folder = RunFolder(out)
    with (
        own_folder(out) if is_main_process() else nullcontext(lambda: None) as still_own,
        quiet_lightning(),
        without_tf32(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        recorded, epochs = _earlier_run(data, spec, config, folder, existing)
        if not recorded:  # a run that goes on was judged when it began
            data = judge_duplicates(data, config.allow_duplicates, folder if is_main_process() else None, console)
        run = _Run(data, spec, config, epochs, device, folder, console, recorded, options, command, began, still_own)
        trainer = run.fit()
        result = run.test() if is_main_process() else None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            result = trainer.strategy.broadcast(result)
        assert result is not None
        return result


def _earlier_run(
    data: TileData, spec: ModelSpec, config: TrainConfig, folder: RunFolder, existing: Existing
) -> tuple[dict[str, Any] | None, int]:
    """The provenance of the run to go on with, None for a new run; and the epochs of the run."""
    default = config.resolved_recipe.epochs
    if existing == "resume":
        recorded = run_to_resume(data, spec, config, folder.last)
        return recorded, config.epochs or recorded["epochs"]
    config = replace(config, epochs=config.epochs or default)
    assert config.epochs is not None
    if existing == "reuse" and folder.last.exists():
        return run_to_resume(data, spec, config, folder.last, extend=False), config.epochs
    if existing != "replace" and is_main_process():
        folder.refuse_another_run()
    return None, config.epochs


def _check_agreement(data: TileData, spec: ModelSpec, config: TrainConfig) -> None:
    """Raises UsageError where the arguments of `train` contradict each other."""
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
    if (positive := config.positive) is not None:
        if len(spec.classes) != 2:
            step = "Leave it out, or choose two classes with --classes"
            raise UsageError(f"--positive {positive.name}", f"is for two classes, not {len(spec.classes)}", step)
        if positive.name not in spec.classes:
            cause = f"is not a class of {data.name}"
            raise UsageError(f"--positive {positive.name}", cause, f"Use {' or '.join(spec.classes)}")
    if config.batch_size == 1 and spec.map_size == 1:
        raise UsageError("--batch 1", f"leaves batch norm one value per channel at crop {spec.crop}", "Use 2 or more")


@dataclass(frozen=True)
class _Run:
    """The arguments of `train`, resolved; `recorded` is the provenance of the run to resume, None where it is new."""

    data: TileData
    spec: ModelSpec
    config: TrainConfig
    epochs: int
    device: torch.device
    folder: RunFolder
    console: Console
    recorded: Mapping[str, Any] | None
    options: Mapping[str, Any] | None
    command: str
    began: datetime
    still_own: Callable[[], None]

    @property
    def workers(self) -> int:
        """Processes that load tiles."""
        if self.config.workers is not None:
            return self.config.workers
        return min(8, len(allowed_cpus())) if self.device.type == "cuda" else 0

    def fit(self) -> pl.Trainer:
        """Trains and writes the files of each epoch; returns the trainer, which may still hold a group of processes."""
        torch.manual_seed(derived_seed(self.config.seed))
        net = TileNet.of(self.spec)
        if self.config.resolved_recipe.zero_residual:
            net.begin_shallow()
        if self.recorded:
            weights_report = self.recorded["weights_report"]
        else:
            weights_report = load_weights(net, self.config.weights).summary()
        module = self._module(net)
        module.provenance |= {"weights_report": weights_report}
        precision = self._precision(net, module)
        module.provenance |= {"precision": precision, "device": device_name(self.device)}
        if is_main_process():
            if not self.recorded:  # only now: what could be wrong with the request is known
                self.folder.remove_run()
            self._announce(module.provenance)
        bar = TrainingProgress(self.console)
        connecting = SignalsEndConnecting()
        files = EpochFiles(
            self.folder,
            bar,
            options=self.options,
            hyperparameters=_hyperparameters(self.spec, module.provenance),
            starts=self._starts,
            check=self.still_own,
        )
        callbacks = [connecting, bar, files]
        trainer = make_trainer(
            self.config, self.epochs, self.device, precision["executed"], callbacks, self.folder.path
        )
        try:
            if self.config.nodes > 1:
                connecting.begin()
            trainer.fit(module, ckpt_path=self.folder.last if self.recorded else None, weights_only=True)
        except SystemExit as stop:  # Lightning makes one of Ctrl-C and of SIGTERM
            raise KeyboardInterrupt("training was interrupted") from stop
        finally:
            connecting.end()
        return trainer

    def _module(self, net: TileNet) -> TileTraining:
        from histo_export.data.transforms import Augmentation, TorchTiles

        data, spec, config = self.data, self.spec, self.config
        trained_on = data.trained_on
        if (trained_on.splits(data.test.hashes) != "").all():
            cause = "every test tile is identical to a training or validation tile, so nothing can be tested"
            raise HistoError(data.name, cause, "Put other tiles into test")
        strengths = config.resolved_recipe.augmentation
        augmentation = Augmentation(spec.crop, **strengths) if strengths else None
        return TileTraining(
            net,
            spec,
            replace(config, epochs=self.epochs, workers=self.workers),
            train_tiles=TorchTiles(data.train, spec.crop, augmentation, config.seed),
            val_tiles=TorchTiles(data.val, spec.crop),
            golden=golden_tiles(data.test, spec.tile_size),
            trained_on=trained_on,
            provenance={
                **config.identity(self.epochs),
                "described_recipe": config.described_recipe,
                "data": self._data_facts(),
                "notes": run_notes(spec, data.train.labels, config.balance),
                "versions": training_versions(),
                **self._extended(),
            },
        )

    def _data_facts(self) -> dict[str, Any]:
        """See `data_facts`; a resumed run keeps its notes, of which some are found once, when a run begins."""
        facts = data_facts(self.data)
        return facts | {"notes": self.recorded["data"].get("notes", facts["notes"])} if self.recorded else facts

    def _extended(self) -> dict[str, Any]:
        """The provenance entry of a run whose number of epochs was raised when it was resumed; none for others."""
        if not self.recorded:
            return {}
        extended = list(self.recorded.get("extended", []))
        if self.epochs > self.recorded["epochs"]:
            extended.append({"after_epoch": self.recorded["epoch"], "from": self.recorded["epochs"], "to": self.epochs})
        return {"extended": extended} if extended else {}

    def _precision(self, net: TileNet, module: TileTraining) -> dict[str, Any]:
        """See `choose_precision`; a resumed run keeps its precision."""
        if self.recorded:
            precision: dict[str, Any] = self.recorded["precision"]
            return precision
        sample = [module.train_tiles[i] for i in range(min(self.config.batch_size, len(self.data.train)))]
        return choose_precision(net, self.spec, self.config, self.device, tuple(default_collate(sample)))

    def _announce(self, facts: Mapping[str, Any]) -> None:
        if self.recorded and self.recorded["epoch"] == self.epochs:
            lines = [self._continues(self.recorded)]
        else:
            lines = self._before_training(facts)
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)

    def _before_training(self, facts: Mapping[str, Any]) -> list[str]:
        """What is trained and how, and what the user should know before, as lines."""
        synthetic = ", synthetic" if self.data.synthetic else ""
        length = f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        lines = [
            f"training on {self.data.name} ({len(self.data.train):,} tiles{synthetic}), recipe "
            f"{self.config.described_recipe}, {length}, {facts['device']}, "
            f"{facts['precision']['executed']} ({facts['precision']['reason']})"
        ]
        if self.config.weights != "none":
            lines.append(facts["weights_report"])
        if not self.data.synthetic:
            lines.append(f"split: {facts['data']['split']}")
        lines += facts["notes"]
        if self.recorded:
            lines.append(self._continues(self.recorded))
        return lines

    def _continues(self, recorded: Mapping[str, Any]) -> str:
        """What becomes of the run in the folder, as a line."""
        done, epochs = recorded["epoch"], recorded["epochs"]
        if self.epochs > epochs:
            return f"continuing after epoch {done}: the run is extended from {epochs} to {self.epochs} epochs"
        if done == epochs:
            count = "1 epoch" if epochs == 1 else f"{epochs} epochs"
            return f"{self.folder.path} holds this run, complete ({count}): it is not trained again, only tested"
        return f"continuing the run in {self.folder.path} after epoch {done}"

    def test(self) -> TrainResult:
        """Tests best.ckpt and writes the report; reads all from the files, so it may follow any strategy."""
        data, spec, folder, seed = self.data, self.spec, self.folder, self.config.seed
        best, last = read_checkpoint(folder.best), read_checkpoint(folder.last)
        net = best.net()
        unseen = data.trained_on.splits(data.test.hashes) == ""
        logits, labels = self._logits(net, data.test, "testing")[unseen], data.test.labels[unseen]
        val_logits, val_labels = self._logits(net, data.val, "validating"), data.val.labels
        calibrated = self._calibrate(val_logits, logits, labels)
        if calibrated is not None:  # the figures are those of the files that an export makes
            logits = logits / calibrated.temperature
        groups = None if data.test.groups is None else data.test.groups[unseen]
        with self.console.status("measures and their intervals"):
            test = report_of(spec.classes, logits, labels, seed, groups, positive=self.config.positive)
        floor = self._known_floor(best, groups) or self._colour_floor(logits.argmax(1) == labels, unseen, groups)
        self.still_own()
        floors = {"chance": test.chance, "majority": test.majority_accuracy, "colour": floor.to_dict()}
        facts: dict[str, Any] = {"test": test.to_dict(), "floors": floors}
        if calibrated is not None or "calibration" in best.training:
            facts["calibration"] = calibrated and calibrated.to_dict()
        # The kept epoch may be from before the run was extended.
        length: dict[str, Any] = {key: last.training[key] for key in ("epochs", "extended") if key in last.training}
        add_training_facts(folder.best, facts | length)
        history = last.training["history"]
        val_tiles = np.bincount(val_labels, minlength=len(spec.classes)).tolist()
        val_right = val_logits.argmax(1) == val_labels
        balanced = self.config.balance
        at_chance = chance_remark(
            "validation", val_right, val_labels, spec.classes, groups=data.val.groups, balanced=balanced
        )
        remarks = [at_chance, floor.remark(), calibrated and calibrated.remark(), *test.remarks()]
        starts = self._starts(len(history))
        folder.write_starts(starts)
        if self.options is not None:  # a complete run may be tested in another way than before
            folder.write_options(self.options)
        result = TrainResult(
            out=folder.path,
            checkpoint=folder.best,
            best_epoch=best.training["epoch"],
            val_accuracy=best.training["val_accuracy"],
            test=test,
            floors=floors,
            calibration=facts.get("calibration"),
            epochs=self.epochs,
            seconds_per_epoch=[row["seconds"] for row in history],
            device=best.training["device"],
            precision=best.training["precision"],
            history=history,
            training=best.training | length,
            spec=spec,
            starts=tuple(starts),
            remarks=tuple(remark for remark in remarks if remark),
        )
        folder.write_report(result.to_dict())
        self._draw(result, logits, labels, chance=majority_share(val_tiles))
        return result

    def _logits(self, net: TileNet, tiles: TileSet, doing: str) -> npt.NDArray[np.float32]:
        from histo_export.data.transforms import TorchTiles

        with self.console.status(f"{doing} on {len(tiles):,} tiles"):
            return predict(net, self.spec, TorchTiles(tiles, self.spec.crop), self.device, workers=self.workers)

    def _calibrate(
        self,
        val_logits: npt.NDArray[np.float32],
        test_logits: npt.NDArray[np.float32],
        test_labels: npt.NDArray[np.int64],
    ) -> Calibrated | None:
        """The temperature and what it changes; None where none is asked for. It is fitted on validation alone."""
        if not self.config.calibrate:
            self.folder.calibration.unlink(missing_ok=True)  # of an earlier test
            return None
        from histo_export.figures import save_calibration

        calibrated = calibrate(val_logits, self.data.val.labels, test_logits, test_labels)
        before, after = (probabilities_of(test_logits / t) for t in (1.0, calibrated.temperature))
        temperature = calibrated.temperature
        picture = self.folder.calibration
        save_calibration(picture, before, after, test_labels, title=self._title, temperature=temperature, split="test")
        return calibrated

    def _known_floor(self, best: Checkpoint, groups: npt.NDArray[np.generic] | None) -> ColourFloor | None:
        """The colour floor of a run that was complete and is only tested in another way; None where it is not known."""
        if not self.recorded or self.recorded["epoch"] < self.epochs:
            return None
        known = ColourFloor.from_dict((best.training.get("floors") or {}).get("colour", {}))
        same_groups = known is not None and known.groups == (None if groups is None else len(np.unique(groups)))
        return known if same_groups else None

    def _colour_floor(
        self, right: npt.NDArray[np.bool_], judged: npt.NDArray[np.bool_], groups: npt.NDArray[np.generic] | None
    ) -> ColourFloor:
        data = self.data
        with self.console.status("colour floor") as status:
            return colour_floor(
                data.train,
                data.val,
                data.test,
                self.spec.crop,
                right=right,
                judged=judged,
                seed=self.config.seed,
                groups=groups,
                balanced=self.config.balance,
                report=status.update,
            )

    @property
    def _title(self) -> str:
        """Of pictures."""
        from histo_export.figures import shown

        synthetic = " (synthetic tiles)" if self.data.synthetic else ""
        recipe = self.config.described_recipe
        return f"{shown(self.data.name)}{synthetic}, ResNet34 pool {self.spec.pool}, recipe {recipe}"

    def _draw(
        self, result: TrainResult, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, chance: float
    ) -> None:
        """Draws the pictures of a run; logits and labels are those of the test."""
        from histo_export.figures import save_confusion, save_curves, save_probabilities

        folder, test = self.folder, result.test
        keep = self.config.keep
        kept = result.best_epoch
        save_curves(folder.curves, result.history, title=self._title, chance=chance, keep=keep, kept=kept)
        save_confusion(folder.confusion, test, title=self._title, split="test")
        folder.probabilities.unlink(missing_ok=True)  # of an earlier test
        if test.measures is not None:
            probabilities = probabilities_of(logits)
            save_probabilities(folder.probabilities, test, probabilities, labels, title=self._title, split="test")

    @cached_property
    def earlier(self) -> list[Start]:
        """The processes that took part in the run before this one."""
        return self.folder.read_starts() if self.recorded else []

    def _starts(self, epoch: int) -> list[Start]:
        """All processes that took part in the run so far; with this one, `epoch` epochs are complete."""
        finished = datetime.now(UTC)
        this = Start(
            command=self.command,
            began=self.began.isoformat(timespec="seconds"),
            finished=finished.isoformat(timespec="seconds"),
            seconds=round((finished - self.began).total_seconds(), 1),
            host=platform.node(),
            versions=training_versions(),
            after_epoch=self.recorded["epoch"] if self.recorded else 0,
            to_epoch=epoch,
        )
        return [*self.earlier, this]


def _hyperparameters(spec: ModelSpec, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was made with, flat, for TensorBoard."""
    names = ("recipe", "keep", "epochs", "batch_size", "lr", "seed", "weights", "balance", "processes", "device")
    return {
        **{name: provenance[name] for name in names},
        **{name: getattr(spec, name) for name in ("pool", "crop", "tile_size", "mpp", "dropout")},
        "classes": ", ".join(spec.classes),
        "precision": provenance["precision"]["executed"],
        "data": provenance["data"]["name"],
        **{f"{name} version": version for name, version in provenance["versions"].items()},
    }


def golden_tiles(tiles: TileSet, size: int, count: int = GOLDEN_TILES) -> npt.NDArray[np.uint8]:
    """Up to `count` tiles spread over the classes, centre-cropped: uint8 `(g, size, size, 3)`."""
    from histo_export.data.images import center_crop

    by_class = [np.flatnonzero(tiles.labels == label) for label in range(len(tiles.classes))]
    wanted = [count // len(by_class) + (i < count % len(by_class)) for i in range(len(by_class))]
    chosen = [
        int(index)
        for own, number in zip(by_class, wanted, strict=True)
        for index in own[np.linspace(0, len(own) - 1, min(number, len(own))).round().astype(int)]
    ]
    return np.stack([center_crop(tiles.tile(i), size) for i in chosen])
