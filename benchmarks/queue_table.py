"""What does TileQueue cost beside Engine.run? In C++, interleaved, at batches 1, 8 and 32.

    python benchmarks/queue_table.py bundles/tiles-pool2

For each batch this prints milliseconds per tile of plain runs, and the ratio of times of two ways to use a queue to
them, with 95 % intervals over rounds: `wait` submits a batch and waits for all of it, as a program does that has one
batch at a time; `stream` keeps two batches on their way, as a program does that always has tiles. The queue waits until
a batch is full. A ratio above the goal of 1.02 is marked with `<`.

Every answer is compared with the logits of a plain run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

from histo_export import cmake_prefix
from histo_export._core import usable_cpus
from histo_export.statistics import compare

ROOT = Path(__file__).parents[1]
BATCHES = (1, 8, 32)
GOAL = 1.02
TILES = 100
"""In a round of each way, about."""


def compiled(prefix: Path, folder: Path) -> Path:
    """queue_bench.cpp against the library below `prefix`."""
    program = folder / "queue_bench"
    [archive] = prefix.glob("lib*/libhisto.a")
    options = ["-std=c++20", "-O2", "-DHISTO_STATIC", f"-I{prefix / 'include'}", "-pthread"]
    subprocess.run(["c++", *options, ROOT / "benchmarks/queue_bench.cpp", archive, "-o", program], check=True)
    return program


def seconds(program: Path, model: Path, batch: int, threads: int, rounds: int, calls: int) -> list[list[float]]:
    """Per tile, for each way: one value for each round."""
    command = [str(word) for word in (program, model, batch, threads, rounds, calls)]
    printed = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    ways = [list(way) for way in zip(*([float(x) for x in line.split()] for line in printed.splitlines()), strict=True)]
    assert len(ways) == 3
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prefix", type=Path, help="where the library is installed; default: the package's")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, help=f"runs in a round; default: about {TILES} tiles of them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(args.prefix or cmake_prefix(), Path(folder))
        print(f"{args.threads} threads, {args.rounds} rounds\n")
        print("| batch | ms per tile | wait | stream |\n|---|---|---|---|")
        for batch in BATCHES:
            calls = args.calls or max(1, TILES // batch)
            plain, *queued = seconds(
                program, args.bundle / "model.safetensors", batch, args.threads, args.rounds, calls
            )
            cells = []
            for way in queued:
                ratio = compare(way, plain)
                mark = " <" if ratio.ratio > GOAL else ""
                cells.append(f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]{mark}")
            print(f"| {batch} | {statistics.median(plain) * 1e3:.3f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
