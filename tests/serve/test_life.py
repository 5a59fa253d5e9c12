"""Many clients, bad clients, and the beginning and end of a server."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_export.bundle_files import CONFIG
from histo_export.errors import HistoError, UsageError
from histo_export.serve import run
from histo_export.serve.batching import Batcher
from histo_export.serve.settings import Limits, ServeSettings

from .conftest import BOUNDARY, SIDE, Answer, Pixels, Server, form, png, serving, until
from .test_protocol import INFER, tensor

Histo = Callable[..., tuple[int, str, str]]
TOKEN = "a token of ASCII"


def raw(server: Server, sent: bytes, seconds: float = 30) -> bytes:
    """What comes back for these bytes until the server closes the connection or says nothing more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch, seconds: float = 600) -> Iterator[list[int]]:
    """In the block, batchers hold tiles back for this time: yields the numbers of tiles that wait."""
    waiting: list[int] = []
    made = Batcher.__init__

    def never_full(self: Batcher, engine: Any, **options: Any) -> None:
        made(self, engine, **options | {"batch": 2048, "max_wait": seconds})

    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "__init__", never_full)
        patch.setattr("histo_export.serve.models.Batcher.run", _warm_or(Batcher.run, waiting))
        yield waiting


def _warm_or(run_tiles: Any, waiting: list[int]) -> Any:
    """The first call of a batcher, which warms it up, returns at once."""

    async def call(self: Batcher, tiles: Any) -> Any:
        if not getattr(self, "warm", False):
            self.warm = True  # type: ignore[attr-defined]
            return np.empty((len(tiles), 6), np.float32)
        waiting.append(len(tiles))
        return await run_tiles(self, tiles)

    return call


# --- many clients ----------------------------------------------------------------------------------------------------


def test_answers_of_many_clients_are_not_mixed(server: Server, tiles: Pixels, logits: Any) -> None:
    images = [png(tile) for tile in tiles]

    def ask(client: int) -> list[tuple[int, bytes]]:
        found = []
        for k in range(4):
            chosen = [(client + k + j) % len(tiles) for j in range(1 + client % 3)]
            files = [("x", images[i]) for i in chosen] + ([("bad", b"bad")] if client % 4 == 0 else [])
            results = server.classify(files).json["results"]
            assert len(results) == len(files)
            rows = [
                np.array(list(each["logits"].values()), np.float32).tobytes() for each in results if "class" in each
            ]
            found += list(zip(chosen, rows, strict=True))
        return found

    with ThreadPoolExecutor(12) as clients:
        answers = [pair for found in clients.map(ask, range(12)) for pair in found]
    assert len(answers) == 4 * sum(1 + client % 3 for client in range(12))
    for index, row in answers:
        assert row == logits[index].tobytes()


def test_beyond_the_queue_clients_are_told_to_come_later(
    bundle: Path, tiles: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(images=4)
    with (
        held(monkeypatch, seconds=5) as waiting,
        serving([bundle], threads=1, queue=4, batch=1, limits=limits) as server,
        ThreadPoolExecutor(1) as client,
    ):
        first = client.submit(server.classify, [("a", png(tile)) for tile in tiles[:3]])
        until(lambda: waiting == [3])
        refused = server.classify([("a", png(tiles[0])), ("b", png(tiles[1]))])
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert refused.error == "The queue: is full (3 tiles wait). Ask again in 1 s."
        assert first.result().status == 200


def test_a_client_that_goes_away_makes_room(bundle: Path, tiles: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(monkeypatch) as waiting, serving([bundle], threads=1) as server:
        body = form([("a", png(tiles[0]))])
        head = (
            f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: waiting == [1])
        assert server.logged(status=499)["model"] == "bundle"
        assert 'histo_queue_tiles{model="bundle"' in (text := server.get("/metrics").body.decode())
        assert [line.split()[-1] for line in text.splitlines() if line.startswith("histo_queue_tiles{")] == ["0.0"]


def test_a_request_that_takes_too_long_ends(bundle: Path, tiles: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(monkeypatch), serving([bundle], threads=1, limits=Limits(seconds=0.5)) as server:
        answer = server.classify([("a", png(tiles[0]))])
        assert (answer.status, answer.error) == (
            504,
            "The request: took more than 0.5 s. Ask again, with fewer images.",
        )
        slow = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nabc"
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(slow)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 504 ")


def test_all_uploads_together_are_bounded(bundle: Path) -> None:
    limits = Limits(request_bytes=100_000, upload_bytes=150_000)
    with serving([bundle], threads=1, limits=limits) as server:
        head = (
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + bytes(90_000))
            answers: list[Answer] = []
            until(
                lambda: (
                    answers.append(server.post("/classify", bytes(90_000), content_type="image/png"))
                    or answers[-1].status == 503
                )
            )  # as soon as the first body has come
            assert (answers[-1].headers["Retry-After"], "MiB of requests" in answers[-1].error) == ("1", True)
        until(lambda: server.post("/classify", bytes(90_000), content_type="image/png").status == 422)


# --- bad clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /v2/models/%ff%00%0a/ready HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"DELETE /classify HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: [::1\r\n\r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nOrigin: \r\n\r\n", 403),
        (b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", 400),
        (b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: -3\r\n\r\nabc", 400),
        (
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n"
            b"\r\nabc",
            413,
        ),
        (
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 3\r\n\r\nabc",
            415,
        ),
    ],
)
def test_http_that_is_none_is_refused(server: Server, sent: bytes, status: int) -> None:
    assert raw(server, sent).startswith(f"HTTP/1.1 {status} ".encode())
    assert server.get("/v2/health/ready").status == 200


def test_headers_without_bounds_are_refused(server: Server) -> None:
    with suppress(OSError):  # the answer may be lost behind what was sent
        assert raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 3_000_000).startswith(b"HTTP/1.1 400 ")
    assert server.get("/v2/health/ready").status == 200


def test_headers_that_never_end_are_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEADER_S", 1.0)
    complete = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        connections = []
        for earlier, sent in ((b"", b""), (b"", b"GET / HTTP/1.1\r\n"), (complete, b"GET / HT")):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            if earlier:
                connection.sendall(earlier)
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            connection.sendall(sent)
            connections.append(connection)
        for connection in connections:
            with suppress(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass


def test_an_answer_that_nobody_takes_is_not_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 32 << 20  # more than the system keeps
    monkeypatch.setattr(run, "SENDING_S", 0.3)
    monkeypatch.setattr("histo_export.serve.app.page", lambda *_: ("x" * size, "default-src 'none'"))
    for header in ("", "Connection: close\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
            time.sleep(1)
            received = 0
            with suppress(ConnectionResetError):
                while part := connection.recv(1 << 20):
                    received += len(part)
            assert received < size
    monkeypatch.setattr(run, "SENDING_S", 20)
    assert len(server.get("/").body) == size  # a client that reads gets all of it


def test_pages_of_other_sites_may_not_ask(server: Server) -> None:
    answer = server.post("/v2/repository/models/bundle/load", Origin="http://evil.example")
    assert (answer.status, "is another site" in answer.error) == (403, True)
    assert server.get("/v2", Origin=f"http://127.0.0.1:{server.port}").status == 200
    public = {"Origin": "https://public.example"}  # the server's own page, behind a proxy with TLS
    assert server.get("/v2", Sec_Fetch_Site="same-origin", **public).status == 200
    assert server.get("/v2", Sec_Fetch_Site="cross-site", **public).status == 403


def test_another_method_than_a_route_has_is_refused_as_json(server: Server) -> None:
    answer = server.ask("DELETE", "/classify")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert answer.error == "'DELETE': is not a method of this address. Use POST."
    raw(server, b"A" * 50_000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert server.logged(status=405, method="A" * 20)


def test_a_body_that_is_cut_off_is_counted(server: Server) -> None:
    raw(server, f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n0123456789".encode())
    assert server.logged(status=499, route="/v2/models/{name}/infer", bytes=10)


def test_what_the_form_parser_complains_of_goes_nowhere_else(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    with serving([bundle], threads=1) as server:
        assert server.post("/classify", b"nonsense", content_type=kind).status == 400
    assert [record.name for record in records] == []


def test_a_connection_whose_body_ended_after_the_answer_stays_open(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "HEADER_S", 0.3)
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 415 ")
        connection.sendall(b"body")
        time.sleep(0.8)
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_token_is_asked_for_and_never_told(bundle: Path, tiles: Pixels) -> None:
    with serving([bundle], threads=1, token=TOKEN) as server:
        for header in ({}, {"Authorization": "Bearer other"}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}):
            answer = server.classify([("a", png(tiles[0]))], **header)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        for path in ("/v2", "/metrics", "/v2/models/bundle"):
            assert server.get(path).status == 401
        assert [server.get(path).status for path in ("/", "/v2/health/live", "/v2/health/ready")] == [200, 200, 200]
        for scheme in ("Bearer", "bearer"):
            assert server.classify([("a", png(tiles[0]))], Authorization=f"{scheme} {TOKEN}").status == 200
        assert TOKEN not in server.log.getvalue()
    assert TOKEN not in repr(ServeSettings(token=TOKEN))


def test_an_error_that_nobody_foresaw_ends_its_request_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a fault")

    monkeypatch.setattr("histo_export.serve.app.read_infer", fail)
    answer = server.post(INFER, b"{}")
    assert (answer.status, answer.error) == (
        500,
        "The server: failed unexpectedly (LookupError). Report this; its log has the place.",
    )
    assert server.logged(status=500)["error"].startswith("LookupError: a fault, serve/app.py:")


# --- beginning, changes, end -----------------------------------------------------------------------------------------


def test_metrics_and_log_tell_of_each_request(bundle: Path, tiles: Pixels) -> None:
    with serving([bundle], threads=1) as server:
        server.classify([("a", png(tiles[0])), ("b", b"bad")])
        metrics = server.get("/metrics").body.decode()
    for line in (
        'histo_requests_total{route="/classify",status="200"} 1.0',
        'histo_tiles_total{model="bundle",outcome="answered"} 1.0',
        'histo_tiles_total{model="bundle",outcome="refused"} 1.0',
        'histo_request_seconds_count{route="/classify"} 1.0',
    ):
        assert line in metrics.splitlines()
    events = server.events
    assert [event["event"] for event in events] == ["started", "request", "request", "stopped"]
    assert events[1].keys() >= {"time", "method", "route", "status", "ms", "bytes", "model", "version"}


def test_a_reload_loses_no_request(
    bundle: Path, copy_bundle: Any, own_file: Any, tmp_path: Path, tiles: Pixels, logits: Any
) -> None:
    folder = copy_bundle(bundle, tmp_path / "bundle")
    with serving([folder], threads=1) as server, ThreadPoolExecutor(3) as clients:
        (before,) = server.get("/v2/models/bundle").json["versions"]
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["histo"]["versions"]["a tool"] = "2"
        own_file(folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        request = json.dumps({"inputs": [tensor(tiles[:1])], "outputs": [{"name": "logits"}]}).encode()
        reloaded = clients.submit(server.post, "/v2/repository/models/bundle/load")
        versions = set()
        while not reloaded.done():
            answer = server.post(INFER, request)
            assert answer.status == 200
            assert np.array(answer.json["outputs"][0]["data"], np.float32).tobytes() == logits[0].tobytes()
            versions.add(answer.json["model_version"])
        (after,) = reloaded.result().json["versions"]
        assert before != after
        assert versions <= {before, after}
        assert server.post(f"/v2/models/bundle/versions/{before}/infer", request).status == 404
        (folder / CONFIG).write_text("{}", encoding="utf-8")
        failed = server.post("/v2/repository/models/bundle/load")
        assert (failed.status, str(tmp_path) in failed.error) == (500, False)
        assert str(tmp_path) in server.logged(event="reload failed")["error"]  # for who runs the server
        assert server.post(INFER, request).json["model_version"] == after


def test_bundles_of_one_name_are_versions(bundle: Path, copy_bundle: Any, own_file: Any, tmp_path: Path) -> None:
    other = copy_bundle(bundle, tmp_path / "bundle")
    config = json.loads((other / CONFIG).read_text(encoding="utf-8"))
    config["histo"]["versions"]["a tool"] = "2"
    own_file(other / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    third = copy_bundle(bundle, tmp_path / "third one")
    with serving([bundle, other, third], threads=1) as server:
        first, second = server.get("/v2/models/bundle").json["versions"]
        assert server.get("/v2/models/bundle").json["parameters"]["version"] == second
        assert server.get(f"/v2/models/bundle/versions/{first}").json["parameters"]["version"] == first
        names = [model["name"] for model in server.post("/v2/repository/index").json]
        assert names == ["bundle", "bundle", "third-one"]
        image = png(np.zeros((SIDE, SIDE, 3), np.uint8))
        refused = server.classify([("a", image)])
        assert (refused.status, refused.error) == (400, "model: is missing. Choose from bundle, third-one.")
        answer = server.classify([("a", image)], f"?model=bundle&version={first}")
        assert (answer.status, answer.json["version"]) == (200, first)
    with pytest.raises(UsageError, match="is named twice"), serving([bundle, bundle]):
        pass


def test_what_cannot_be_served_is_told_at_the_start(
    server: Server, bundle: Path, tmp_path: Path, histo: Histo, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = histo("serve", bundle, "--port", server.port)
    assert (code, out) == (2, "")
    assert err.startswith(f"histo: 127.0.0.1:{server.port}: can't be listened on (Address already in use). Choose")
    code, out, err = histo("serve", tmp_path / "none", "--port", 0)
    assert (code, "does not exist" in err) == (2, True)
    code, out, err = histo("serve", bundle, "--max-images", 9, "--queue", 8)
    assert (code, "--queue 8: is less than a request may contain (9 images)" in err) == (2, True)
    code, out, err = histo("serve", bundle, "--resample", "dct")
    assert (code, "Use bilinear or bicubic" in err) == (2, True)
    code, out, err = histo("serve", bundle, "--token-file", tmp_path / "none")
    assert (code, "can't be read (No such file or directory)" in err) == (2, True)
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    code, out, err = histo("serve", bundle, "--token-file", tmp_path / "empty")
    assert (code, "The token: is empty" in err) == (2, True)
    (tmp_path / "long").write_text("a" * 5000, encoding="utf-8")
    code, out, err = histo("serve", bundle, "--token-file", tmp_path / "long")
    assert (code, "can't be read (it has more than 4,096 bytes)" in err) == (2, True)
    monkeypatch.setenv("HISTO_SERVE_TOKEN", "")
    code, out, err = histo("serve", bundle, "--port", server.port)
    assert (code, "The token: is empty" in err) == (2, True)
    code, out, err = histo("serve", bundle, "--max-request-mb", 600)
    assert (code, "--max-upload-mb 512: is less than one request may have (600 MiB)" in err) == (2, True)
    with pytest.raises(HistoError, match="more than images may have"), serving([bundle], limits=Limits(pixels=5000)):
        pass


def test_the_second_signal_ends_a_server_at_once(bundle: Path, tiles: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(monkeypatch) as waiting, ThreadPoolExecutor(1) as client, serving([bundle], threads=1) as server:
        answer = client.submit(server.classify, [("a", png(tiles[0]))])
        until(lambda: waiting == [1])
        begin = time.monotonic()
        server.stop()
        server.stop()
        assert isinstance(answer.exception(20), ConnectionError | http.client.HTTPException)
    assert time.monotonic() - begin < 20


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_hangup_while_bundles_are_opened_is_harmless(
    histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def opening(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        raise HistoError("A bundle", "is none", "Go on")

    monkeypatch.setattr(run.Repository, "open", opening)
    hangups: list[int] = []
    earlier = signal.signal(signal.SIGHUP, lambda number, _: hangups.append(number))
    try:
        code, _, err = histo("serve", tmp_path, "--port", 0)
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert (code, "A bundle: is none" in err, hangups) == (1, True, [])


@pytest.mark.skipif(not hasattr(os, "kill"), reason="no signals")
def test_signals_reload_and_drain(histo: Histo, bundle: Path, tiles: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the main thread; another thread sends it signals."""
    from histo_export.cli import serve as command

    seen: dict[str, Any] = {}

    def client(address: str) -> None:
        server = Server(int(address.rpartition(":")[2]), None, lambda: None)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGHUP)
        with ThreadPoolExecutor(4) as clients:
            answers = [clients.submit(server.classify, [("a", png(tile))] * 20) for tile in tiles]
            until(lambda: any(answer.done() for answer in answers))
            os.kill(os.getpid(), signal.SIGTERM)
            seen["statuses"] = [
                answer.result().status if answer.exception() is None else answer.exception() for answer in answers
            ]

    def started(address: str, *_: object) -> None:
        pool.submit(client, address)

    monkeypatch.setattr(command, "_started", started)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)]
    try:
        with ThreadPoolExecutor(1) as pool:
            code, out, err = histo("serve", bundle, "--port", 0, "--threads", 1, "--timeout", 60)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)] == handlers
    # Requests that had not begun find no server; each that had has its answer.
    logged = [json.loads(line) for line in err.splitlines()]
    answered = [event["status"] for event in logged if event["event"] == "request"]
    assert all(status == 200 or isinstance(status, OSError) for status in seen["statuses"])
    assert 0 < seen["statuses"].count(200) == answered.count(200) == len(answered)
    events = [event["event"] for event in logged]
    assert (code, out, events[0], events[-1], "loaded" in events) == (0, "", "started", "stopped", True)
