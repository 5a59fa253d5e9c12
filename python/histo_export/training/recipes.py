"""The settings of a training run: the recipes, the learning rate over the run, and `TrainConfig`.

Plain values only; imports neither torch nor Lightning, so that the command line can read it quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from histo_export.errors import UsageError

Autocast = Literal["auto", "fp32", "bf16", "fp16"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "autocast": ("auto", "fp32", "bf16", "fp16"),
    # Lightning's others shard the weights, which checkpoints under torchvision's keys can't hold, or start processes
    # in ways (spawn, fork) that gain nothing here.
    "strategy": ("auto", "ddp"),
}
"""The values of the settings that are names."""

BOUNDS: Mapping[str, tuple[int, int]] = {
    "epochs": (1, 100_000),
    "batch_size": (1, 65_536),
    "devices": (1, 1024),
    "nodes": (1, 1024),
    "workers": (0, 1024),
    "seed": (0, 2**63 - 1),
}
"""Least and largest value of the settings that are integers."""


@dataclass(frozen=True)
class Recipe:
    """How the network is trained. All recipes share cross entropy, Adam and half a cosine.

    Attributes:
        epochs: used where the caller names none.
        augmentation: random crops, flips, quarter turns, colour and H&E stain jitter
            (`data.transforms.Augmentation`); without it every tile is its centre crop.
        warmup: fraction of the run's steps over which the rate rises linearly before the cosine sets in.
        label_smoothing: ε of cross entropy's smoothed targets (Szegedy et al. 2016, arXiv:1512.00567), in
            training only.
        weight_decay: decoupled from the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101), on
            convolution and linear weights only: batch norm's gains and the biases regularise nothing.
    """

    epochs: int
    augmentation: bool = False
    warmup: float = 0.0
    label_smoothing: float = 0.0
    weight_decay: float = 0.0


AUGMENTATION: Mapping[str, float] = {
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.1,
    "hue": 0.0,
    "stain": 0.05,
}
"""Strengths of `data.transforms.Augmentation` in the recipes that augment."""

RECIPES: dict[str, Recipe] = {
    # The report: Adam, no augmentation, half a cosine from the rate to zero over all epochs.
    "report": Recipe(epochs=20),
    # A few thousand tiles are memorised within a few epochs, so most of the gain is expected from
    # augmentation: tissue has no up and no left (flips and turns are free extra tiles) and stain varies
    # between laboratories (jitter). The warm-up keeps Adam's first steps small while its second moments are
    # still estimates from a few batches; the smoothing keeps the logits of memorised tiles bounded.
    "strong": Recipe(epochs=30, augmentation=True, warmup=0.05, label_smoothing=0.1, weight_decay=0.05),
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name; UsageError where there is none."""
    try:
        return RECIPES[name]
    except KeyError:
        raise UsageError(f"recipe {name!r}", "is unknown", f"Use one of {', '.join(RECIPES)}") from None


def rate_factor(steps: int, warmup: float) -> Callable[[int], float]:
    """Learning rate over its peak as a function of the step (an optimiser step is one batch; the first is 0).

    Half a cosine from 1 at the first step after the warm-up to exactly 0 at `steps`, which the last step
    (`steps - 1`) just misses: SGDR's schedule without restarts, arXiv:1608.03983, eq. 5.

    Args:
        steps: optimiser steps of the whole run, all epochs together.
        warmup: fraction of them that rise linearly, (step + 1) / warm-up steps.
    """
    rising = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return factor


MAX_LR = 10.0
"""Adam moves a weight by about the rate in each step, and weights are far below 1."""


def _option(name: str) -> str:
    """A setting as the command line calls it."""
    return "--" + {"batch_size": "batch"}.get(name, name)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        recipe: a key of `RECIPES`.
        epochs: None takes the recipe's (or, when resuming, the run's).
        batch_size: tiles a step and device; several devices together see `batch_size · devices · nodes`.
        lr: peak learning rate of Adam.
        seed: of the initial weights, the order of the tiles, augmentation and dropout.
        device: "auto" (CUDA where there is a GPU, else CPU), "cpu" or "cuda"; if a named one is unavailable, the run
            fails.
        autocast: "auto" times fp32 against the device's low precision and keeps the faster one.
        weights: "none", "imagenet" or a file, see `model.weights.load_weights`.
        workers: processes that load tiles; None is 0 on the CPU, where the network already uses every core
            and decoding is a few per cent of a step, and min(8, CPUs) on CUDA, where it would starve the GPU.
        channels_last: NHWC memory format for network and input.
        devices: processes (GPUs) on each node.
        nodes: machines.
        strategy: Lightning's "auto" or "ddp".
        balance: each class is drawn equally often in an epoch, however many tiles it has.
        allow_duplicates: train although tiles of different splits are identical or near duplicates.
    """

    recipe: str = "strong"
    epochs: int | None = None
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    autocast: Autocast = "auto"
    weights: str = "none"
    workers: int | None = None
    channels_last: bool = True
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    balance: bool = False
    allow_duplicates: bool = False

    def __post_init__(self) -> None:
        recipe_named(self.recipe)
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is None and name in ("epochs", "workers"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                cause = f"is not an integer from {least} to {most}"
                raise UsageError(f"{_option(name)} {value}", cause, f"Use {least} or more")
        if not (math.isfinite(self.lr) and 0 < self.lr <= MAX_LR):
            raise UsageError(f"--lr {self.lr}", f"is not above 0 and at most {MAX_LR:g}", "Use e.g. --lr 0.001")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{_option(name)} {getattr(self, name)}", "is unknown", f"Use {' or '.join(known)}")

    @property
    def processes(self) -> int:
        """Processes that train together."""
        return self.devices * self.nodes

    def identity(self, epochs: int) -> dict[str, Any]:
        """What must not change between a run and its resumption, as plain values."""
        recipe = recipe_named(self.recipe)
        return {
            "recipe": self.recipe,
            "settings": {name: value for name, value in asdict(recipe).items() if name != "epochs"},
            "augmentation": dict(AUGMENTATION) if recipe.augmentation else None,
            "epochs": epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "seed": self.seed,
            "weights": self.weights,
            "channels_last": self.channels_last,
            "processes": self.processes,
            "balance": self.balance,
        }
