"""What each precision computes, in torch: the reference for the native engine, and the basis of the search for scales.

A *map* is what one layer writes and others read. It is stored once, in the type that the convolutions which read it
expect; the residual connection reads the same stored map:

- fp32: as computed;
- bf16: rounded to nearest even, as are the weights; sums, bias and residual in float32;
- bf16x3: hi = bf16(x) and lo = bf16(x - hi), as are the weights; products hi·hi + hi·lo + lo·hi, sums in float32;
- int8: activations, which follow a ReLU, as uint8 with zero point 0; weights as int8 with a scale for each output
  channel; sums in int32. The stem, the head's features and the maps without scales are bf16 then.

The head's weights and sums are float32 in every precision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from histo_export._core import BLOCK_COUNTS
from histo_export.model.lowering import LoweredNet
from histo_export.spec import Precision

Float = Literal["fp32", "bf16", "bf16x3"]

BLOCKS = tuple(f"layer{n + 1}.{i}" for n, count in enumerate(BLOCK_COUNTS) for i in range(count))
SHORTCUTS = ("layer2.0", "layer3.0", "layer4.0")
"""The blocks whose shortcut is a convolution."""

MAPS: Mapping[str, tuple[str, ...]] = {
    f"{block}.{conv}": (f"{block}.{conv}", f"{block}.shortcut")
    if conv == "conv1" and block in SHORTCUTS
    else (f"{block}.{conv}",)
    for block in BLOCKS
    for conv in ("conv1", "conv2")
}
"""A map that may be int8, named after the first convolution that reads it → all convolutions that read it."""

FEATURES = "head"
"""The map that the head reads."""

LIMIT = 127
"""Largest magnitude of a quantised weight."""


class Scales(NamedTuple):
    """The scales of one convolution that runs in int8: float32, finite, above 0.

    Attributes:
        input: `(1,)`, of its input: the uint8 times this is the real value.
        weight: `(outputs,)`, of the weights of each output.
    """

    input: Tensor
    weight: Tensor


def quantise_activations(x: Tensor, scale: Tensor) -> Tensor:
    """float32 of at least 0 → integers 0 to 255, as float32: x times the reciprocal of the scale, ties to even."""
    return torch.round(x * (1 / scale)).clamp(0, 255)


def quantise_weights(weight: Tensor, scale: Tensor) -> Tensor:
    """float32 `(outputs, …)` → integers -127 to 127, as float32: over the output's scale `(outputs,)`, ties to even."""
    return torch.round(weight / scale.view(-1, *[1] * (weight.ndim - 1))).clamp(-LIMIT, LIMIT)


def to_bf16(x: Tensor) -> Tensor:
    """float32 rounded to the nearest bfloat16, ties to even, as float32."""
    return x.bfloat16().float()


def rounded(x: Tensor, precision: Float) -> Tensor:
    """float32 as a map or a weight stores it in this precision; hi and lo of bf16x3 are added, which is exact."""
    if precision == "fp32":
        return x
    high = to_bf16(x)
    return high if precision == "bf16" else high + to_bf16(x - high)


def logit_error(logits: Tensor, reference: Tensor) -> float:
    """The relative error of logits `(n, classes)`: RMS of the differences over RMS of the reference.

    Each tile's mean is subtracted from both first, because softmax ignores it.
    """
    difference, spread = (x.double() - x.double().mean(1, keepdim=True) for x in (logits - reference, reference))
    return float(
        difference.square().mean().sqrt() / spread.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    )


class StoredMap(NamedTuple):
    """A map in memory.

    Attributes:
        values: float32 `(n, channels, h, w)`; integers 0 to 255 where `scale` is not None.
        scale: `(1,)` of an int8 map; None for other maps.
    """

    values: Tensor
    scale: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """The values that it represents, float32."""
        return self.values if self.scale is None else self.values * self.scale


class Simulation:
    """A lowered network in one precision.

    Args:
        lowered: with the folded float32 weights.
        rest: the precision of convolutions without scales.
        scales: by convolution. Convolutions that read one map have the same input scale.
        exact: compute the int32 sums of int8 products exactly, in twice the time; otherwise in float32, with errors of
            1e-7.
        observe: called with the name of each of `MAPS` and its float32 values before they are stored.
    """

    def __init__(
        self,
        lowered: LoweredNet,
        rest: Float = "fp32",
        scales: Mapping[str, Scales] | None = None,
        *,
        exact: bool = True,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        self.lowered, self.rest, self.exact, self.observe = lowered, rest, exact, observe
        self.scales = dict(scales or {})
        self._weights: dict[tuple[str, bool], Tensor] = {}

    @classmethod
    def of(cls, lowered: LoweredNet, precision: Precision, scales: Mapping[str, Scales]) -> Simulation:
        """The simulation of what the native engine computes in `precision`."""
        return cls(lowered, "bf16", scales) if precision == "int8" else cls(lowered, precision)

    def subset(self, maps: Collection[str]) -> Simulation:
        """The same network with only these of `MAPS` in int8; prepared weights are shared."""
        scales = {conv: self.scales[conv] for name, convs in MAPS.items() if name in maps for conv in convs}
        other = Simulation(self.lowered, self.rest, scales, exact=self.exact, observe=self.observe)
        other._weights = self._weights
        return other

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits, float32 `(n, classes)`, of tiles, uint8 `(n, side, side, 3)` with sides of at least the crop."""
        with torch.inference_mode():
            return self.finish(0, self.stem(tiles))

    def stem(self, tiles: Tensor) -> StoredMap:
        """The map that the first block reads."""
        stem = self.lowered.stem
        # The crop starts where torchvision's does; see lowering.Stem.
        top, left = (round((side - stem.crop) / 2) for side in tiles.shape[1:3])
        pixels = tiles[:, top : top + stem.crop, left : left + stem.crop].permute(0, 3, 1, 2)  # channels last
        x = (pixels.float() / 255 - stem.mean) / stem.std
        y = torch.relu(self.convolve("stem.conv", StoredMap(rounded(x, self.rest))))
        return self.store(functional.max_pool2d(y, 3, 2, 1), f"{BLOCKS[0]}.conv1")

    def finish(self, first: int, x: StoredMap) -> Tensor:
        """The logits, from the map that block `first` of `BLOCKS` reads."""
        for index in range(first, len(BLOCKS)):
            x = self.block(index, x)
        logits: Tensor = self.lowered.head(x.real)
        return logits

    def block(self, index: int, x: StoredMap) -> StoredMap:
        """Runs one of `BLOCKS` on the map that it reads."""
        name = BLOCKS[index]
        following = f"{BLOCKS[index + 1]}.conv1" if index + 1 < len(BLOCKS) else FEATURES
        inner = self.store(torch.relu(self.convolve(f"{name}.conv1", x)), f"{name}.conv2")
        y = self.convolve(f"{name}.conv2", inner)
        shortcut = rounded(self.convolve(f"{name}.shortcut", x), self.rest) if name in SHORTCUTS else x.real
        return self.store(torch.relu(y + shortcut), following)

    def store(self, x: Tensor, name: str) -> StoredMap:
        """Float32 values, stored as the convolutions that read map `name` expect them."""
        if self.observe is not None and name in MAPS:
            self.observe(name, x)
        if name in self.scales:
            scale = self.scales[name].input
            return StoredMap(quantise_activations(x, scale), scale)
        return StoredMap(rounded(x, self.rest))

    def convolve(self, name: str, x: StoredMap) -> Tensor:
        """Convolution `name` with its bias, float32, before residual and ReLU."""
        layer = self.lowered.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        weight = self._weight(name, layer, x.scale is not None)
        if x.scale is None:
            if self.rest != "bf16x3":
                return functional.conv2d(x.values, weight, layer.bias, layer.stride, layer.padding)
            # hi·(hi + lo) + lo·hi; the sum hi + lo fits in float32.
            high, w_high = to_bf16(x.values), to_bf16(weight)
            y = functional.conv2d(high, weight, layer.bias, layer.stride, layer.padding)
            return y + functional.conv2d(x.values - high, w_high, None, layer.stride, layer.padding)
        if self.exact:
            # Float32 sums of integers are exact below 2^24, so the four upper and the four lower bits of the input are
            # summed apart: at most 4608 · 127 · 15 each.
            upper = torch.floor(x.values / 16)
            sums = [
                functional.conv2d(half, weight, None, layer.stride, layer.padding).double()
                for half in (upper, x.values - 16 * upper)
            ]
            y = (16 * sums[0] + sums[1]).float()
        else:
            y = functional.conv2d(x.values, weight, None, layer.stride, layer.padding)
        assert layer.bias is not None
        # As a fused multiply-add: in float64 the product of two float32 is exact.
        scale = (x.scale * self.scales[name].weight).double().view(-1, 1, 1)
        return torch.addcmul(layer.bias.double().view(-1, 1, 1), y.double(), scale).float()

    def _weight(self, name: str, layer: nn.Conv2d, quantised: bool) -> Tensor:
        if (name, quantised) not in self._weights:
            weight = layer.weight.detach()
            weight = quantise_weights(weight, self.scales[name].weight) if quantised else rounded(weight, self.rest)
            self._weights[name, quantised] = weight.contiguous(memory_format=torch.channels_last)
        return self._weights[name, quantised]
