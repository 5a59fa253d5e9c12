"""The C interface through ctypes, on the shared library that the package ships."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_size_t, c_uint, c_uint8, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

import histo_export
from histo_export import _core

INVALID_ARGUMENT, SIZE_MISMATCH, SIZE_OVERFLOW, IO, INVALID_FILE, UNSUPPORTED = range(1, 7)
CANCELLED, FAILED = 8, 9
SIZE_MAX = 2 ** (8 * ctypes.sizeof(c_size_t)) - 1

SOURCE = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_uint8), c_size_t)


class TileResult(ctypes.Structure):
    _fields_ = (("index", c_size_t), ("logits", POINTER(c_float)), ("classes", c_size_t), ("error", c_char_p))


SINK = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(TileResult))


class Stats(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        *((name, c_size_t) for name in ("tiles", "failed", "batches")),
        *((name, c_double) for name in ("seconds", "prepare_seconds", "infer_seconds", "deliver_seconds")),
    )


PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Stats))


class EngineOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("threads", c_uint),
        ("isa", c_char_p),
        ("precision", c_char_p),
        ("crop", c_size_t),
        ("profile", c_char_p),
        ("algorithm", c_char_p),
    )


class HeadOptions(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("threads", c_uint), ("isa", c_char_p))


class SelfTest(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("tiles", c_size_t),
        *((name, c_double) for name in ("max_abs", "max_relative", "tolerance")),
        ("passed", c_int),
    )


class BatchOptions(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("batch", c_size_t), ("queued", c_size_t), ("report_errors", c_int))


@pytest.fixture(scope="module")
def histo() -> ctypes.CDLL:
    library = ctypes.CDLL(str(histo_export.cmake_prefix() / "lib/libhisto.so"))
    for name in ("histo_version", "histo_last_error", "histo_last_remedy", "histo_model_class_name"):
        getattr(library, name).restype = c_char_p
    for name in ("classes", "crop", "tile_size", "pool"):
        function = getattr(library, f"histo_model_{name}")
        function.restype, function.argtypes = c_size_t, [c_void_p]
    library.histo_model_mpp.restype, library.histo_model_mpp.argtypes = c_double, [c_void_p]
    library.histo_model_class_name.argtypes = [c_void_p, c_size_t]
    library.histo_model_open.argtypes = [c_char_p, POINTER(c_void_p)]
    library.histo_model_from_memory.argtypes = [c_void_p, c_size_t, POINTER(c_void_p)]
    library.histo_engine_create.argtypes = [c_void_p, POINTER(EngineOptions), POINTER(c_void_p)]
    run = [c_void_p, c_void_p, c_size_t, c_size_t, c_size_t, c_size_t, c_void_p, c_size_t]
    library.histo_engine_run_u8.argtypes = library.histo_engine_run_f32.argtypes = run
    library.histo_engine_self_test.argtypes = [c_void_p, c_char_p, POINTER(SelfTest)]
    library.histo_run_batches.argtypes = [
        *(c_void_p, c_size_t, c_size_t, SOURCE, SINK, PROGRESS, c_void_p),
        *(POINTER(BatchOptions), POINTER(Stats)),
    ]
    library.histo_precision_support.argtypes = [c_char_p, c_char_p, POINTER(c_char_p)]
    library.histo_head_create.argtypes = [
        *(c_size_t, c_size_t, c_size_t, POINTER(c_float), c_size_t, POINTER(c_float), c_size_t),
        *(POINTER(HeadOptions), POINTER(c_void_p)),
    ]
    library.histo_head_run_f32.argtypes = [
        *(c_void_p, POINTER(c_float), c_size_t, c_size_t, c_size_t, c_size_t, c_int, c_int),
        *(POINTER(c_float), c_size_t),
    ]
    for name in ("histo_model_free", "histo_engine_free", "histo_head_free"):
        getattr(library, name).restype, getattr(library, name).argtypes = None, [c_void_p]
    return library


@pytest.fixture(scope="module")
def model(histo: ctypes.CDLL, bundle: Path) -> Iterator[c_void_p]:
    handle = c_void_p()
    assert histo.histo_model_open(bytes(bundle / "model.safetensors"), byref(handle)) == 0, last_error(histo)
    yield handle
    histo.histo_model_free(handle)


@pytest.fixture(scope="module")
def engine(histo: ctypes.CDLL, model: c_void_p) -> Iterator[c_void_p]:
    handle = c_void_p()
    options = EngineOptions(ctypes.sizeof(EngineOptions), threads=2)
    assert histo.histo_engine_create(model, byref(options), byref(handle)) == 0, last_error(histo)
    yield handle
    histo.histo_engine_free(handle)


@pytest.fixture(scope="module")
def golden(bundle: Path) -> dict[str, npt.NDArray[Any]]:
    return load_file(bundle / "golden.safetensors")


def last_error(histo: ctypes.CDLL) -> str:
    return bytes(histo.histo_last_error()).decode()


def run(histo: ctypes.CDLL, engine: c_void_p, tiles: npt.NDArray[Any], classes: int = 6) -> npt.NDArray[np.float32]:
    logits = np.full((len(tiles), classes), np.nan, np.float32)
    bytewise = tiles.dtype == np.uint8
    side = tiles.shape[2]
    function = histo.histo_engine_run_u8 if bytewise else histo.histo_engine_run_f32
    status = function(engine, tiles.ctypes.data, tiles.size, len(tiles), side, side, logits.ctypes.data, logits.size)
    assert status == 0, last_error(histo)
    return logits


def test_the_library_is_that_of_the_package(histo: ctypes.CDLL) -> None:
    assert histo.histo_version().decode() == histo_export.__version__


def test_the_model_describes_itself(histo: ctypes.CDLL, model: c_void_p) -> None:
    names = [histo.histo_model_class_name(model, i) for i in range(histo.histo_model_classes(model))]
    assert names == [b"TUMOR", b"STROMA", b"ADIPOSE", b"LYMPHO", b"DEBRIS", b"MUCOSA"]
    assert histo.histo_model_class_name(model, len(names)) is None
    assert (histo.histo_model_crop(model), histo.histo_model_tile_size(model)) == (64, 75)
    assert (histo.histo_model_pool(model), histo.histo_model_mpp(model)) == (3, 0.495)


def test_logits_are_those_of_the_bundle(
    histo: ctypes.CDLL, engine: c_void_p, golden: dict[str, npt.NDArray[Any]]
) -> None:
    tiles, expected = golden["tiles"], golden["logits"]
    allowed = 5e-5 * np.maximum(1, np.abs(expected).max(axis=1, keepdims=True))
    assert (np.abs(run(histo, engine, tiles) - expected) <= allowed).all()
    floats = np.ascontiguousarray(tiles.transpose(0, 3, 1, 2), np.float32) / 255
    assert (np.abs(run(histo, engine, floats) - expected) <= allowed).all()


def test_a_model_from_memory_computes_the_same(
    histo: ctypes.CDLL, engine: c_void_p, bundle: Path, golden: dict[str, npt.NDArray[Any]]
) -> None:
    contents = (bundle / "model.safetensors").read_bytes()
    model, other = c_void_p(), c_void_p()
    assert histo.histo_model_from_memory(contents, len(contents), byref(model)) == 0
    assert histo.histo_engine_create(model, None, byref(other)) == 0
    histo.histo_model_free(model)  # the engine keeps what it needs
    np.testing.assert_array_equal(run(histo, other, golden["tiles"]), run(histo, engine, golden["tiles"]))
    histo.histo_engine_free(other)


def test_self_test_passes_and_finds_a_wrong_reference(
    histo: ctypes.CDLL, engine: c_void_p, bundle: Path, golden: dict[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    result = SelfTest(ctypes.sizeof(SelfTest))
    path = bytes(bundle / "golden.safetensors")
    assert histo.histo_engine_self_test(engine, path, byref(result)) == 0, last_error(histo)
    assert result.passed == 1
    assert result.tiles == len(golden["tiles"])
    assert result.max_relative <= result.tolerance

    wrong = golden["logits"].copy()
    wrong[1, 2] += 0.01 * max(1, np.abs(wrong[1]).max())
    save_file({**golden, "logits": wrong}, tmp_path / "wrong.safetensors")
    assert histo.histo_engine_self_test(engine, bytes(tmp_path / "wrong.safetensors"), byref(result)) == 0
    assert result.passed == 0
    assert result.max_relative > result.tolerance


def batches(
    histo: ctypes.CDLL,
    engine: c_void_p,
    tiles: npt.NDArray[np.uint8],
    *,
    lost: int = -1,
    report_errors: int = 0,
    progress: Callable[[], int] = lambda: 0,
) -> tuple[int, dict[int, npt.NDArray[np.float32] | str], Stats]:
    """Runs the loop over `tiles`, of which `lost` are unavailable: status, what each tile became, statistics."""
    results: dict[int, npt.NDArray[np.float32] | str] = {}
    position = iter(range(len(tiles)))

    def source(_user: int, tile: Any, size: int) -> int:
        i = next(position, None)
        if i is None:
            return 0
        assert size == tiles[i].nbytes
        ctypes.memmove(tile, tiles[i].ctypes.data, size)
        return -1 if i == lost else 1

    def sink(_user: int, result: Any) -> int:
        tile = result.contents
        results[tile.index] = (
            tile.error.decode() if tile.error else np.ctypeslib.as_array(tile.logits, (tile.classes,)).copy()
        )
        return 0

    options = BatchOptions(ctypes.sizeof(BatchOptions), batch=4, report_errors=report_errors)
    stats = Stats(ctypes.sizeof(Stats))
    side = tiles.shape[1]
    status = histo.histo_run_batches(
        *(engine, side, side, SOURCE(source), SINK(sink), PROGRESS(lambda _user, _stats: progress()), None),
        *(byref(options), byref(stats)),
    )
    return status, results, stats


def test_the_loop_delivers_every_tile(
    histo: ctypes.CDLL, engine: c_void_p, golden: dict[str, npt.NDArray[Any]]
) -> None:
    tiles = golden["tiles"]
    status, results, stats = batches(histo, engine, tiles)
    assert status == 0, last_error(histo)
    assert list(results) == list(range(len(tiles)))
    np.testing.assert_array_equal(np.stack([results[i] for i in range(len(tiles))]), run(histo, engine, tiles))
    assert (stats.tiles, stats.failed, stats.batches) == (len(tiles), 0, -(-len(tiles) // 4))


def test_the_loop_reports_or_stops_at_a_lost_tile(
    histo: ctypes.CDLL, engine: c_void_p, golden: dict[str, npt.NDArray[Any]]
) -> None:
    tiles = golden["tiles"]
    status, results, stats = batches(histo, engine, tiles, lost=6, report_errors=1)
    assert (status, stats.failed, len(results)) == (0, 1, len(tiles))
    assert [i for i, result in results.items() if isinstance(result, str)] == [6]

    status, results, _ = batches(histo, engine, tiles, lost=6)
    assert status == FAILED
    assert "6" in last_error(histo)
    assert list(results) == list(range(len(results)))
    assert len(results) <= 6


def test_progress_cancels(histo: ctypes.CDLL, engine: c_void_p, golden: dict[str, npt.NDArray[Any]]) -> None:
    status, _, _ = batches(histo, engine, golden["tiles"], progress=lambda: 1)
    assert status == CANCELLED
    assert last_error(histo)


def test_wrong_calls_are_refused(
    histo: ctypes.CDLL, engine: c_void_p, golden: dict[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    tile = golden["tiles"][:1]
    logits = np.full(6, 7, np.float32)

    def status(batch: int = 1, side: int = 75, size: int = tile.size, logits_size: int = 6) -> int:
        address, out = tile.ctypes.data, logits.ctypes.data
        return int(histo.histo_engine_run_u8(engine, address, size, batch, side, side, out, logits_size))

    assert status(batch=0) == INVALID_ARGUMENT
    assert status(side=63, size=63 * 63 * 3) == INVALID_ARGUMENT
    assert status(size=tile.size - 1) == SIZE_MISMATCH
    assert status(logits_size=7) == SIZE_MISMATCH
    assert status(batch=SIZE_MAX) == SIZE_OVERFLOW
    assert histo.histo_engine_run_u8(engine, None, tile.size, 1, 75, 75, logits.ctypes.data, 6) == INVALID_ARGUMENT
    assert (logits == 7).all()

    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(bytes(range(256)))
    handle = c_void_p(1)
    assert histo.histo_model_open(bytes(garbage), byref(handle)) == INVALID_FILE
    assert handle.value is None
    assert histo.histo_model_open(bytes(tmp_path / "none"), byref(handle)) == IO
    assert str(tmp_path / "none") in last_error(histo)
    assert histo.histo_model_open(None, byref(handle)) == INVALID_ARGUMENT


def test_each_thread_has_its_own_last_error(histo: ctypes.CDLL, tmp_path: Path) -> None:
    handle = c_void_p()
    assert histo.histo_model_open(b"/mine", byref(handle)) == IO
    messages = []

    def other() -> None:
        messages.append(last_error(histo))
        histo.histo_model_open(b"/theirs", byref(handle))
        messages.append(last_error(histo))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert messages[0] == ""
    assert "/theirs" in messages[1]
    assert "/mine" in last_error(histo)


def test_precision_support_is_that_of_the_python_module(histo: ctypes.CDLL) -> None:
    for isa in _core.usable_isas():
        for precision, support in _core.precision_support(isa).items():
            executed = c_char_p()
            status = histo.histo_precision_support(precision.encode(), isa.encode(), byref(executed))
            if support.isa is None:
                assert (status, executed.value) == (UNSUPPORTED, None)
                assert last_error(histo) == f"{support.reason}; use fp32"
            else:
                assert (status, executed.value) == (0, support.isa.encode())


def test_the_remedy_is_also_there_apart(histo: ctypes.CDLL, model: c_void_p) -> None:
    handle = c_void_p()
    options = EngineOptions(ctypes.sizeof(EngineOptions), precision=b"fp64")
    assert histo.histo_engine_create(model, byref(options), byref(handle)) == INVALID_ARGUMENT
    assert last_error(histo) == 'precision "fp64" is unknown; choose from fp32, bf16x3, bf16, int8'
    assert histo.histo_last_remedy() == b"choose from fp32, bf16x3, bf16, int8"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads of this process in /proc")
@pytest.mark.skipif(_core.usable_cpus() == 1, reason="with one CPU, all CPUs are one thread")
@pytest.mark.parametrize(("threads", "expected"), [(0, _core.usable_cpus()), (3, 3), (1, 1)])
def test_zero_threads_of_a_head_are_all_cpus(histo: ctypes.CDLL, threads: int, expected: int) -> None:
    weight, bias = (c_float * 2)(1, 1), (c_float * 2)(0, 0)
    head = c_void_p()
    before = len(list(Path("/proc/self/task").iterdir()))
    options = HeadOptions(ctypes.sizeof(HeadOptions), threads)
    assert histo.histo_head_create(1, 1, 2, weight, 2, bias, 2, byref(options), byref(head)) == 0, last_error(histo)
    assert len(list(Path("/proc/self/task").iterdir())) == before, "the first run starts them"
    tiles, side = 64, 64  # enough work to be divided
    features, out = (c_float * (tiles * side**2))(), (c_float * (2 * tiles))()
    status = histo.histo_head_run_f32(head, features, len(features), tiles, side, side, 0, 0, out, len(out))
    assert status == 0, last_error(histo)
    started = len(list(Path("/proc/self/task").iterdir())) - before
    histo.histo_head_free(head)
    assert started + 1 == expected  # the caller's thread works, too


def test_parallel_calls_take_turns(histo: ctypes.CDLL, engine: c_void_p, golden: dict[str, npt.NDArray[Any]]) -> None:
    tiles = golden["tiles"]
    expected = run(histo, engine, tiles)
    results: list[npt.NDArray[np.float32]] = []
    threads = [threading.Thread(target=lambda: results.append(run(histo, engine, tiles))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)
