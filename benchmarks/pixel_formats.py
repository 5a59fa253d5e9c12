"""What other pixels than packed RGB cost: regions of one large image, in turn with the same tiles as packed RGB.

python benchmarks/pixel_formats.py bundles/tiles-pool2 --batch 1 8 32

A round is the median of some calls; the order turns around from round to round. The ratio of times comes with a 95 %
interval; the logits must be equal to the bit. At most 1.02 is wanted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histo_export._core import PRECISIONS, Engine, usable_cpus
from histo_export.statistics import compare

Pixels = npt.NDArray[np.uint8]


def image_of(tiles: Pixels, pixel_format: str) -> Pixels:
    """The tiles side by side, as an image of that format, with a gap behind each row."""
    count, side = tiles.shape[:2]
    channels = 3 if pixel_format == "rgb" else 4
    memory = np.full((side, count * side + 13, channels), 255, np.uint8)
    image = memory[:, : count * side]
    row = np.concatenate(list(tiles), axis=1)
    image[..., :3] = row if pixel_format == "rgb" else row[..., ::-1]
    return image


def median_seconds(call: Callable[[], object], calls: int) -> float:
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(engine: Engine, batch: int, pixel_format: str, rounds: int) -> str:
    side = engine.model.tile_size
    tiles = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    image = image_of(tiles, pixel_format)
    corners = np.array([[i * side, 0] for i in range(batch)], np.int64)
    calls = (
        lambda: engine.outputs(tiles)["logits"],
        lambda: engine.outputs_of_regions(image, corners, side, format=pixel_format)["logits"],
    )
    if not np.array_equal(calls[0](), calls[1]()):
        raise SystemExit(f"{pixel_format}: the logits differ")
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            seconds[i].append(median_seconds(calls[i], max(1, 100 // batch)))
    ratio = compare(seconds[1], seconds[0])
    packed = statistics.median(seconds[0]) / batch * 1e3
    return f"{packed:.3f} ms per tile as packed RGB, {ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] of the time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--formats", nargs="+", default=["rgb", "bgra", "bgra_premultiplied"])
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    engine = Engine(args.bundle / "model.safetensors", threads=args.threads, precision=args.precision)
    for pixel_format in args.formats:
        for batch in args.batch:
            result = measure(engine, batch, pixel_format, args.rounds)
            print(
                f"regions of {pixel_format}, {args.precision}, batch {batch}, {args.threads} threads: {result}",
                flush=True,
            )


if __name__ == "__main__":
    main()
