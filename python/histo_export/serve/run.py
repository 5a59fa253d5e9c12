"""The server from its first moment to its last: bundles, port, signals, and the end without a lost answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from histo_export.errors import UsageError, one_line
from histo_export.serve.app import Routes
from histo_export.serve.guard import SENDING_S
from histo_export.serve.models import Model, Repository
from histo_export.serve.settings import ServeSettings
from histo_export.serve.telemetry import Log, LogHandler, Metrics
from histo_export.system import allow_open_files, ending_signals, reloading_signals

HEADER_S = 10.0
"""For a client to send the headers of a request."""
IDLE_S = 30
"""For a connection without a request to stay open."""
BACKLOG = 1024
"""Connections that the system accepts before the server does."""
FILES = 4096
"""Open at a time: connections, and what the engine and the bundles have open."""
LIBRARIES = ("uvicorn", "asyncio", "python_multipart")
"""Whose messages go into the log."""


class _Protocol(H11Protocol):
    """uvicorn's HTTP, with a time for headers and one to take an answer: it has neither itself, and clients that say
    nothing or read nothing would keep their connections, and the memory of their answers, for ever."""

    _headers_due: asyncio.TimerHandle | None = None
    _taken_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so writing is paused while any byte waits, and resumed after it
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taken_due = self.loop.call_later(SENDING_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._stop_waiting()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Starts the time where headers are awaited, and stops it where they have come, or a request has ended."""
        answering = self.cycle is not None and not self.cycle.response_complete
        ended = self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if answering or ended:
            self._stop_watching()
        elif self._headers_due is None and not self.transport.is_closing():
            self._headers_due = self.loop.call_later(HEADER_S, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _stop_waiting(self) -> None:
        if self._taken_due is not None:
            self._taken_due.cancel()
            self._taken_due = None


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `_signals`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    bundles: Sequence[Path],
    settings: ServeSettings,
    *,
    log: Log | None = None,
    started: Callable[[str, Sequence[Model], Callable[[], None]], None] = lambda address, models, stop: None,
) -> None:
    """Serves bundles until SIGTERM or Ctrl-C, which let it answer what it has begun; the second one ends it at once.

    SIGHUP reads the bundles again.

    Args:
        bundles: folders that `histo export` wrote.
        settings: the choices of the user.
        log: where events go; default: stderr.
        started: called when requests are taken, with the address, the models, and a function that ends the server from
            any thread.

    Raises:
        HistoError: a bundle can't be opened, or the port can't be listened on.
    """
    asyncio.run(_serve(bundles, settings, log or Log(names=settings.log_names), started))


async def _serve(bundles: Sequence[Path], settings: ServeSettings, log: Log, started: Callable[..., None]) -> None:
    allow_open_files(FILES)
    listening = _listen(settings.host, settings.port)  # a port that is taken is told before bundles are read
    loop = asyncio.get_running_loop()
    # Outside of the inner block, SIGHUP does nothing: by default it would end the process.
    with listening, _logged(log), _signals(loop, dict.fromkeys(reloading_signals(), lambda: None)):
        repository = await Repository.open(bundles, settings, log)
        pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        routes = Routes(repository, settings, pool, log, Metrics(repository.queues))
        server = _Server(_config(routes, settings))

        def stop() -> None:
            routes.draining = True
            if server.should_exit:  # already: this is the second time
                server.force_exit = True
                for connection in list(server.server_state.connections):
                    connection.transport.abort()  # the server waits for open ones, from Python 3.12 on
            server.should_exit = True

        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        try:
            ending = dict.fromkeys((signal.SIGINT, *ending_signals()), stop)
            with _signals(loop, ending | dict.fromkeys(reloading_signals(), repository.reload_all)):
                served = asyncio.create_task(server.serve(sockets=[listening]))
                while not server.started and not served.done():
                    await asyncio.sleep(0.01)
                if server.started:
                    facts = [{"name": model.name, "version": model.version} for model in repository.models]
                    log.event("started", address=address, models=facts)
                    started(address, repository.models, lambda: loop.call_soon_threadsafe(stop))
                await served
        finally:
            if not server.force_exit:
                await repository.close()
            pool.shutdown(wait=not server.force_exit, cancel_futures=True)
        log.event("stopped")


def _config(routes: Routes, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        routes.app(),
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=int(settings.limits.seconds + SENDING_S) + 1,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and not isinstance(error, socket.gaierror) else one_line(error)
        step = "Choose another --port or --host; --port 0 takes a free port"
        raise UsageError(f"{host}:{port}", f"can't be listened on ({reason})", step) from error


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """In the block, signals call these functions in the loop. Only a main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(handlers[signal.Signals(number)])

    earlier = {number: signal.signal(number, handle) for number in handlers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def _logged(log: Log) -> Iterator[None]:
    """In the block, messages of libraries go into the log."""
    handler = LogHandler(log)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
