"""One runtime, one model, one process: the worker that is timed, and the handle that drives it.

The worker answers one JSON line on stdout for each JSON line on stdin and sleeps in between: idle threads are why
engines in one process disturb each other (ONNX Runtime's and OpenMP's spin for a while after each call). It
times itself, so the pipe is in no figure, and it answers only when its threads have gone to sleep. With every answer
comes the CPU time that it spent since the one before while it had nothing to do; a report shows it, so that
"sleeps" is measured and not believed.

`python -m histo_export.bench.worker` is the worker; `Worker` is the handle.
"""

from __future__ import annotations

import gc
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError

COMMAND = (sys.executable, "-m", "histo_export.bench.worker")

WARM_WINDOW = 0.2
"""Seconds of one warm-up window; windows are compared with each other."""
STABLE = 0.02
WARM_LIMIT = 10.0
ASLEEP = 0.1
"""A process that uses less of one CPU than this is asleep: looking costs a few per cent by itself."""


class Worker:
    """Starts a worker and asks it.

    Args:
        label: what messages call it, e.g. "native, pool 2".
        command: the program; another one must keep the protocol.
        patience: seconds to wait for any answer before the worker counts as hung.
    """

    def __init__(self, label: str, command: Sequence[str] = COMMAND, patience: float = 600) -> None:
        self.label = label
        self.patience = patience
        self.idle_cpu = 0.0
        self.idle = 0.0
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._buffer = b""
        # A session of its own: Ctrl-C reaches the parent alone, which then ends its workers in order.
        # Unbuffered, so that closing the pipe to a dead worker has nothing left to write.
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            assert pipe is not None
            pipe.close()

    def open(self, runtime: str, file: Path, golden: Path, threads: int, device: str) -> dict[str, Any]:
        """Loads the model; returns name, import_s and load_s.

        `golden` holds the tiles that every later call runs on.
        """
        request = {"runtime": runtime, "file": str(file), "golden": str(golden), "threads": threads, "device": device}
        return self.ask("open", **request)

    def call(self, batch: int) -> float:
        """Seconds of one call; of the first one at this batch when nothing came before."""
        return float(self.ask("time", batch=batch, seconds=0, calls=1, refill=0)["seconds"][0])

    def executed(self) -> dict[str, str]:
        """What really ran, so to be asked after a run.

        `executed` as the runtime tells it, and the `isa` of its kernels ("" where nobody tells).
        """
        return self.ask("executed")

    def devices(self) -> list[str]:
        """The devices or providers that computed something in one run, found by looking, not by asking for settings.

        This may open the model a second time, under a profiler, so it comes after all that is measured.
        """
        devices: list[str] = self.ask("devices")["devices"]
        return devices

    def logits(self, batch: int) -> npt.NDArray[np.float32]:
        """The logits of all golden tiles, in calls of exactly `batch` tiles; the last call goes on with the first ones.

        Those are among the rows too, so that every place in a batch is looked at.
        """
        return np.array(self.ask("logits", batch=batch)["logits"], np.float32)

    def warm(self, batch: int) -> dict[str, Any]:
        """Runs until calls no longer get faster; returns calls, seconds, call_s and stable."""
        return self.ask("warm", batch=batch)

    def time(self, batch: int, seconds: float, calls: int = 1) -> list[float]:
        """Seconds of each of at least `calls` calls, which together take at least `seconds`.

        One call before them is not counted: it brings back the caches that other workers have emptied.
        """
        times: list[float] = self.ask("time", batch=batch, seconds=seconds, calls=calls, refill=1)["seconds"]
        return times

    def loop(self, batch: int, tiles: int) -> tuple[float, npt.NDArray[np.float32]]:
        """Seconds and logits of `tiles` tiles through `BatchRunner`: tiles are prepared while others are inferred."""
        answer = self.ask("loop", batch=batch, tiles=tiles)
        return float(answer["seconds"]), np.array(answer["logits"], np.float32)

    def layers(self, batch: int) -> list[tuple[str, str, float]] | None:
        """Stage, layer and seconds of each layer, in order; None where the runtime offers no such table."""
        layers = self.ask("layers", batch=batch)["layers"]
        return layers and [tuple(layer) for layer in layers]

    def memory(self) -> dict[str, float]:
        """Megabytes of resident memory: `before` loading the model, the runtime being imported, and at the `peak`."""
        return self.ask("memory")

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Sends one request and waits for the answer.

        Raises:
            HistoError: what the worker reports; or it died, hung, or answered nonsense. It is of no use after that.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
        except BrokenPipeError:
            raise self._died(do) from None
        line = self._read_line(do)
        try:
            answer = json.loads(line)
            self.idle_cpu += answer["idle_cpu"]
            self.idle += answer["idle"]
            if "error" in answer:
                raise HistoError(*answer["error"])
            result: dict[str, Any] = answer["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise HistoError(self.label, f"answered {line[:80]!r} when asked to {do}", "Report this") from error
        return result

    def _read_line(self, do: str) -> bytes:
        """The next line of stdout; os.read and select, because a buffered readline can't be given a time limit."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self.patience
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise HistoError(
                    self.label,
                    f"did not answer within {self.patience:.0f} s when asked to {do}",
                    "Leave this runtime out with --runtimes, or look at what else the machine does",
                )
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                raise self._died(do)
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, do: str) -> HistoError:
        status = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"signal {-status}" if status < 0 else f"exit status {status}"
        return HistoError(
            self.label, f"died when asked to {do} ({reason})", "Leave this runtime out with --runtimes, or mend it"
        )


class _Server:
    """The worker's side."""

    def __init__(self) -> None:
        self.runtime: Any = None
        self.tiles: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self.file = Path()
        self.before = 0.0

    def batches(self, size: int) -> list[npt.NDArray[np.uint8]]:
        """All golden tiles in batches of exactly `size`; the last one wraps round to the first tiles."""
        starts = range(0, len(self.tiles), size)
        return [np.take(self.tiles, range(start, start + size), axis=0, mode="wrap") for start in starts]

    def open(self, runtime: str, file: str, golden: str, threads: int, device: str) -> dict[str, Any]:
        from histo_export.parity import Golden
        from histo_export.runtimes import open_runtime, runtime_class

        self.tiles, self.file = Golden.read(Path(golden)).tiles, Path(file)
        start = time.perf_counter()
        chosen = runtime_class(runtime)
        imported = time.perf_counter() - start
        if reason := chosen.unavailable(device):  # compiles what has to be compiled once, which is no loading
            raise HistoError(chosen.name, f"can't be timed here: {reason}", "Leave it out with --runtimes")
        self.before = _resident("VmRSS")
        start = time.perf_counter()
        self.runtime = open_runtime(runtime, self.file, threads, device)
        loaded = time.perf_counter() - start
        gc.freeze()  # what was loaded is no garbage, and need not be looked through before each measurement
        return {"name": self.runtime.name, "import_s": imported, "load_s": loaded}

    def executed(self) -> dict[str, Any]:
        return {"executed": self.runtime.executed, "isa": _isa(self.runtime)}

    def devices(self) -> dict[str, Any]:
        return {"devices": _devices(self.runtime, self.tiles[:1])}

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
        runner = BatchRunner(getattr(self.runtime, "engine", self.runtime), classes, batch=batch)
        logits = np.full((tiles, classes), np.nan, np.float32)

        def receive(result: Any) -> None:
            logits[result.index] = result.logits

        start = time.perf_counter()
        runner.run(source, receive)
        return {"seconds": time.perf_counter() - start, "logits": logits.tolist()}

    def layers(self, batch: int) -> dict[str, Any]:
        from histo_export.bench.layers import layer_times

        return {"layers": layer_times(self.runtime, self.file, self.batches(batch)[0])}

    def memory(self) -> dict[str, Any]:
        return {"before": self.before, "peak": _resident("VmHWM")}


def _resident(field: str) -> float:
    """Megabytes from /proc/self/status; ru_maxrss would tell the peak of the parent that forked this process."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith(f"{field}:"))


def _isa(runtime: Any) -> str:
    """The instruction set of the kernels, where the runtime tells one."""
    if told := getattr(runtime, "isa", None):
        return str(told)
    if torch := sys.modules.get("torch"):
        return str(torch.backends.cpu.get_cpu_capability()).lower()
    return ""


def _devices(runtime: Any, tiles: npt.NDArray[np.uint8]) -> list[str]:
    """Where one run over `tiles` was computed."""
    if runtime.name.startswith("ONNX Runtime"):  # names a provider for each kernel
        return sorted({provider for _, provider, _ in runtime.kernels(tiles)})
    if hasattr(runtime, "forward"):  # the torch runtimes: where the logits came out
        return [str(runtime.forward(tiles).device.type)]
    return [str(runtime.executed).split()[0]]


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
    answers = os.fdopen(os.dup(1), "w")
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
