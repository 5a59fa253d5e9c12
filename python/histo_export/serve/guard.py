"""What stands before every route: who may ask, how long an answer may take, and what is told of each request."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Mapping, MutableMapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from histo_export.errors import HistoError, place_of
from histo_export.serve.refusals import Refused, malformed
from histo_export.serve.settings import LOOPBACK, ServeSettings
from histo_export.serve.telemetry import Log, Metrics, Record
from histo_export.strict_json import dump_json

T = TypeVar("T")

GONE = 499
"""The status in the log and the metrics where the client did not wait for the answer; it is nginx's."""

SENDING_S = 30.0
"""For a client to take its answer: `run` closes the connection where bytes wait for longer. While an answer still
waits for the bytes before it, this is added to the time of the request."""

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""Paths that need no token: they tell nothing of the models, and browsers and orchestrators can't send one."""

HEADERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every answer."""


class ClientGoneError(Exception):
    """The client closed the connection before it had an answer."""


def record_of(scope: MutableMapping[str, Any]) -> Record:
    """The record of the request that is being answered."""
    record = scope["histo.record"]
    assert isinstance(record, Record)
    return record


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of plain values."""
    return Response(dump_json(value), status, headers, "application/json")


class Guard:
    """The application of ASGI around the routes.

    Args:
        app: the routes.
        settings: token, host and time.
        log, metrics: what is told of requests.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, log: Log, metrics: Metrics) -> None:
        self.app, self.settings, self.log, self.metrics = app, settings, log, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = Record(scope["method"])
        scope["histo.record"] = record
        scope["app"] = self  # then Starlette raises where a route has no such method, in place of an answer of its own
        began = record.began

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        try:
            async with asyncio.timeout(self.settings.limits.seconds + SENDING_S):
                response = await self._answer(scope, receive, send_recorded)
                if response is not None:
                    await response(scope, receive, send_recorded)
        except (ClientDisconnect, ClientGoneError, TimeoutError):
            record.status = GONE
        finally:
            record.status = record.status or GONE
            seconds = time.perf_counter() - began
            self.metrics.request(record, seconds)
            self.log.request(record, seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Lets the routes answer; gives what is to be sent where they refuse or fail."""
        record = record_of(scope)
        try:
            self._check(scope)
            async with asyncio.timeout(self.settings.limits.seconds):
                await self.app(scope, receive, send)
        except Refused as error:
            return as_json({"error": str(error)}, error.status, error.headers)
        except HTTPException as error:
            allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            text = f"{scope['method'][:20]!r}: is not a method of this address. Use {allowed}."
            return as_json({"error": text}, error.status_code, error.headers)
        except HistoError as error:
            return as_json({"error": str(error)}, 500)
        except TimeoutError:
            if record.status:  # the answer has begun
                raise
            text = f"The request: took more than {self.settings.limits.seconds:g} s. Ask again, with fewer images."
            return as_json({"error": text}, 504)
        except (ClientDisconnect, ClientGoneError):
            raise
        except Exception as error:  # which nobody foresaw; the server goes on
            record.error = place_of(error)
            if record.status:
                raise ClientGoneError from error
            text = f"The server: failed unexpectedly ({type(error).__name__}). Report this; its log has the place."
            return as_json({"error": text}, 500)
        return None

    def _check(self, scope: Scope) -> None:
        """Refused where the client may not ask."""
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may see another end of the request
            raise malformed("content-length", "contradicts transfer-encoding", "Send one of them")
        host = headers.get("host", "")
        # A page of another site can make a browser send requests here, by a name that leads to this machine even ones
        # whose answers it may read.
        if self.settings.loopback and _parts(f"//{host}").hostname not in LOOPBACK:
            raise Refused(403, f"host {host[:80]!r}", "is not this machine", "Use the address that the server printed")
        origin = headers.get("origin")
        # Behind a proxy with TLS, this server's own page has another address than Host; no page can forge the former.
        own_page = headers.get("sec-fetch-site") == "same-origin"
        if origin is not None and not own_page and (_parts(origin).netloc or None) != host:
            raise Refused(403, f"origin {origin[:80]!r}", "is another site", "Send the request from this server's page")
        token = self.settings.token
        if token is None or scope["path"] in OPEN:
            return
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), token.encode()):
            step = "Send the header Authorization: Bearer TOKEN"
            raise Refused(401, "The token", "is missing or wrong", step, {"www-authenticate": "Bearer"})


def _parts(address: str) -> SplitResult:
    """The parts of an address; all are empty where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled where the client closes the connection. The body must have been read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
