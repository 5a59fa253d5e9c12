"""`histo predict` on a large slide, its memory, killed runs and Ray.

python benchmarks/predict_table.py BUNDLE SLIDE                  # everything; about ten minutes on two cores
python benchmarks/predict_table.py BUNDLE SLIDE slide --keep out   # one part, and what it wrote

Parts: `slide` (a pyramid of 20,000 x 20,000 pixels, made of SLIDE's by mirroring: tiles per second and where the time
goes), `memory` (1,000 and 100,000 tiles as PNG files), `kills` (SIGKILL at three random moments, resumed, bytes
compared), `ray` (one and two workers with one thread each, bytes compared). Everything runs as the command does for
its users, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tiled_tiff import SHORT, TiledTiff

from histo_export.machine import this_machine, versions
from histo_export.predict.readers import open_slide
from histo_export.predict.slide import Slide

SIDE, TIFF_TILE, QUALITY = 20_000, 256, 85
HISTO, RAY = (str(Path(sys.executable).parent / name) for name in ("histo", "ray"))

out = Console(width=120, highlight=False)
log = Console(stderr=True, highlight=False)


def make_slide(source: Path, path: Path, side: int = SIDE, levels: Sequence[int] = (1, 2, 4, 8, 16)) -> Path:
    """A tiled pyramid of JPEGs, as scanners write them: the source's pixels, mirrored over and over.

    Args:
        source: a small slide.
        path: of the file.
        side: pixels of its width and height.
        levels: their downsamples.
    """
    slide = open_slide(source)
    pixels = whole(slide)
    mpp = (slide.mpp or (0.5, 0.5))[0]
    slide.close()
    with TiledTiff(path, bigtiff=True) as file:
        for level in levels:
            small = np.asarray(Image.fromarray(pixels).reduce(level))
            tiles, size = jpeg_tiles(small, side // level), (side // level, side // level)
            kind = {"compression": 7, "photometric": 6, "further": {530: (SHORT, [1, 1])}}
            file.write(size, tiles, side=TIFF_TILE, mpp=mpp * level, reduced=level > 1, **kind)
    return path


def whole(slide: Slide) -> Any:
    """All pixels of level 0; the source is a small slide."""
    side = max(slide.width, slide.height)
    return np.ascontiguousarray(slide.tile(0, 0, (side, side), side)[: slide.height, : slide.width])


def jpeg_tiles(pixels: Any, side: int) -> Iterator[bytes]:
    """Tiles of the plane that mirrored copies of `pixels` fill, row by row."""
    height, width = pixels.shape[:2]

    def mirrored(begin: int, length: int) -> Any:
        at = np.arange(begin, begin + TIFF_TILE) % (2 * length)
        return np.where(at < length, at, 2 * length - 1 - at)

    for y in range(0, side, TIFF_TILE):
        rows = pixels[mirrored(y, height)]
        for x in range(0, side, TIFF_TILE):
            file = BytesIO()
            Image.fromarray(rows[:, mirrored(x, width)]).save(file, "JPEG", quality=QUALITY, subsampling=0)
            yield file.getvalue()


def predict(bundle: Path, inputs: list[Path], folder: Path, *options: str, histo: str = HISTO) -> dict[str, Any]:
    """What the command `histo` prints with --json, with the seconds it took from start to end."""
    # Whole tiles edge to edge, so that figures stay comparable with those of earlier versions and of WSInfer.
    options = ("--grid", "tile", "--json", "--quiet", *options)
    command = [histo, "predict", str(bundle), *map(str, inputs), "--out", str(folder), *options]
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr}")
    return json.loads(run.stdout) | {"process_seconds": time.perf_counter() - start}


def contents(folder: Path) -> dict[str, bytes]:
    """All result files; run.json and the page of the run hold times and do not count."""
    times = {folder / "run.json", folder / "index.html"}
    files = (path for path in folder.rglob("*") if path.is_file() and path not in times)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def slide_part(bundle: Path, slide: Path, home: Path) -> None:
    result = predict(bundle, [slide], home / "slide")
    (done,) = result["inputs"]
    table = Table("tiles", "tiles/s", "wall s", "read", "wait", "infer", "write", title_justify="left")
    table.title = f"{slide.name}, {SIDE:,} × {SIDE:,} pixels, {slide.stat().st_size / 1e6:.0f} MB"
    seconds = done["seconds"]
    shares = [
        f"{seconds[name]:.1f} s, {seconds[name] / seconds['wall']:.0%}" for name in ("read", "wait", "infer", "write")
    ]
    table.add_row(f"{done['run']:,}", f"{done['run'] / seconds['wall']:.0f}", f"{seconds['wall']:.1f}", *shares)
    out.print(table)
    out.print(
        f"Shares of the wall time; stages overlap, read is all reader threads together. Whole command "
        f"{result['process_seconds']:.1f} s; peak memory {result['peak_memory_mb']:,} MB.\n"
    )


def memory_part(bundle: Path, home: Path) -> None:
    spec = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    side = spec["patch_size_pixels"]
    rng = np.random.default_rng(0)
    source = home / "distinct"
    source.mkdir()
    for i in range(1000):
        block = rng.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3), dtype=np.uint8)
        Image.fromarray(block).resize((side, side), Image.Resampling.BICUBIC).save(source / f"{i}.png")
    table = Table("tiles", "wall s", "tiles/s", "peak memory", title="Memory", title_justify="left")
    for count in (1000, 100_000):
        tiles = home / f"tiles-{count}"
        tiles.mkdir()
        for i in range(count):
            os.link(source / f"{i % 1000}.png", tiles / f"{i:06}.png")
        result = predict(bundle, [tiles], home / f"memory-{count}")
        (done,) = result["inputs"]
        wall = done["seconds"]["wall"]
        table.add_row(f"{done['tiles']:,}", f"{wall:.1f}", f"{count / wall:.0f}", f"{result['peak_memory_mb']:,} MB")
        shutil.rmtree(tiles)
    out.print(table)


def kills_part(bundle: Path, slide: Path, home: Path) -> None:
    whole = predict(bundle, [slide], home / "whole")
    seed = random.SystemRandom().randrange(1 << 32)
    numbers = random.Random(seed)
    moments = sorted(numbers.uniform(0.05, 0.95) * whole["process_seconds"] for _ in range(3))
    folder = home / "killed"
    command = [HISTO, "predict", str(bundle), str(slide), "--out", str(folder), "--quiet"]
    for moment in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.kill()
        state = "ended by itself" if process.wait() == 0 else "killed"
        left = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        out.print(f"after {moment:.1f} s: {state}; there is {', '.join(left) or 'nothing'}")
    predict(bundle, [slide], folder)
    same = contents(folder) == contents(home / "whole")
    out.print(f"seed {seed}; after the next run {'the same bytes' if same else 'OTHER BYTES'} as without a kill\n")
    if not same:
        raise SystemExit("a killed run does not end with the same bytes")


def ray_part(bundle: Path, source: Path, home: Path) -> None:
    slides = [home / f"{i}.tiff" for i in range(4)]
    make_slide(source, slides[0], SIDE // 3)
    for path in slides[1:]:
        shutil.copy(slides[0], path)
    table = Table("", "tiles", "s", "tiles/s", "whole command, s", title="Four slides on Ray", title_justify="left")
    first: dict[str, bytes] = {}
    for name, threads, workers in (
        ("no Ray, 1 thread", 1, 0),
        ("no Ray, 2 threads", 2, 0),
        ("1 worker with 1 thread", 1, 1),
        ("2 workers with 1 thread each", 1, 2),
    ):
        options = ["--threads", str(threads)]
        if workers:
            start = ["start", "--head", f"--num-cpus={workers}", "--include-dashboard=false", "--disable-usage-stats"]
            subprocess.run([RAY, *start], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            options += ["--ray", "auto"]
        try:
            result = predict(bundle, slides, home / "ray", *options)
        finally:
            if workers:
                subprocess.run([RAY, "stop", "--force"], check=True, stdout=subprocess.DEVNULL)
        tiles, seconds = sum(done["run"] for done in result["inputs"]), result["seconds"]
        row = f"{tiles:,}", f"{seconds:.1f}", f"{tiles / seconds:.0f}", f"{result['process_seconds']:.1f}"
        table.add_row(name, *row)
        found = contents(home / "ray")
        first = first or found
        if found != first:
            raise SystemExit(f"{name}: the results differ")
        shutil.rmtree(home / "ray")
    out.print(table)
    out.print("Seconds from opening the model, or joining the cluster, to the last result. The same bytes in all four.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("slide", type=Path)
    names = ("slide", "memory", "kills", "ray")
    parser.add_argument("parts", nargs="*", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--keep", type=Path, help="where the slide and what was found are left; default: nowhere")
    args = parser.parse_args()
    out.print(f"{this_machine()}; {', '.join(f'{name} {version}' for name, version in versions().items())}\n")
    with tempfile.TemporaryDirectory() as temporary:
        home = args.keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        log.print("making the slide")
        slide = make_slide(args.slide, home / "made.tiff")
        if "slide" in args.parts:
            slide_part(args.bundle, slide, home)
        if "memory" in args.parts:
            memory_part(args.bundle, home)
        if "kills" in args.parts:
            kills_part(args.bundle, slide, home)
        if "ray" in args.parts:
            ray_part(args.bundle, args.slide, home)


if __name__ == "__main__":
    main()
