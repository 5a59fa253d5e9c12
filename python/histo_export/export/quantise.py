"""Post-training quantisation: the scales of an int8 model, from real tiles of the training split.

1. The range of each map is searched on three quarters of the tiles by three methods: `METHODS`.
2. Each is combined with two ways to scale the weights of an output channel: the largest weight over 127 ("max"), or the
   clipping of least squared error ("mse"). The pair whose logits are nearest to fp32's on the last quarter is kept.
3. `keep_worst` returns maps to bf16 where that reduces the error enough to be worth the time.

The distance of logits is `arithmetic.logit_error`; everything is computed by `arithmetic.Simulation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from histo_export.errors import HistoError
from histo_export.export.bundle import Calibration, LayerError
from histo_export.model.arithmetic import BLOCKS, LIMIT, MAPS, Scales, Simulation, logit_error, quantise_weights
from histo_export.model.lowering import LoweredNet
from histo_export.spec import ModelSpec

if TYPE_CHECKING:
    from histo_export.data.tiles import TileSet

TILES = 300
"""Tiles of a calibration."""

HELD_OUT = 4
"""One of this many tiles is held out: it judges the ranges that the others gave."""

BINS = 2048
"""Bins of the histograms whose entropy is compared, as in TensorRT."""

FINE = 4
"""Each of `BINS` is divided into this many for the other methods, so that at every range that is searched a step of a
uint8 is wider than a bin."""

PERCENTILE = 99.99

TARGET_ERROR = 0.03
MIN_GAIN = 0.05
MAX_TRIED = 12
MAX_KEPT = 0.10
"""See `keep_worst`."""

_TINY = float(np.finfo(np.float32).tiny)
_BATCH = 16

Histogram = npt.NDArray[np.float64]
"""Counts `(BINS * FINE,)` of the values above zero, from 0 to the largest; a zero is exact at any scale."""


@dataclass(frozen=True)
class Quantisation:
    """An int8 model: the scales of its int8 convolutions, and how they were chosen."""

    scales: Mapping[str, Scales]
    calibration: Calibration


def choose_tiles(tiles: TileSet, spec: ModelSpec, count: int = TILES, seed: int = 0) -> Tensor:
    """Up to `count` tiles, uint8 `(count, crop, crop, 3)`: classes in turn, and within a class at random.

    So consecutive tiles are as balanced over the classes as the sizes of the classes allow.
    """
    from histo_export.data.images import center_crop

    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(tiles.labels == label)) for label in range(len(tiles.classes))]
    longest = max(len(own) for own in by_class)
    turns = [int(own[turn]) for turn in range(longest) for own in by_class if turn < len(own)]
    return torch.from_numpy(np.stack([center_crop(tiles.tile(i), spec.crop) for i in turns[:count]]))


def quantise(
    lowered: LoweredNet,
    spec: ModelSpec,
    tiles: Tensor,
    seed: int = 0,
    report: Callable[[str], None] = lambda step: None,
) -> Quantisation:
    """Chooses the scales, and which convolutions stay in bf16.

    Args:
        lowered: the network.
        spec: of the same model.
        tiles: uint8 `(n, side, side, 3)`, from `choose_tiles`; at least `HELD_OUT`.
        seed: recorded: `choose_tiles` used it.
        report: told of each step.

    Raises:
        HistoError: too few tiles, or the network's values are not finite.
    """
    if len(tiles) < HELD_OUT:
        raise HistoError(
            "the training split", f"has {len(tiles)} tiles, too few for calibration", "Calibrate on a few hundred"
        )
    held = tiles[-(len(tiles) // HELD_OUT) :]
    searched = tiles[: len(tiles) - len(held)]
    with torch.inference_mode():
        reference = _logits(Simulation(lowered), held)
        if not torch.isfinite(reference).all():
            raise HistoError("the network", "gives logits that are not finite", "Train again")
        report(f"finding the ranges of {len(MAPS)} maps on {len(searched)} tiles")
        best, chosen, errors = _best_scales(lowered, searched, held, reference, report)
        report("measuring the error of each layer")
        noise = layer_noise(lowered, best.scales, held)
        alone = map_errors(lowered, best.scales, held, reference)
        macs = multiply_adds(spec)
        shares = {name: sum(macs[conv] for conv in convs) for name, convs in MAPS.items()}

        def error_without(kept: frozenset[str]) -> float:
            report(f"trying {', '.join(sorted(kept))} in bf16")
            return logit_error(_logits(best.subset(MAPS.keys() - kept), held), reference)

        kept, error, tried = keep_worst(alone, shares, errors[chosen], error_without)
        bf16_error = logit_error(_logits(Simulation(lowered, "bf16"), held), reference)
    layers = _layer_errors(kept, noise, alone, macs)
    calibration = Calibration(
        tiles=len(searched),
        held_out=len(held),
        seed=seed,
        errors=errors,
        chosen=chosen,
        bf16_error=bf16_error,
        error=error,
        kept=[layer.layer for layer in layers if layer.precision == "bf16"],
        kept_multiply_adds=sum(shares[name] for name in kept),
        tried=tried,
        layers=layers,
    )
    return Quantisation(best.subset(MAPS.keys() - kept).scales, calibration)


def _best_scales(
    lowered: LoweredNet, searched: Tensor, held: Tensor, reference: Tensor, report: Callable[[str], None]
) -> tuple[Simulation, str, dict[str, float]]:
    """Tries every pair of an activation method and a kind of weight scale, with every map in int8.

    Args:
        lowered: the network.
        searched: tiles that give the ranges.
        held: tiles that judge them.
        reference: fp32's logits of `held`.
        report: told of each pair.

    Returns:
        The network with the scales of the pair of least error; that pair; and pair → error.
    """
    histograms, largest = map_histograms(lowered, searched)
    inputs = {
        method: {name: activation_scale(clip(histograms[name]) * largest[name]) for name in MAPS}
        for method, clip in METHODS.items()
    }
    weights = {way: {name: find(_weight(lowered, name)) for name in _CONVS} for way, find in WEIGHTS.items()}
    errors: dict[str, float] = {}
    best: tuple[Simulation, str] | None = None
    for method in METHODS:
        for way in WEIGHTS:
            pair = f"{method}, weights {way}"
            report(f"trying {pair}")
            scales = {
                conv: Scales(inputs[method][name], weights[way][conv]) for name, convs in MAPS.items() for conv in convs
            }
            simulation = Simulation(lowered, "bf16", scales, exact=False)
            errors[pair] = logit_error(_logits(simulation, held), reference)
            if best is None or errors[pair] < errors[best[1]]:
                best = simulation, pair
    assert best is not None
    return *best, errors


def _layer_errors(
    kept: frozenset[str], noise: Mapping[str, float], alone: Mapping[str, float], macs: Mapping[str, float]
) -> list[LayerError]:
    """The errors of all convolutions that could be int8; `kept` maps are in bf16."""
    return [
        LayerError(
            layer=conv,
            precision="bf16" if name in kept else "int8",
            sqnr_db=noise[conv],
            logit_error=alone[name],
            multiply_adds=macs[conv],
        )
        for name, convs in MAPS.items()
        for conv in convs
    ]


def keep_worst(
    alone: Mapping[str, float],
    shares: Mapping[str, float],
    error: float,
    error_without: Callable[[frozenset[str]], float],
) -> tuple[frozenset[str], float, int]:
    """Which maps stay in bf16: a greedy search, from the map with the largest error of its own on.

    A map is kept in bf16 if that reduces the error of the logits by the fraction `MIN_GAIN` or more. The search ends
    when the error is at most `TARGET_ERROR`, or `MAX_TRIED` maps were tried. A map that would bring the share of
    multiply-adds in bf16 above `MAX_KEPT` is skipped.

    Args:
        alone: map → error of the logits when it alone is int8.
        shares: map → share of the multiply-adds of the convolutions that read it.
        error: with all maps in int8.
        error_without: the error with these maps in bf16.

    Returns:
        The maps, the remaining error, and how many maps were tried.
    """
    kept: frozenset[str] = frozenset()
    tried = 0
    for name in sorted(alone, key=lambda name: -alone[name]):
        if error <= TARGET_ERROR or tried == MAX_TRIED:
            break
        wider = kept | {name}
        if sum(shares[other] for other in wider) > MAX_KEPT:
            continue
        tried += 1
        remaining = error_without(wider)
        if remaining <= (1 - MIN_GAIN) * error:
            kept, error = wider, remaining
    return kept, error, tried


# Ranges of activations: a histogram → the fraction of its range that the 256 values of a uint8 should cover.


def entropy(histogram: Histogram) -> float:
    """The range whose 256 levels have the least Kullback-Leibler divergence from the histogram.

    TensorRT's method: S. Migacz, 8-bit Inference with TensorRT, GPU Technology Conference 2017.
    """
    counts = histogram.reshape(BINS, FINE).sum(1)
    best, least = BINS, math.inf
    for bins in range(256, BINS + 1, 8):
        inside = counts[:bins]
        clipped = inside.copy()
        clipped[-1] += counts[bins:].sum()
        level = np.arange(bins) * 256 // bins
        full = inside > 0
        sums = np.bincount(level, inside, 256)
        bins_used = np.bincount(level, full, 256)
        spread = np.where(full, (sums / np.maximum(bins_used, 1))[level], 0)
        p, q = clipped / max(clipped.sum(), 1), spread / max(spread.sum(), 1)
        some = p > 0
        # q is 0 where p is not in the last bin only: when it holds clipped values and none of its own.
        divergence = float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-4))).sum())
        if divergence < least:
            best, least = bins, divergence
    return best / BINS


def percentile(histogram: Histogram) -> float:
    """The range that holds `PERCENTILE` % of the values above zero."""
    below = np.cumsum(histogram)
    return float((np.searchsorted(below, PERCENTILE / 100 * below[-1]) + 1) / len(histogram))


def least_squares(histogram: Histogram) -> float:
    """The range of least mean squared error of rounding and clipping, from an eighth of the largest value up."""
    centres = (np.arange(len(histogram)) + 0.5) / len(histogram)
    ranges = np.linspace(1 / 8, 1, 141)
    errors = [
        float(histogram @ (centres - np.rint(centres * (255 / limit)).clip(0, 255) * (limit / 255)) ** 2)
        for limit in ranges
    ]
    return float(ranges[int(np.argmin(errors))])


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "entropy": entropy,
    "percentile": percentile,
    "mse": least_squares,
}


def activation_scale(largest: float) -> Tensor:
    """float32 `(1,)`: the value of one step when 255 represents `largest`; 1 for a map of zeros."""
    return torch.tensor([largest / 255 if largest > 0 else 1.0], dtype=torch.float32).clamp(min=_TINY)


# Scales of weights: float32 (outputs, inputs, k, k) → float32 (outputs,).


def largest_weight(weight: Tensor) -> Tensor:
    """For each output its largest magnitude over 127; 1 for an output whose weights are all 0."""
    largest = weight.abs().flatten(1).amax(1)
    return torch.where(largest > 0, (largest / LIMIT).clamp(min=_TINY), 1.0)


def least_squares_weight(weight: Tensor) -> Tensor:
    """For each output the scale of least squared error, of scales from half of `largest_weight` up to it."""
    full = largest_weight(weight)
    best, least = full, torch.full_like(full, math.inf)
    for part in np.linspace(0.5, 1, 26):
        scale = (full * float(part)).clamp(min=_TINY)
        back = quantise_weights(weight, scale) * scale.view(-1, 1, 1, 1)
        error = (weight - back).square().flatten(1).sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {"max": largest_weight, "mse": least_squares_weight}


# Measurements on the network.

_CONVS = tuple(conv for convs in MAPS.values() for conv in convs)


def multiply_adds(spec: ModelSpec) -> dict[str, float]:
    """Convolution → its share of all multiply-adds, those of stem and head included."""
    from histo_export.model.layers import layer_table

    table = {layer.name.replace("downsample.0", "shortcut"): layer.macs for layer in layer_table(spec)}
    return {name: table[name] / sum(table.values()) for name in _CONVS}


def map_histograms(lowered: LoweredNet, tiles: Tensor) -> tuple[dict[str, Histogram], dict[str, float]]:
    """Map → histogram of its values in fp32; and map → the largest of them."""
    largest = dict.fromkeys(MAPS, 0.0)
    histograms = {name: np.zeros(BINS * FINE) for name in MAPS}

    def widen(name: str, x: Tensor) -> None:
        largest[name] = max(largest[name], float(x.max()))

    def count(name: str, x: Tensor) -> None:
        if largest[name] > 0:
            counts = torch.histc(x, BINS * FINE, 0, largest[name]).double().numpy()
            counts[0] -= int((x == 0).sum())
            histograms[name] += counts

    _logits(Simulation(lowered, observe=widen), tiles)
    _logits(Simulation(lowered, observe=count), tiles)
    return histograms, largest


def layer_noise(lowered: LoweredNet, scales: Mapping[str, Scales], tiles: Tensor) -> dict[str, float]:
    """Convolution → signal-to-quantisation-noise ratio of its output (dB), when only its input and weights are int8."""
    plain, low = Simulation(lowered), Simulation(lowered, scales=scales, exact=False)
    power = {name: [0.0, 0.0] for name in _CONVS}

    def compare(name: str, x: Tensor) -> None:
        for conv in MAPS[name]:
            right = plain.convolve(conv, plain.store(x, name))
            wrong = low.convolve(conv, low.store(x, name))
            power[conv][0] += float(right.square().sum())
            power[conv][1] += float((right - wrong).square().sum())

    _logits(Simulation(lowered, observe=compare), tiles)
    return {name: 10 * math.log10(max(signal, _TINY) / max(noise, _TINY)) for name, (signal, noise) in power.items()}


def map_errors(lowered: LoweredNet, scales: Mapping[str, Scales], tiles: Tensor, reference: Tensor) -> dict[str, float]:
    """Map → `logit_error` when only this map is int8. Each starts from the fp32 input of its own block."""
    plain = Simulation(lowered, scales=scales, exact=False)
    alone = {name: plain.subset([name]) for name in MAPS}
    plain = plain.subset([])
    logits: dict[str, list[Tensor]] = {name: [] for name in MAPS}
    for batch in tiles.split(_BATCH):
        x = plain.stem(batch)
        for index, block in enumerate(BLOCKS):
            for name in (f"{block}.conv1", f"{block}.conv2"):
                simulation = alone[name]
                logits[name].append(simulation.finish(index, simulation.store(x.values, f"{block}.conv1")))
            x = plain.block(index, x)
    return {name: logit_error(torch.cat(parts), reference) for name, parts in logits.items()}


def _weight(lowered: LoweredNet, name: str) -> Tensor:
    layer = lowered.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer.weight.detach()


def _logits(simulation: Simulation, tiles: Tensor) -> Tensor:
    return torch.cat([simulation(batch) for batch in tiles.split(_BATCH)])
