"""The quick study: linear layers of all pools on the frozen feature maps of one trained backbone.

The backbone is that of a whole training with the smallest pool. Its last feature maps are computed once for each tile
(its centre crop, without augmentation) in evaluation mode, and each head is then trained on them, that of the smallest
pool anew, too. So the heads differ in nothing but the pool. What this can't show is how a pool changes what the
backbone learns; and the backbone has learnt for the smallest pool, which favours that.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from histo_export.data.transforms import TorchTiles
from histo_export.errors import not_written
from histo_export.model.checkpoint import read_checkpoint
from histo_export.model.net import TileNet, normalise
from histo_export.model.provenance import best_row
from histo_export.spec import CHANNELS, STAGES, ModelSpec
from histo_export.study.design import Arm, Design
from histo_export.study.outcome import Outcome
from histo_export.study.runs import Runner, StudyFolder, keep_checkpoint_only, trained
from histo_export.system import make_room
from histo_export.training.folder import RunFolder
from histo_export.training.module import EVAL_BATCH, EpochSampler, derived_seed, make_optimizer
from histo_export.training.recipes import rate_factor
from histo_export.training.trainer import choose_device

if TYPE_CHECKING:
    from histo_export.data import TileData, TileSet

Maps = npt.NDArray[np.float32]

EPOCHS = 30
"""Of a head: an epoch of feature maps takes about a second."""
IN_MEMORY_BYTES = 1_000_000_000
"""Feature maps that are larger go to a temporary file, which is mapped into memory."""


@contextmanager
def head_runner(design: Design, data: TileData, folder: StudyFolder) -> Iterator[Runner]:
    """Heads on frozen feature maps. Those of one backbone are kept until another one is asked for.

    A backbone that failed is not tried again for the other heads of its seed: they fail with the same error.
    """
    known: dict[tuple[str, int], _Maps] = {}
    failed: dict[tuple[str, int], Exception] = {}
    with ExitStack() as stack:

        def run(arm: Arm, seed: int) -> Outcome:
            began = time.perf_counter()
            if error := failed.get((arm.recipe, seed)):
                raise error
            if (arm.recipe, seed) not in known:
                known.clear()
                stack.close()
                try:
                    known[arm.recipe, seed] = _backbone_maps(design, data, folder, arm.recipe, seed, stack)
                except Exception as error:
                    failed[arm.recipe, seed] = error
                    raise
            outcome = known[arm.recipe, seed].train(design, arm, seed)
            return replace(outcome, seconds=time.perf_counter() - began)

        yield run


class _Maps:
    """The last feature maps of the three splits, and their labels."""

    def __init__(self, maps: dict[str, Maps], labels: dict[str, npt.NDArray[np.int64]], device: torch.device) -> None:
        self.maps, self.device = maps, device
        self.labels = {split: torch.from_numpy(values) for split, values in labels.items()}

    def pooled(self, split: str, rows: npt.NDArray[np.int64], pool: int) -> Tensor:
        """What the linear layer of a pool sees of some tiles: `(rows, 512·pool²)`."""
        maps = torch.from_numpy(self.maps[split][rows]).to(self.device)
        return functional.adaptive_avg_pool2d(maps, pool).flatten(1)

    def logits(self, head: nn.Linear, split: str, pool: int) -> Tensor:
        """Of all tiles of a split, on the CPU."""
        rows = np.arange(len(self.labels[split]))
        with torch.inference_mode():
            parts = [head(self.pooled(split, part, pool)).cpu() for part in np.split(rows, rows[256::256])]
        return torch.cat(parts)

    def train(self, design: Design, arm: Arm, seed: int) -> Outcome:
        """Trains a head with the recipe's optimiser, smoothing and rate, for `EPOCHS` epochs."""
        config, pool = design.config_of(arm, seed), arm.pool
        recipe = config.resolved_recipe
        torch.manual_seed(derived_seed(seed, pool))
        head = nn.Linear(CHANNELS * pool * pool, len(design.spec.classes)).to(self.device)
        optimizer = make_optimizer(head, config)
        tiles = len(self.labels["train"])
        balance = self.labels["train"].numpy() if config.balance else None
        sampler = EpochSampler(tiles, config.batch_size, seed, balance=balance)
        steps = EPOCHS * math.ceil(len(sampler) / config.batch_size)
        factor = rate_factor(steps, recipe.warmup, recipe.schedule)
        history: list[dict[str, Any]] = []
        kept, kept_logits, step = 1, self.logits(head, "test", pool), 0
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            order = np.array([index for _, index, _ in sampler])
            total = torch.zeros(2, dtype=torch.float64)
            for rows in np.split(order, range(config.batch_size, len(order), config.batch_size)):
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * factor(step)
                total += self._step(head, optimizer, rows, pool, recipe.label_smoothing)
                step += 1
            loss, right = (total / len(order)).tolist()
            history.append({"epoch": epoch + 1, "lr": config.lr * factor(step - 1), "train_loss": loss})
            history[-1] |= {"train_accuracy": right, **self._validation(head, pool)}
            if config.keep != "best" or best_row(history) is history[-1]:
                kept, kept_logits = epoch + 1, self.logits(head, "test", pool)
        accuracy = history[kept - 1]["val_accuracy"]
        return Outcome(arm, seed, history, kept, accuracy, kept_logits.numpy().astype(np.float32), 0.0)

    def _step(
        self,
        head: nn.Linear,
        optimizer: torch.optim.Optimizer,
        rows: npt.NDArray[np.int64],
        pool: int,
        smoothing: float,
    ) -> Tensor:
        """One step; returns the sum of the plain losses, and the number of right answers."""
        labels = self.labels["train"][rows].to(self.device)
        optimizer.zero_grad(set_to_none=True)
        logits = head(self.pooled("train", rows, pool))
        functional.cross_entropy(logits, labels, label_smoothing=smoothing).backward()
        optimizer.step()
        with torch.no_grad():
            plain = functional.cross_entropy(logits, labels, reduction="sum").double()
            return torch.stack([plain, (logits.argmax(1) == labels).sum().double()]).cpu()

    def _validation(self, head: nn.Linear, pool: int) -> dict[str, float]:
        logits, labels = self.logits(head, "val", pool), self.labels["val"]
        right = (logits.argmax(1) == labels).double().mean()
        return {"val_loss": float(functional.cross_entropy(logits, labels)), "val_accuracy": float(right)}


def _backbone_maps(
    design: Design, data: TileData, folder: StudyFolder, recipe: str, seed: int, stack: ExitStack
) -> _Maps:
    """Trains the backbone, unless it is there, and computes the feature maps; `stack` removes their files."""
    home = folder.backbone(recipe, seed)
    done = home / "complete"  # its outcome would be one of the smallest pool's head
    if not done.exists():
        trained(design, data, Arm(recipe, design.pools[0]), seed, home)
        done.touch()
    keep_checkpoint_only(home)
    loaded = read_checkpoint(RunFolder(home).best)
    device = choose_device(design.config.device)
    net = loaded.net().to(device, memory_format=torch.channels_last)
    splits = {"train": data.train, "val": data.val, "test": data.test}
    maps = {name: _feature_maps(net, loaded.spec, tiles, device, stack) for name, tiles in splits.items()}
    return _Maps(maps, {name: tiles.labels for name, tiles in splits.items()}, device)


def _feature_maps(net: TileNet, spec: ModelSpec, tiles: TileSet, device: torch.device, stack: ExitStack) -> Maps:
    """The output of the last stage for each tile: float32 `(tiles, 512, side, side)`."""
    shape = (len(tiles), CHANNELS, spec.map_size, spec.map_size)
    maps = _array(shape, stack)
    done = 0
    with torch.inference_mode():
        for batch, _ in DataLoader(TorchTiles(tiles, spec.crop), EVAL_BATCH):
            batch = batch.to(device).contiguous(memory_format=torch.channels_last)
            last = dict(net.stages(normalise(batch, spec)))[STAGES[-2]]
            maps[done : done + len(batch)] = last.float().cpu().numpy()
            done += len(batch)
    return maps


def _array(shape: tuple[int, ...], stack: ExitStack) -> Maps:
    """Zeros, in memory or in a temporary file that `stack` removes."""
    if 4 * math.prod(shape) <= IN_MEMORY_BYTES:
        return np.zeros(shape, np.float32)
    try:
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        make_room(file.fileno(), 4 * math.prod(shape))
        return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise not_written("A temporary file of feature maps", error, "set TMPDIR to another folder") from error
