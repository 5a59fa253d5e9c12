"""The tiles of a result that its page shows as pictures: the surest of each class, and the least sure ones."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.spec import ModelSpec

SUREST, LEAST_SURE = 4, 12
"""Most tiles: of each class, and in all."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """A tile that is shown.

    Attributes:
        index: of the tile.
        chosen: index of its most probable class.
        probability: of that class.
        pixels: uint8 RGB `(crop, crop, 3)`, what the network saw.
    """

    index: int
    chosen: int
    probability: float
    pixels: Pixels


@dataclass(frozen=True)
class Samples:
    """The tiles that are shown. `surest`: those of each class that occurs, by class; `least_sure`: of all classes."""

    surest: list[list[Sample]] = field(default_factory=list)
    least_sure: list[Sample] = field(default_factory=list)


Chosen = tuple[float, int, int]
"""Probability of the most probable class, index of the tile, index of the class."""


class SampleChoice:
    """Finds the surest and the least sure tiles of any number, a part at a time; of equal ones the first."""

    def __init__(self, classes: int) -> None:
        self._surest: list[list[Chosen]] = [[] for _ in range(classes)]
        self._least_sure: list[Chosen] = []

    def add(self, indices: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> None:
        """Considers tiles: int64 `(n,)` and float32 `(n, classes)`."""
        chosen, top = probabilities.argmax(1), probabilities.max(1)
        for each, kept in enumerate(self._surest):
            places = np.flatnonzero(chosen == each)
            best = places[np.lexsort((indices[places], -top[places]))[:SUREST]]
            kept += [(float(top[i]), int(indices[i]), each) for i in best]
            kept[:] = heapq.nsmallest(SUREST, kept, key=lambda tile: (-tile[0], tile[1]))
        places = np.lexsort((indices, top))[:LEAST_SURE]
        self._least_sure += [(float(top[i]), int(indices[i]), int(chosen[i])) for i in places]
        self._least_sure = heapq.nsmallest(LEAST_SURE, self._least_sure)

    @property
    def surest(self) -> list[list[Chosen]]:
        """The surest tiles of each class that occurs."""
        return [tiles for tiles in self._surest if tiles]

    @property
    def least_sure(self) -> list[Chosen]:
        """The tiles whose most probable class has the lowest probability, the lowest first."""
        return self._least_sure


def read_samples(choice: SampleChoice, read: Callable[[int], Pixels]) -> Samples:
    """The chosen tiles with their pixels. A tile that can't be read any more is left out.

    Args:
        choice: which tiles.
        read: gives uint8 RGB `(crop, crop, 3)` of a tile, or raises HistoError.
    """
    seen: dict[int, Sample | None] = {}

    def sample(tile: Chosen) -> Sample | None:
        probability, index, chosen = tile
        if index not in seen:
            try:
                seen[index] = Sample(index, chosen, probability, read(index))
            except HistoError:
                seen[index] = None
        return seen[index]

    def samples(tiles: Sequence[Chosen]) -> list[Sample]:
        return [found for tile in tiles if (found := sample(tile))]

    surest = [found for tiles in choice.surest if (found := samples(tiles))]
    return Samples(surest, samples(choice.least_sure))


def seen_part(pixels: Pixels, spec: ModelSpec) -> Pixels:
    """What the network sees of a tile: its centre, uint8 RGB `(crop, crop, 3)`."""
    seen = slice(spec.crop_offset, spec.crop_offset + spec.crop)
    return pixels[seen, seen]


class PassingSamples:
    """Chooses among tiles as they pass, and keeps what the network saw of the chosen ones: none is read again."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._choice = SampleChoice(len(spec.classes))
        self._seen: dict[int, Pixels] = {}

    def add(self, indices: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], tiles: Pixels) -> None:
        """Considers tiles: int64 `(n,)`, float32 `(n, classes)` and uint8 `(n, side, side, 3)`."""
        self._choice.add(indices, probabilities)
        wanted = {tile[1] for some in (*self._choice.surest, self._choice.least_sure) for tile in some}
        self._seen = {index: pixels for index, pixels in self._seen.items() if index in wanted}
        for index, tile in zip(indices.tolist(), tiles, strict=True):
            if index in wanted:
                self._seen[index] = seen_part(tile, self._spec).copy()

    @property
    def chosen(self) -> Samples:
        """The chosen ones of all that have passed."""
        return read_samples(self._choice, self._seen.__getitem__)
