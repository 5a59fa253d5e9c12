"""The routes of `histo serve`."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from histo_export.predict.loop import softmax
from histo_export.serve.guard import Guard, as_json, record_of, unless_gone
from histo_export.serve.models import Model, Repository
from histo_export.serve.page import page
from histo_export.serve.protocol import (
    JSON_HEADER,
    facts_of,
    model_metadata,
    read_infer,
    server_metadata,
    write_infer,
)
from histo_export.serve.refusals import Refused, malformed
from histo_export.serve.settings import ServeSettings
from histo_export.serve.telemetry import Log, Metrics
from histo_export.serve.uploads import Uploads, tile_or_fault

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Answer = Callable[[Request], Awaitable[Response]]

UNPROCESSABLE = 422
"""Of POST /classify where no image of the request could be used."""


class Routes:
    """What answers requests.

    Args:
        repository: the models.
        settings: of the server.
        pool: threads that decode images and read requests.
        log: for events other than requests.
        metrics: what GET /metrics gives.
    """

    def __init__(
        self, repository: Repository, settings: ServeSettings, pool: Executor, log: Log, metrics: Metrics
    ) -> None:
        self.repository, self.settings, self.pool = repository, settings, pool
        self.log, self.metrics = log, metrics
        self.uploads = Uploads(settings.limits)
        self.draining = False

    def app(self) -> ASGIApp:
        """All routes, behind the guard."""
        get, post = ["GET", "HEAD"], ["POST"]
        model, one = "/v2/models/{name}", "/versions/{version}"
        paths: list[tuple[str, list[str], Answer]] = [
            ("/", get, self.page),
            ("/classify", post, self.classify),
            ("/metrics", get, self.metrics_text),
            ("/v2", get, self.server),
            ("/v2/health/live", get, self.live),
            ("/v2/health/ready", get, self.ready),
            ("/v2/repository/index", post, self.index),
            ("/v2/repository/models/{name}/load", post, self.load),
            *((f"{model}{part}", get, self.model) for part in ("", one)),
            *((f"{model}{part}/ready", get, self.model_ready) for part in ("", one)),
            *((f"{model}{part}/infer", post, self.infer) for part in ("", one)),
        ]
        routes = [Route(path, _named(path, answer), methods=methods) for path, methods, answer in paths]
        router = Router(routes, redirect_slashes=False, default=_no_route)
        return Guard(router, self.settings, self.log, self.metrics)

    async def page(self, request: Request) -> Response:
        """The page for browsers. It holds nothing of the models: its script asks for them, with a token if need be."""
        text, policy = page(self.settings.limits.images)
        return Response(text, headers={"content-security-policy": policy}, media_type="text/html")

    async def live(self, request: Request) -> Response:
        """Whether the process works."""
        return as_json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether requests are taken."""
        return as_json({"ready": not self.draining}, 503 if self.draining else 200)

    async def server(self, request: Request) -> Response:
        """What the server is."""
        return as_json(server_metadata())

    async def model(self, request: Request) -> Response:
        """What a model takes and gives."""
        model = self._model(request)
        versions = [each.version for each in self.repository.models if each.name == model.name]
        return as_json(model_metadata(model, versions))

    async def model_ready(self, request: Request) -> Response:
        """Whether a model takes requests."""
        model = self._model(request)
        return as_json({"name": model.name, "ready": not self.draining}, 503 if self.draining else 200)

    async def index(self, request: Request) -> Response:
        """All models, as Triton's extension lists them."""
        ready = {"state": "READY", "reason": ""}
        return as_json([{"name": model.name, "version": model.version} | ready for model in self.repository.models])

    async def load(self, request: Request) -> Response:
        """Opens the bundles of a name again, from where they were opened first."""
        with self.uploads.of(request) as upload:
            if await upload.body() not in (b"", b"{}"):
                raise malformed(
                    "The request", "has a body", "Send none: a bundle is read from where it was at the start"
                )
        try:
            models = await self.repository.reload(request.path_params["name"])
        except Refused:
            raise
        except Exception as error:  # its text has paths of this machine, and so is for the log
            step = "See the server's log; the earlier model still answers"
            raise Refused(500, request.path_params["name"], "could not be opened", step) from error
        return as_json({"versions": [model.version for model in models]})

    async def metrics_text(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def infer(self, request: Request) -> Response:
        """Tensors in, tensors out."""
        model = self._model(request)
        with self.uploads.of(request) as upload, self._use(request, model):
            try:
                body = await upload.body()
            finally:
                record_of(request.scope).bytes = upload.received
            header = request.headers.get(JSON_HEADER)
            most = self.settings.limits.images

            async def work() -> Response:
                asked = await self._in_pool(read_infer, body, header, model.spec, most)
                logits = await model.batcher.run(list(asked.tiles))
                record_of(request.scope).tiles = len(logits)
                content, headers = await self._in_pool(write_infer, asked, logits, model)
                return Response(content, headers=headers)

            return await unless_gone(request.receive, work())

    async def classify(self, request: Request) -> Response:
        """Images in, classes out. An image that can't be used has an error in place of an answer."""
        query = dict(request.query_params)
        model = self.repository.find(query.pop("model", None), query.pop("version", None))
        if (wanted := query.pop("seen", "0")) not in ("0", "1"):
            raise malformed("seen", f"is {wanted[:40]!r}", "Give 1 to get the tiles as the network sees them, or 0")
        if query:
            raise malformed(f"{next(iter(query))[:40]!r}", "is not a parameter", "Use model, version or seen")
        with self.uploads.of(request) as upload, self._use(request, model):
            record = record_of(request.scope)
            try:
                images = await upload.images()
            finally:
                record.bytes = upload.received
            record.names = [name for name, _ in images]
            return await unless_gone(request.receive, self._classified(request, images, model, wanted == "1"))

    async def _classified(
        self, request: Request, images: Sequence[tuple[str, bytes]], model: Model, show: bool
    ) -> Response:
        jobs = (
            self._in_pool(tile_or_fault, data, number, model.spec, self.settings)
            for number, (_, data) in enumerate(images, start=1)
        )
        found = await asyncio.gather(*jobs)
        tiles = [each[0] for each in found if not isinstance(each, str)]
        rows = iter(await model.batcher.run(tiles))
        record = record_of(request.scope)
        record.tiles, record.refused = len(tiles), len(images) - len(tiles)
        results = await self._in_pool(lambda: [_result(each, rows, model, show) for each in found])
        answer = {"model": model.name, **facts_of(model), "results": results}
        return as_json(answer, 200 if tiles else UNPROCESSABLE)

    def _model(self, request: Request) -> Model:
        """The model that the path names."""
        return self.repository.find(request.path_params["name"], request.path_params.get("version"))

    @contextmanager
    def _use(self, request: Request, model: Model) -> Iterator[None]:
        """In the block, the model answers this request."""
        record = record_of(request.scope)
        record.model, record.version = model.name, model.version
        with model.in_use():
            yield

    async def _in_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)


def _result(
    found: tuple[Pixels, tuple[int, int]] | str, rows: Iterator[Logits], model: Model, show: bool
) -> dict[str, Any]:
    """What is told of an image.

    Args:
        found: what the network sees of it, and its size; or why it can't be used.
        rows: the logits of those that can be used.
        model: that gave them.
        show: with the tile as a picture.
    """
    if isinstance(found, str):
        return {"error": found}
    tile, size = found
    logits = next(rows)
    probabilities = softmax(logits).tolist()
    classes = model.spec.classes
    result = {
        "class": classes[int(logits.argmax())],
        "probabilities": dict(zip(classes, probabilities, strict=True)),
        "logits": dict(zip(classes, logits.tolist(), strict=True)),
        "size": list(size),
        "resized": size != (model.spec.tile_size,) * 2,
    }
    return result | ({"seen_png": _png(tile)} if show else {})


def _png(pixels: Pixels) -> str:
    """A picture without loss, in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _named(path: str, answer: Answer) -> Answer:
    """The endpoint, which notes its route."""

    async def endpoint(request: Request) -> Response:
        record_of(request.scope).route = path
        return await answer(request)

    return endpoint


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise Refused(404, f"{scope['path'][:80]!r}", "is not an address of this server", "See docs/serve.md")
