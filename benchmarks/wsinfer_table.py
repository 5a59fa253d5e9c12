"""WSInfer and `histo predict` on the same tiles of one slide: tiles per second, and how far the probabilities differ.

HISTO_WSINFER_PYTHON=../wsinfer/bin/python python benchmarks/wsinfer_table.py BUNDLE SLIDE    # docs/environment.md

The tiles are our grid's (overlapping, so that a small slide has some hundreds) that lie wholly on the slide:
what reaches over its edge is white here and black in WSInfer. Each row is a process of its own that has its model
loaded; a run goes from the tiles' corners to their probabilities, reading from the slide included. Rows run in turn
within rounds, in an order that rotates, after one run to warm up, with the same number of threads and tiles per call.
`wsinfer` reads with as many worker processes as there are CPUs, as it does by default; we read with as many threads.
Ratios are of speeds: above 1, the row is faster.

Then the same once more with the slide taken to be finer than it is, so that tiles are resampled with the same filter:
by WSInfer always from level 0, by us from the nearest finer level.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import histo_export
from histo_export import _core
from histo_export.bench.worker_handle import Worker
from histo_export.machine import this_machine, versions
from histo_export.predict import Classifier
from histo_export.predict.loop import TileLoop
from histo_export.predict.readers import open_slide
from histo_export.predict.work import check_model, open_model
from histo_export.statistics import compare

PEER = Path(__file__).with_name("wsinfer_peer.py")
LIMIT = 1e-5
"""Largest |Δp| that is allowed where both see the same pixels."""

out = Console(width=120, highlight=False)


@dataclass(frozen=True)
class Tiles:
    """`corners` `(n, 2)` and `side` in pixels of level 0."""

    corners: npt.NDArray[np.int64]
    side: int


class Row:
    """A process that runs all tiles on request."""

    def __init__(
        self, name: str, command: Sequence[str], job: Mapping[str, Any], home: Path, environment: Mapping[str, str]
    ) -> None:
        home.mkdir()
        self.seconds: list[float] = []
        self._probabilities = home / "probabilities.npy"
        file = home / "job.json"
        file.write_text(
            json.dumps({**job, "results": str(home / "results"), "probabilities": str(self._probabilities)}),
            encoding="utf-8",
        )
        variables = [f"{key}={value}" for key, value in {**environment, "HOME": str(home)}.items()]
        self._worker = Worker(name, ["env", *variables, *command, str(file)])

    def run(self) -> float:
        return float(self._worker.ask("run")["seconds"])

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Probabilities `(n, classes)` of the last run."""
        probabilities: npt.NDArray[np.float32] = np.load(self._probabilities)
        return probabilities

    def close(self) -> None:
        self._worker.close()


def serve(job: Mapping[str, Any]) -> None:
    """Serves one row of ours: runs all tiles for each line on stdin."""
    bundle, spec, variant = check_model(Path(job["bundle"]), job["runtime"], None)
    runtime = open_model(bundle, variant, job["threads"], "cpu")
    loop = TileLoop(runtime, spec, batch=job["batch"], readers=job["threads"])
    slide = open_slide(Path(job["slide"]))
    corners = np.array(job["corners"], np.int64)
    probabilities = np.empty((len(corners), len(spec.classes)), np.float32)

    def read(first: int) -> tuple[slice, npt.NDArray[np.uint8]]:
        some = slice(first, first + loop.batch)
        return some, slide.tiles(corners[some], (job["side"], job["side"]), spec.tile_size)

    for _ in sys.stdin:
        start = time.perf_counter()
        loop.run_batches(range(0, len(corners), loop.batch), read, probabilities.__setitem__)
        seconds = time.perf_counter() - start
        np.save(job["probabilities"], probabilities)
        print(json.dumps({"result": {"seconds": seconds}, "idle_cpu": 0, "idle": 0}), flush=True)


def find_tiles(classifier: Classifier, path: Path, mpp: float, overlap: float) -> Tiles:
    grid = classifier.predict_slide(path, mpp=mpp, overlap=overlap, grid="tile").grid
    slide = open_slide(path)
    side, _ = grid.size
    inside = (grid.x + side <= slide.width) & (grid.y + side <= slide.height)
    return Tiles(np.stack([grid.x, grid.y], 1)[inside], side)


def open_rows(names: Sequence[str], args: argparse.Namespace, tiles: Tiles, home: Path) -> dict[str, Row]:
    slides = home / "slides"
    slides.mkdir(parents=True)
    (slides / args.slide.name).symlink_to(args.slide.absolute())  # WSInfer takes folders that hold slides only
    common = {"bundle": str(args.bundle.absolute()), "slide": str(slides / args.slide.name), "side": tiles.side}
    common |= {"corners": tiles.corners.tolist(), "threads": args.threads, "batch": args.batch}
    rows = {}
    for i, name in enumerate(names):
        owner, _, how = name.partition(" ")
        if owner == "wsinfer":
            workers = 0 if "without workers" in how else args.threads
            job, command = {"workers": workers, "speedup": "--speedup" in how}, [args.python, "-W", "ignore", str(PEER)]
        else:
            job, command = {"runtime": how}, [sys.executable, __file__, "serve"]
        environment = {"OMP_NUM_THREADS": str(args.threads), "WSINFER_FORCE_CPU": "1", "HF_HUB_OFFLINE": "1"}
        rows[name] = Row(name, command, common | job, home / str(i), environment)
    return rows


def difference(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> str:
    delta = np.abs(ours - theirs)
    agree = float((ours.argmax(1) == theirs.argmax(1)).mean())
    return f"max |Δp| {delta.max():.1e}, mean {delta.mean():.1e}, same top class {agree:.1%}"


def speed(args: argparse.Namespace, tiles: Tiles, home: Path) -> bool:
    names = ["wsinfer", "wsinfer --speedup", "wsinfer without workers", "histo native", "histo torchscript"]
    rows = open_rows(names, args, tiles, home)
    for row in rows.values():
        row.run()  # warm-up; TorchScript optimises a graph that it has seen
    for i in range(args.rounds):
        for name in (*names[i % len(names) :], *names[: i % len(names)]):
            rows[name].seconds.append(rows[name].run())
    default = rows["wsinfer"]
    fastest = min((row for name, row in rows.items() if name.startswith("wsinfer")), key=lambda r: np.median(r.seconds))
    table = Table(
        "", "tiles/s", "ms per tile", "× wsinfer [95 %]", "× its fastest [95 %]", "max |Δp|", box=None, pad_edge=False
    )
    worst = 0.0
    for name, row in rows.items():
        delta = float(np.abs(row.probabilities - default.probabilities).max())
        worst = max(worst, delta)
        median = float(np.median(row.seconds)) / len(tiles.corners)
        ratios = [compare(peer.seconds, row.seconds) for peer in (default, fastest)]
        shown = [f"{r.ratio:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in ratios]
        table.add_row(name, f"{1 / median:.1f}", f"{median * 1e3:.2f}", *shown, f"{delta:.1e}")
    out.print(table)
    for row in rows.values():
        row.close()
    return worst <= LIMIT


def resampled(args: argparse.Namespace, classifier: Classifier, tiles: Tiles, home: Path) -> None:
    rows = open_rows(["wsinfer without workers", "histo native"], args, tiles, home)
    for row in rows.values():
        row.run()
    theirs, ours = (row.probabilities for row in rows.values())
    for row in rows.values():
        row.close()
    out.print(f"{len(tiles.corners)} tiles resampled from {tiles.side} pixels, ours beside WSInfer's:")
    out.print(f"  histo predict: {difference(ours, theirs)}")
    slide = open_slide(args.slide)
    size, side = (tiles.side, tiles.side), classifier.spec.tile_size
    bicubic = np.stack([slide.tile(x, y, size, side, "bicubic") for x, y in tiles.corners.tolist()])
    other = classifier.predict(bicubic).probabilities
    out.print(f"  histo native with --resample bicubic: {difference(other, theirs)}")


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        serve(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--python", default=os.environ.get("HISTO_WSINFER_PYTHON"), help="one that has WSInfer")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=_core.usable_cpus())
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.python is None:
        parser.error("--python or HISTO_WSINFER_PYTHON must name a Python that has WSInfer")
    classifier, slide = histo_export.load(args.bundle), open_slide(args.slide)
    spec = classifier.spec
    if spec.mpp is None:
        parser.error(f"{args.bundle} does not tell its µm per pixel")
    asked = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in ('wsinfer', 'torch')), sep=', ')"
    theirs = subprocess.run(
        [args.python, "-c", asked], capture_output=True, encoding="utf-8", check=True
    ).stdout.strip()
    same = find_tiles(classifier, args.slide, spec.mpp, args.overlap)
    finer = find_tiles(classifier, args.slide, spec.mpp / 1.5, args.overlap)
    out.print(f"{this_machine()}; {', '.join(f'{name} {version}' for name, version in versions().items())}")
    out.print(f"WSInfer's environment: {theirs}")
    out.print(f"{args.slide.name}: {slide.width}×{slide.height}, {slide.mpp} µm per pixel; pool {spec.pool}")
    out.print(
        f"{len(same.corners)} tiles of {same.side} pixels, not resampled; {args.threads} threads, {args.batch} tiles a "
        f"call, {args.rounds} rounds; fp32"
    )
    with tempfile.TemporaryDirectory() as home:
        equal = speed(args, same, Path(home) / "same")
        resampled(args, classifier, finer, Path(home) / "finer")
    if not equal:
        raise SystemExit(f"the probabilities differ by more than {LIMIT:g}")


if __name__ == "__main__":
    main()
