"""How far apart the perceptual hashes of different tiles are, and those of a tile that was saved again.

    python benchmarks/near_duplicates.py TILES

`histo_export.data.duplicates.NEAR` was chosen by what this prints: it must lie between both.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from histo_export.data import open_data
from histo_export.data.duplicates import HASH_SIDE, NEAR, _nearest, _perceptual_hashes
from histo_export.data.tiles import TileSet

Change = Callable[[Image.Image], Image.Image]
CHANGED = 300
"""Tiles that are saved again."""


def saved(quality: int) -> Change:
    """Saves an image as JPEG of this quality and reads it again."""

    def change(image: Image.Image) -> Image.Image:
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


CHANGES: dict[str, Change] = {
    **{f"JPEG of quality {quality}": saved(quality) for quality in (95, 90, 75, 50)},
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR),
    "5 % brighter": lambda image: image.point([min(255, int(v * 1.05)) for v in range(256)] * 3),
    "shifted by 4 pixels": lambda image: image.crop((4, 0, image.width, image.height - 4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", help="as for histo train --data")
    data = open_data(parser.parse_args().tiles, crop=1)
    began = time.perf_counter()
    parts = [np.stack(list(_perceptual_hashes(tiles))) for tiles in (data.train, data.val, data.test)]
    hashed = time.perf_counter()
    signs = np.concatenate(parts)
    for part in (1, 2):  # as before a run: validation and test with what is earlier
        _nearest(parts[part], np.concatenate(parts[:part]))
    print(f"{len(signs):,} tiles: {hashed - began:.1f} s to hash, {time.perf_counter() - hashed:.1f} s to compare")
    bits = HASH_SIDE**2
    wide = signs.astype(np.float32)
    distances = np.sort(((bits - wide @ wide.T) / 2)[np.triu_indices(len(signs), 1)].astype(int))
    print(f"{len(distances):,} pairs: smallest distances {distances[:5].tolist()} of {bits} bits; near is {NEAR}")
    chosen = np.random.default_rng(0).choice(len(data.train), min(CHANGED, len(data.train)), replace=False)
    for name, change in CHANGES.items():
        images = [np.asarray(change(Image.fromarray(data.train.tile(int(i))))) for i in chosen]
        labels, names = data.train.labels[chosen], [""] * len(chosen)
        again = np.stack(list(_perceptual_hashes(TileSet(data.classes, labels, names, images.__getitem__))))
        differ = (again != parts[0][chosen]).sum(1)
        print(f"{name}: at most {differ.max()} bits differ, median {np.median(differ):g} ({len(chosen)} tiles)")


if __name__ == "__main__":
    main()
