"""The training step, the order of the tiles and what a checkpoint holds, as one LightningModule.

Everything random is a function of (seed, epoch) or (seed, epoch, tile, occurrence), never of what ran before, so that a
run that was killed and continued from its last complete epoch ends with the same bits.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler

from histo_export.errors import HistoError
from histo_export.model.checkpoint import KEY, Checkpoint
from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec
from histo_export.trained_on import TrainedOn
from histo_export.training.recipes import TrainConfig, rate_factor

if TYPE_CHECKING:
    from histo_export.data.transforms import TorchTiles

EVAL_BATCH = 64
"""Tiles of a validation step. Without gradients they need a quarter of the memory of a training step of 32 tiles."""

AVERAGE = "ema"
"""The entry of last.ckpt with the moving average."""

Batch = tuple[Tensor, Tensor]


def derived_seed(*parts: int) -> int:
    """One well-mixed seed from several small numbers (numpy's SeedSequence), in [0, 2⁶³)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


Key = tuple[int, int, int]
"""Epoch, tile, and how often the tile came before in this epoch."""


class EpochSampler(Sampler[Key]):
    """Keys of an epoch's tiles in a shuffled order, which depends on the seed and the epoch alone.

    The epoch is part of the key, because loader processes live as long as the run and have copies of the data set that
    no call of `set_epoch` in this process reaches. With several processes each takes every `world`-th tile; short
    shares are filled with the first keys of the order, so that all take equally many steps. A last batch that would
    hold a single tile is left out (another tile every epoch): batch norm cannot train on one value per channel.
    """

    def __init__(
        self,
        tiles: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        balance: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """An epoch of `tiles` tiles; `balance`: their labels `(tiles,)`, where each class is to be drawn equally often:
        tiles of small classes come several times then, and of large ones others in each epoch."""
        self.tiles, self.seed, self.rank, self.world, self.epoch = tiles, seed, rank, world, epoch
        self.balance = balance
        share = -(-tiles // world)
        self.share = share - 1 if share % batch_size == 1 and share > 1 else share

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.share

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.tiles) if self.balance is None else balanced_order(self.balance, rng)
        drawn: Counter[int] = Counter()
        keys: list[Key] = []
        for index in order.tolist():
            keys.append((epoch, index, drawn[index]))
            drawn[index] += 1
        return islice(cycle(keys), self.rank, self.share * self.world, self.world)


def balanced_order(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """As many indices as there are labels, shuffled, with each class equally often up to one.

    The tiles of a class come equally often up to one, too: a class is drawn without replacement until it is used up,
    and then again.
    """
    present = rng.permutation(np.unique(labels))
    counts = len(labels) // len(present) + (np.arange(len(present)) < len(labels) % len(present))
    drawn = []
    for label, count in zip(present, counts, strict=True):
        own = np.flatnonzero(labels == label)
        drawn.append(np.concatenate([rng.permutation(own) for _ in range(-(-int(count) // len(own)))])[:count])
    return rng.permutation(np.concatenate(drawn))


def steps_per_epoch(tiles: int, config: TrainConfig) -> int:
    """Optimiser steps of an epoch of so many training tiles."""
    return math.ceil(len(EpochSampler(tiles, config.batch_size, config.seed, 0, config.processes)) / config.batch_size)


class EpochTiles(Dataset[tuple[Tensor, int]]):
    """Tiles under the keys of `EpochSampler`: the epoch is set for each tile, in the process that loads it."""

    def __init__(self, tiles: TorchTiles) -> None:
        self.tiles = tiles

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index, occurrence = key
        self.tiles.set_epoch(epoch)
        return self.tiles.drawn(index, occurrence)


def moving_average(net: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a network's weights and of its batch norms' running statistics.

    The statistics are averaged as the weights are, so that they are those of the averaged weights, and no pass over the
    tiles is needed at the end. The decay rises to its value, as (1 + n) / (10 + n) after n updates: the first random
    weights would otherwise be a large part of the average of a short run.
    """

    def update(average: Any, now: Any, updates: Any) -> None:
        n = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(average, now, updates)

    average = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    return average.requires_grad_(False)


class TileTraining(pl.LightningModule):
    """Trains `net`; `state_dict` is the network's own, under torchvision's keys.

    Args:
        net: changed in place.
        spec: the model that `net` is.
        config: the run, its `epochs` and `workers` resolved.
        train_tiles, val_tiles: datasets of uint8 `(3, crop, crop)` tensors and labels.
        golden, trained_on: see `Checkpoint`.
        provenance: what the checkpoint's `training` entry holds besides the results.
    """

    def __init__(
        self,
        net: TileNet,
        spec: ModelSpec,
        config: TrainConfig,
        *,
        train_tiles: TorchTiles,
        val_tiles: TorchTiles,
        golden: npt.NDArray[np.uint8],
        trained_on: TrainedOn,
        provenance: dict[str, Any],
    ) -> None:
        super().__init__()
        self.net = net
        assert config.epochs is not None
        assert config.workers is not None
        self.spec, self.config, self.epochs, self.workers = spec, config, config.epochs, config.workers
        self.recipe = config.resolved_recipe
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.net.to(memory_format=self.memory_format)
        self.average = moving_average(net, self.recipe.ema_decay) if config.keep == "ema" else None
        self.train_tiles, self.val_tiles = train_tiles, val_tiles
        self.golden, self.trained_on, self.provenance = golden, trained_on, provenance
        self.history: list[dict[str, Any]] = []
        self.running = torch.zeros(3, dtype=torch.float64)  # this epoch's loss sum, correct tiles, tiles
        self._train_running = self.running
        self._started = 0.0

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.net.load_state_dict(state_dict, strict, assign)

    def forward(self, tiles: Tensor) -> Tensor:
        """uint8 `(n, 3, crop, crop)` → float32 logits `(n, classes)`; in validation of the average, if there is one."""
        tiles = tiles.contiguous(memory_format=self.memory_format)  # while they are bytes, a quarter of the traffic
        net = self.net if self.average is None or self.training else self.average
        logits: Tensor = net(normalise(tiles, self.spec))
        return logits.float()

    def _order(self) -> EpochSampler:
        return EpochSampler(
            len(self.train_tiles),
            self.config.batch_size,
            self.config.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            epoch=len(self.history),  # Lightning draws the first batch of a resumed run before it calls set_epoch
            balance=self.train_tiles.tiles.labels if self.config.balance else None,
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            EpochTiles(self.train_tiles),
            self.config.batch_size,
            sampler=self._order(),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,  # the epoch comes to them with each tile's key
            pin_memory=self.device.type == "cuda",
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        share = range(self.trainer.global_rank, len(self.val_tiles), self.trainer.world_size)
        return DataLoader(
            self.val_tiles,
            EVAL_BATCH,
            sampler=list(share),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.net, self.config)
        steps = steps_per_epoch(len(self.train_tiles), self.config) * self.epochs
        factor = rate_factor(steps, self.recipe.warmup, self.recipe.schedule)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Sets the rate of the first step: a run that is extended resumes with the rate of the shorter run."""
        scheduler = self._schedule()
        for group, factor in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = self.config.lr * factor(scheduler.last_epoch)

    def _schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        return scheduler

    def on_train_epoch_start(self) -> None:
        self.running = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            # For dropout. Not at the epoch's start: loaders still draw from the generator after that, and not
            # equally often when a run is resumed.
            torch.manual_seed(derived_seed(self.config.seed, len(self.history), self.trainer.global_rank))
        tiles, labels = batch
        logits = self(tiles)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        with torch.no_grad():
            # The curves show the plain cross entropy, so that training and validation are the same quantity.
            plain = functional.cross_entropy(logits, labels) if self.recipe.label_smoothing else loss
            self._add(plain, logits, labels)
        # Reading a loss waits for the GPU, so it is read there every 50 steps only, and always at the epoch's end.
        if (self.device.type == "cpu" or batch_idx % 50 == 0) and self.trainer.world_size == 1:
            self._refuse_nan(self.running[0], f"step {batch_idx + 1}")
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None:
            self.average.update_parameters(self.net)

    def on_validation_epoch_start(self) -> None:
        self._train_running = self.running
        self.running = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        tiles, labels = batch
        logits = self(tiles)
        self._add(functional.cross_entropy(logits, labels), logits, labels)

    def on_train_epoch_end(self) -> None:
        """Closes the epoch on every process; checkpoints and tables are written by callbacks after this."""
        train, val = self._total(self._train_running), self._total(self.running)
        self._refuse_nan(torch.tensor(train[0]), "its end")
        self._refuse_nan(torch.tensor(val[0]), "validation")
        scheduler = self._schedule()
        last_step = scheduler.last_epoch - 1
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "lr": self.config.lr * scheduler.lr_lambdas[0](last_step),
                "train_loss": train[0],
                "train_accuracy": train[1],
                "val_loss": val[0],
                "val_accuracy": val[1],
                "seconds": time.perf_counter() - self._started,
            }
        )

    def _add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        correct = (logits.argmax(1) == labels).sum()
        count = torch.full_like(correct, len(labels))
        self.running += torch.stack([loss.detach().double() * len(labels), correct.double(), count.double()])

    def _total(self, sums: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy over all processes."""
        reduced = self.trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        loss, correct, count = reduced.tolist()
        return loss / count, correct / count

    def _refuse_nan(self, loss: Tensor, where: str) -> None:
        if not torch.isfinite(loss):
            epoch = len(self.history) + 1
            kept = f"the checkpoints of epoch {epoch - 1} are kept" if epoch > 1 else "no checkpoint was written"
            raise HistoError(
                f"epoch {epoch}, {where}",
                f"the loss is no longer finite ({kept})",
                "Train again with a lower --lr, or with --autocast fp32 if it was low precision",
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # channels-last is how this run computes and not part of what it has learnt
        weights = {key: value.contiguous() for key, value in checkpoint["state_dict"].items()}
        averaged = {}
        if self.average is not None:
            if "optimizer_states" in checkpoint:  # to resume from, so it has both
                checkpoint[AVERAGE] = self.average.state_dict()
            else:
                weights = {key: value.contiguous() for key, value in self.average.module.state_dict().items()}
                averaged = {"averaged": True}
        row = self.history[-1]
        training = {
            **self.provenance,
            **averaged,
            "epoch": row["epoch"],
            "val_accuracy": row["val_accuracy"],
            "val_loss": row["val_loss"],
            "history": [dict(r) for r in self.history],
        }
        checkpoint["state_dict"] = weights
        checkpoint[KEY] = Checkpoint(self.spec, weights, self.golden, training, self.trained_on).block()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = [dict(row) for row in checkpoint[KEY]["training"]["history"]]
        if self.average is not None:
            self.average.load_state_dict(checkpoint[AVERAGE])


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam; with weight decay AdamW, which decays convolution and linear weights only.

    The fused kernel updates all of a parameter's state in one pass over memory.
    """
    decay = config.resolved_recipe.weight_decay
    if not decay:
        return torch.optim.Adam(net.parameters(), lr=config.lr, fused=True)
    matrices = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
