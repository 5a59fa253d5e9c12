"""What is told of requests: a line of JSON for each on stderr, and metrics for Prometheus.

Neither names an image, a token or a client, unless the user asks for names.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from histo_export.errors import one_line
from histo_export.strict_json import dump_json

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
"""Upper ends of the histogram of times."""


@dataclass
class Record:
    """What is known of a request.

    Attributes:
        method: of HTTP.
        route: the path with the names of parameters in place of their values; "" where no route has it.
        status: of the answer; 499 where the client went away before it.
        model, version: that answered; "" before one is chosen.
        tiles, refused: answered, and those that could not be used.
        bytes: of the body.
        names: of the images.
        error: what nobody foresaw; "" where nothing is.
    """

    method: str
    route: str = ""
    status: int = 0
    model: str = ""
    version: str = ""
    tiles: int = 0
    refused: int = 0
    bytes: int = 0
    names: list[str] = field(default_factory=list)
    error: str = ""
    began: float = field(default_factory=time.perf_counter)


class Log:
    """Writes events as lines of JSON; `names`: also the names of images."""

    def __init__(self, stream: TextIO | None = None, *, names: bool = False) -> None:
        self.stream, self.names = stream or sys.stderr, names

    def event(self, name: str, **facts: object) -> None:
        """Writes an event. A stream that is closed, or a disk that is full, is no reason to stop serving."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self.stream.write(dump_json({"time": now, "event": name} | facts, ascii_only=True) + "\n")
            self.stream.flush()
        except (OSError, ValueError):
            pass

    def request(self, record: Record, seconds: float) -> None:
        """Writes what became of a request."""
        facts = {
            "method": record.method[:20],
            "route": record.route,
            "status": record.status,
            "ms": round(1000 * seconds, 1),
            "bytes": record.bytes,
        }
        if record.model:
            facts |= {"model": record.model, "version": record.version}
            facts |= {"tiles": record.tiles, "refused": record.refused}
        if self.names and record.names:
            facts["names"] = [name[:200] for name in record.names]
        if record.error:
            facts["error"] = record.error
        self.event("request", **facts)


class LogHandler(logging.Handler):
    """Puts what libraries log into the log, one line each."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)  # a warning for each line of nonsense that a client sends would be a flood
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        error = record.exc_info[1] if record.exc_info else None
        facts = {"error": f"{type(error).__name__}: {one_line(error)}"} if error else {}
        self.log.event("library", of=record.name, message=record.getMessage()[:500], **facts)


class QueueFigures(NamedTuple):
    """What the queue of a model tells: tiles without an answer yet, and runs of the engine."""

    model: str
    version: str
    waiting: int
    batches: int


class Metrics:
    """The metrics of a server.

    Args:
        queues: gives the figures of the models that are served now.
    """

    def __init__(self, queues: Callable[[], Iterable[QueueFigures]]) -> None:
        disable_created_metrics()  # the time of each counter's birth, which nobody asks for
        self._registry = CollectorRegistry()
        self._requests = Counter("histo_requests", "Requests answered", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "histo_request_seconds",
            "From the headers to the answer",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._tiles = Counter("histo_tiles", "Tiles, by outcome", ["model", "outcome"], registry=self._registry)
        self._bytes = Counter("histo_request_bytes", "Bytes of requests", registry=self._registry)
        self._registry.register(_Queues(queues))
        ProcessCollector(registry=self._registry)

    def request(self, record: Record, seconds: float) -> None:
        """Counts a request that has ended."""
        route = record.route or "none"
        self._requests.labels(route, str(record.status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._bytes.inc(record.bytes)
        if record.model:
            self._tiles.labels(record.model, "answered").inc(record.tiles)
            self._tiles.labels(record.model, "refused").inc(record.refused)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _Queues(Collector):
    """Asks the queues when Prometheus asks."""

    def __init__(self, queues: Callable[[], Iterable[QueueFigures]]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        labels = ["model", "version"]
        waiting = GaugeMetricFamily("histo_queue_tiles", "Tiles without an answer yet", labels=labels)
        batches = CounterMetricFamily("histo_batches", "Runs of the engine", labels=labels)
        for queue in self._queues():
            waiting.add_metric([queue.model, queue.version], queue.waiting)
            batches.add_metric([queue.model, queue.version], queue.batches)
        return waiting, batches
