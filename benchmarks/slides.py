"""`histo predict` on slides: reading directly and by OpenSlide, the share of inference in the time, memory.

python benchmarks/slides.py BUNDLE SLIDE                    # everything but memory; half an hour on two cores
python benchmarks/slides.py BUNDLE SLIDE reading --rounds 9   # one part
python benchmarks/slides.py BUNDLE SLIDE --before ../old/.venv/bin/histo   # beside another version

Parts: `reading` (tiles alone, one thread, pixels compared), `slide` (a pyramid of 20,000 × 20,000 pixels in each
precision of --precisions), `coarse` (a slide of 0.25 µm without a level of 0.5 µm under a model of 0.5 µm), `many` (20
slides in one command and in 20), `memory` (1,000 and 1,000,000 tiles, with a stub in the place of the model). SLIDE is
OpenSlide's CMU-1-Small-Region.svs; the larger slides are made of it by mirroring. BUNDLE has a model of about 0.5 µm
per pixel, with scales for int8.

What is compared is interleaved, round by round. Figures are medians with 95 % intervals over rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from predict_table import HISTO, contents, make_slide, predict
from rich.console import Console
from rich.table import Table

from histo_export.machine import this_machine, versions
from histo_export.predict.readers import open_slide
from histo_export.statistics import compare, summarise

out = Console(width=120, highlight=False)
log = Console(stderr=True, highlight=False)
STUB = Path(__file__).parents[1] / "tests" / "stub_model.py"

STAGES = ("prepare", "read", "wait", "write")

Seconds = dict[str, list[float]]


def interleaved(rows: Mapping[str, Callable[[], float]], rounds: int) -> Seconds:
    """The seconds of each row, in an order that turns from round to round; the first round does not count."""
    seconds: Seconds = {name: [] for name in rows}
    names = list(rows)
    for i in range(rounds + 1):
        for name in (*names[i % len(names) :], *names[: i % len(names)]):
            spent = rows[name]()
            if i:
                seconds[name].append(spent)
    return seconds


def print_table(title: str, seconds: Seconds, tiles: int, further: Mapping[str, str] | None = None) -> None:
    """A row for each, and how many times as fast as the first one it is."""
    table = Table("", "tiles/s", "ms per tile", "times as fast [95 %]", "", title=title, title_justify="left")
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        summary = summarise([[value] for value in values])
        low, high = (f"{1e3 * value / tiles:.3f}" for value in (summary.low, summary.high))
        ratio = compare(first, values)
        faster = f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        median = f"{1e3 * summary.median / tiles:.3f} [{low}, {high}]"
        table.add_row(name, f"{tiles / summary.median:.0f}", median, faster, (further or {}).get(name, ""))
    out.print(table)


def reading_part(args: argparse.Namespace, home: Path) -> None:
    """Slides are opened anew each time, so that no reader finds tiles that it has decoded before."""
    for path, size in ((args.slide, 150), (args.slide, 300), (home / "pyramid.tif", 150)):
        slide = open_slide(path)
        width, height = (min(5000, side) - size for side in (slide.width, slide.height))
        slide.close()
        step = size * 128 // 150
        corners = np.array([(x, y) for y in range(0, height, step) for x in range(0, width, step)])
        found: dict[str, Any] = {}
        names = ("openslide", "direct", *(["direct, dct"] if size > 150 else []))
        rows = {name: partial(read_tiles, name, path, corners, size, found) for name in names}
        seconds = interleaved(rows, args.rounds)
        if not np.array_equal(found["openslide"], found["direct"]):
            raise SystemExit(f"{path}: the readers have other pixels")
        title = f"Reading {len(corners):,} tiles of {size} → 150 pixels of {path.name}, one thread, seconds of CPU"
        print_table(title, seconds, len(corners))


def read_tiles(name: str, path: Path, corners: Any, size: int, found: dict[str, Any]) -> float:
    """Seconds of CPU, which other programs disturb less than those of the clock; the tiles go into `found`."""
    reader, _, how = name.partition(", ")
    slide = open_slide(path, reader, shrinks=bool(how))  # type: ignore[arg-type]
    start = time.thread_time()
    tiles = [slide.tiles(corners[i : i + 32], (size, size), 150) for i in range(0, len(corners), 32)]
    spent = time.thread_time() - start
    slide.close()
    found[name] = np.concatenate(tiles)
    return spent


def command_rows(
    args: argparse.Namespace, home: Path, slide: Path, rows: Mapping[str, tuple[str, ...]], precision: str
) -> None:
    """Whole commands on one slide; tables are compared where they must be the same."""
    results: dict[str, Any] = {}

    def run(name: str) -> float:
        folder = home / "out"
        histo = str(args.before) if name == "before" else HISTO
        options = (*rows[name], "--precision", precision, "--threads", str(args.threads))
        result = predict(args.bundle, [slide], folder, *options, histo=histo)
        tables = {file: data for file, data in contents(folder).items() if file.endswith((".csv", ".geojson"))}
        results[name] = result, tables
        shutil.rmtree(folder)
        return float(result["seconds"])

    seconds = interleaved({name: lambda name=name: run(name) for name in rows}, args.rounds)
    same = {name: tables for name, (_, tables) in results.items() if "dct" not in name}
    if any(tables != next(iter(same.values())) for tables in same.values()):
        raise SystemExit(f"{slide}: the readers have other tables")
    tiles = next(iter(results.values()))[0]["inputs"][0]["run"]
    notes = {}
    for name, (result, _) in results.items():
        spent = result["inputs"][0]["seconds"]
        share = spent["infer"] / result["seconds"]
        stages = ", ".join(
            f"{stage} {spent[stage]:.1f}" for stage in ("prepare", "read", "wait", "write") if stage in spent
        )
        notes[name] = f"infers {share:.0%} of the time; {stages} s; {result['peak_memory_mb']:,} MB"
    print_table(
        f"histo predict {slide.name}, {precision}, {tiles:,} tiles, {args.threads} threads", seconds, tiles, notes
    )


def slide_part(args: argparse.Namespace, home: Path) -> None:
    rows = {"before": ()} if args.before else {}
    rows |= {"--reader openslide": ("--reader", "openslide"), "default": ()}
    for precision in args.precisions.split(","):
        command_rows(args, home, home / "pyramid.tif", rows, precision)


def coarse_part(args: argparse.Namespace, home: Path) -> None:
    fine = ("--mpp", "0.25")
    rows = {"before": fine} if args.before else {}
    rows |= {"--reader openslide": (*fine, "--reader", "openslide"), "default": fine}
    command_rows(args, home, home / "fine.tif", rows | {"--resample dct": (*fine, "--resample", "dct")}, "fp32")


def many_part(args: argparse.Namespace, home: Path) -> None:
    slides = [home / f"many-{i}.tif" for i in range(20)]
    make_slide(args.slide, slides[0], 4600, (1, 4))
    for path in slides[1:]:
        shutil.copy(slides[0], path)
    tiles = [0]

    def run(*groups: list[Path]) -> float:
        start = time.perf_counter()
        results = [predict(args.bundle, group, home / "out", "--threads", str(args.threads)) for group in groups]
        spent = time.perf_counter() - start
        tiles[0] = sum(done["run"] for result in results for done in result["inputs"])
        shutil.rmtree(home / "out")
        return spent

    rows = {"20 commands": lambda: run(*([path] for path in slides)), "one command": lambda: run(slides)}
    seconds = interleaved(rows, args.rounds)
    print_table(f"20 slides, {tiles[0]:,} tiles in all, whole commands", seconds, tiles[0])


def memory_part(args: argparse.Namespace, home: Path) -> None:
    table = Table(
        "tiles", "peak memory", "s", title="Memory, with a stub of 32 pixels as the model", title_justify="left"
    )
    for stride, wanted in (("320", "1,000"), ("10", "1,000,000")):
        command = [
            sys.executable,
            str(STUB),
            str(home / "stub"),
            "predict",
            str(home / "stub"),
            str(home / "pyramid.tif"),
        ]
        options = [
            "--out",
            str(home / "out"),
            "--json",
            "--quiet",
            "--everything",
            "--stride",
            stride,
            "--batch",
            "256",
        ]
        run = subprocess.run([*command, *options], capture_output=True, encoding="utf-8", check=True)
        result = json.loads(run.stdout)
        count = f"{result['inputs'][0]['run']:,} (about {wanted})"
        table.add_row(count, f"{result['peak_memory_mb']:,} MB", f"{result['seconds']:.0f}")
        shutil.rmtree(home / "out")
    out.print(table)


PARTS = {
    "reading": reading_part,
    "slide": slide_part,
    "coarse": coarse_part,
    "many": many_part,
    "memory": memory_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("slide", type=Path)
    default = [name for name in PARTS if name != "memory"]
    parser.add_argument("parts", nargs="*", choices=list(PARTS), default=default, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", default="fp32,int8", help="of the part slide")
    parser.add_argument("--side", type=int, default=20_000, help="pixels of the made slides")
    parser.add_argument("--before", type=Path, help="the command histo of another version, as a row of its own")
    args = parser.parse_args()
    out.print(f"{this_machine()}; {', '.join(f'{name} {version}' for name, version in versions().items())}\n")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        log.print("making the slides")
        make_slide(args.slide, home / "pyramid.tif", args.side)
        make_slide(args.slide, home / "fine.tif", args.side // 2, (1, 4, 16))
        for name in args.parts:
            PARTS[name](args, home)


if __name__ == "__main__":
    main()
