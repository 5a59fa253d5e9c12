"""A server in a thread of the tests, and what sends it requests."""

from __future__ import annotations

import http.client
import io
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from histo_export import Engine
from histo_export.export import bundle as bundles
from histo_export.predict.loop import softmax
from histo_export.runtimes import open_runtime

pytest.importorskip("starlette", reason='histo serve needs pip install "histo-export[serve]"')
pytest.importorskip("uvicorn", reason='histo serve needs pip install "histo-export[serve]"')

from histo_export.serve import models
from histo_export.serve.run import serve
from histo_export.serve.settings import ServeSettings
from histo_export.serve.telemetry import Log

SIDE = 75
BOUNDARY = "a-boundary"
Pixels = npt.NDArray[np.uint8]
Files = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        port: of 127.0.0.1.
        log: its lines so far.
        stop: ends it, as SIGTERM does.
    """

    port: int
    log: io.StringIO
    stop: Callable[[], None]

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def classify(self, files: Files, query: str = "", **headers: str) -> Answer:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return self.post(f"/classify{query}", form(files), content_type=kind, **headers)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def logged(self, **facts: object) -> dict[str, Any]:
        """The last event with these facts; it is written when the client has its answer already."""
        found: list[dict[str, Any]] = []
        until(lambda: found.extend(event for event in self.events if facts.items() <= event.items()) or found)
        return found[-1]


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Waits for a condition that another thread makes true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def form(files: Files) -> bytes:
    """The body of a form with files, as curl -F sends it."""
    parts = []
    for name, content in files:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        parts += [head.encode(), content, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@contextmanager
def serving(paths: Sequence[Path], **settings: Any) -> Iterator[Server]:
    """In the block, a server of these bundles runs; what goes wrong in it is raised."""
    log = io.StringIO()
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            chosen = ServeSettings(port=0, **settings)
            serve(paths, chosen, log=Log(log, names=chosen.log_names), started=lambda *facts: ready.put(facts))
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started = ready.get(timeout=120)
    if isinstance(started, BaseException):
        raise started
    address, _, stop = started
    try:
        yield Server(int(address.rpartition(":")[2]), log, stop)
    finally:
        if thread.is_alive():
            stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def opened(bundle: Path) -> Any:
    return open_runtime("native", bundle / "model.safetensors", threads=1)


@pytest.fixture(scope="module", autouse=True)  # this folder is no package, so that its scope would be the whole session
def _opened_once(opened: Any) -> Iterator[None]:
    """Servers share the weights of one engine, and no file is compared with its sha256: a server would take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "_check_file", lambda file, expected: None)
        patch.setattr(models, "open_model", lambda *_: opened)
        yield


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Server]:
    """One with the defaults, which no test may stop."""
    with serving([bundle], threads=1) as started:
        yield started


@pytest.fixture(scope="session")
def tiles() -> Pixels:
    """Uint8 `(6, 75, 75, 3)`."""
    return np.random.default_rng(5).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="session")
def logits(bundle: Path, tiles: Pixels) -> npt.NDArray[np.float32]:
    """The engine's own."""
    return Engine(bundle / "model.safetensors", threads=1).run(tiles)


@pytest.fixture(scope="session")
def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return softmax(logits)
