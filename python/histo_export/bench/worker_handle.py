"""The handle that starts a worker (`worker`), asks it, and ends it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.system import own_session

if TYPE_CHECKING:
    from histo_export.runtimes import Variant

COMMAND = (sys.executable, "-m", "histo_export.bench.worker")
CTRL_C_S = 1.0
"""Seconds after which Windows, where a wait can't be interrupted, notices Ctrl-C."""


class Worker:
    """A worker process; it ends with the `with` block or with `close`.

    Args:
        label: what messages call it, e.g. "native, pool 2".
        command: the program; another one must keep the protocol.
        patience: seconds to wait for any answer before the worker counts as hung.

    Attributes:
        idle_cpu, idle: seconds of CPU time and of wall time that the worker spent between requests so far.
    """

    def __init__(self, label: str, command: Sequence[str] = COMMAND, patience: float = 600) -> None:
        self.label = label
        self.patience = patience
        self.idle_cpu = 0.0
        self.idle = 0.0
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._buffer = b""
        self._unread = False  # Ctrl-C came between a request and its answer
        # Ctrl-C reaches the parent alone, which then ends its workers in order.
        # Unbuffered, so that closing the pipe to a dead worker has nothing left to write.
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            **own_session(),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=1)
        # A process that the worker has started may keep its stdout open: the reader then goes on with it.
        stdout = None if self._reader.is_alive() else self._process.stdout
        for pipe in (self._process.stdin, stdout, self._stderr):
            if pipe is not None:
                pipe.close()

    def open(self, variant: Variant, file: Path, golden: Path, *, threads: int, device: str) -> dict[str, Any]:
        """Loads the model.

        Args:
            variant: what opens it.
            file: the model file.
            golden: `golden.safetensors`, whose tiles every later call runs on.
            threads: of the runtime.
            device: "cpu" or "cuda".

        Returns:
            `name`, and the seconds `import_s` and `load_s`.
        """
        return self.ask(
            "open",
            runtime=variant.runtime,
            precision=variant.precision,
            file=str(file),
            golden=str(golden),
            threads=threads,
            device=device,
        )

    def call(self, batch: int) -> float:
        """Seconds of one call; of the first one at this batch when nothing came before."""
        return float(self.ask("time", batch=batch, seconds=0, calls=1, refill=0)["seconds"][0])

    def executed(self) -> dict[str, str]:
        """What really ran; to be asked after a run.

        Returns:
            `executed` as the runtime tells it, and the `isa` of its kernels ("" where it does not tell).
        """
        return self.ask("executed")

    def devices(self) -> list[str]:
        """The devices or providers that computed something in one run (`Runtime.devices`).

        This may open the model a second time, under a profiler, so it belongs after all that is measured.
        """
        devices: list[str] = self.ask("devices")["devices"]
        return devices

    def logits(self, batch: int) -> npt.NDArray[np.float32]:
        """The logits of all golden tiles `(n, classes)`, in calls of exactly `batch` tiles.

        The last call is filled up with the first tiles. Their logits are among the rows too, so that every place in a
        batch is checked; n is the next multiple of `batch`.
        """
        return np.array(self.ask("logits", batch=batch)["logits"], np.float32)

    def warm(self, batch: int) -> dict[str, Any]:
        """Runs until calls no longer get faster.

        Returns:
            `calls`, `seconds`, the median seconds of the last calls `call_s`, and whether they were `stable`.
        """
        return self.ask("warm", batch=batch)

    def time(self, batch: int, seconds: float, calls: int = 1) -> list[float]:
        """Seconds of each of at least `calls` calls, which together take at least `seconds`.

        One call before them is not counted: it brings back the caches that other workers have emptied.
        """
        times: list[float] = self.ask("time", batch=batch, seconds=seconds, calls=calls, refill=1)["seconds"]
        return times

    def loop(self, batch: int, tiles: int) -> tuple[float, npt.NDArray[np.float32]]:
        """Runs `tiles` tiles through `BatchRunner`, which prepares tiles while it infers others.

        Returns:
            Seconds, and logits `(tiles, classes)`.
        """
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
            HistoError: what the worker reports; or it died, hung, or gave an invalid answer. The worker is useless
                after any of these.
        """
        assert self._process.stdin is not None
        if self._unread:
            self._read_line(do)
        self._unread = True
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
        except BrokenPipeError:
            raise self._died(do) from None
        line = self._read_line(do)
        self._unread = False
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

    def _read(self) -> None:
        """Puts what the worker writes to stdout into a queue, and nothing (b"") at its end.

        In a thread, because on Windows nothing waits for a pipe with a time limit.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        chunk = b"-"
        while chunk:
            chunk = os.read(descriptor, 1 << 20)
            self._chunks.put(chunk)

    def _read_line(self, do: str) -> bytes:
        """The next line of stdout."""
        deadline = time.monotonic() + self.patience
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            try:
                chunk = self._chunks.get(timeout=min(max(0.0, remaining), CTRL_C_S))
            except queue.Empty:
                if remaining > CTRL_C_S:
                    continue
                raise HistoError(
                    self.label,
                    f"did not answer within {self.patience:.0f} s when asked to {do}",
                    "Leave this runtime out with --runtimes, or look at what else the machine does",
                ) from None
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
            self.label, f"died when asked to {do} ({reason})", "Leave this runtime out with --runtimes, or fix it"
        )
