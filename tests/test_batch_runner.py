"""The batch loop from Python: sources, sinks, errors, Ctrl-C, and any runtime."""

from __future__ import annotations

import gc
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from histo_export._core import BatchRunner, BatchRunnerStats, Engine, Model, TileResult
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes
from histo_export.model.torchscript import torchscript_bytes
from histo_export.runtimes.torchscript import TorchScriptRuntime

Advance = Callable[[Callable[[], object]], bool]
Tiles = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

SIDE = 6


def numbered(n: int) -> Tiles:
    """Tiles whose pixels are all their number, of up to 255."""
    tiles = np.empty((n, SIDE, SIDE, 3), np.uint8)
    tiles[:] = np.arange(n).reshape(n, 1, 1, 1)
    return tiles


def first_pixel(tiles: Tiles) -> Logits:
    """A runtime whose logits tell which tiles it has seen, and how many at once."""
    return np.stack([tiles[:, 0, 0, 0], np.full(len(tiles), len(tiles))], axis=1).astype(np.float32)


def collect(runner: BatchRunner, source: Any, **options: Any) -> tuple[list[TileResult], BatchRunnerStats]:
    results: list[TileResult] = []
    return results, runner.run(source, results.append, **options)


def numbers(results: Iterable[TileResult]) -> list[float | str | None]:
    return [result.error if result.logits is None else float(result.logits[0]) for result in results]


# --- sources ------------------------------------------------------------------------------------------------


def function(tiles: Tiles) -> Callable[[], Tiles | None]:
    remaining = iter(tiles)
    return lambda: next(remaining, None)


SOURCES: dict[str, Callable[[Tiles], Any]] = {
    "array": lambda tiles: tiles,
    "strided array": lambda tiles: np.repeat(tiles, 2, axis=0)[::2],
    "list": list,
    "iterator": iter,
    "generator": lambda tiles: (tile for tile in tiles),
    "function": function,
    "strided tiles": lambda tiles: [tile[::-1, :, ::-1] for tile in tiles],
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 100])
def test_every_source_gives_every_tile_in_order(kind: str, n: int) -> None:
    runner = BatchRunner(first_pixel, 2, batch=4)
    results, stats = collect(runner, SOURCES[kind](numbered(n)))
    assert [result.index for result in results] == list(range(n))
    assert numbers(results) == list(range(n))
    assert {float(result.logits[1]) for result in results if result.logits is not None} <= {4.0, n % 4}
    assert (stats.tiles, stats.failed, stats.batches) == (n, 0, -(-n // 4))
    with runner.results(SOURCES[kind](numbered(n))) as iterated:
        assert numbers(iterated) == list(range(n))
        assert (iterated.stats.tiles, iterated.stats.batches) == (n, -(-n // 4))


def test_results_may_be_kept() -> None:
    seen: list[Tiles] = []

    def keeping(tiles: Tiles) -> Logits:
        seen.append(tiles)
        return first_pixel(tiles)

    results, _ = collect(BatchRunner(keeping, 2, batch=2), numbered(50))
    gc.collect()
    assert numbers(results) == list(range(50))
    np.testing.assert_array_equal(np.concatenate(seen), numbered(50))


def test_statistics_say_where_the_time_went() -> None:
    def slow(tiles: Tiles) -> Logits:
        time.sleep(0.02)
        return first_pixel(tiles)

    _, stats = collect(BatchRunner(slow, 2, batch=10), numbered(50))
    assert stats.seconds >= stats.infer_seconds >= 5 * 0.02
    assert stats.prepare_seconds > 0
    assert stats.deliver_seconds > 0
    assert stats.tiles_per_second == pytest.approx(50 / stats.seconds)


def test_stages_overlap() -> None:
    """The source of tile 2, the runtime of tile 1 and the sink of tile 0 wait until all three are at work."""
    together = threading.Barrier(3, timeout=60)
    seen: list[int] = []

    def source() -> Iterator[Tiles]:
        for i, tile in enumerate(numbered(4)):
            if i == 2:
                together.wait()
            yield tile

    def infer(tiles: Tiles) -> Logits:
        logits = first_pixel(tiles)
        if len(seen) == 1:
            together.wait()
        seen.append(len(tiles))
        return logits

    def sink(result: TileResult) -> None:
        if result.index == 0:
            together.wait()

    stats = BatchRunner(infer, 2, batch=1).run(source(), sink)  # BrokenBarrierError where they take turns
    assert stats.tiles == 4
    assert seen == [1] * 4


def test_progress_is_told_and_may_cancel() -> None:
    told: list[int] = []
    runner = BatchRunner(first_pixel, 2, batch=5)
    runner.run(numbered(20), lambda result: None, progress=lambda stats: told.append(stats.tiles))
    assert told == sorted(told)
    assert told[-1] == 20
    results: list[TileResult] = []
    with pytest.raises(RuntimeError, match="cancelled after"):
        runner.run(numbered(200), results.append, progress=lambda stats: stats.tiles < 20)
    assert 20 <= len(results) < 200


# --- errors -------------------------------------------------------------------------------------------------


class LostTileError(Exception):
    """One that no library knows."""


def with_lost_tiles(n: int, *lost: int) -> list[Tiles | Exception]:
    tiles: list[Tiles | Exception] = list(numbered(n))
    for i in lost:
        tiles[i] = LostTileError(f"scratch on {i}")
    return tiles


def test_stop_delivers_what_came_before_and_raises_the_original() -> None:
    results: list[TileResult] = []
    with pytest.raises(LostTileError, match="scratch on 9") as caught:
        BatchRunner(first_pixel, 2, batch=4).run(with_lost_tiles(30, 9, 20), results.append)
    assert caught.value.__notes__ == ["in the batch loop, at tile 9"]
    assert numbers(results) == list(range(9))


def test_a_generators_exception_keeps_its_type_and_traceback() -> None:
    def source() -> Iterator[Tiles]:
        yield from numbered(3)
        raise LostTileError("the end of the reel")

    with pytest.raises(LostTileError, match="the end of the reel") as caught:
        BatchRunner(first_pixel, 2).run(source(), lambda result: None)
    assert any(entry.name == "source" for entry in caught.traceback)


def test_report_goes_on() -> None:
    runner = BatchRunner(first_pixel, 2, batch=4, on_error="report")
    results, stats = collect(runner, with_lost_tiles(12, 0, 5, 11))
    assert [result.index for result in results] == list(range(12))
    expected = [f"LostTileError: scratch on {i}" if i in (0, 5, 11) else float(i) for i in range(12)]
    assert numbers(results) == expected
    assert (stats.tiles, stats.failed) == (12, 3)
    assert numbers(runner.results(with_lost_tiles(12, 0, 5, 11))) == expected


def test_a_function_that_raises_loses_that_tile_only() -> None:
    items = iter(with_lost_tiles(6, 0, 3))

    def source() -> Tiles | None:
        item = next(items, None)
        if isinstance(item, Exception):
            raise item
        return item

    results, _ = collect(BatchRunner(first_pixel, 2, on_error="report"), source)
    assert numbers(results) == ["LostTileError: scratch on 0", 1, 2, "LostTileError: scratch on 3", 4, 5]


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (np.zeros((SIDE, SIDE + 1, 3), np.uint8), r"ValueError: a tile has shape \(6, 7, 3\); .* \(6, 6, 3\)"),
        (np.zeros((SIDE, SIDE, 4), np.uint8), r"ValueError: a tile has shape \(6, 6, 4\)"),
        (np.zeros((SIDE, SIDE), np.uint8), r"ValueError: a tile has shape \(6, 6\)"),
        (np.zeros((SIDE, SIDE, 3), np.float32), "TypeError: a tile has dtype float32"),
        ("a path", "TypeError: a tile is str"),
        (None, "TypeError: a tile is NoneType"),
    ],
)
def test_what_is_no_tile_is_lost(tile: Any, message: str) -> None:
    source = [*numbered(2), tile, *numbered(1)]
    results, _ = collect(BatchRunner(first_pixel, 2, on_error="report"), source)
    assert [result.error is None for result in results] == [True, True, False, True]
    with pytest.raises((TypeError, ValueError)) as caught:
        collect(BatchRunner(first_pixel, 2), source)
    assert f"{type(caught.value).__name__}: {caught.value}" == results[2].error
    assert re.match(message, results[2].error)
    assert caught.value.__notes__ == ["in the batch loop, at tile 2"]


@pytest.mark.parametrize("tile", [None, "a path"])
def test_the_first_tile_may_be_no_tile(tile: Any) -> None:
    results, stats = collect(BatchRunner(first_pixel, 2, on_error="report"), [tile, *numbered(2)])
    assert [result.error is None for result in results] == [False, True, True]
    assert (stats.tiles, stats.failed) == (3, 1)
    with pytest.raises(TypeError, match="a tile is") as caught:
        collect(BatchRunner(first_pixel, 2), [tile, *numbered(2)])
    assert caught.value.__notes__ == ["in the batch loop, at tile 0"]


@pytest.mark.parametrize("lost", [(0, 1, 2), (0,), (1, 2)])
def test_all_or_the_first_tiles_may_be_lost(lost: tuple[int, ...]) -> None:
    results, stats = collect(BatchRunner(first_pixel, 2, on_error="report"), with_lost_tiles(3, *lost))
    assert [result.index for result in results if result.error] == list(lost)
    assert stats.failed == len(lost)
    with pytest.raises(LostTileError, match=f"scratch on {lost[0]}"):
        collect(BatchRunner(first_pixel, 2), with_lost_tiles(3, *lost))


def failing_at(number: int) -> Callable[[Tiles], Logits]:
    def infer(tiles: Tiles) -> Logits:
        if number in tiles[:, 0, 0, 0]:
            raise LostTileError("out of luck")
        return first_pixel(tiles)

    return infer


def test_a_failing_batch_loses_its_tiles() -> None:
    results, stats = collect(BatchRunner(failing_at(9), 2, batch=4, on_error="report"), numbered(14))
    lost = ["LostTileError: out of luck"] * 4
    assert numbers(results) == [*range(8), *lost, 12, 13]
    assert stats.failed == 4
    with pytest.raises(LostTileError, match="out of luck") as caught:
        collect(BatchRunner(failing_at(9), 2, batch=4), numbered(14))
    assert "tiles 8 to 11" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda tiles: first_pixel(tiles)[:, :1], ValueError, r"\(3, 1\); \(3, 2\) is needed"),
        (lambda tiles: first_pixel(tiles)[0], ValueError, r"have shape \(2,\)"),
        (lambda tiles: first_pixel(tiles).astype(np.float64), TypeError, "dtype float64; float32"),
        (lambda tiles: first_pixel(tiles).tolist(), TypeError, "returned list"),
        (lambda tiles: None, TypeError, "returned NoneType"),
    ],
)
def test_logits_that_are_none(output: Callable[[Tiles], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        collect(BatchRunner(output, 2), numbered(3))


def test_logits_may_have_any_strides() -> None:
    results, _ = collect(BatchRunner(lambda tiles: np.asfortranarray(first_pixel(tiles)), 2), numbered(5))
    assert numbers(results) == list(range(5))


@pytest.mark.parametrize("where", ["sink", "progress"])
def test_what_sink_and_progress_raise_comes_through(where: str) -> None:
    def raising(_: object) -> None:
        raise LostTileError(where)

    options = {"sink": raising} if where == "sink" else {"sink": lambda result: None, "progress": raising}
    with pytest.raises(LostTileError, match=where):
        BatchRunner(first_pixel, 2, on_error="report").run(numbered(9), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["source", "runtime"])
def test_an_exit_is_not_the_fault_of_a_tile(where: str) -> None:
    def source() -> Iterator[Tiles]:
        yield from numbered(40)
        raise SystemExit(3)

    def infer(tiles: Tiles) -> Logits:
        raise SystemExit(3)

    runner = BatchRunner(first_pixel if where == "source" else infer, 2, batch=4, on_error="report")
    with pytest.raises(SystemExit):
        runner.run(source(), lambda result: None)


WRONG_RUNNERS: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((None, 2), {}, TypeError, "runtime is NoneType"),
    ((first_pixel,), {}, TypeError, "classes is missing"),
    ((first_pixel, 0), {}, ValueError, "classes is 0"),
    ((first_pixel, 2.0), {}, TypeError, "classes is float; an integer is needed"),
    ((first_pixel, 2), {"batch": 0}, ValueError, "batch is 0"),
    ((first_pixel, 2), {"queued": -1}, ValueError, "queued is -1"),
    ((first_pixel, 2), {"on_error": "ignore"}, ValueError, 'on_error "ignore" is unknown; choose from stop, report'),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), WRONG_RUNNERS)
def test_wrong_runners(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BatchRunner(*arguments, **options)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (3, {}, TypeError, "source is int"),
        (None, {}, TypeError, "source is NoneType"),
        (np.zeros((2, 6, 6, 3), np.float32), {}, TypeError, "source has dtype float32"),
        (np.zeros((6, 6, 3), np.uint8), {}, ValueError, r"source has shape \(6, 6, 3\)"),
        (np.zeros((2, 3, 6, 6), np.uint8), {}, ValueError, r"source has shape \(2, 3, 6, 6\)"),
        (numbered(2), {"shape": (5, 6)}, ValueError, "shape contradicts source"),
        (list(numbered(2)), {"shape": (0, 6)}, ValueError, "height is 0"),
        (list(numbered(2)), {"shape": (-1, 6)}, ValueError, "height is -1"),
        (list(numbered(2)), {"shape": (6,)}, TypeError, r"shape is tuple; \(height, width\) is needed"),
        (numbered(2), {"progress": 3}, TypeError, "progress is int"),
    ],
)
def test_wrong_sources(source: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    runner = BatchRunner(first_pixel, 2)
    with pytest.raises(error, match=message):
        runner.run(source, lambda result: None, **options)
    with pytest.raises(error, match=message):
        list(runner.results(source, **options))


def test_a_sink_must_be_called() -> None:
    with pytest.raises(TypeError, match="sink is list"):
        BatchRunner(first_pixel, 2).run(numbered(2), [])  # type: ignore[arg-type]


def test_more_tiles_than_fit_in_memory_are_refused() -> None:
    for batch in (2**40, 2**62):
        with pytest.raises((MemoryError, ValueError)):
            collect(BatchRunner(first_pixel, 2, batch=batch), numbered(2))


# --- iteration ----------------------------------------------------------------------------------------------


def test_the_iterator_raises_what_the_loop_raises_and_then_ends() -> None:
    results = BatchRunner(first_pixel, 2, batch=4).results(with_lost_tiles(30, 9))
    seen: list[TileResult] = []
    with pytest.raises(LostTileError, match="scratch on 9"):
        seen.extend(results)  # keeps what came before
    assert next(results, None) is None


def test_leaving_early_ends_the_loop() -> None:
    pulled = 0

    def endless() -> Iterator[Tiles]:
        nonlocal pulled
        while True:
            pulled += 1
            yield numbered(1)[0]

    task = Path("/proc/self/task")
    threads = set(task.iterdir()) if task.exists() else set()
    with BatchRunner(first_pixel, 2, batch=4).results(endless()) as results:
        for result in results:
            if result.index == 10:
                break
    after_close = pulled
    assert next(results, None) is None
    for result in BatchRunner(first_pixel, 2, batch=4).results(endless()):
        if result.index == 10:
            break
    del result
    gc.collect()
    now = pulled
    time.sleep(0.05)
    assert pulled == now, "the loop goes on although its iterator is gone"
    assert after_close < 200, "the loop ran ahead without bound"
    if threads:
        assert set(task.iterdir()) <= threads


def test_progress_may_close_the_iterator() -> None:
    results = BatchRunner(first_pixel, 2, batch=1).results(numbered(200), progress=lambda stats: results.close())
    assert len(list(results)) < 200


def test_a_program_may_end_in_the_middle(tmp_path: Path) -> None:
    code = f"""if True:
        import numpy as np
        from histo_export._core import BatchRunner
        def endless():
            while True:
                yield np.zeros(({SIDE}, {SIDE}, 3), np.uint8)
        results = BatchRunner(lambda tiles: np.zeros((len(tiles), 2), np.float32), 2).results(endless())
        print(next(results).index)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


# --- Ctrl-C -------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler: a shell starts background jobs with the signal ignored, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def native(checkpoint: Checkpoint) -> Engine:
    return Engine(Model.from_bytes(native_bytes(lower(checkpoint.net(), checkpoint.spec), checkpoint.spec)), threads=1)


@pytest.fixture(scope="module")
def torchscript(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> TorchScriptRuntime:
    path = tmp_path_factory.mktemp("torchscript") / "torchscript_model.pt"
    path.write_bytes(torchscript_bytes(lower(checkpoint.net(), checkpoint.spec)))
    return TorchScriptRuntime(path, threads=1)


@pytest.fixture(params=["native", "torchscript", "function"])
def runner(request: pytest.FixtureRequest) -> BatchRunner:
    """Over each kind of runtime, with batches that are short beside the 100 ms within which Ctrl-C is seen."""
    if request.param == "function":
        return BatchRunner(first_pixel, 2, batch=4)
    runtime = request.getfixturevalue(request.param)
    return BatchRunner(runtime, 6, batch=2)


def nearly_endless_tiles() -> Iterator[Tiles]:
    tile = np.zeros((75, 75, 3), np.uint8)
    end = time.monotonic() + 60  # a loop that does not see Ctrl-C ends as a failed test
    while time.monotonic() < end:
        yield tile


def by_sink(runner: BatchRunner, take: Callable[[TileResult], object]) -> None:
    runner.run(nearly_endless_tiles(), take)


def by_iterator(runner: BatchRunner, take: Callable[[TileResult], object]) -> None:
    for result in runner.results(nearly_endless_tiles()):
        take(result)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("loop", [by_sink, by_iterator])
def test_ctrl_c_ends_the_loop(
    runner: BatchRunner, loop: Callable[[BatchRunner, Callable[[TileResult], object]], None]
) -> None:
    running, pressed = threading.Event(), threading.Event()
    delivered = delivered_before = 0

    def take(_result: TileResult) -> None:
        nonlocal delivered
        delivered += 1
        if delivered == 10:
            running.set()

    def press() -> None:
        nonlocal delivered_before
        running.wait(60)
        signal.raise_signal(signal.SIGINT)
        delivered_before = delivered
        pressed.set()

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        loop(runner, take)
    presser.join()
    assert pressed.is_set()
    assert delivered - delivered_before <= 2 * 4, "the loop went on for more than two batches"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_seen_while_nothing_comes() -> None:
    """The source hangs, so no result wakes the loop."""
    release = threading.Event()

    def source() -> Iterator[Tiles]:
        yield numbered(1)[0]
        assert release.wait(60)  # else next() below raises this and not KeyboardInterrupt

    results = BatchRunner(first_pixel, 2, batch=1).results(source())
    assert next(results).index == 0
    timer = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    release.set()
    results.close()
    timer.join()


# --- runtimes -----------------------------------------------------------------------------------------------


def test_the_engine_and_torchscript_agree_with_themselves_outside_the_loop(
    native: Engine, torchscript: TorchScriptRuntime
) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (21, 75, 75, 3), dtype=np.uint8)
    for runtime in (native, torchscript):
        results, stats = collect(BatchRunner(runtime, 6, batch=4), tiles)
        logits = np.stack([result.logits for result in results if result.logits is not None])
        expected = runtime.run(tiles)
        if runtime is native:
            np.testing.assert_array_equal(logits, expected)
        else:
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        assert stats.batches == 6


def test_an_engines_error_names_the_tile(native: Engine) -> None:
    with pytest.raises(ValueError, match=r"tiles? 0.*63"):
        collect(BatchRunner(native), np.zeros((1, 63, 63, 3), np.uint8))
    with pytest.raises(ValueError, match="classes is 5; the engine has 6"):
        BatchRunner(native, 5)


def test_other_python_threads_advance(native: Engine, other_threads_advance: Advance) -> None:
    # One batch, so that the sink, which is in Python, runs at the end only.
    runner, tiles = BatchRunner(native, batch=200), np.zeros((200, 64, 64, 3), np.uint8)
    assert other_threads_advance(lambda: runner.run(tiles, lambda result: None)), "the GIL was held in the loop"


def test_one_runner_may_run_in_several_threads(native: Engine) -> None:
    tiles = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    expected = native.run(tiles)
    runner = BatchRunner(native, batch=5)
    found: list[Logits] = []

    def work() -> None:
        results, _ = collect(runner, list(tiles))
        found.append(np.stack([result.logits for result in results if result.logits is not None]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for logits in found:
        np.testing.assert_array_equal(logits, expected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_flat() -> None:
    """Of what would be 1.3 GB of tiles."""

    def megabytes() -> float:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")

    tile = np.zeros((148, 148, 3), np.uint8)
    runner = BatchRunner(lambda tiles: np.zeros((len(tiles), 2), np.float32), 2, batch=32)
    runner.run((tile for _ in range(1_000)), lambda result: None)
    before = megabytes()
    stats = runner.run((tile for _ in range(20_000)), lambda result: None)
    assert stats.tiles == 20_000
    assert sum(1 for _ in runner.results(tile for _ in range(20_000))) == 20_000
    assert megabytes() - before < 20
