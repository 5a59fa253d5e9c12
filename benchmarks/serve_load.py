"""Does `histo serve` answer many clients rightly, and how fast? Each answer is compared with the engine's bits.

    python benchmarks/serve_load.py bundles/tiles-pool2 --clients 200 --seconds 60
    python benchmarks/serve_load.py bundles/tiles-pool2 --requests 1000000 --clients 32     # memory
    python benchmarks/serve_load.py bundles/tiles-pool2 --peer                              # beside ONNX Runtime

Clients are threads of other processes. Each sends images (PNG, 1 to 8 of them) or tensors as bytes, one request after
the other, and 5 % of the images are bad. The table tells requests, tiles, the time of a request (p50, p99), and tiles
per second as a share of what the engine alone reaches at the same batch on the same threads, measured before and after.
At the end the server gets SIGTERM while clients send: each request that it has taken must have its answer.

`--peer` runs the same clients against Starlette and ONNX Runtime in thirty lines, without batching. Its logits are
compared within 1e-3 of the largest one, because they are not the engine's bits.

An answer that is lost, mixed up or wrong ends the program with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import io
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export._core import Engine, usable_cpus
from histo_export.bundle_files import NATIVE, ONNX, model_name

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

TILES = 64
"""Different tiles that clients send."""
BAD = 0.05
"""Of the images."""
SIZES = (1, 1, 1, 2, 4, 8)
"""Images of a request, drawn from these."""
PEER_TOLERANCE = 1e-3
"""Of a tile's largest logit."""
START_S = 120
"""For processes of clients to start."""
BOUNDARY = "serve-load"


@dataclass
class Tally:
    """What some clients saw.

    Attributes:
        wall: seconds from the start of the first client to the end of the last.
        unlogged: answers of uvicorn itself, which is out of connections; the server's log has none of them.
        cut_off: requests without an answer.
    """

    seconds: list[float] = field(default_factory=list)
    tiles: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    unlogged: int = 0
    cut_off: int = 0
    wall: float = 0.0

    def add(self, other: Tally) -> None:
        """Adds what other clients saw."""
        self.seconds += other.seconds
        self.tiles += other.tiles
        self.statuses += other.statuses
        self.faults += other.faults
        self.unlogged += other.unlogged
        self.cut_off += other.cut_off


@dataclass(frozen=True)
class Load:
    """What clients send.

    Attributes:
        port, name: of the server and the model.
        tiles, images, logits: the tiles, as PNG, and the engine's logits.
        exact: answers must be the engine's bits.
        seconds, requests: each client ends so long after its own start, or after so many requests.
    """

    port: int
    name: str
    tiles: Pixels
    images: Sequence[bytes]
    logits: Logits
    exact: bool
    seconds: float
    requests: int


def tiles_of(side: int) -> tuple[Pixels, list[bytes]]:
    """Random tiles, and the same as PNG."""
    tiles = np.random.default_rng(0).integers(0, 256, (TILES, side, side, 3), np.uint8)
    images = []
    for tile in tiles:
        file = io.BytesIO()
        Image.fromarray(tile).save(file, "PNG")
        images.append(file.getvalue())
    return tiles, images


def client(load: Load, seed: int, tally: Tally) -> None:
    """Sends requests until the load ends, or the server has."""
    rng = np.random.default_rng(seed)
    connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=120)
    sent = 0
    until = time.monotonic() + load.seconds
    while time.monotonic() < until and sent < load.requests:
        sent += 1
        chosen = rng.integers(0, TILES, int(rng.choice(SIZES))).tolist()
        tensor = bool(rng.random() < 0.3)
        bad = [not tensor and bool(rng.random() < BAD) for _ in chosen]
        path, headers, body = _tensor(load, chosen) if tensor else _form(load, chosen, bad)
        start = time.perf_counter()
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (ConnectionError, http.client.HTTPException, OSError):
            tally.cut_off += 1  # the server was told to end; whoever it had taken has an answer
            connection.close()
            if time.monotonic() < until and not _listens(load.port):
                return
            continue
        tally.seconds.append(time.perf_counter() - start)
        tally.statuses[response.status] += 1
        if response.status == 503:
            tally.unlogged += "Retry-After" not in response.headers
            time.sleep(float(response.headers.get("Retry-After", 1)))
            continue
        fault = (_tensor_fault if tensor else _form_fault)(load, chosen, bad, response, answer)
        if fault:
            tally.faults.append(fault)
        tally.tiles += len(chosen) - sum(bad)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _form(load: Load, chosen: Sequence[int], bad: Sequence[bool]) -> tuple[str, dict[str, str], bytes]:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
    contents = (load.images[i][:200] if b else load.images[i] for i, b in zip(chosen, bad, strict=True))
    parts = [part for content in contents for part in (head, content, b"\r\n")]
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return "/classify", kind, b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def _form_fault(load: Load, chosen: Sequence[int], bad: Sequence[bool], response: Any, answer: bytes) -> str:
    """What is wrong with an answer; "" where nothing is."""
    if response.status != (422 if all(bad) else 200):
        return f"status {response.status}: {answer[:200]!r}"
    results = json.loads(answer)["results"]
    if len(results) != len(chosen):
        return f"{len(results)} results for {len(chosen)} images"
    for i, is_bad, result in zip(chosen, bad, results, strict=True):
        if is_bad != ("error" in result):
            return f"a {'bad' if is_bad else 'good'} image has {list(result)}"
        if not is_bad and not _same(load, np.array(list(result["logits"].values()), np.float32), load.logits[i]):
            return f"wrong logits for tile {i}"
    return ""


def _tensor(load: Load, chosen: Sequence[int]) -> tuple[str, dict[str, str], bytes]:
    tiles = load.tiles[chosen]
    described = {"name": "tiles", "shape": tiles.shape, "datatype": "UINT8"}
    request = {
        "inputs": [described | {"parameters": {"binary_data_size": tiles.nbytes}}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return f"/v2/models/{load.name}/infer", headers, text + tiles.tobytes()


def _tensor_fault(load: Load, chosen: Sequence[int], bad: Sequence[bool], response: Any, answer: bytes) -> str:
    """What is wrong with an answer; "" where nothing is."""
    if response.status != 200:
        return f"status {response.status}: {answer[:200]!r}"
    length = int(response.headers["Inference-Header-Content-Length"])
    found = np.frombuffer(answer[length:], "<f4").reshape(len(chosen), -1)
    return "" if all(_same(load, row, load.logits[i]) for i, row in zip(chosen, found, strict=True)) else "wrong logits"


def _same(load: Load, found: Logits, expected: Logits) -> bool:
    if load.exact:
        return found.tobytes() == expected.tobytes()
    return bool(np.abs(found - expected).max() <= PEER_TOLERANCE * np.abs(expected).max())


def clients(load: Load, count: int, first: int, begin: Any, results: Any) -> None:
    """Some clients in threads of a process; all processes begin together. Their tally goes into the queue."""
    begin.wait(START_S)
    tallies = [Tally() for _ in range(count)]
    threads = [threading.Thread(target=client, args=(load, first + i, tallies[i])) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Tally()
    for tally in tallies:
        total.add(tally)
    results.put(total)


def run_clients(load: Load, count: int, during: Callable[[], None] = lambda: None) -> Tally:
    """All clients, in processes of up to 50, which begin together; `during` is called while they send."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    sizes = [min(50, count - first) for first in range(0, count, 50)]
    begin = context.Barrier(len(sizes) + 1)
    workers = [context.Process(target=clients, args=(load, n, 50 * i, begin, results)) for i, n in enumerate(sizes)]
    for worker in workers:
        worker.start()
    begin.wait(START_S)
    start = time.monotonic()
    during()
    total = Tally()
    for _ in workers:
        total.add(results.get())
    total.wall = time.monotonic() - start
    for worker in workers:
        worker.join()
    return total


@contextmanager
def started(command: Sequence[object], log: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that prints its address, and its port; its stderr goes into `log`."""
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=errors, encoding="utf-8") as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield process, int(line.partition("127.0.0.1:")[2].split("/")[0])
        finally:
            process.terminate()
            process.wait(120)


def engine_speed(engine: Engine, tiles: Pixels, batch: int, seconds: float) -> float:
    """Tiles per second of the engine alone."""
    chosen = np.resize(tiles, (batch, *tiles.shape[1:]))
    engine.warmup(batch)
    rates = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        engine.run(chosen)
        rates.append(batch / (time.perf_counter() - start))
    return statistics.median(rates)


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS:"))


def answers_in(log: Path) -> int:
    """Requests that the server says it has answered."""
    with log.open(encoding="utf-8") as lines:
        events = (json.loads(line) for line in lines)
        return sum(event["event"] == "request" and event["status"] != 499 for event in events)


def report(title: str, tally: Tally, alone: float) -> list[str]:
    """Lines about a run; the faults, of which there should be none, come last."""
    times = np.array(tally.seconds or [np.nan]) * 1e3
    rate = tally.tiles / tally.wall
    statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(tally.statuses.items()))
    return [
        f"{title}: {len(tally.seconds):,} requests ({statuses}), {tally.tiles:,} tiles in {tally.wall:.1f} s",
        f"  p50 {np.percentile(times, 50):.1f} ms, p99 {np.percentile(times, 99):.1f} ms, {rate:.0f} tiles/s, "
        f"{100 * rate / alone:.0f} % of the engine's {alone:.0f}",
        f"  wrong, mixed or lost answers: {len(tally.faults)}",
        *(f"    {fault}" for fault in tally.faults[:5]),
    ]


def measure(args: argparse.Namespace, folder: Path) -> bool:
    """Runs all parts and prints what they gave; whether every answer was right. `folder` gets logs."""
    engine = Engine(args.bundle / NATIVE, threads=args.threads)
    tiles, images = tiles_of(engine.model.tile_size)
    logits = engine.run(tiles)
    before = engine_speed(engine, tiles, args.batch, args.alone)

    def load(port: int, exact: bool = True) -> Load:
        seconds = 1e9 if args.requests else args.seconds
        each = -(-args.requests // args.clients) if args.requests else sys.maxsize
        return Load(port, model_name(args.bundle), tiles, images, logits, exact, seconds, each)

    options = ("--port", 0, "--threads", args.threads, "--batch", args.batch)
    command = [sys.executable, "-m", "histo_export", "serve", args.bundle, *options]
    memory: list[float] = []
    with started(command, folder / "log") as (process, port):
        memory.append(resident_mb(process.pid))
        main = run_clients(load(port), args.clients)
        memory.append(resident_mb(process.pid))

        def end() -> None:
            time.sleep(min(2.0, args.seconds / 2))
            process.send_signal(signal.SIGTERM)

        drained = run_clients(load(port), min(args.clients, 32), end)
        code = process.wait(120)
    lost = answers_in(folder / "log") - sum(len(tally.seconds) - tally.unlogged for tally in (main, drained))
    alone = statistics.mean([before, engine_speed(engine, tiles, args.batch, args.alone)])
    print(f"{args.clients} clients, {args.threads} threads, batch {args.batch}")
    print(*report("histo serve", main, alone), sep="\n")
    print(f"  memory {memory[0]:.0f} MB before, {memory[1]:.0f} MB after")
    print(
        f"SIGTERM among requests: exit code {code}, {len(drained.seconds):,} answered, {len(drained.faults)} wrong, "
        f"{lost} answered by the server but not received"
    )
    faults = main.faults + drained.faults
    if args.peer:
        command = [sys.executable, __file__, args.bundle, "--be-peer", "--threads", args.threads]
        with started(command, folder / "peer") as (_, port):
            peer = run_clients(load(port, exact=False), args.clients)
            print(*report("Starlette and ONNX Runtime", peer, alone), sep="\n")
    answered = bool(main.seconds and drained.seconds)
    return answered and not faults and lost <= 0 and code == 0 and main.cut_off == 0


def be_peer(bundle: Path, threads: int) -> None:
    """The server that people write: thirty lines of Starlette around a session of ONNX Runtime."""
    import onnxruntime
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(bundle / ONNX, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(tiles: Sequence[Pixels]) -> Logits:
        batch = np.stack(tiles).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        return np.asarray(session.run(None, {name: batch})[0])

    async def classify(request: Request) -> Response:
        results: list[Any] = []
        async with request.form() as form:
            for _, file in form.multi_items():
                try:
                    pixels = np.asarray(Image.open(io.BytesIO(await file.read())).convert("RGB"))  # type: ignore[union-attr]
                    results.append({"logits": dict(enumerate((await asyncio.to_thread(run, [pixels]))[0].tolist()))})
                except OSError as error:
                    results.append({"error": str(error)})
        return JSONResponse({"results": results}, 422 if all("error" in each for each in results) else 200)

    async def infer(request: Request) -> Response:
        body = await request.body()
        length = int(request.headers["inference-header-content-length"])
        shape = json.loads(body[:length])["inputs"][0]["shape"]
        logits = await asyncio.to_thread(run, list(np.frombuffer(body[length:], np.uint8).reshape(shape)))
        return Response(b"{}" + logits.tobytes(), headers={"Inference-Header-Content-Length": "2"})

    app = Starlette(
        routes=[Route("/classify", classify, methods=["POST"]), Route("/{path:path}", infer, methods=["POST"])]
    )
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path)
    options.add_argument("--clients", type=int, default=200)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--requests", type=int, default=0, help="of all clients together, in place of a time")
    options.add_argument("--threads", type=int, default=usable_cpus())
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--alone", type=float, default=5, help="seconds for the engine alone, before and after")
    options.add_argument("--peer", action="store_true", help="also a server around ONNX Runtime")
    options.add_argument("--be-peer", action="store_true", help=argparse.SUPPRESS)
    return options


def main() -> None:
    args = parser().parse_args()
    if args.be_peer:
        be_peer(args.bundle, args.threads)
        return
    os.environ.pop("HISTO_SERVE_TOKEN", None)  # the clients know none
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if measure(args, Path(folder)) else 1)


if __name__ == "__main__":
    main()
