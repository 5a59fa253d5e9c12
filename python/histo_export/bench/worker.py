"""One runtime, one model, one process: the worker that is timed.

The worker answers each JSON line on stdin with one JSON line on stdout and sleeps in between. Engines in one process
would disturb each other by their idle threads (those of ONNX Runtime and OpenMP spin for a while after each call). The
worker times itself, so that no figure contains the pipe, and it answers only when its threads have gone to sleep. Each
answer tells the CPU time that the worker used since the previous answer while it had nothing to do; the report shows it
as a proof that it sleeps.

`python -m histo_export.bench.worker` is the worker; `worker_handle.Worker` drives it.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.system import peak_memory, resident_memory

if TYPE_CHECKING:
    from histo_export.runtimes import Runtime
    from histo_export.spec import Precision

WARM_WINDOW = 0.2
"""Seconds of one warm-up window; the median calls of windows are compared with each other."""
STABLE = 0.02
"""A window that is not faster than the best one before by more than this fraction ends the warm-up."""
WARM_LIMIT = 10.0
"""Seconds after which the warm-up ends anyway."""
ASLEEP = 0.1
"""A process that uses less of one CPU than this is asleep: looking costs a few per cent by itself."""


class _Server:
    """Answers one request with each public method that returns a dict; the names are those of `Worker`."""

    def __init__(self) -> None:
        self.runtime: Runtime  # set by open(), which comes first
        self.tiles: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self.memory_before_mb = 0.0

    def batches(self, size: int) -> list[npt.NDArray[np.uint8]]:
        """All golden tiles in batches of exactly `size`; the last one is filled up with the first tiles."""
        starts = range(0, len(self.tiles), size)
        return [np.take(self.tiles, range(start, start + size), axis=0, mode="wrap") for start in starts]

    def open(
        self, runtime: str, precision: Precision, file: str, golden: str, threads: int, device: str
    ) -> dict[str, Any]:
        from histo_export.parity import Golden
        from histo_export.runtimes import open_runtime, runtime_class

        self.tiles = Golden.read(Path(golden)).tiles
        start = time.perf_counter()
        cls = runtime_class(runtime)
        imported = time.perf_counter() - start
        if reason := cls.unavailable(device, precision):  # compiles what must be compiled once, which is not loading
            raise HistoError(cls.names[precision], f"can't be timed here: {reason}", "Leave it out with --runtimes")
        self.memory_before_mb = resident_memory() / 1e6
        start = time.perf_counter()
        self.runtime = open_runtime(runtime, Path(file), threads=threads, device=device, precision=precision)
        loaded = time.perf_counter() - start
        gc.freeze()  # what was loaded stays, so it need not be searched for garbage before each measurement
        return {"name": self.runtime.name, "import_s": imported, "load_s": loaded}

    def executed(self) -> dict[str, Any]:
        return {"executed": self.runtime.executed, "isa": self.runtime.isa}

    def devices(self) -> dict[str, Any]:
        return {"devices": self.runtime.devices(self.tiles[:1])}

    def logits(self, batch: int) -> dict[str, Any]:
        return {"logits": np.concatenate([self.runtime.run(tiles) for tiles in self.batches(batch)]).tolist()}

    def warm(self, batch: int) -> dict[str, Any]:
        start = time.perf_counter()
        calls, best = 0, float("inf")
        while True:
            window = self._calls(batch, WARM_WINDOW, 2)
            calls += len(window)
            median = statistics.median(window)
            stable, best = median > best * (1 - STABLE), min(best, median)
            seconds = time.perf_counter() - start
            if stable or seconds > WARM_LIMIT:
                return {"calls": calls, "seconds": seconds, "call_s": median, "stable": stable}

    def time(self, batch: int, seconds: float, calls: int, refill: int) -> dict[str, Any]:
        return {"seconds": self._calls(batch, seconds, calls, refill)}

    def _calls(self, batch: int, seconds: float, calls: int, refill: int = 0) -> list[float]:
        tiles = self.batches(batch)[0]
        run: Callable[[Any], Any] = self.runtime.run  # ends when the logits are in host memory, on a GPU too
        clock = time.perf_counter
        times: list[float] = []
        gc.collect()
        gc.disable()
        try:
            for _ in range(refill):
                run(tiles)
            end = clock() + seconds
            while len(times) < calls or clock() < end:
                start = clock()
                run(tiles)
                times.append(clock() - start)
        finally:
            gc.enable()
        return times

    def loop(self, batch: int, tiles: int) -> dict[str, Any]:
        from histo_export._core import BatchRunner

        source = np.take(self.tiles, range(tiles), axis=0, mode="wrap")
        classes = self.runtime.run(self.tiles[:1]).shape[1]
        runner = BatchRunner(self.runtime.batch_target(), classes, batch=batch)
        logits = np.full((tiles, classes), np.nan, np.float32)

        def receive(result: Any) -> None:
            logits[result.index] = result.logits

        start = time.perf_counter()
        runner.run(source, receive)
        return {"seconds": time.perf_counter() - start, "logits": logits.tolist()}

    def layers(self, batch: int) -> dict[str, Any]:
        return {"layers": self.runtime.layers(self.batches(batch)[0])}

    def memory(self) -> dict[str, Any]:
        return {"before": self.memory_before_mb, "peak": peak_memory() / 1e6}


def _fall_asleep() -> None:
    """Waits until no thread of this process runs any more, at most a fifth of a second."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.002)
        if time.process_time() - before < ASLEEP * 0.002:
            return


def serve() -> None:
    """Answers requests until stdin ends."""
    # Libraries print to stdout; the protocol gets a descriptor of its own and they get stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = _Server()
    cpu, wall = time.process_time(), time.perf_counter()
    for line in sys.stdin:
        idle = {"idle_cpu": time.process_time() - cpu, "idle": time.perf_counter() - wall}
        request = json.loads(line)
        try:
            answer = {"result": getattr(server, request.pop("do"))(**request)}
        except HistoError as error:
            answer = {"error": [error.thing, error.cause, error.next_step]}
        _fall_asleep()
        cpu, wall = time.process_time(), time.perf_counter()
        answers.write(json.dumps(answer | idle) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
