"""Tiles that occur twice: identical ones, and near duplicates such as the same tile compressed again.

Two tiles are identical if their decoded pixels are (`trained_on.tile_hash`): a copy that was renamed, or saved again in
a lossless format, is the same tile, which a hash of the file would miss.

Near duplicates are found by the perceptual hash of ImageHash (pHash: the signs of the low frequencies of the grey tile
against their median) with 256 bits. Between 4.88 million pairs of 3,125 real H&E tiles of 224 pixels the smallest
distance was 20 bits, of one pair that shows the same tissue shifted by a few pixels; the next was 86. Tiles that were
compressed as JPEG of quality 50 to 95, halved, or made 5 % brighter differed by at most 8 bits
(`benchmarks/near_duplicates.py`). `NEAR` lies between. Tiles that were turned, flipped or cut elsewhere from the same
slide are not found: groups are for those. Nor are flat tiles such as background (`FLAT`): all of them have the same
perceptual hash, whatever their colour.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_export.data.tiles import SPLITS, TileData, TileSet
from histo_export.system import allowed_cpus

HASH_SIDE = 16
"""Frequencies per axis of the perceptual hash."""
NEAR = 32
"""Most bits, of 256, in which the hashes of near duplicates differ."""
FLAT = 1.0
"""Standard deviation, in grey levels of 255, below which the small grey picture behind a hash shows no structure."""
_ROWS, _COLUMNS = 1024, 16384
"""Hashes that are compared at a time."""


@dataclass(frozen=True)
class Twin:
    """A tile and an earlier one like it, in the order train, val, test.

    Attributes:
        split, name, label: of the tile: "train", "val" or "test", its name and its class.
        twin_split, twin_name, twin_label: of the other one.
        distance: bits in which their perceptual hashes differ; -1 where the pixels are identical.
    """

    split: str
    name: str
    label: str
    twin_split: str
    twin_name: str
    twin_label: str
    distance: int

    @property
    def identical(self) -> bool:
        return self.distance < 0

    @property
    def across(self) -> bool:
        """Whether they lie in two splits."""
        return self.split != self.twin_split

    def __str__(self) -> str:
        how = "identical" if self.identical else f"{self.distance} of {HASH_SIDE**2} bits differ"
        classes = "" if self.label == self.twin_label else f"; classes {self.label} and {self.twin_label}"
        return f"{self.split} {self.name} = {self.twin_split} {self.twin_name} ({how}{classes})"


def identical_tiles(splits: Sequence[TileSet]) -> list[Twin]:
    """A row for each tile that repeats an earlier one; the earlier one is the first with these pixels.

    Args:
        splits: train, val and test.
    """
    first: dict[int, tuple[int, int]] = {}
    found = []
    for s, tiles in enumerate(splits):
        for i, key in enumerate(tiles.hashes.tolist()):
            before = first.setdefault(key, (s, i))
            if before != (s, i):
                found.append(_twin(splits, (s, i), before, -1))
    return found


def near_duplicates(data: TileData, on_tile: Callable[[int], None] = lambda done: None) -> tuple[list[Twin], int]:
    """A row for each tile of val and test that is much like a tile of an earlier split, and identical to none.

    The earlier tile is the most similar one. Every tile is read once.

    Args:
        data: the tiles.
        on_tile: told how many tiles have been read.

    Returns:
        The rows, and how many tiles took no part because they are flat.
    """
    splits = (data.train, data.val, data.test)
    hashes = [np.empty((len(tiles), HASH_SIDE**2), np.int8) for tiles in splits]
    done = 0
    for own, tiles in zip(hashes, splits, strict=True):
        for i, signs in enumerate(_perceptual_hashes(tiles)):
            own[i] = signs
            on_tile(done := done + 1)
    first = {int(key): 0 for key in data.train.hashes}
    found = []
    for s in (1, 2):
        earlier = np.concatenate(hashes[:s])
        places = [(t, i) for t in range(s) for i in range(len(splits[t]))]
        for i, (distance, j) in enumerate(zip(*_nearest(hashes[s], earlier), strict=True)):
            if distance <= NEAR and int(splits[s].hashes[i]) not in first:
                found.append(_twin(splits, (s, i), places[j], int(distance)))
        first |= {int(key): s for key in splits[s].hashes}
    return found, sum(int((~own.any(1)).sum()) for own in hashes)


def _twin(splits: Sequence[TileSet], place: tuple[int, int], before: tuple[int, int], distance: int) -> Twin:
    (s, i), (t, j) = place, before
    classes = splits[s].classes
    tile = SPLITS[s], splits[s].names[i], classes[splits[s].labels[i]]
    twin = SPLITS[t], splits[t].names[j], classes[splits[t].labels[j]]
    return Twin(*tile, *twin, distance)


def _perceptual_hashes(tiles: TileSet) -> Iterator[NDArray[np.int8]]:
    """The hash of each tile as 256 signs, 1 or -1, in order; zeros, which are near to nothing, where it is flat."""
    import imagehash

    def signs(i: int) -> NDArray[np.int8]:
        # The picture that imagehash would make itself: it takes one of this size as it is.
        small = Image.fromarray(tiles.tile(i)).convert("L").resize((4 * HASH_SIDE,) * 2, Image.Resampling.LANCZOS)
        if np.asarray(small).std() < FLAT:
            return np.zeros(HASH_SIDE**2, np.int8)
        bits = imagehash.phash(small, hash_size=HASH_SIDE, highfreq_factor=4).hash
        return np.where(bits.ravel(), np.int8(1), np.int8(-1))

    tiles.preload()
    with ThreadPoolExecutor(min(len(allowed_cpus()), 16), thread_name_prefix="duplicates") as pool:
        yield from pool.map(signs, range(len(tiles)))


def _nearest(hashes: NDArray[np.int8], earlier: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each hash `(n, bits)` the smallest distance in bits to one of `earlier` `(m, bits)`, and its index."""
    bits = hashes.shape[1]
    distances = np.full(len(hashes), bits + 1, dtype=np.int64)
    indices = np.zeros(len(hashes), dtype=np.int64)
    for row in range(0, len(hashes), _ROWS):
        own = hashes[row : row + _ROWS].astype(np.float32)
        for column in range(0, len(earlier), _COLUMNS):
            # Of signs, the product is the equal bits less the others; float32 holds these integers exactly. Of zeros it
            # is 0, as if half of the bits differed.
            equal = own @ earlier[column : column + _COLUMNS].astype(np.float32).T
            best = equal.argmax(1)
            distance = ((bits - equal[np.arange(len(own)), best]) / 2).astype(np.int64)
            nearer = distance < distances[row : row + _ROWS]
            distances[row : row + _ROWS][nearer] = distance[nearer]
            indices[row : row + _ROWS][nearer] = best[nearer] + column
    return distances, indices


def duplicate_notes(twins: Sequence[Twin], sizes: Sequence[int]) -> list[str]:
    """What the user should know of them: a line for each pair of splits, and one for tiles under two labels.

    Args:
        twins: as found.
        sizes: tiles in train, val and test.
    """
    notes = []
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        between = [twin for twin in twins if (twin.twin_split, twin.split) == (a, b)]
        for kind, like, own in (
            (True, "identical to", [twin for twin in between if twin.identical]),
            (False, "near duplicates of", [twin for twin in between if not twin.identical]),
        ):
            if own:
                follows = "validation accuracy will look better than it is"
                if b == "test":
                    follows = "the test leaves them out" if kind else "they stay in the test, which looks better for it"
                notes.append(
                    f"{len(own):,} of {sizes[SPLITS.index(b)]:,} {b} tiles are {like} {a} tiles "
                    f"(for example {own[0].name} = {own[0].twin_name}): {follows}"
                )
    within = [twin for twin in twins if not twin.across and twin.label == twin.twin_label]
    if within:
        notes.append(
            f"repeated within a split: {len(within):,} (for example {within[0].name} = {within[0].twin_name}); each "
            "counts as often as it occurs"
        )
    if clashes := [twin for twin in twins if twin.identical and twin.label != twin.twin_label]:
        notes.append(
            f"{len(clashes):,} tiles lie in two classes (for example {clashes[0].twin_name} = {clashes[0].name}): "
            "no model can get both right"
        )
    return notes


def duplicates_csv(twins: Sequence[Twin]) -> str:
    """The content of duplicates.csv: a row for each of them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "tile", "class", "twin_split", "twin_tile", "twin_class", "kind", "bits_that_differ"])
    for twin in twins:
        kind = ["identical", 0] if twin.identical else ["near", twin.distance]
        writer.writerow([twin.split, twin.name, twin.label, twin.twin_split, twin.twin_name, twin.twin_label, *kind])
    return text.getvalue()
