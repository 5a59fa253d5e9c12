"""int8, bf16 and bf16x3: the arithmetic to the bit, scales on known distributions, the QDQ file, and the gate."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import safetensors
import safetensors.torch
import torch
from onnx import numpy_helper
from PIL import Image

from drawn_tiles import TintedNoise, labels_of, tile_set
from histo_export.bundle_files import GOLDEN, INT8_ONNX
from histo_export.data import TileData, TileSet
from histo_export.errors import HistoError, UsageError
from histo_export.export import low_precision, run
from histo_export.export import quantise as quantise_module
from histo_export.export.bundle import LowPrecision, Measured, open_bundle
from histo_export.export.formats import FORMATS, Source, write_formats
from histo_export.export.qdq import qdq_bytes
from histo_export.export.quantise import (
    BINS,
    FINE,
    MAX_KEPT,
    MAX_TRIED,
    METHODS,
    MIN_GAIN,
    TARGET_ERROR,
    Quantisation,
    activation_scale,
    choose_tiles,
    keep_worst,
    largest_weight,
    least_squares_weight,
    quantise,
)
from histo_export.export.run import ExportSettings, export_bundle
from histo_export.model.arithmetic import (
    BLOCKS,
    MAPS,
    Scales,
    Simulation,
    StoredMap,
    logit_error,
    quantise_activations,
    quantise_weights,
    rounded,
)
from histo_export.model.checkpoint import Checkpoint, write_checkpoint
from histo_export.model.lowering import LoweredNet, lower
from histo_export.model.native_file import native_bytes, read_native, read_quantised
from histo_export.parity import Golden
from histo_export.spec import ModelSpec

F32 = np.float32


def tile_data(spec: ModelSpec) -> TileData:
    train, val, test = (
        tile_set(spec.classes, labels_of(spec.classes, per_class), TintedNoise(seed, spec.tile_size))
        for seed, per_class in enumerate((4, 3, 2))
    )
    described = {"mpp": None, "synthetic": True, "fingerprint": "f" * 64, "description": "drawn"}
    return TileData("drawn", spec.classes, train, val, test, tile_size=spec.tile_size, **described)


@pytest.fixture(scope="module")
def small(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    """Pool 2 on a 2×2 map, tiles of an odd difference to the crop, and a bias with which every class has its tiles."""
    made = make_checkpoint(pool=2, crop=64, tile_size=75)
    logits = Simulation(lower(made.net(), made.spec))(
        torch.from_numpy(np.stack([TintedNoise(1, 75)(i) for i in range(18)]))
    )
    state = made.state_dict | {"fc.bias": made.state_dict["fc.bias"] - logits.mean(0)}
    return dataclasses.replace(made, state_dict=state)


@pytest.fixture(scope="module")
def lowered(small: Checkpoint) -> LoweredNet:
    return lower(small.net(), small.spec)


@pytest.fixture(scope="module")
def quantised(small: Checkpoint, lowered: LoweredNet) -> Quantisation:
    return quantise(lowered, small.spec, choose_tiles(tile_data(small.spec).train, small.spec, 16))


@pytest.fixture(scope="module")
def all_scales(lowered: LoweredNet) -> dict[str, Scales]:
    """Every map in int8, at arbitrary scales."""
    rng = np.random.default_rng(0)
    scales = {}
    for convs in MAPS.values():
        own = torch.tensor([rng.uniform(0.005, 0.02)], dtype=torch.float32)
        scales |= {conv: Scales(own, largest_weight(lowered.get_parameter(f"{conv}.weight"))) for conv in convs}
    return scales


# The arithmetic.


def test_activations_round_ties_to_even_and_stop_at_a_byte() -> None:
    x = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.26, 127.25, 127.5, 127.75, 1e30])
    assert quantise_activations(x, torch.tensor([0.5])).tolist() == [0, 0, 2, 2, 3, 254, 255, 255, 255]


def test_activations_are_multiplied_by_the_reciprocal() -> None:
    """Not divided: the two round differently for some values, and the engine multiplies."""
    scale = F32(0.0173)
    levels = np.arange(255, dtype=F32) + F32(0.5)
    x = np.concatenate([np.nextafter(levels * scale, F32(side)) for side in (0, 1e9)] + [levels * scale])
    found = quantise_activations(torch.from_numpy(x), torch.tensor([scale])).numpy()
    product, quotient = np.rint(x * (F32(1) / scale)), np.rint(x / scale)
    assert (product != quotient).any()
    np.testing.assert_array_equal(found, product.clip(0, 255))


def test_weights_round_ties_to_even_and_stop_at_127_on_both_sides() -> None:
    weight = torch.tensor([[0.5, 1.5, -2.5, 200.0, -200.0], [1.0, 3.0, -5.0, 254.0, -256.0]])
    found = quantise_weights(weight, torch.tensor([1.0, 2.0]))
    assert found.tolist() == [[0, 2, -2, 127, -127], [0, 2, -2, 127, -127]]


def test_bf16_rounds_to_nearest_even() -> None:
    step = 2.0**-7  # of bf16 between 1 and 2
    x = torch.tensor([1 + step / 2, 1 + 3 * step / 2, 1 + 0.51 * step, -1 - step / 2])
    assert rounded(x, "bf16").tolist() == [1, 1 + 2 * step, 1 + step, -1]


def test_bf16x3_holds_sixteen_bits_in_two_halves() -> None:
    x = torch.randn(10_000)
    held = rounded(x, "bf16x3")
    high = held.bfloat16().float()
    assert torch.equal((held - high).bfloat16().float(), held - high), "what is left is a bf16 too"
    assert ((held - x).abs() <= 2.0**-16 * x.abs()).all()
    assert (rounded(x, "bf16") - x).abs().max() > 2.0**-10
    assert torch.equal(rounded(x, "fp32"), x)


def test_sums_of_int8_are_exact_and_scaled_in_one_rounding(lowered: LoweredNet) -> None:
    """Sums of 4,608 products of up to 32,385, where float32 alone no longer counts in ones."""
    rng = np.random.default_rng(0)
    name = "layer4.1.conv1"
    scales = {name: Scales(torch.tensor([0.013]), largest_weight(lowered.get_parameter(f"{name}.weight")))}
    weight = quantise_weights(lowered.get_parameter(f"{name}.weight"), scales[name].weight).numpy().astype(np.int64)
    x = rng.integers(200, 256, (1, 512, 3, 3))
    simulation = Simulation(lowered, "bf16", scales)
    simulation._weights[name, True] = torch.from_numpy(np.abs(weight)).float()  # all of one sign, for large sums
    found = simulation.convolve(name, StoredMap(torch.from_numpy(x).float(), scales[name].input))[0, :, 1, 1]
    sums = np.einsum("oikl,nikl->o", np.abs(weight), x)
    assert sums.max() > 2**24
    factor = (F32(0.013) * scales[name].weight.numpy()).astype(np.float64)
    bias = lowered.get_parameter(f"{name}.bias").numpy()
    # float64 holds the product of two float32 exactly.
    np.testing.assert_array_equal(found.numpy(), (sums.astype(F32).astype(np.float64) * factor + bias).astype(F32))


def _windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """(channels, h, w) → (channels, h', w', size, size), zero-padded by size // 2."""
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]


def test_a_block_in_int8_is_what_the_definition_says(lowered: LoweredNet, all_scales: dict[str, Scales]) -> None:
    """layer2.0, with a stride and a shortcut convolution, in whole numbers and NumPy."""
    index = BLOCKS.index("layer2.0")
    scales = {name: (of.input.numpy()[0], of.weight.numpy()) for name, of in all_scales.items()}
    x = np.random.default_rng(1).integers(0, 256, (64, 8, 8))

    def convolve(name: str, q: np.ndarray, stride: int) -> np.ndarray:
        layer = lowered.get_submodule(name)
        input_scale, weight_scale = scales[name]
        weight = np.rint(layer.weight.numpy() / weight_scale[:, None, None, None]).clip(-127, 127).astype(np.int64)
        acc = np.einsum("ihwkl,oikl->ohw", _windows(q, weight.shape[-1], stride), weight).astype(F32)
        factor = (input_scale * weight_scale).astype(np.float64)[:, None, None]
        return (acc * factor + layer.bias.numpy()[:, None, None]).astype(F32)

    def store(y: np.ndarray, name: str) -> np.ndarray:
        return np.rint(np.maximum(y, 0) * (F32(1) / scales[name][0])).clip(0, 255).astype(np.int64)

    inner = store(convolve("layer2.0.conv1", x, 2), "layer2.0.conv2")
    shortcut = torch.from_numpy(convolve("layer2.0.shortcut", x, 2)).bfloat16().float().numpy()
    expected = store(convolve("layer2.0.conv2", inner, 1) + shortcut, "layer2.1.conv1")

    simulation = Simulation(lowered, "bf16", all_scales)
    found = simulation.block(index, StoredMap(torch.from_numpy(x)[None].float(), all_scales["layer2.0.conv1"].input))
    assert 0 < (expected == 0).mean() < 1
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(found.values[0].numpy(), expected)

    # layer2.1 adds the map that it reads itself, by its scale.
    x1 = expected
    inner = store(convolve("layer2.1.conv1", x1, 1), "layer2.1.conv2")
    residual = x1.astype(F32) * scales["layer2.1.conv1"][0]
    expected = store(convolve("layer2.1.conv2", inner, 1) + residual, "layer2.2.conv1")
    np.testing.assert_array_equal(simulation.block(index + 1, found).values[0].numpy(), expected)


def test_without_a_low_precision_it_is_the_lowered_network(small: Checkpoint, lowered: LoweredNet) -> None:
    for side in (64, 67, 75):  # crops that start at 0, at 2 (of 1.5) and at 6 (of 5.5)
        tiles = torch.from_numpy(np.stack([TintedNoise(5, side)(i) for i in range(3)]))
        expected = lowered(tiles.permute(0, 3, 1, 2).float() / 255)
        torch.testing.assert_close(Simulation(lowered)(tiles), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_precisions_come_in_their_order(small: Checkpoint, lowered: LoweredNet, quantised: Quantisation) -> None:
    tiles = choose_tiles(tile_data(small.spec).test, small.spec)
    fp32 = Simulation(lowered)(tiles)
    bf16x3, bf16, int8 = (
        logit_error(Simulation.of(lowered, precision, quantised.scales)(tiles), fp32)
        for precision in ("bf16x3", "bf16", "int8")
    )
    assert 0 < bf16x3 < bf16 / 30
    assert bf16 < int8 < 1, "of logits that hardly differ between these tiles"


# Calibration.


def test_tiles_are_balanced_seeded_and_cropped(small: Checkpoint) -> None:
    tiles = tile_data(small.spec).train
    chosen = choose_tiles(tiles, small.spec, 12, seed=3)
    assert chosen.shape == (12, 64, 64, 3)
    assert torch.equal(chosen, choose_tiles(tiles, small.spec, 12, seed=3))
    assert not torch.equal(chosen, choose_tiles(tiles, small.spec, 12, seed=4))
    start = round((75 - 64) / 2)
    label_of = {tiles.tile(i)[start:][:64, start:][:, :64].tobytes(): int(tiles.labels[i]) for i in range(len(tiles))}
    labels = [label_of[tile.numpy().tobytes()] for tile in chosen]
    assert sorted(labels[:6]) == sorted(labels[6:]) == [0, 1, 2, 3, 4, 5]
    assert len(choose_tiles(tiles, small.spec, 1000)) == len(tiles) == 24


def test_too_few_tiles_are_refused(small: Checkpoint, lowered: LoweredNet) -> None:
    with pytest.raises(HistoError, match="has 3 tiles, too few for calibration"):
        quantise(lowered, small.spec, choose_tiles(tile_data(small.spec).train, small.spec, 3))


def _histogram(values: np.ndarray) -> np.ndarray:
    return np.histogram(values, BINS * FINE, (0, values.max()))[0].astype(np.float64)


@pytest.mark.parametrize("method", METHODS)
def test_an_even_distribution_keeps_its_range(method: str) -> None:
    values = np.random.default_rng(0).uniform(0, 7, 1_000_000)
    assert METHODS[method](_histogram(values)) > 0.99


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_a_single_outlier_is_cut_off(method: str) -> None:
    values = np.append(np.random.default_rng(0).uniform(0, 2, 1_000_000), 8)
    assert 0.24 < METHODS[method](_histogram(values)) < 0.30


def test_least_squares_weighs_rounding_against_clipping() -> None:
    """n values rounded to steps of 8c / 255 and one of 8 clipped to 8c lose n (8c / 255)² / 12 + (8 - 8c)²."""
    n = 1_000_000
    values = np.append(np.random.default_rng(0).uniform(0, 2, n), 8)
    assert METHODS["mse"](_histogram(values)) == pytest.approx(1 / (1 + n / 255**2 / 12), abs=0.02)


def test_the_percentile_is_the_percentile() -> None:
    values = np.random.default_rng(0).exponential(1, 1_000_000)
    found = METHODS["percentile"](_histogram(values)) * values.max()
    assert found == pytest.approx(np.percentile(values, 99.99), rel=0.01)


def test_scales_stand_for_their_range() -> None:
    assert activation_scale(51.0).tolist() == [pytest.approx(0.2)]
    assert activation_scale(0.0).tolist() == [1], "a map of zeros must have a scale above 0"
    assert activation_scale(1e-45).item() > 0
    weight = torch.randn(4, 3, 3, 3)
    weight[1] = 0
    weight[2] *= 1e-44
    scale = largest_weight(weight)
    assert scale[0] == weight[0].abs().max() / 127
    assert scale[1] == 1
    assert (scale > 0).all()


def test_least_squares_clips_an_outlier_and_is_never_worse() -> None:
    """The sum of the test above, with 127 steps on one side."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4096, 3, 3)
    weight[0, 0, 0, 0] = 8.0
    full, best = largest_weight(weight), least_squares_weight(weight)

    def error(scale: torch.Tensor) -> torch.Tensor:
        back = quantise_weights(weight, scale) * scale.view(-1, 1, 1, 1)
        return (back - weight).square().sum((1, 2, 3))

    assert best[0] / full[0] == pytest.approx(1 / (1 + weight[0].numel() / 127**2 / 12), abs=0.03)
    assert (error(best) < error(full)).all()


def test_logit_error_ignores_what_softmax_ignores() -> None:
    reference = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    assert logit_error(reference + torch.tensor([[5.0], [-2.0]]), reference) == pytest.approx(0, abs=1e-12)
    assert logit_error(2 * reference, reference) == pytest.approx(1)


# The search.

WORST_FIRST = ("layer1.0.conv1", "layer2.0.conv1", "layer1.0.conv2")
ALONE = {name: 1 / (2 + WORST_FIRST.index(name)) if name in WORST_FIRST else 0.01 for name in MAPS}
SHARES = dict.fromkeys(MAPS, 0.03)


def test_the_search_keeps_what_helps_and_leaves_what_does_not() -> None:
    left = {WORST_FIRST[0]: 0.2, WORST_FIRST[1]: 0.0, WORST_FIRST[2]: 0.3}  # how much of the error each takes away
    kept, error, tried = keep_worst(ALONE, SHARES, 1.0, lambda maps: math.prod(1 - left.get(name, 0) for name in maps))
    assert kept == {WORST_FIRST[0], WORST_FIRST[2]}
    assert error == pytest.approx(0.8 * 0.7)
    assert tried == MAX_TRIED


def test_the_search_needs_a_reason() -> None:
    kept, error, tried = keep_worst(ALONE, SHARES, TARGET_ERROR, lambda maps: 0.0)
    assert (kept, error, tried) == (frozenset(), TARGET_ERROR, 0)
    kept, error, tried = keep_worst(ALONE, SHARES, 1.0, lambda maps: TARGET_ERROR)
    assert (kept, tried) == ({WORST_FIRST[0]}, 1), "one was enough"
    gain = 1 - MIN_GAIN
    assert not keep_worst(ALONE, SHARES, 1.0, lambda maps: gain + 1e-6)[0]
    assert keep_worst(ALONE, SHARES, 1.0, lambda maps: gain ** len(maps))[0]


def test_the_search_stays_within_its_budget() -> None:
    kept, _, _ = keep_worst(ALONE, SHARES, 1.0, lambda maps: 0.5 ** len(maps))
    assert kept == set(WORST_FIRST), "a fourth would be 12 % of the multiply-adds"
    wide = SHARES | {WORST_FIRST[0]: MAX_KEPT + 0.01}
    assert WORST_FIRST[0] not in keep_worst(ALONE, wide, 1.0, lambda maps: 0.5 ** len(maps))[0]
    asked: list[frozenset[str]] = []
    keep_worst(ALONE, dict.fromkeys(MAPS, 0.0), 1.0, lambda maps: asked.append(maps) or 1.0)
    assert len(asked) == MAX_TRIED


def test_a_quantisation_is_complete(quantised: Quantisation, lowered: LoweredNet) -> None:
    scales, found = quantised.scales, quantised.calibration
    assert list(scales) == [layer.layer for layer in found.layers if layer.precision == "int8"], "files are repeatable"
    assert len(MAPS) == 32
    assert len(found.layers) == 35
    assert {layer.layer for layer in found.layers} - set(scales) == set(found.kept)
    for convs in MAPS.values():
        assert len({conv in scales for conv in convs}) == 1, "readers of one map are of one precision"
        assert len({scales[conv].input.item() for conv in convs if conv in scales}) <= 1
    for conv, (own, weight) in scales.items():
        assert own.shape == (1,)
        assert weight.shape == (len(lowered.get_parameter(f"{conv}.weight")),)
        assert own.dtype == weight.dtype == torch.float32
        assert (weight > 0).all()
        assert own > 0
    assert set(found.errors) == {f"{method}, weights {kind}" for method in METHODS for kind in ("max", "mse")}
    assert found.errors[found.chosen] == min(found.errors.values())
    assert found.error <= found.errors[found.chosen]
    assert found.kept_multiply_adds <= MAX_KEPT
    assert (found.tiles, found.held_out) == (12, 4)
    assert all(15 < layer.sqnr_db < 70 for layer in found.layers)
    assert 0.9 < sum(layer.multiply_adds for layer in found.layers) < 1, "all but the stem and the head"


# The native file.


@pytest.fixture(scope="module")
def file(
    tmp_path_factory: pytest.TempPathFactory, small: Checkpoint, lowered: LoweredNet, all_scales: dict[str, Scales]
) -> Path:
    path = tmp_path_factory.mktemp("native") / "model.safetensors"
    scales = {conv: of for conv, of in all_scales.items() if not conv.startswith("layer3.0.")}
    path.write_bytes(native_bytes(lowered, small.spec, scales))
    return path


def test_format_2_is_read_back(
    file: Path, small: Checkpoint, lowered: LoweredNet, all_scales: dict[str, Scales]
) -> None:
    with safetensors.safe_open(file, framework="pt") as opened:
        assert opened.metadata()["histo.format"] == "2"
        assert opened.get_tensor("layer2.0.shortcut.input_scale").shape == (1,)
        assert opened.get_tensor("layer2.0.shortcut.weight_scale").shape == (128,)
        assert opened.get_tensor("layer2.0.shortcut.weight").dtype == torch.float32
    again, spec, scales = read_quantised(file)
    assert spec == small.spec
    assert set(scales) == {conv for conv in all_scales if not conv.startswith("layer3.0.")}
    assert all(torch.equal(scales[conv].weight, all_scales[conv].weight) for conv in scales)
    assert all(torch.equal(scales[conv].input, all_scales[conv].input) for conv in scales)
    for key, value in read_native(file)[0].state_dict().items():
        assert torch.equal(value, lowered.state_dict()[key])
        assert torch.equal(value, again.state_dict()[key])


def test_without_scales_it_is_format_1(small: Checkpoint, lowered: LoweredNet, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(native_bytes(lowered, small.spec))
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata()["histo.format"] == "1"
    assert read_quantised(path)[2] == {}


def _with(key: str, value: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(key) if value is None else tensors.update({key: value})


DAMAGE = {
    "missing": (_with("layer1.0.conv1.weight_scale", None), "weight_scale is missing"),
    "half a map": (_with("layer2.0.shortcut.input_scale", None), "input_scale is missing"),
    "NaN": (_with("layer1.0.conv1.input_scale", torch.tensor([math.nan])), "not finite or not above 0"),
    "infinite": (_with("layer1.0.conv1.weight_scale", torch.full((64,), math.inf)), "not finite or not above 0"),
    "zero": (_with("layer1.0.conv1.input_scale", torch.zeros(1)), "not finite or not above 0"),
    "subnormal": (_with("layer1.0.conv1.input_scale", torch.full((1,), 1e-40)), "not finite or not above 0"),
    "negative": (_with("layer1.0.conv1.weight_scale", -torch.ones(64)), "not finite or not above 0"),
    "too short": (_with("layer1.0.conv1.weight_scale", torch.ones(63)), r"not float32 \(64,\)"),
    "too many": (_with("layer1.0.conv1.input_scale", torch.ones(64)), r"not float32 \(1,\)"),
    "dtype": (_with("layer1.0.conv1.input_scale", torch.ones(1).double()), r"not float32 \(1,\)"),
    "two scales": (_with("layer2.0.shortcut.input_scale", torch.ones(1)), "different input scales"),
    "of the stem": (_with("stem.conv.input_scale", torch.ones(1)), "is not a readable model"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_scales_are_refused(kind: str, file: Path, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(file)
    damage(tensors)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(HistoError, match=message):
        read_native(path)


@pytest.mark.parametrize("version", ["1", "3"])
def test_scales_in_another_format_are_refused(version: str, file: Path, tmp_path: Path) -> None:
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | {"histo.format": version}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(file), path, metadata)
    with pytest.raises(HistoError, match="format '3'" if version == "3" else "is not a readable model"):
        read_native(path)


@pytest.mark.parametrize("precision", ["bf16x3", "bf16", "int8"])
def test_the_engine_computes_what_the_simulation_does(
    precision: str, file: Path, small: Checkpoint, lowered: LoweredNet, quantised: Quantisation, tmp_path: Path
) -> None:
    """By definition almost every value of the first stages; as fast as it can, with an error of the same size."""
    from histo_export._core import Engine, precision_support

    if reason := precision_support()[precision].reason:
        pytest.skip(reason)
    path = tmp_path / "model.safetensors"
    path.write_bytes(native_bytes(lowered, small.spec, quantised.scales))
    direct, fastest = (Engine(path, precision=precision, algorithm=how) for how in ("direct", "fastest"))
    assert direct.info()["precision"] == fastest.info()["precision"] == precision
    tiles = choose_tiles(tile_data(small.spec).test, small.spec)

    def stages(simulation: Simulation) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            x = simulation.stem(tiles)
            found = {"stem": x.real.numpy()}
            for index, block in enumerate(BLOCKS):
                x = simulation.block(index, x)
                found[block.split(".")[0]] = x.real.numpy()
        return found

    fp32, expected = stages(Simulation(lowered)), stages(Simulation.of(lowered, precision, quantised.scales))  # type: ignore[arg-type]
    for stage in ("stem", "layer1"):
        found = direct.stages(tiles.numpy())[stage]
        if precision == "bf16x3":  # finer than the order of float32 sums
            assert np.abs(found - expected[stage]).max() < 1e-4 * fp32[stage].max()
        else:
            assert (found == expected[stage]).mean() > 0.95
    for engine in (direct, fastest):
        for stage, found in engine.stages(tiles.numpy()).items():
            if stage != "head":
                own = np.square(expected[stage] - fp32[stage]).mean()
                assert np.square(found - fp32[stage]).mean() < 2 * own


# The QDQ file.


@pytest.fixture(scope="module")
def float_onnx(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("onnx")
    write_formats(folder, ["onnx"], Source(small))
    return (folder / "model.onnx").read_bytes()


def test_the_onnx_file_holds_the_quantised_model(float_onnx: bytes, all_scales: dict[str, Scales]) -> None:
    scales = {conv: of for conv, of in all_scales.items() if not conv.startswith("layer3.1.conv1")}
    content = qdq_bytes(float_onnx, scales)
    assert len(content) < 0.3 * len(float_onnx)
    model, before = onnx.load_from_string(content), onnx.load_from_string(float_onnx)
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)
    tensors = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert tensors["layer4.2.conv2.weight_int8"].dtype == np.int8
    assert "layer4.2.conv2.weight" not in tensors
    assert tensors["layer3.1.conv1.weight"].dtype == tensors["stem.conv.weight"].dtype == np.float32
    np.testing.assert_array_equal(tensors["layer1.0.conv2.weight_scale"], scales["layer1.0.conv2"].weight.numpy())
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("QuantizeLinear") == 31
    assert operators.count("DequantizeLinear") == 31 + 34, "31 maps, and the weights of 34 convolutions"
    for part in ("input", "output"):
        assert getattr(model.graph, part) == getattr(before.graph, part)
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties == {item.key: item.value for item in before.metadata_props} | {"histo.precision": "int8"}


def _onnx_input(tiles: torch.Tensor) -> dict[str, np.ndarray]:
    return {"tiles": np.ascontiguousarray(tiles.permute(0, 3, 1, 2).numpy()).astype(F32) / F32(255)}


def _tiles(spec: ModelSpec) -> torch.Tensor:
    return torch.from_numpy(np.stack([TintedNoise(9, spec.tile_size)(i) for i in range(6)]))


def test_onnx_runtime_computes_the_quantised_model(
    float_onnx: bytes, small: Checkpoint, lowered: LoweredNet, quantised: Quantisation
) -> None:
    """The first stored maps byte for byte, but for ties; the logits to the noise of two roundings."""
    import onnxruntime

    model = onnx.load_from_string(qdq_bytes(float_onnx, quantised.scales))
    names = [f"{name}.input_uint8" for name in MAPS if name in quantised.scales][:4]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tiles = _tiles(small.spec)
    logits, *found = session.run(["logits", *names], _onnx_input(tiles))

    stored: dict[str, torch.Tensor] = {}
    simulation = Simulation(lowered, "fp32", quantised.scales, observe=lambda name, x: stored.update({name: x}))
    expected = simulation(tiles)
    for name, values in zip(names, found, strict=True):
        conv = name.removesuffix(".input_uint8")
        difference = values.astype(int) - quantise_activations(stored[conv], quantised.scales[conv].input).numpy()
        assert abs(difference).max() <= 1
        assert (difference != 0).mean() < 0.01
        assert values.std() > 5
    own_error = logit_error(expected, Simulation(lowered)(tiles))
    assert logit_error(torch.from_numpy(logits), expected) < 1.5 * own_error


def test_openvino_computes_the_quantised_model(
    float_onnx: bytes, small: Checkpoint, lowered: LoweredNet, quantised: Quantisation
) -> None:
    ov = pytest.importorskip("openvino")
    core = ov.Core()
    model = core.read_model(qdq_bytes(float_onnx, quantised.scales))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    tiles = _tiles(small.spec)
    logits = torch.from_numpy(compiled(list(_onnx_input(tiles).values()))[0])
    expected = Simulation(lowered, "fp32", quantised.scales)(tiles)
    assert logit_error(logits, expected) < 1.5 * logit_error(expected, Simulation(lowered)(tiles))


def test_a_wrong_onnx_file_is_found(
    float_onnx: bytes, small: Checkpoint, lowered: LoweredNet, quantised: Quantisation, tmp_path: Path
) -> None:
    from histo_export.parity import make_golden

    golden = make_golden(small)
    scales = dict(quantised.scales)
    (tmp_path / INT8_ONNX).write_bytes(qdq_bytes(float_onnx, scales))
    check = low_precision.check_int8_onnx(tmp_path, lowered, scales, golden, threads=1)
    low_precision.raise_if_onnx_differs(check)
    assert 0 < check.error < check.allowed
    graph = onnx.load_from_string(qdq_bytes(float_onnx, scales))
    for item in graph.graph.initializer:
        if item.name == "layer2.0.conv2.weight_scale":
            item.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(item), item.name))
    (tmp_path / INT8_ONNX).write_bytes(graph.SerializeToString())
    check = low_precision.check_int8_onnx(tmp_path, lowered, scales, golden, threads=1)
    with pytest.raises(HistoError, match="is not the quantised model"):
        low_precision.raise_if_onnx_differs(check)
    with pytest.raises(HistoError, match="is not the quantised model"):
        low_precision.raise_if_onnx_differs(check.model_copy(update={"error": math.nan}))


# The gate.


def _low(drop: float, max_drop: float = 0.5, accepted: bool = False) -> LowPrecision:
    def measured(drop: float) -> Measured:
        return Measured(
            accuracy=0.9 - drop / 100, interval=(0.8, 0.95), agreement=0.97, drop=drop, measured_with="a test"
        )

    return LowPrecision(
        tiles=200,
        fingerprint="f",
        precisions={"fp32": measured(0), "bf16": measured(0), "int8": measured(drop)},
        max_drop=max_drop,
        drop_accepted=accepted,
        not_native={},
    )


def test_figures_are_counted() -> None:
    labels = np.arange(200) % 4
    low = labels.copy()
    low[0] = 3 - low[0]
    found = low_precision.figures(_answers({"fp32": labels, "int8": low}, labels))
    assert found["fp32"].accuracy == found["fp32"].agreement == 1
    assert (found["int8"].accuracy, found["int8"].agreement) == (0.995, 0.995)
    assert found["int8"].drop == 0.5, "one tile in 200 is half a point exactly"
    assert found["int8"].interval[0] < 0.995 <= found["int8"].interval[1]
    assert found["int8"].measured_with == "a test of int8"


def _answers(chosen: dict[Any, npt.NDArray[np.int64]], labels: npt.NDArray[np.int64]) -> low_precision.Answers:
    measured_with = {precision: f"a test of {precision}" for precision in chosen}
    return low_precision.Answers(chosen, labels, measured_with, {"bf16x3": "this CPU lacks it"}, 2 * len(labels))


def test_costs_are_counted_in_pairs() -> None:
    labels = np.arange(200) % 4
    full, low = labels.copy(), labels.copy()
    full[:2] = 3 - full[:2]  # fp32 has 0 and 1 wrong
    low[1:5] = (low[1:5] + 1) % 4  # bf16 has 1 to 4 wrong: one gained, three lost
    found = low_precision.costs(_answers({"fp32": full, "bf16": low}, labels), "f", 0.5)
    cost = found.measured["bf16"]
    assert list(found.measured) == ["bf16"]
    assert (cost.worse, cost.better, cost.changed) == (3, 1, 4), "both have tile 1 wrong, in the same class"
    assert (cost.lost, cost.measured_with) == (1.0, "a test of bf16")
    assert cost.interval[0] < 0 < cost.lost < cost.interval[1] < 4
    assert (found.tiles, found.of_tiles, found.fingerprint, found.max_drop) == (200, 400, "f", 0.5)
    assert found.not_measured == {"bf16x3": "this CPU lacks it", "int8": low_precision.NO_SCALES}


class _Net:
    """Answers class 1 for each tile, and counts the tiles."""

    def __init__(self) -> None:
        self.tiles = 0

    def __call__(self, batch: Any) -> Any:
        self.tiles += len(batch)
        return np.tile(np.float32([0, 1]), (len(batch), 1))


@pytest.mark.parametrize(("native", "tiles"), [(True, low_precision.MOST_TILES), (False, low_precision.MOST_SIMULATED)])
def test_a_cost_that_nobody_asked_for_takes_little_time(
    monkeypatch: pytest.MonkeyPatch, lowered: LoweredNet, native: bool, tiles: int
) -> None:
    runs: dict[str, _Net] = {}

    def engine(file: Path, precision: str, threads: int) -> tuple[_Net, str]:
        if precision != "fp32" and not native:
            raise RuntimeError(f"{file}: this CPU has neither")
        return runs.setdefault(precision, _Net()), "native engine"

    monkeypatch.setattr(low_precision, "_engine", engine)
    monkeypatch.setattr(low_precision, "_simulation", lambda _, precision, __: runs.setdefault(precision, _Net()))
    labels = np.zeros(5000, np.int64)
    val = TileSet(("a", "b"), labels, [str(i) for i in range(5000)], lambda i: np.zeros((64, 64, 3), np.uint8))
    found = low_precision.answers(Path("m"), lowered, {}, val, 1, briefly=True)
    assert {precision: run.tiles for precision, run in runs.items()} == dict.fromkeys(
        ("fp32", "bf16x3", "bf16") if native else ("fp32", "bf16"), tiles
    )
    assert (len(found.labels), found.of_tiles) == (tiles, 5000)
    assert found.not_native == ({} if native else dict.fromkeys(("bf16x3", "bf16"), "this CPU has neither"))
    assert found.measured_with["bf16"] == ("native engine" if native else low_precision.SIMULATION)


def test_an_export_with_tiles_says_what_lower_precisions_cost(
    small: Checkpoint, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "check_files", lambda *_, **__: run.Checks())  # which takes the most time, and so does
    monkeypatch.setattr(run, "make_golden", lambda _: Golden.read(bundle / GOLDEN))  # float64
    data = tile_data(small.spec)
    checks = export_bundle(small, tmp_path / "b", ExportSettings(["native"]), data=data)
    costs = open_bundle(tmp_path / "b").config.histo_precision_costs
    assert costs is not None
    assert costs == checks.precision_costs
    assert costs.tiles == costs.of_tiles == len(data.val)
    assert costs.fingerprint == data.fingerprint
    assert "bf16" in costs.measured
    assert costs.not_measured["int8"] == low_precision.NO_SCALES
    assert "## Lower precisions" in (tmp_path / "b/README.md").read_text()
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert "low_precision" not in config["histo"], "older versions refuse what they do not know there"
    damaged = config | {"histo_precision_costs": config["histo_precision_costs"] | {"tiles": 0}}
    (tmp_path / "b/config.json").write_text(json.dumps(damaged))
    with pytest.raises(HistoError, match=r"is not a bundle's configuration \(histo_precision_costs\.tiles"):
        open_bundle(tmp_path / "b")
    del config["histo_precision_costs"]
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    assert open_bundle(tmp_path / "b").config.histo_precision_costs is None


def test_the_gate_opens_at_the_limit_and_shuts_above() -> None:
    low_precision.raise_if_lossy("int8", _low(0.5))
    low_precision.raise_if_lossy("int8", _low(-3))
    low_precision.raise_if_lossy("int8", _low(2, max_drop=2))
    low_precision.raise_if_lossy("int8", _low(9, accepted=True))
    low_precision.raise_if_lossy("bf16", _low(9))
    with pytest.raises(
        HistoError, match=r"loses 1\.00 points .* 0\.5 are allowed: 89\.0 % of 200 .* fp32 90\.0 %"
    ) as stop:
        low_precision.raise_if_lossy("int8", _low(1))
    assert "Use --precision bf16, allow more with --max-drop" in str(stop.value)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch, small: Checkpoint, lowered: LoweredNet) -> TileData:
    """Data on which fp32 is always right, while int8 has a handful of levels."""
    fine = quantise_module.activation_scale
    monkeypatch.setattr(quantise_module, "activation_scale", lambda largest: 150 * fine(largest))
    native = dataclasses.replace(FORMATS["native"], checked_by=("torch",))  # other tests check the other runtime
    monkeypatch.setitem(FORMATS, "native", native)
    data = tile_data(small.spec)
    quantisation = run._quantisation(small, data, lambda step: None)  # once for all exports of these data
    monkeypatch.setattr(run, "_quantisation", lambda *_: quantisation)
    tiles = torch.from_numpy(np.stack([data.val.tile(i) for i in range(len(data.val))]))
    labels = Simulation(lowered)(tiles).argmax(1).numpy()
    assert len(np.unique(labels)) > 1
    return dataclasses.replace(data, val=TileSet(data.classes, labels, data.val.names, TintedNoise(1, 75)))


def test_a_lossy_bundle_is_not_written(coarse: TileData, small: Checkpoint, tmp_path: Path) -> None:
    def export(**options: object) -> run.Checks:
        settings = ExportSettings(["native"], precision="int8", **options)  # type: ignore[arg-type]
        return export_bundle(small, tmp_path / "b", settings, data=coarse)

    with pytest.raises(HistoError, match=r"--precision int8: loses .* points of accuracy where 0\.5 are allowed"):
        export()
    assert not list(tmp_path.iterdir())
    low = export(accept_drop=True).low_precision
    assert low is not None
    assert low.precisions["int8"].drop > 0.5
    assert low.precisions["fp32"].accuracy == 1
    block = open_bundle(tmp_path / "b").config.histo
    assert block.low_precision == low
    assert low.drop_accepted
    assert "a larger loss was accepted" in (tmp_path / "b" / "README.md").read_text()
    assert export(max_drop=100, force=True).low_precision is not None


def test_low_precision_needs_data_and_the_native_file(small: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the tiles that the model was trained on"):
        export_bundle(small, tmp_path / "b", ExportSettings(["native"], precision="bf16"))
    with pytest.raises(UsageError, match="Add native to --formats"):
        export_bundle(small, tmp_path / "b", ExportSettings(["onnx"], precision="bf16"), data=tile_data(small.spec))
    assert not list(tmp_path.iterdir())


def test_a_full_precision_bundle_has_no_word_of_it(bundle: Path) -> None:
    block = json.loads((bundle / "config.json").read_text())["histo"]
    assert block["precision"] == "fp32"
    assert "low_precision" not in block, "older versions refuse what they do not know"
    assert "histo_precision_costs" not in json.loads((bundle / "config.json").read_text()), "there were no tiles"


# The command line.

Histo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, small: Checkpoint) -> Path:
    """Images that the small checkpoint's classes could be trained on."""
    for number, split in enumerate(("train", "val", "test")):
        draw = TintedNoise(number, 75)
        for label, name in enumerate(small.spec.classes):
            (tmp_path / "tiles" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(draw(2 * label + i)).save(tmp_path / "tiles" / split / name / f"{i}.png")
    return tmp_path / "tiles"


def _checkpoint_file(path: Path, checkpoint: Checkpoint, **data: object) -> Path:
    training = {"data": {"name": "tiles", "synthetic": True} | data, "seed": 0}
    block = dataclasses.replace(checkpoint, training=training).block()
    write_checkpoint(path, {"state_dict": checkpoint.state_dict, "histo": block})
    return path


def test_other_tiles_than_the_checkpoints_are_refused(
    histo: Histo, small: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    file = _checkpoint_file(tmp_path / "best.ckpt", small, fingerprint="0" * 64)
    args = ("export", "--checkpoint", file, "--out", tmp_path / "b", "--precision", "bf16")
    code, out, err = histo(*args)
    assert (code, out) == (2, "")
    assert "--precision bf16: is measured on tiles, and a checkpoint has none. Add --data" in err
    code, out, err = histo(*args, "--data", folder)
    assert (code, out) == (2, "")
    assert "is not what the checkpoint was trained on (tiles, fingerprint 000000000000…" in err
    assert not (tmp_path / "b").exists()


def test_from_a_checkpoint_to_an_int8_bundle(
    histo: Histo, small: Checkpoint, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histo_export.data import open_data

    fingerprint = open_data(folder, classes=small.spec.classes, crop=64).fingerprint
    file = _checkpoint_file(tmp_path / "best.ckpt", small, fingerprint=fingerprint)
    out = tmp_path / "b"
    args = ("--checkpoint", file, "--data", folder, "--formats", "onnx,native", "--out", out)
    code, stdout, err = histo("export", *args, "--precision", "int8", "--accept-drop", "--json")
    assert code == 0, err
    result = json.loads(stdout)
    low = result["low_precision"]
    assert result["precision"] == "int8"
    assert list(low["precisions"]) == ["fp32", "bf16x3", "bf16", "int8"]
    assert (low["tiles"], low["fingerprint"], low["drop_accepted"]) == (12, fingerprint, True)
    assert low["calibration"]["tiles"] + low["calibration"]["held_out"] == 12
    for name, found in low["precisions"].items():
        assert ("PyTorch" in found["measured_with"]) == (name in low["not_native"])
    block = open_bundle(out).config.histo
    assert {INT8_ONNX, "model.onnx", "model.safetensors"} <= set(block.files)
    assert (block.precision, block.parity.keys()) == ("int8", {"model.onnx", "model.safetensors"})

    code, stdout, _ = histo("verify", out)
    assert code == 0
    assert "model-int8.onnx in ONNX Runtime (CPUExecutionProvider): " in stdout
    code, stdout, _ = histo("inspect", out, "--layers")
    assert "For int8: accuracy on the 12 validation tiles" in stdout
    assert stdout.count("layer4.2.conv2") == 2, "in the list of layers and in the report of errors"
    facts = json.loads(histo("inspect", out, "--json")[1])
    assert (facts["precision"], facts["low_precision"]) == ("int8", low)
    assert "Made for int8" in (out / "README.md").read_text()
