"""One epoch of `histo train` beside a plain PyTorch loop of the same recipe.

    python benchmarks/training_epoch.py --pool 2 --tiles 256 --rounds 5

What makes the comparison fair: both start from the same weights, see the same tiles in the same order,
compute in the same memory format and precision with the same optimiser and rate, and end with a validation
pass. Rounds are interleaved and their order rotates; the first round of each is warm-up. Timed is training
and validation, from the first batch to the last figure, which is what metrics.csv calls `seconds`;
Lightning's set-up, once a run, and writing checkpoints are left out on both sides. The ends are compared, so a
loop that did less would be seen.

Rows below the first two change one setting of `histo train` each and are not comparable in their result.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from histo_export.data import TileSet
from histo_export.data.transforms import Augmentation, TorchTiles
from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec
from histo_export.trained_on import TrainedOn
from histo_export.training.module import EVAL_BATCH, EpochSampler, EpochTiles, TileTraining
from histo_export.training.precision import low_precision
from histo_export.training.progress import quiet_lightning
from histo_export.training.recipes import TrainConfig, rate_factor
from histo_export.training.trainer import choose_device, make_trainer


class Noise:
    """Makes tile `i` of noise: the time does not depend on the pixels."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)


class Bench:
    """The data and the initial weights that all contestants share."""

    def __init__(self, args: argparse.Namespace) -> None:
        classes = tuple("abcdef")
        self.spec = ModelSpec(pool=args.pool, classes=classes, crop=args.crop, tile_size=args.crop + 22)
        self.config = TrainConfig(recipe=args.recipe, batch_size=args.batch, device=args.device, autocast="fp32")
        self.device = choose_device(args.device)
        strengths = self.config.resolved_recipe.augmentation
        augmentation = Augmentation(args.crop, **strengths) if strengths else None
        self.train = TorchTiles(self._tiles(args.tiles), args.crop, augmentation, self.config.seed)
        self.val = TorchTiles(self._tiles(max(8, args.tiles // 4)), args.crop)
        torch.manual_seed(0)
        self.start = TileNet.of(self.spec)

    def _tiles(self, count: int) -> TileSet:
        labels = np.arange(count, dtype=np.int64) % len(self.spec.classes)
        return TileSet(self.spec.classes, labels, [str(i) for i in range(count)], Noise(self.spec.tile_size))

    def lightning(self, config: TrainConfig, precision: str) -> tuple[float, TileNet, float]:
        """Seconds of an epoch, the trained network, its mean training loss."""
        net = copy.deepcopy(self.start)
        module = TileTraining(
            net,
            self.spec,
            replace(config, epochs=1, workers=0),
            train_tiles=self.train,
            val_tiles=self.val,
            golden=np.zeros((1, 8, 8, 3), np.uint8),
            trained_on=TrainedOn.of(np.zeros(0, np.int64), np.zeros(0, np.int64)),
            provenance={},
        )
        with quiet_lightning(), tempfile.TemporaryDirectory() as folder:
            make_trainer(config, 1, self.device, precision, [], Path(folder)).fit(module)
        row = module.history[0]
        return row["seconds"], net, row["train_loss"]

    def plain(self) -> tuple[float, TileNet, float]:
        """The same epoch, written as one would without a framework."""
        net = copy.deepcopy(self.start).to(self.device, memory_format=torch.channels_last)
        recipe = self.config.resolved_recipe
        order = EpochSampler(len(self.train), self.config.batch_size, self.config.seed)
        batches = DataLoader(EpochTiles(self.train), self.config.batch_size, sampler=order)
        if recipe.weight_decay:
            matrices = [p for p in net.parameters() if p.ndim > 1]
            rest = [p for p in net.parameters() if p.ndim <= 1]
            groups = [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ]
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=self.config.lr, fused=True)
        else:
            optimizer = torch.optim.Adam(net.parameters(), lr=self.config.lr, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, rate_factor(len(batches), recipe.warmup, recipe.schedule)
        )
        start = time.perf_counter()
        net.train()
        total, correct, seen = 0.0, 0, 0
        for tiles, labels in batches:
            tiles = tiles.to(self.device).contiguous(memory_format=torch.channels_last)
            labels = labels.to(self.device)
            logits = net(normalise(tiles, self.spec))
            loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                total += functional.cross_entropy(logits, labels).item() * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
        net.eval()
        with torch.inference_mode():
            for tiles, labels in DataLoader(self.val, EVAL_BATCH):
                tiles = tiles.to(self.device).contiguous(memory_format=torch.channels_last)
                logits = net(normalise(tiles, self.spec))
                functional.cross_entropy(logits, labels.to(self.device)).item()
        return time.perf_counter() - start, net, total / seen


def main() -> int:
    """Prints the table; returns 1 where the two loops end with different weights or losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="report")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bf16", action="store_true", help="time bf16 autocast where it is not native, too")
    args = parser.parse_args()
    bench = Bench(args)

    contestants: dict[str, Callable[[], tuple[float, TileNet, float]]] = {
        "histo train": lambda: bench.lightning(bench.config, "fp32"),
        "plain loop": bench.plain,
        "histo train, default layout": lambda: bench.lightning(replace(bench.config, channels_last=False), "fp32"),
    }
    low = low_precision(bench.device) or ("bf16" if args.bf16 else None)
    if low:
        contestants[f"histo train, {low} autocast"] = lambda: bench.lightning(bench.config, low)

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    ends: dict[str, tuple[TileNet, float]] = {}
    names = list(contestants)
    for round_ in range(args.rounds + 1):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            taken, net, loss = contestants[name]()
            ends[name] = net.cpu(), loss
            if round_:
                seconds[name].append(taken)

    ours, plain = (dict(ends[name][0].state_dict()) for name in names[:2])
    apart = max(float((ours[key].double() - plain[key].double()).abs().max()) for key in ours)
    loss_apart = abs(ends[names[0]][1] - ends[names[1]][1])
    reference = statistics.median(seconds["plain loop"])
    print(
        f"one epoch of {args.tiles} tiles, {args.crop} px, pool {args.pool}, recipe {args.recipe}, "
        f"batch {args.batch}, {bench.device.type}, {torch.get_num_threads()} threads, {args.rounds} rounds, "
        f"torch {torch.__version__}"
    )
    print(f"{'':32}{'median s':>10}{'min':>8}{'max':>8}{'tiles/s':>9}{'to plain':>10}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(
            f"{name:32}{middle:10.2f}{min(times):8.2f}{max(times):8.2f}{args.tiles / middle:9.1f}"
            f"{middle / reference:10.3f}"
        )
    print(f"after the epoch: max difference of weights {apart:.1e}, of mean loss {loss_apart:.1e}")
    if not (apart <= 1e-6 and loss_apart <= 1e-6):
        print("the two loops do not compute the same", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
