"""What defines a tile classifier besides its weights. Imports no torch, so that every runtime can read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from histo_export import _core
from histo_export.errors import UsageError

STAGES = _core.STAGES
"""Where a diverging export is looked for, in the order of the computation. The head's output is the logits."""

CHANNELS = 512
"""Channels of the final feature map."""

MAX_SIDE = 65536
"""Of pools, crops and tiles; the native engine's reader has the same limit."""

MPP_LIMITS = (0.01, 100.0)
"""µm per pixel that anybody may state: the best microscopes resolve 0.1 µm, and a slide is 25,000 µm wide."""

Precision = Literal["fp32", "bf16x3", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Of the native engine's arithmetic (`_core.PRECISIONS`), most accurate first; defined in `model.arithmetic`."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def map_size(crop: int) -> int:
    """Side of the final feature map for a crop of `crop` pixels: five halvings, each rounding up (128 → 4)."""
    side = crop
    for _ in range(5):  # 7×7/2 pad 3, then four 3×3/2 pad 1: each is ceil(side / 2)
        side = (side + 1) // 2
    return side


def head_pool(pool: int, size: int) -> int:
    """The pool that the exported head keeps on a map of side `size`: `pool` if it divides `size`, else `size`."""
    return pool if size % pool == 0 else size


InputKind = Literal["float", "uint8"]
"""What a graph takes: "float" is float32 `(n, 3, h, w)` in [0, 1]; "uint8" is uint8 `(n, h, w, 3)`. RGB."""


def describe_input(kind: InputKind, side: int) -> tuple[str, str]:
    """What a graph takes, in words: its type and shape, and its values. `side` of the tiles is in pixels."""
    if kind == "uint8":
        return f"uint8 (n, {side}, {side}, 3)", "RGB"
    return f"float32 (n, 3, {side}, {side})", "RGB in [0, 1]"


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed, besides the weights, to turn a tile into logits.

    Attributes:
        pool: n of the n×n adaptive average pool; any n ≥ 1.
        classes: names, in the order of the logits.
        crop: side in pixels of the centre crop that the network sees.
        tile_size: side in pixels of the tiles that the exported files are declared for (≥ crop).
        mean, std: per RGB channel, of values in [0, 1].
        mpp: µm per pixel of the tiles, where known.
        dropout: probability before the linear layer while training.
    """

    pool: int
    classes: tuple[str, ...]
    crop: int = 128
    tile_size: int = 150
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mpp: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.pool, int) or self.pool < 1:
            raise UsageError(f"pool {self.pool!r}", "is not an integer of 1 or more", "Use --pool 1, 2, 3, …")
        if len(self.classes) < 2:
            raise UsageError(f"classes {list(self.classes)}", "are fewer than two", "Name at least two classes")
        if len(set(self.classes)) != len(self.classes):
            raise UsageError(f"classes {list(self.classes)}", "repeat a name", "Name each class once")
        if self.crop < 32:
            raise UsageError(f"crop {self.crop}", "is below 32 pixels, the network's stride", "Use --crop 32 or more")
        if self.tile_size < self.crop:
            raise UsageError(
                f"crop {self.crop}",
                f"is larger than the tiles ({self.tile_size} pixels)",
                f"Use --crop {self.tile_size} or less",
            )
        for name, side in (("pool", self.pool), ("tile_size", self.tile_size)):
            if side > MAX_SIDE:
                raise UsageError(f"{name} {side}", f"is larger than {MAX_SIDE}", "Use a smaller one")
        if not all(map(math.isfinite, self.mean)):
            raise UsageError(f"mean {list(self.mean)}", "is not finite", "Give the mean of each channel")
        if not all(0 < value < math.inf for value in self.std):
            raise UsageError(f"std {list(self.std)}", "is not finite and above zero", "Give each channel's deviation")
        low, high = MPP_LIMITS
        if self.mpp is not None and not low <= self.mpp <= high:
            raise UsageError(f"mpp {self.mpp}", f"is not in {low:g} to {high:g} µm per pixel", "Use e.g. --mpp 0.495")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout}", "is not in [0, 1)", "Use e.g. --dropout 0.2")

    @property
    def map_size(self) -> int:
        """Side of the final feature map."""
        return map_size(self.crop)

    @property
    def seen_share(self) -> str:
        """How much of a tile's area the network sees, e.g. "33 %"."""
        percent = 100 * (self.crop / self.tile_size) ** 2
        return f"{percent:.0f} %" if 1 <= percent < 99.5 else f"{percent:.3g} %"

    @property
    def crop_offset(self) -> int:
        """Pixels from a tile's edge to the centre crop, as torchvision's CenterCrop rounds it: a half to the even."""
        return round((self.tile_size - self.crop) / 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON and for checkpoints that load with `weights_only=True`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`; raises TypeError or KeyError where fields are missing or of another type."""
        known = {f.name for f in fields(cls)}
        kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**kept)
