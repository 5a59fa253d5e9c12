"""What a tile costs from each kind of file that holds tiles, beside a folder of PNGs.

    python benchmarks/tile_sources.py --tiles 2000 --threads 2

The same tiles are written as each kind. All kinds are read in interleaved rounds with as many threads, in order, and
every tile is compared with the folder's. The first column is the time to open the file and to list its tiles, which
`.npz` spends on its checksums. Rows of PNGs decode the same bytes; those of arrays decode nothing, or deflate alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from container_files import (
    Tiles,
    png,
    write_folder,
    write_hdf5,
    write_npz,
    write_parquet,
    write_shard,
    write_tar,
    write_zip,
)

from histo_export.data import containers
from histo_export.data.containers import Container, ImageFiles, Listing, open_container
from histo_export.trained_on import tile_hash

BATCH = 32
"""Tiles that a thread reads at a time, as `histo predict` does."""
FOLDER = "folder of PNGs"


def draw(tiles: int, side: int) -> Tiles:
    """Tiles that compress about as much as tissue: blurred noise with a little grain."""
    found: Tiles = {}
    for i in range(tiles):
        rng = np.random.default_rng(i)
        coarse = rng.normal(0, 40, (side // 8 + 1, side // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:side, :side]
        pixels = coarse + rng.normal(0, 4, (side, side, 3)) + (200, 130, 170)
        found[f"{'AB'[i * 2 // tiles]}/{i:06}.png"] = pixels.clip(0, 255).astype(np.uint8)
    return found


def write_all(folder: Path, tiles: Tiles) -> dict[str, Callable[[], Container]]:
    """Writes the tiles as each kind; name → what opens it anew."""
    files = {name: png(pixels) for name, pixels in tiles.items()}
    root = write_folder(folder / "tiles", tiles)
    np.save(folder / "tiles.npy", np.stack(list(tiles.values())))
    (folder / "stored").mkdir()
    paths = {
        "zip": write_zip(folder / "tiles.zip", files),
        "tar": write_tar(folder / "tiles.tar", files),
        "tar, WebDataset": write_shard(folder / "shard.tar", tiles),
        "Parquet": write_parquet(folder / "tiles.parquet", tiles, ("A", "B"), rows=100),
        "HDF5": write_hdf5(folder / "tiles.h5", tiles),
        "npz, compressed": write_npz(folder / "tiles.npz", tiles),
        "npz": write_npz(folder / "stored/tiles.npz", tiles, compressed=False),
        "npy": folder / "tiles.npy",
    }

    def anew(path: Path) -> Container:
        containers._opened.clear()
        return open_container(path)

    listed = ImageFiles(root, [root / name for name in tiles], Listing(list(tiles)))
    return {FOLDER: lambda: listed} | {name: lambda path=path: anew(path) for name, path in paths.items()}  # type: ignore[misc]


def read_all(container: Container, threads: int) -> list[int]:
    """Reads every tile; the hash of each."""

    def read(first: int) -> list[int]:
        return [tile_hash(container.tile(i)) for i in range(first, min(first + BATCH, len(container)))]

    with ThreadPoolExecutor(threads) as pool:
        return [each for part in pool.map(read, range(0, len(container), BATCH)) for each in part]


def measure(tiles: int, side: int, threads: int, rounds: int) -> None:
    """Prints a row for each kind; ends with an error where a tile has other pixels than the folder's."""
    drawn = draw(tiles, side)
    expected = [tile_hash(pixels) for pixels in drawn.values()]
    with tempfile.TemporaryDirectory() as name:
        kinds = write_all(Path(name), drawn)
        opening: dict[str, float] = {}
        opened: dict[str, Container] = {}
        for kind, anew in kinds.items():
            start = time.perf_counter()
            opened[kind] = anew()
            opening[kind] = time.perf_counter() - start
            if read_all(opened[kind], threads) != expected:  # warms the cache of the disk, too
                raise SystemExit(f"{kind}: tiles have other pixels than those that were written")
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, container in opened.items():
                start = time.perf_counter()
                read_all(container, threads)
                times[kind].append((time.perf_counter() - start) / tiles * 1000)
    print(f"{tiles:,} tiles of {side}×{side} pixels, {threads} threads, {rounds} rounds; every tile compared\n")
    print("| source | s to open | ms per tile, median | min to max | relative to the folder |")
    print("|---|---|---|---|---|")
    base = statistics.median(times[FOLDER])
    for kind, spent in times.items():
        middle = statistics.median(spent)
        spread = f"{min(spent):.3f} to {max(spent):.3f}"
        print(f"| {kind} | {opening[kind]:.3f} | {middle:.3f} | {spread} | {middle / base:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    measure(options.tiles, options.side, options.threads, options.rounds)


if __name__ == "__main__":
    main()
