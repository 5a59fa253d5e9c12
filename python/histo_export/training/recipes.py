"""The settings of a training run: the recipes, the learning rate over the run, and `TrainConfig`.

Plain values only; imports neither torch nor Lightning, so that the command line can read it quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from histo_export.errors import UsageError
from histo_export.measures import Positive
from histo_export.spec import is_number

Autocast = Literal["auto", "fp32", "bf16", "fp16"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "autocast": ("auto", "fp32", "bf16", "fp16"),
    # Lightning's others shard the weights, which checkpoints under torchvision's keys can't hold, or start processes
    # in ways (spawn, fork) that gain nothing here.
    "strategy": ("auto", "ddp"),
    "keep": ("best", "last", "ema"),
}
"""The values of the settings that are names."""

BOUNDS: Mapping[str, tuple[int, int]] = {
    "epochs": (1, 100_000),
    "steps": (1, 1_000_000_000),
    "batch_size": (1, 65_536),
    "devices": (1, 1024),
    "nodes": (1, 1024),
    "workers": (0, 1024),
    "seed": (0, 2**63 - 1),
}
"""Least and largest value of the settings that are integers."""


Schedule = Literal["cosine", "onecycle"]
Keep = Literal["best", "last", "ema"]


@dataclass(frozen=True)
class Recipe:
    """How the network is trained. All recipes share cross entropy and Adam.

    Attributes:
        epochs: used where the caller names none.
        random_crop: the crop is at a random place of the tile; else in its centre.
        flips: mirrored at random, both ways.
        turns: turned by a random multiple of 90 degrees.
        brightness, contrast, saturation, hue: strengths of the colour jitter; 0 switches it off.
        stain: strength of the H&E stain jitter.
        grey: probability of a tile without colour.
        warmup: fraction of the run's steps over which the rate rises.
        schedule: of the rate, see `rate_factor`.
        label_smoothing: ε of cross entropy's smoothed targets (Szegedy et al. 2016, arXiv:1512.00567), in
            training only.
        weight_decay: decoupled from the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101), on
            convolution and linear weights only: batch norm's gains and the biases regularise nothing.
        zero_residual: the last gain of each residual block starts at zero, so that a network without given weights
            starts as a shallow one (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        ema_decay: of the moving average of the weights, which only runs that keep it compute (`TrainConfig.keep`).
    """

    epochs: int
    random_crop: bool = False
    flips: bool = False
    turns: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    stain: float = 0.0
    grey: float = 0.0
    warmup: float = 0.0
    schedule: Schedule = "cosine"
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    zero_residual: bool = False
    ema_decay: float = 0.999

    @property
    def augmentation(self) -> dict[str, Any] | None:
        """The arguments of `data.transforms.Augmentation`; None where every tile is its centre crop."""
        parts = {name: getattr(self, name) for name in AUGMENTATION}
        return parts if any(parts.values()) else None

    def settings(self) -> dict[str, Any]:
        """The rest, besides the length, as plain values."""
        rest = {name: value for name, value in asdict(self).items() if name not in ("epochs", *AUGMENTATION)}
        return {"augmentation": self.augmentation is not None, **rest}


AUGMENTATION = ("random_crop", "flips", "turns", "brightness", "contrast", "saturation", "hue", "stain", "grey")
"""The fields of `Recipe` that change tiles."""

RECIPES: dict[str, Recipe] = {
    # The report: Adam, no augmentation, half a cosine from the rate to zero over all epochs.
    "report": Recipe(epochs=20),
    # A few thousand tiles are memorised within a few epochs, so most of the gain is expected from
    # augmentation: tissue has no up and no left (flips and turns are free extra tiles) and stain varies
    # between laboratories (jitter). The warm-up keeps Adam's first steps small while its second moments are
    # still estimates from a few batches; the smoothing keeps the logits of memorised tiles bounded.
    "strong": Recipe(
        epochs=30,
        random_crop=True,
        flips=True,
        turns=True,
        brightness=0.1,
        contrast=0.1,
        saturation=0.1,
        stain=0.05,
        warmup=0.05,
        label_smoothing=0.1,
        weight_decay=0.05,
    ),
    # For runs of a few hundred steps, such as those of the demo: what makes the first of them count.
    "short": Recipe(
        epochs=8,
        random_crop=True,
        flips=True,
        turns=True,
        warmup=0.3,
        schedule="onecycle",
        zero_residual=True,
    ),
}

LIMITS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("brightness", "contrast", "saturation", "stain", "warmup", "label_smoothing"), (0.0, 0.99)),
    "hue": (0.0, 0.5),
    "grey": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "ema_decay": (0.0, 0.999999),
}
"""Least and largest value of the numbers of a recipe."""


def recipe_named(name: str, parts: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name.

    Args:
        name: a key of `RECIPES`.
        parts: values of fields to change, by name.

    Raises:
        UsageError: there is no such recipe, it has no such part, or a value is impossible.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r}", "is unknown", f"Use one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    for part, value in (parts or {}).items():
        if part == "epochs" or part not in asdict(recipe):
            known = ", ".join(name for name in asdict(recipe) if name != "epochs")
            raise UsageError(f"part {part!r}", "is not a part of a recipe", f"Use one of {known}")
        _check_part(part, value)
    return replace(recipe, **(parts or {}))


def _check_part(part: str, value: object) -> None:
    """UsageError where a part of a recipe cannot have this value."""
    if part == "schedule":
        possible, kind = value in get_args(Schedule), " or ".join(get_args(Schedule))
    elif part in LIMITS:
        least, most = LIMITS[part]
        possible, kind = is_number(value, LIMITS[part]), f"a number from {least:g} to {most:g}"
    else:
        possible, kind = isinstance(value, bool), "True or False"
    if not possible:
        raise UsageError(f"part {part}={value!r}", f"is not {kind}", f"Use {kind}")


def rate_factor(steps: int, warmup: float, schedule: Schedule = "cosine") -> Callable[[int], float]:
    """Learning rate over its peak as a function of the step (an optimiser step is one batch; the first is 0).

    "cosine": a linear rise, then half a cosine from 1 at the first step after the warm-up to exactly 0 at `steps`,
    which the last step (`steps - 1`) just misses: SGDR's schedule without restarts, arXiv:1608.03983, eq. 5.
    "onecycle": as `torch.optim.lr_scheduler.OneCycleLR` with its default factors (arXiv:1708.07120): half a cosine up
    from 1/25 of the rate, half a cosine down to 1/250,000 at the last step; momentum stays as it is.

    Args:
        steps: optimiser steps of the whole run, all epochs together.
        warmup: fraction of them over which the rate rises.
        schedule: a name from above.
    """
    if schedule == "onecycle":
        first, final = 1 / 25, 1 / 25e4
        peak = steps * warmup - 1

        def one_cycle(step: int) -> float:
            if step <= peak:
                return _half_cosine(first, 1, step / peak if peak else 1)
            return _half_cosine(1, final, min(1, (step - peak) / max(1, steps - 1 - peak)))

        return one_cycle
    rising = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return _half_cosine(1, 0, min(1.0, (step - rising) / max(1, steps - rising)))

    return factor


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


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
        parts: fields of the recipe → values in place of the recipe's own.
        epochs: None takes the recipe's (or, when resuming, the run's).
        steps: the length in optimiser steps in place of epochs; whole epochs are trained, so many that they are enough.
        keep: the weights that are tested and exported. "best": of the epoch of highest validation accuracy, which is
            therefore optimistic. "last": of the last epoch. "ema": the exponential moving average of the weights after
            the last step; validation is then by the average, too.
        calibrate: one temperature is fitted on the validation tiles, see `training.calibration`.
        positive: of two classes the one that is looked for: the test tells the sensitivity at a specificity.
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
    parts: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    keep: Keep = "best"
    calibrate: bool = False
    positive: Positive | None = None
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
        recipe_named(self.recipe, self.parts)
        if self.epochs is not None and self.steps is not None:
            raise UsageError(f"--steps {self.steps}", "contradicts --epochs", "Leave one of them out")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is None and name in ("epochs", "steps", "workers"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                cause = f"is not an integer from {least} to {most}"
                raise UsageError(f"{_option(name)} {value}", cause, f"Use {least} or more")
        if not (math.isfinite(self.lr) and 0 < self.lr <= MAX_LR):
            raise UsageError(f"--lr {self.lr}", f"is not above 0 and at most {MAX_LR:g}", "Use e.g. --lr 0.001")
        if self.positive is not None and not is_number(self.positive.specificity, (0, 1)):
            thing = f"--specificity {self.positive.specificity}"
            raise UsageError(thing, "is not a number from 0 to 1", "Use e.g. --specificity 0.95")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{_option(name)} {getattr(self, name)}", "is unknown", f"Use {' or '.join(known)}")

    @property
    def resolved_recipe(self) -> Recipe:
        """The recipe with the parts that were changed."""
        return recipe_named(self.recipe, self.parts)

    @property
    def described_recipe(self) -> str:
        """In words: its name, and what was changed."""
        return ", ".join([self.recipe, *(f"{name}={value}" for name, value in self.parts.items())])

    @property
    def processes(self) -> int:
        """Processes that train together."""
        return self.devices * self.nodes

    def identity(self, epochs: int) -> dict[str, Any]:
        """What must not change between a run and its resumption, as plain values."""
        recipe = self.resolved_recipe
        return {
            "recipe": self.recipe,
            "settings": recipe.settings(),
            "augmentation": recipe.augmentation,
            "keep": self.keep,
            "epochs": epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "seed": self.seed,
            "weights": self.weights,
            "channels_last": self.channels_last,
            "processes": self.processes,
            "balance": self.balance,
        }
