"""The native engine against PyTorch in float64, and against itself in other batches, threads and instruction sets."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from histo_export._core import (
    PRECISIONS,
    BatchRunner,
    Engine,
    FusedHead,
    Model,
    default_isa,
    precision_support,
    preprocess,
    self_test,
    usable_cpus,
    usable_isas,
    usable_precisions,
)
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes
from histo_export.parity import FP32_TOLERANCE
from histo_export.runtimes import to_float
from histo_export.spec import STAGES

Advance = Callable[[Callable[[], object]], bool]
Tiles = npt.NDArray[np.uint8]
MakeCheckpoint = Callable[..., Checkpoint]

ALLOWED = FP32_TOLERANCE
PROFILES = ("throughput", "latency")


def executed_in_fp32(preferred: str) -> str:
    """The instruction set that float32 runs in where `preferred` is asked for: the matrix unit has no float32."""
    return "avx512" if preferred == "amx" else preferred


def model_of(checkpoint: Checkpoint) -> Model:
    return Model.from_bytes(native_bytes(lower(checkpoint.net(), checkpoint.spec), checkpoint.spec))


def random_tiles(n: int, height: int, width: int, seed: int = 0) -> Tiles:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def reference(checkpoint: Checkpoint, tiles: Tiles) -> dict[str, npt.NDArray[np.float64]]:
    """The stages of the unlowered network in float64."""
    from torchvision.transforms.functional import center_crop

    from histo_export.model.net import normalise

    spec = checkpoint.spec
    cropped = center_crop(torch.from_numpy(tiles).permute(0, 3, 1, 2), [spec.crop, spec.crop])
    net = checkpoint.net(torch.float64)
    return {name: out.numpy() for name, out in net.stages(normalise(cropped, spec, torch.float64))}


def difference(ours: npt.NDArray[Any], expected: npt.NDArray[np.float64]) -> float:
    """The largest |Δ| of any tile, in units of its own largest reference value (of at least 1)."""
    assert ours.shape == expected.shape
    values = tuple(range(1, expected.ndim))
    scale = np.maximum(1, np.abs(expected).max(axis=values))
    return float((np.abs(ours - expected).max(axis=values) / scale).max())


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Model:
    return model_of(checkpoint)


@pytest.fixture(scope="module")
def engine(model: Model) -> Engine:
    return Engine(model, threads=2)


@pytest.fixture(scope="module")
def golden(bundle: Path) -> dict[str, npt.NDArray[Any]]:
    return load_file(bundle / "golden.safetensors")


# --- the right numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "crop"),
    [
        *((pool, 64) for pool in (1, 2, 3, 4, 8)),
        (1, 32),
        (2, 33),
        (3, 47),
        (1, 65),
        (8, 97),
        (2, 128),
        (4, 131),
        (3, 150),
        (2, 224),
    ],
)
def test_equals_torch_in_float64(make_checkpoint: MakeCheckpoint, pool: int, crop: int) -> None:
    """Stage by stage, for pools that divide the map and pools that don't, on tiles that are not square."""
    checkpoint = make_checkpoint(pool, crop, crop + 11)
    tiles = random_tiles(2, crop + 11, crop + 6, seed=pool)
    expected = reference(checkpoint, tiles)
    native = Engine(model_of(checkpoint), threads=2)
    assert difference(native.run(tiles), expected["head"]) < ALLOWED / 5
    stages = native.stages(tiles)
    assert tuple(stages) == STAGES
    for name in STAGES:
        assert difference(stages[name], expected[name]) < ALLOWED / 5, name
    np.testing.assert_array_equal(stages["head"], native.run(tiles))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("isa", usable_isas())
def test_every_instruction_set_equals_torch(checkpoint: Checkpoint, model: Model, isa: str, profile: str) -> None:
    native = Engine(model, threads=1, isa=isa, profile=profile)
    assert (native.info()["isa"], native.info()["profile"]) == (executed_in_fp32(isa), profile)
    tiles = random_tiles(7, 75, 75)
    assert difference(native.run(tiles), reference(checkpoint, tiles)["head"]) < ALLOWED / 5


def test_floats_in_0_to_1_give_what_bytes_give(engine: Engine) -> None:
    tiles = random_tiles(3, 75, 80)
    np.testing.assert_array_equal(engine.run(to_float(tiles)), engine.run(tiles))


def test_the_golden_tiles_pass(
    engine: Engine, bundle: Path, golden: dict[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    result = self_test(engine, bundle / "golden.safetensors")
    assert result["passed"] is True
    assert result["tiles"] == len(golden["tiles"])
    assert result["max_relative"] <= result["tolerance"] == ALLOWED
    golden["logits"][2, 1] += 0.01 * max(1, np.abs(golden["logits"][2]).max())
    save_file(golden, tmp_path / "wrong.safetensors")
    assert self_test(engine, tmp_path / "wrong.safetensors")["passed"] is False


# --- preprocessing ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_preprocessed(checkpoint: Checkpoint) -> Callable[[Tiles], npt.NDArray[np.float32]]:
    """What reaches the first convolution of the exported graphs."""
    stem = lower(checkpoint.net(), checkpoint.spec, "uint8").stem
    stem.conv = torch.nn.Identity()
    seen: list[torch.Tensor] = []
    stem.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def preprocessed(tiles: Tiles) -> npt.NDArray[np.float32]:
        stem(torch.from_numpy(tiles))
        return seen.pop().numpy()

    return preprocessed


def test_every_byte_is_normalised_as_in_torch(
    model: Model, torch_preprocessed: Callable[[Tiles], npt.NDArray[np.float32]]
) -> None:
    tiles = np.zeros((1, 64, 64, 3), np.uint8)
    tiles.reshape(-1, 3)[:256] = np.arange(256)[:, None]
    np.testing.assert_array_equal(preprocess(tiles, model), torch_preprocessed(tiles))


@pytest.mark.parametrize("height", range(64, 72))
def test_the_crop_is_where_torch_puts_it(
    model: Model, torch_preprocessed: Callable[[Tiles], npt.NDArray[np.float32]], height: int
) -> None:
    for width in (64, 65, 67, 70):
        tiles = random_tiles(2, height, width, seed=width)
        np.testing.assert_array_equal(preprocess(tiles, model), torch_preprocessed(tiles))


def test_preprocess_refuses_what_it_cannot_crop(model: Model) -> None:
    for crop, message in ((0, "crop is 0"), (76, "the crop needs 76 x 76"), (2**40, "the crop needs")):
        with pytest.raises(ValueError, match=message):
            preprocess(random_tiles(1, 75, 75), model, crop)


# --- the same bits ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Company:
    """Engines of 1 to 4 threads, whatever the number of CPUs, and what the first gives each of the tiles alone."""

    of_threads: tuple[Engine, ...]
    tiles: npt.NDArray[np.uint8]
    alone: npt.NDArray[np.float32]


@pytest.fixture(scope="module", params=[(isa, profile) for isa in usable_isas() for profile in PROFILES], ids="-".join)
def company(model: Model, request: pytest.FixtureRequest) -> Company:
    """One instruction set and profile at a time: engines of all of them together take 8 GB."""
    isa, profile = request.param
    of_threads = tuple(Engine(model, threads=threads, isa=isa, profile=profile) for threads in range(1, 5))
    tiles = random_tiles(9, 66, 64, seed=1)
    return Company(of_threads, tiles, np.concatenate([of_threads[0].run(tile[None]) for tile in tiles]))


@settings(max_examples=15, deadline=None)  # a busy machine is not an error
@given(data=st.data())
def test_a_tile_gets_the_same_bits_in_any_company(company: Company, data: st.DataObject) -> None:
    """Random splits, orders and thread counts."""
    order = np.array(data.draw(st.permutations(range(len(company.tiles)))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1))))
    native = data.draw(st.sampled_from(company.of_threads))
    for part in np.split(order, cuts):
        np.testing.assert_array_equal(native.run(company.tiles[part]), company.alone[part])


def test_a_batch_larger_than_any_before_gets_the_same_bits(model: Model) -> None:
    tiles = random_tiles(33, 64, 64)
    native = Engine(model, threads=2)
    few = native.run(tiles[:2])
    many = native.run(tiles)
    np.testing.assert_array_equal(many[:2], few)
    np.testing.assert_array_equal(native.run(tiles[:2]), few)
    assert native.info()["workspace_bytes"] > 0


def test_not_a_number_stays_in_its_row(engine: Engine) -> None:
    tiles = to_float(random_tiles(5, 64, 64))
    whole = engine.run(tiles)
    for value in (np.nan, np.inf):
        broken = tiles.copy()
        broken[2, 1, 30, 30] = value
        logits = engine.run(broken)
        assert np.isnan(logits[2]).all()
        np.testing.assert_array_equal(np.delete(logits, 2, 0), np.delete(whole, 2, 0))
    np.testing.assert_array_equal(engine.run(tiles), whole)  # nothing of it is left in the workspace


# --- threads ------------------------------------------------------------------------------------------------


def test_other_python_threads_advance(engine: Engine, other_threads_advance: Advance) -> None:
    tiles = random_tiles(200, 64, 64)
    assert other_threads_advance(lambda: engine.run(tiles)), "the GIL was held while the engine worked"


def test_many_threads_share_one_model_and_one_engine(model: Model, engine: Engine) -> None:
    tiles = random_tiles(24, 64, 64)
    expected = engine.run(tiles)

    def infer(i: int) -> npt.NDArray[np.float32]:
        own = (engine, engine.copy(), Engine(model, threads=1))[i % 3]
        return np.concatenate([own.run(tiles[k : k + 3]) for k in range(0, len(tiles), 3)])

    with ThreadPoolExecutor(9) as pool:
        for logits in pool.map(infer, range(9)):
            np.testing.assert_array_equal(logits, expected)


def test_a_copy_shares_the_weights_and_outlives_its_original(model: Model) -> None:
    original = Engine(model, threads=1)
    tiles = random_tiles(2, 64, 64)
    expected = original.run(tiles)
    twin = original.copy()
    assert twin.info()["weight_bytes"] == original.info()["weight_bytes"]
    del original
    gc.collect()
    np.testing.assert_array_equal(twin.run(tiles), expected)


# --- what it is made with -----------------------------------------------------------------------------------


def test_info_says_what_is_executed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    info = Engine(model).info()
    assert info["threads"] == usable_cpus()
    assert (info["isa"], info["precision"], info["crop"]) == (executed_in_fp32(default_isa()), "fp32", 64)
    assert info["weight_bytes"] > 0
    monkeypatch.setenv("HISTO_ISA", "portable")
    assert default_isa() == "portable"
    assert [key for key in info if f"``{key}``" not in str(Engine.info.__doc__)] == []
    info = Engine(model, threads=3).info()
    assert (info["isa"], info["threads"]) == ("portable", 3)
    monkeypatch.setenv("HISTO_ISA", "sse9")
    with pytest.raises(ValueError, match="sse9"):
        Engine(model)


@pytest.mark.parametrize("isa", usable_isas())
def test_precision_support_is_what_an_engine_does(model: Model, isa: str) -> None:
    support = precision_support(isa)
    assert tuple(support) == PRECISIONS
    assert usable_precisions(isa) == [precision for precision, found in support.items() if found.isa]
    assert support["fp32"].isa == executed_in_fp32(isa)
    for precision, found in support.items():
        assert (found.isa is None) == bool(found.reason)
        if found.isa is None:
            with pytest.raises(RuntimeError, match=re.escape(f"{found.reason}; use fp32")):
                Engine(model, threads=1, precision=precision, isa=isa)
        elif precision != "int8":  # for which this model has no scales
            assert Engine(model, threads=1, precision=precision, isa=isa).info()["isa"] == found.isa


def test_another_crop_where_the_head_allows_it(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(1, 64, 75)
    native = Engine(model_of(checkpoint), crop=48)
    tiles = random_tiles(2, 75, 75)
    inner = make_checkpoint(1, 48, 75)
    assert native.info()["crop"] == 48
    assert difference(native.run(tiles), reference(inner, tiles)["head"]) < ALLOWED / 5


def test_a_folded_head_refuses_another_map(model: Model) -> None:
    with pytest.raises(RuntimeError, match="crop"):
        Engine(model, crop=128)


def test_from_a_path_from_memory_and_from_a_model(bundle: Path, golden: dict[str, npt.NDArray[Any]]) -> None:
    path = bundle / "model.safetensors"
    tiles = golden["tiles"][:3]
    expected = Engine(path).run(tiles)
    contents = path.read_bytes()
    for source in (str(path), Model.open(path), Model.from_bytes(contents), Model.from_bytes(memoryview(contents))):
        np.testing.assert_array_equal(Engine(source).run(tiles), expected)


def test_warmup_changes_nothing(engine: Engine) -> None:
    tiles = random_tiles(2, 64, 64)
    expected = engine.run(tiles)
    engine.warmup()
    engine.warmup(5)
    np.testing.assert_array_equal(engine.run(tiles), expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": -1}, ValueError, "threads is -1"),
        ({"threads": 10_000}, ValueError, r"threads is 10000; it must be between 1 and 4096, or 0 for usable_cpus\(\)"),
        ({"threads": 1.5}, TypeError, "threads is float; an integer is needed"),
        ({"threads": None}, TypeError, "threads is NoneType"),
        ({"precision": 32}, TypeError, "precision is int; a string is needed"),
        ({"precision": "fp64"}, ValueError, 'precision "fp64" is unknown; choose from fp32, bf16x3, bf16, int8'),
        ({"isa": "avx3"}, ValueError, 'isa "avx3" is unknown; choose from portable, avx2, avx512, amx, neon'),
        ({"crop": 0}, ValueError, "crop is 0"),
        ({"crop": -5}, ValueError, "crop is -5"),
        ({"profile": "fast"}, ValueError, 'profile "fast" is unknown; choose from throughput, latency'),
        ({"speed": "high"}, TypeError, "incompatible"),
    ],
)
def test_wrong_options_are_refused(model: Model, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Engine(model, **options)


@pytest.mark.parametrize("wrong", [None, 3, b"bytes that are no path\0", object()])
def test_what_is_neither_a_model_nor_a_path_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError, OSError)):
        Engine(wrong)


# --- tiles that are none ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tiles", "error", "message"),
    [
        (np.zeros((0, 64, 64, 3), np.uint8), ValueError, "batch is 0"),
        (np.zeros((1, 0, 64, 3), np.uint8), ValueError, "height is 0"),
        (np.zeros((1, 63, 64, 3), np.uint8), ValueError, "63"),
        (np.zeros((1, 64, 63, 3), np.uint8), ValueError, "63"),
        (np.zeros((64, 64, 3), np.uint8), ValueError, r"\(64, 64, 3\); \(batch, height, width, 3\) is needed"),
        (np.zeros((1, 64, 64, 4), np.uint8), ValueError, r"\(1, 64, 64, 4\); \(batch, height, width, 3\)"),
        (np.zeros((1, 3, 64, 64), np.uint8), ValueError, r"\(1, 3, 64, 64\)"),
        (np.zeros((1, 64, 64, 3), np.float32), ValueError, r"\(batch, 3, height, width\) is needed"),
        (np.zeros((1, 64, 64, 3)), TypeError, "dtype float64; uint8 .* or float32"),
        (np.zeros((1, 64, 64, 3), np.int8), TypeError, "dtype int8"),
        (np.zeros((1, 3, 64, 64), ">f4"), TypeError, "dtype >f4"),
        (np.zeros((1, 64, 128, 3), np.uint8)[:, :, ::2], ValueError, "C-contiguous"),
        (np.zeros((1, 64, 64, 3), np.float32).transpose(0, 3, 1, 2), ValueError, "C-contiguous"),
        ([[[[0, 0, 0]]]], TypeError, "tiles is list; a NumPy array is needed"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), TypeError, "tiles is Tensor; a NumPy array"),
        (None, TypeError, "tiles is NoneType"),
    ],
)
def test_bad_tiles_are_refused(engine: Engine, tiles: Any, error: type[Exception], message: str) -> None:
    for call in (engine.run, engine):
        with pytest.raises(error, match=message):
            call(tiles)


def test_stages_and_warmup_refuse_too(engine: Engine) -> None:
    with pytest.raises(TypeError, match="uint8 is needed"):
        engine.stages(np.zeros((1, 3, 64, 64), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="63"):
        engine.stages(np.zeros((1, 63, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="batch is 0"):
        engine.warmup(0)
    with pytest.raises((ValueError, MemoryError)):
        engine.warmup(2**62)


LONG = list(range(10_000))
WRONG_CALLS: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
    (Engine, (LONG,)),
    (Engine, (b"contents of a file" * 1000,)),
    (Model.open, (b"contents of a file" * 1000,)),
    (Model.from_bytes, ("contents of a file" * 1000,)),
    (preprocess, (LONG, None)),
    (preprocess, (np.zeros((1, 75, 75, 3), np.uint8), LONG)),
    (FusedHead, (LONG, LONG, 2)),
    (FusedHead, (np.zeros((6, 4096), np.float32), np.zeros(6, np.float32), LONG)),
    (BatchRunner, (len, LONG)),
    (BatchRunner(len, 2).run, (LONG, LONG)),
]


@pytest.mark.parametrize(("function", "arguments"), WRONG_CALLS)
def test_a_message_does_not_repeat_its_arguments(
    function: Callable[..., object], arguments: tuple[Any, ...], engine: Engine
) -> None:
    with pytest.raises(TypeError) as caught:
        function(*arguments)
    assert len(str(caught.value)) < 120
    for method in (engine.run, engine, engine.stages, engine.layer_times, engine.warmup):
        with pytest.raises(TypeError, match=r"^(tiles|batch) is list; .* is needed$"):
            method(LONG)


def test_a_repr_is_short(model: Model, engine: Engine) -> None:
    head = FusedHead(np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2, isa="portable")
    runner = BatchRunner(engine, batch=4)
    tiles = random_tiles(5, 75, 75)
    results = runner.results(tiles)
    assert repr(next(results)) == "<TileResult 0: 6 logits>"
    assert re.fullmatch(r"<BatchResults: \d+ tiles?, 0 failed, \d+ batch(es)?>", repr(results))
    stats = runner.run(tiles, lambda result: None)
    isa = executed_in_fp32(default_isa())
    assert [repr(each) for each in (model, engine, head, runner, stats, precision_support()["fp32"])] == [
        "<Model: 6 classes, pool 3, crop 64, tiles of 75 pixels>",
        f"<Engine: 6 classes, crop 64, fp32, {isa}, throughput, 2 threads>",
        "<FusedHead: pool 2, 4 channels, 6 classes, portable, 1 thread>",
        "<BatchRunner: an Engine, batches of 4 tiles, on_error stop>",
        "<BatchRunnerStats: 5 tiles, 0 failed, 2 batches>",
        f"<PrecisionSupport: {isa}>",
    ]


# --- the model ----------------------------------------------------------------------------------------------


def test_a_model_describes_itself(model: Model, checkpoint: Checkpoint) -> None:
    spec = checkpoint.spec
    assert (model.classes, model.pool, model.head_pool) == (spec.classes, 3, 2)
    assert (model.crop, model.tile_size, model.mpp) == (64, 75, 0.495)
    assert model.mean == pytest.approx(spec.mean)
    assert model.std == pytest.approx(spec.std)
    assert model.size_bytes == len(native_bytes(lower(checkpoint.net(), spec), spec))


def test_tensors_are_the_files_own_memory(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    opened = Model.open(path)
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            np.testing.assert_array_equal(opened.tensor(name), file.get_tensor(name))
    tensor = opened.tensor("layer4.2.conv2.weight")
    assert tensor.dtype == np.float32
    assert not tensor.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tensor[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        tensor.setflags(write=True)
    kept = tensor.copy()
    del opened
    gc.collect()
    np.testing.assert_array_equal(tensor, kept)  # the array keeps the model alive
    with pytest.raises(ValueError, match=r"no\.such"):
        Model.open(path).tensor("no.such")


def test_files_that_are_not_a_model(bundle: Path, tmp_path: Path) -> None:
    contents = (bundle / "model.safetensors").read_bytes()
    for name, broken in {"empty": b"", "garbage": bytes(range(256)), "truncated": contents[:-1]}.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
            Model.open(tmp_path / name)
        with pytest.raises(ValueError):  # noqa: PT011 (what is wrong differs)
            Model.from_bytes(broken)
    with pytest.raises(OSError, match="missing"):
        Model.open(tmp_path / "missing")
    with pytest.raises(OSError, match=tmp_path.name):
        Model.open(tmp_path)
    with pytest.raises(TypeError):
        Model.from_bytes("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        Model.from_bytes(memoryview(contents)[::2])
    with pytest.raises(TypeError):
        Model()
