"""What defines a tile classifier besides its weights. Imports no torch, so that every runtime can read it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from histo_export import _core
from histo_export.errors import UsageError, one_line

STAGES = _core.STAGES
"""Where a diverging export is looked for, in the order of the computation. The head's output is the logits."""

CHANNELS = 512
"""Channels of the final feature map."""

MAX_SIDE = 65536
"""Of pools, crops and tiles; the native engine's reader has the same limit."""

MAX_HEAD = 500_000_000
"""Weights of the linear layer, trained or exported: 2 GB, which a protobuf, and so an ONNX file, cannot exceed."""

MEAN_LIMITS = (0.0, 1.0)
"""Of a channel's mean: pixels are divided by 255 first."""

STD_LIMITS = (0.001, 1000.0)
"""Of a channel's deviation. 1/255 is for networks that were trained on pixels from 0 to 255, 255 for those whose pixels
were divided twice. Normalised pixels stay below 1000, so that float32 and bf16 never overflow."""

MPP_LIMITS = (0.01, 100.0)
"""µm per pixel that anybody may state: the best microscopes resolve 0.1 µm, and a slide is 25,000 µm wide."""

Precision = Literal["fp32", "bf16x3", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Of the native engine's arithmetic (`_core.PRECISIONS`), most accurate first; defined in `model.arithmetic`."""

AskedPrecision = Precision | Literal["auto"]
"""What a user may ask for where a bundle is run: "auto" is the fastest that its measurement allows on this CPU."""

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


def percent(share: float, decimals: int = 1) -> str:
    """A share as all outputs show it: 0.444 is "44.4 %"."""
    return f"{100 * share:.{decimals}f} %"


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
        resized_from: side in pixels that the training tiles had before they were resampled to `tile_size`; `mpp` is
            that of the resampled tiles. None: they were not resampled.
    """

    pool: int
    classes: tuple[str, ...]
    crop: int = 128
    tile_size: int = 150
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mpp: float | None = None
    dropout: float = 0.0
    resized_from: int | None = None

    def __post_init__(self) -> None:
        self._check_sides()
        self._check_classes()
        _check_channels("mean", self.mean, MEAN_LIMITS, "Give the mean of each channel, of values in [0, 1]")
        _check_channels("std", self.std, STD_LIMITS, "Give each channel's deviation, of values in [0, 1]")
        if self.mpp is not None and not is_number(self.mpp, MPP_LIMITS):
            low, high = MPP_LIMITS
            cause = f"is not a number from {low:g} to {high:g} µm per pixel"
            raise UsageError(f"mpp {self.mpp}", cause, "Use e.g. --mpp 0.495")
        if not is_number(self.dropout, (0, 1)) or self.dropout == 1:
            raise UsageError(f"dropout {self.dropout}", "is not a number in [0, 1)", "Use e.g. --dropout 0.2")

    def _check_sides(self) -> None:
        """UsageError for an impossible pool, crop or tile size."""
        for name, side, least in (("pool", self.pool, 1), ("crop", self.crop, 32), ("tile size", self.tile_size, 1)):
            if not isinstance(side, int) or isinstance(side, bool):
                raise UsageError(f"{name} {side!r}", "is not an integer", f"Use an integer of {least} or more")
        if self.pool < 1:
            raise UsageError(f"pool {self.pool}", "is not an integer of 1 or more", "Use --pool 1, 2, 3, …")
        if self.crop < 32:
            raise UsageError(f"crop {self.crop}", "is below 32 pixels, the network's stride", "Use --crop 32 or more")
        if self.tile_size < self.crop:
            raise UsageError(
                f"crop {self.crop}",
                f"is larger than the tiles ({self.tile_size} pixels)",
                f"Use --crop {self.tile_size} or less",
            )
        if self.tile_size > MAX_SIDE:
            raise UsageError(f"tile size {self.tile_size}", f"is larger than {MAX_SIDE}", "Use smaller tiles")
        before = self.resized_from
        if before is not None and (
            not isinstance(before, int) or isinstance(before, bool) or not self.tile_size < before <= MAX_SIDE
        ):
            cause = f"is not an integer above the tile size of {self.tile_size}, and at most {MAX_SIDE}"
            raise UsageError(f"resized from {before!r}", cause, "Use --resize with a size below that of the tiles")

    def _check_classes(self) -> None:
        """UsageError for impossible class names, and where the head would have too many weights for them."""
        if not isinstance(self.classes, tuple) or not all(isinstance(name, str) for name in self.classes):
            raise UsageError(f"classes {self.classes!r}", "are not a tuple of names", 'Write e.g. ("tumor", "stroma")')
        if len(self.classes) < 2:
            raise UsageError(f"classes {list(self.classes)}", "are fewer than two", "Name at least two classes")
        for name in self.classes:
            if (fault := _fault_of_name(name)) is not None:
                raise UsageError(f"class {name!r}", fault, "Use printable characters")
        if len(set(self.classes)) != len(self.classes):
            raise UsageError(f"classes {list(self.classes)}", "repeat a name", "Name each class once")
        count = len(self.classes)
        if CHANNELS * self.pool**2 * count > MAX_HEAD:
            largest = math.isqrt(MAX_HEAD // (CHANNELS * count))
            cause = f"gives a linear layer of {CHANNELS * self.pool**2:,} inputs, more than 2 GB for {count} classes"
            raise UsageError(f"pool {self.pool}", cause, f"Use --pool {largest} or less")
        if self.map_size % self.pool and CHANNELS * self.map_size**2 * count > MAX_HEAD:
            cause = f"leaves a feature map of {self.map_size}×{self.map_size}, whose head is more than 2 GB as exported"
            raise UsageError(f"crop {self.crop}", cause, "Use a smaller --crop, or a --pool that divides the map")

    @property
    def map_size(self) -> int:
        """Side of the final feature map."""
        return map_size(self.crop)

    @property
    def seen_share(self) -> str:
        """How much of a tile's area the network sees, e.g. "33 %"."""
        percent = 100 * (self.crop / self.tile_size) ** 2
        return f"{percent:.0f} %" if 1 <= percent < 99.5 else f"{percent:.3g} %"

    def scale_of(self, mpp: float | None) -> float | None:
        """µm per pixel of the model's tiles, where that of the tiles before they were resized is `mpp`."""
        return mpp if mpp is None or self.resized_from is None else mpp * self.resized_from / self.tile_size

    @property
    def crop_offset(self) -> int:
        """Pixels from a tile's edge to the centre crop, as torchvision's CenterCrop rounds it: a half to the even."""
        return round((self.tile_size - self.crop) / 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON and for checkpoints that load with `weights_only=True`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`, for what a file holds; ValueError, on one line, where it is impossible."""
        known = {f.name for f in fields(cls)}
        try:
            kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
            return cls(**kept)
        except UsageError as error:  # its next step is for options
            raise ValueError(f"{error.thing} {error.cause}") from error
        except (TypeError, AttributeError) as error:  # no mapping, or without a field
            raise ValueError(one_line(error)) from error


def is_number(value: object, limits: tuple[float, float]) -> bool:
    """Whether `value` is a number, not a bool, within both limits; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and limits[0] <= value <= limits[1]


def _check_channels(name: str, values: object, limits: tuple[float, float], step: str) -> None:
    """UsageError unless `values` are three numbers within the limits."""
    if not isinstance(values, tuple) or len(values) != 3 or not all(is_number(value, limits) for value in values):
        shown = list(values) if isinstance(values, tuple) else values
        raise UsageError(f"{name} {shown}", f"is not three numbers from {limits[0]:g} to {limits[1]:g}", step)


def _fault_of_name(name: str) -> str | None:
    """Why a text cannot be the name of a class in every file and picture that names classes; None where it can."""
    if not name.strip():
        return "is blank"
    if any(unicodedata.category(character) == "Cs" for character in name):
        return "holds half a character (a lone surrogate), which no file can hold"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "holds a control character"
    return None
