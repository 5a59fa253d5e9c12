"""`demo`: synthetic H&E-like tiles of six classes, generated from a seed. They do not show tissue.

A tile is light that passed through two dyes. Amounts of haematoxylin and eosin are painted as two
fields, and by Beer and Lambert each channel transmits `white * exp(-(H * h + E * e))`, where `h` and
`e` are the dyes' absorbances per channel: Ruifrok AC, Johnston DA. Quantification of histochemical
staining by color deconvolution. Anal Quant Cytol Histol 23(4):291-299, 2001.

Colours do not tell the class, so that a network has to learn shapes: within each tile the pixels are ranked by what is
painted there, and the ranks get the same amounts of the dyes in every tile. Absorbances and contrast are then drawn
for each tile, whatever its class. Trees that see colours alone (`training.floors`) are near chance.

Structures are painted at 0.5 µm per pixel and shown at 1 µm: large nuclei with chromatin, nucleoli and rims; wavy
fibre bundles with clefts and long nuclei; fat cells; small round nuclei; nuclear dust; glands as nuclei around a lumen.

Pixels are the same on every machine. Fields are only added, multiplied, divided and rooted, in float32, where IEEE 754
defines every bit. It does not define those of sines and exponentials, which are therefore computed in float64, for a
few values and tables only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from histo_export.data.tiles import (
    TileData,
    TileSet,
    choose_classes,
    fingerprint,
    need_crop,
    need_two_classes,
)
from histo_export.errors import UsageError

CLASSES = ("TUMOR", "STROMA", "ADIPOSE", "LYMPHO", "DEBRIS", "MUCOSA")
SIDE = 75
"""Pixels."""
MPP = 1.0
"""µm per pixel (see above), so that a model of the demo can run on a slide."""
CROP = 56
"""Pixels that are trained on where the user names no crop; the last feature map has 2 × 2 cells."""
VERSION = 2
"""Part of the fingerprint. Raise it with any change of a pixel."""

_PAD = 15
"""Margin painted around the tile and cut off, so that nuclei cross its edge."""
_PAINTED = 2 * SIDE
"""Pixels painted along a side of the tile: each of the tile's is the mean of four."""
_FULL = _PAINTED + 2 * _PAD

Field = NDArray[np.float32]
Numbers = NDArray[np.float64]
Range = tuple[float, float]

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])


def open_demo(
    *, classes: Sequence[str] | None = None, crop: int, seed: int = 0, size: tuple[int, int, int]
) -> TileData:
    """The demo set; tiles are made when first asked for and then kept.

    Args:
        classes: any two or more of `CLASSES`. A tile is the same whatever else is chosen.
        crop: side in pixels, at most `SIDE`.
        seed: integer ≥ 0; another seed is another set.
        size: tiles per class in train, val and test.

    Raises:
        UsageError: an unknown class or an impossible size.
        HistoError: a crop larger than the tiles.
    """
    chosen = choose_classes(CLASSES, classes, where="demo")
    need_two_classes(chosen, "demo")
    if len(size) != 3 or any(n < 1 for n in size):
        raise UsageError(f"demo size {'/'.join(map(str, size))}", "needs three numbers above zero", "Use 40/10/20")
    need_crop([(SIDE, SIDE)], ["every tile"], crop, "demo")
    kinds = [CLASSES.index(c) for c in chosen]
    sets, splits = [], []
    for k, n in enumerate(size):
        source = _DemoSource(seed, k, [(kind, i) for kind in kinds for i in range(n)])
        labels = np.repeat(np.arange(len(chosen), dtype=np.int64), n)
        names = [f"demo/{('train', 'val', 'test')[k]}/{c}[{i}]" for c in chosen for i in range(n)]
        sets.append(TileSet(chosen, labels, names, source))
        # Making every tile to hash it would take seconds. Its arguments are hashed in place of its pixels, with the
        # pixels of each class's first tile, which change if the generator does.
        witness = [hashlib.sha256(make_tile(seed, k, kind, 0).tobytes()).digest() for kind in kinds]
        splits.append(
            [
                (
                    label,
                    hashlib.sha256(witness[label] + repr((VERSION, seed, k, kinds[label], i)).encode()).digest(),
                )
                for label in range(len(chosen))
                for i in range(n)
            ]
        )
    return TileData(
        name="demo",
        classes=chosen,
        train=sets[0],
        val=sets[1],
        test=sets[2],
        tile_size=SIDE,
        mpp=MPP,
        synthetic=True,
        fingerprint=fingerprint(chosen, splits),
        description=f"SYNTHETIC H&E-like demo tiles (generator {VERSION}, seed {seed}), "
        f"{len(chosen)} classes, train/val/test {'/'.join(str(len(s)) for s in sets)}",
        notes=("the demo tiles are synthetic: results show that the machinery works, and nothing about tissue",),
    )


class _DemoSource:
    def __init__(self, seed: int, split: int, tiles: list[tuple[int, int]]) -> None:
        self._seed = seed
        self._split = split
        self._tiles = tiles
        self._made: dict[int, NDArray[np.uint8]] = {}

    def __call__(self, i: int) -> NDArray[np.uint8]:
        if i not in self._made:
            self._made[i] = make_tile(self._seed, self._split, *self._tiles[i])
        return self._made[i].copy()

    def preload(self) -> None:
        for i in range(len(self._tiles)):
            self(i)


def make_tile(seed: int, split: int, kind: int, index: int) -> NDArray[np.uint8]:
    """One tile: uint8 RGB `(SIDE, SIDE, 3)`, a function of its arguments alone.

    Args:
        seed: of the set, ≥ 0.
        split: 0 train, 1 val, 2 test.
        kind: index into `CLASSES`.
        index: number of the tile within its class and split.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, split, kind, index])))
    canvas = _Canvas(rng)
    (_tumor, _stroma, _adipose, _lympho, _debris, _mucosa)[kind](canvas)
    return canvas.develop()


# --- noise ------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _steps(cells: int) -> tuple[NDArray[np.intp], Field]:
    """Per canvas pixel, the grid cell it lies in and how far (0..1, smoothed) it is to the next."""
    x = (np.arange(_FULL) + 0.5) * cells / _FULL
    left = np.minimum(x.astype(np.intp), cells - 1)
    t = x - left
    return left, (t * t * (3 - 2 * t)).astype(np.float32)


def _noise(rng: np.random.Generator, *octaves: tuple[int, float]) -> Field:
    """(_FULL, _FULL) value noise, about zero: per octave the cells across the canvas and the amplitude."""
    total = np.zeros((_FULL, _FULL), np.float32)
    for cells, amplitude in octaves:
        grid = (rng.random((cells + 1, cells + 1), np.float32) - np.float32(0.5)) * np.float32(2 * amplitude)
        left, t = _steps(cells)
        # Not a matrix product: its rounding and its threads depend on the BLAS library.
        rows = grid[left] + t[:, None] * (grid[left + 1] - grid[left])
        slope = np.diff(rows, axis=1)
        field = slope[:, left]
        field *= t
        field += rows[:, left]
        total += field
    return total


_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[:_FULL, :_FULL])
_TRANSMITTED = np.exp(-np.arange(6 * 4096) / 4096).astype(np.float32)
"""Share of light left after an absorbance (natural log) of i / 4096."""


# --- painting ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nuclei:
    """What nuclei of one type look like.

    Attributes:
        long: range of the longer semi-axis in pixels, before the tile's own scale.
        aspect: range of the ratio of the shorter to the longer axis.
        dark: range of haematoxylin.
        chromatin: amplitude of the grain inside.
        rim: how much darker the membrane is than the inside.
        nucleolus: extra haematoxylin of a central spot.
        ragged: roughness of the outline.
    """

    long: Range
    aspect: Range
    dark: Range
    chromatin: float = 0.3
    rim: float = 0.0
    nucleolus: float = 0.0
    ragged: float = 0.06


def _gland_nuclei(dysplasia: float) -> Nuclei:
    """The nuclei of a gland's wall; see `dysplasia` of `_Canvas.glands`."""
    return Nuclei(
        long=(4.6 + 2.0 * dysplasia, 6.0 + 3.2 * dysplasia),
        aspect=(0.5, 0.75),
        dark=(0.75, 1.15),
        chromatin=0.25 + 0.15 * dysplasia,
        rim=0.3 * dysplasia,
    )


LYMPHOCYTE = Nuclei(long=(3.6, 5.0), aspect=(0.82, 1.0), dark=(1.05, 1.55), chromatin=0.22)
FIBROBLAST = Nuclei(long=(6, 11), aspect=(0.2, 0.38), dark=(0.6, 1.1), chromatin=0.25)
TUMOUR_CELL = Nuclei(
    long=(8.0, 11.5), aspect=(0.65, 0.95), dark=(0.7, 1.1), chromatin=0.12, rim=0.5, nucleolus=0.6, ragged=0.1
)
NUCLEAR_DUST = Nuclei(long=(0.9, 2.6), aspect=(0.5, 1.0), dark=(0.5, 1.4), ragged=0.2)


class _Canvas:
    """Haematoxylin and eosin amounts, and what is used to paint them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.h = np.zeros((_FULL, _FULL), np.float32)
        self.e = np.zeros((_FULL, _FULL), np.float32)
        self.fine = _noise(rng, (90, 0.6), (48, 0.5))
        """Grain of 2 to 4 pixels: chromatin, cytoplasm."""
        self.coarse = _noise(rng, (4, 0.7), (9, 0.4))
        """Patches of 20 to 50 pixels."""
        self.everywhere = np.ones((_FULL, _FULL), np.float32)
        self.scale = self.uniform(0.85, 1.18)
        """Sections differ in magnification and shrinkage."""

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def fibres(self, eosin: float, clefts: float, pitch: float = 1.0) -> None:
        """Cover the canvas with wavy bundles along one direction, with pale clefts; `pitch`: how wide they are."""
        rng = self.rng
        angle = self.uniform(0, np.pi)
        c, s = float(np.cos(angle)), float(np.sin(angle))
        along = (_Y * s + _X * c + 300).astype(np.intp)
        wave = self.uniform(2, 7) * np.sin(np.arange(900) / self.uniform(14, 30) + self.uniform(0, 7))
        across = _Y * c - _X * s + self.coarse * self.uniform(6, 20) + wave.astype(np.float32)[along]
        strand = rng.uniform(-1, 1, 2048)
        # Strands of 1 to 2 pixels on bundles of 4 to 5, at 4 table entries a pixel.
        strand = 0.55 * _mean_of(strand.repeat(6)[:4096], 5) + _mean_of(strand[::-1].repeat(6)[:4096], 27) * 2.6
        value = strand.astype(np.float32)[(across * (4 / (pitch * self.scale)) + 2000).astype(np.intp) & 4095]
        amount = np.clip(eosin * (0.85 + 0.25 * value + 0.18 * self.fine), 0.05, None)
        cleft = np.clip((clefts - 1.15 - value + 0.5 * self.coarse) * 3, 0, 1)
        self.e = amount * (1 - 0.85 * cleft)
        self.h = 0.06 * self.e

    def cover(self, where: Field, eosin: Field, haematoxylin: Field) -> None:
        """Put other tissue over a region."""
        self.e += where * (eosin - self.e)
        self.h += where * (haematoxylin - self.h)

    def cytoplasm(self, where: Field, eosin: float, haematoxylin: float, grain: float) -> None:
        """Granular ground of epithelium: pink with a blue tinge."""
        texture: Field = 1 + grain * self.fine + 0.22 * self.coarse
        self.cover(where, np.float32(eosin) * texture, np.float32(haematoxylin) * texture)

    def sites(self, spacing: float, disorder: float) -> tuple[Numbers, Numbers]:
        """(y, x) of points on a shaken hexagonal grid over the whole canvas."""
        spacing *= self.scale
        rows = np.arange(-1, _FULL / (spacing * 0.866) + 1)
        columns = np.arange(-1, _FULL / spacing + 1)
        y = np.repeat(rows * spacing * 0.866, len(columns))
        x = (columns[None] + 0.5 * (rows[:, None] % 2)).ravel() * spacing
        shake = self.rng.uniform(-disorder, disorder, (2, len(y))) * spacing
        return y + shake[0] + self.uniform(0, spacing), x + shake[1] + self.uniform(0, spacing)

    def nuclei(
        self,
        y: Numbers,
        x: Numbers,
        look: Nuclei,
        *,
        angle: Numbers | None = None,
        keep: float = 1.0,
    ) -> None:
        """Paint elliptic nuclei.

        Args:
            y, x: centres in pixels on the canvas.
            look: what the nuclei look like.
            angle: direction of the longer axis in radians; None is random.
            keep: share of the sites that bear a nucleus.
        """
        rng = self.rng
        chosen = rng.random(len(y)) < keep
        turn = rng.uniform(0, np.pi, len(y)) if angle is None else angle
        y, x, turn = y[chosen], x[chosen], turn[chosen]
        a = np.minimum(rng.uniform(*look.long, len(y)) * self.scale, 15.0)
        b = a * rng.uniform(*look.aspect, len(y))
        depth = rng.uniform(*look.dark, len(y))
        inside, windows, r, radius = self._ellipses(y, x, a, b, turn)
        if not windows:
            return
        column = (len(windows), 1, 1)
        a32 = a[inside].astype(np.float32).reshape(column)
        b32 = b[inside].astype(np.float32).reshape(column)
        iy, ix = np.rint(y[inside]).astype(np.intp), np.rint(x[inside]).astype(np.intp)
        grain = sliding_window_view(self.fine, (2 * r + 1, 2 * r + 1))[iy - r, ix - r]
        radius += look.ragged * grain
        grain *= look.chromatin
        grain += 1
        if look.rim:
            grain += look.rim * np.clip(radius * radius - 0.45, -0.45, 0.5)
        if look.nucleolus:
            grain += look.nucleolus * np.clip(1.3 - radius * a32 / 1.8, 0, 1)
        np.clip(grain, 0.25, 2.2, out=grain)
        cover = _disc(radius, b32)
        grain *= depth[inside].astype(np.float32).reshape(column)
        grain *= cover
        cover *= -0.55
        cover += 1
        for k, window in enumerate(windows):
            h, e = self.h[window], self.e[window]
            np.maximum(h, grain[k], out=h)
            e *= cover[k]

    def goblets(self, y: Numbers, x: Numbers) -> None:
        """Paint pale mucin drops centred on (y, x)."""
        size = self.rng.uniform(3.2, 5.6, len(y)) * self.scale
        inside, windows, _, radius = self._ellipses(y, x, size, size * 0.9, np.zeros(len(y)))
        if not windows:
            return
        pale = _disc(radius, size[inside].astype(np.float32).reshape(-1, 1, 1) * np.float32(0.7))
        for k, window in enumerate(windows):
            self.e[window] *= 1 - 0.78 * pale[k]
            self.h[window] *= 1 - 0.4 * pale[k]

    def _ellipses(
        self, y: Numbers, x: Numbers, a: Numbers, b: Numbers, turn: Numbers
    ) -> tuple[NDArray[np.bool_], list[tuple[slice, slice]], int, Field]:
        """Which ellipses fit on the canvas; for these, their square windows, the windows' half side `r`
        and the elliptic radius `(n, 2r + 1, 2r + 1)`, which is 1 on the outline."""
        # Only as large a window as this batch needs: cost goes with its area.
        r = int(np.ceil(a.max(initial=1.0))) + 2
        inside = (y >= r) & (y < _FULL - r - 1) & (x >= r) & (x < _FULL - r - 1)
        y, x, a, b, turn = (v[inside] for v in (y, x, a, b, turn))
        iy, ix = np.rint(y).astype(int), np.rint(x).astype(int)
        step = np.arange(-r, r + 1)
        dy, dx = step - (y - iy)[:, None], step - (x - ix)[:, None]
        c, s = np.cos(turn)[:, None], np.sin(turn)[:, None]
        a, b = a[:, None], b[:, None]
        # u = (dx c + dy s) / a and v = (dy c - dx s) / b are sums of a row and a column.
        u = (dy * s / a).astype(np.float32)[:, :, None] + (dx * c / a).astype(np.float32)[:, None]
        v = (dy * c / b).astype(np.float32)[:, :, None] - (dx * s / b).astype(np.float32)[:, None]
        u *= u
        v *= v
        u += v
        windows = [
            (slice(i - r, i + r + 1), slice(j - r, j + r + 1)) for i, j in zip(iy.tolist(), ix.tolist(), strict=True)
        ]
        return inside, windows, r, np.sqrt(u, out=u)

    def glands(
        self, cy: Numbers, cx: Numbers, radii: Numbers, *, lumen: Range, goblets: float, dysplasia: float
    ) -> None:
        """Paint rings of epithelium, each round a lumen.

        Args:
            cy, cx: centres in pixels on the canvas.
            radii: outer radii in pixels.
            lumen: range of the lumen's share of the radius.
            goblets: 0..1, how much pale mucin the cells hold.
            dysplasia: 0..1, from small basal nuclei in one row to large dark crowded ones.
        """
        rng = self.rng
        drops, centres, angles = [], [], []
        for y0, x0, radius in zip(cy.tolist(), cx.tolist(), radii.tolist(), strict=True):
            reach = 1.3 * radius
            top, left = max(0, int(y0 - reach)), max(0, int(x0 - reach))
            window = np.s_[top : max(top, int(y0 + reach)), left : max(left, int(x0 + reach))]
            tilt, squash, hole = self.uniform(0, np.pi), self.uniform(0.72, 1.0), self.uniform(*lumen)
            c, s = float(np.cos(tilt)), float(np.sin(tilt))
            dy, dx = _Y[window] - y0, _X[window] - x0
            u, v = dx * c + dy * s, (dy * c - dx * s) / squash
            r = np.sqrt(u * u + v * v) / radius + (0.10 + 0.12 * dysplasia) * self.coarse[window]
            wall = np.clip((r - hole) * (radius / 2), 0, 1) * (1 + 0.2 * self.fine[window])
            body = np.clip((1 - r) * (radius / 2) + 0.5, 0, 1)
            self.e[window] += body * (self.uniform(0.45, 0.7) * wall + 0.05 - self.e[window])
            self.h[window] += body * ((0.10 + 0.14 * dysplasia) * wall - self.h[window])

            def ring(depth: Numbers, phi: Numbers) -> tuple[Numbers, Numbers]:
                u, v = radius * depth * np.cos(phi), radius * depth * np.sin(phi) * squash  # noqa: B023
                return y0 + u * s + v * c, x0 + u * c - v * s  # noqa: B023

            n = int(2 * np.pi * radius / 10)
            phi = np.arange(n) * 2 * np.pi / n + self.uniform(0, 1)
            drop = np.stack(ring(rng.uniform(hole + 0.12, 0.72, n), phi))
            drops.append(drop[:, rng.random(n) < goblets])
            for row in range(1 + int(dysplasia > 0.35) + int(dysplasia > 0.75)):
                depth = 0.86 - row * 8.0 * self.scale / radius
                if depth < hole + 0.05:
                    break
                n = max(5, int(2 * np.pi * radius * depth / ((8.5 - 2.5 * dysplasia) * self.scale)))
                phi = (np.arange(n) + rng.uniform(-0.3, 0.3, n)) * 2 * np.pi / n
                y, x = ring(depth + rng.normal(0, 0.03 + 0.05 * dysplasia, n), phi)
                centres.append(np.stack([y, x]))
                angles.append(np.arctan2(y - y0, x - x0) + rng.normal(0, 0.15 + 0.3 * dysplasia, n))
        if not centres:
            return
        self.goblets(*np.concatenate(drops, axis=1))
        cy, cx = np.concatenate(centres, axis=1)
        self.nuclei(cy, cx, _gland_nuclei(dysplasia), angle=np.concatenate(angles), keep=0.95)

    def develop(self) -> NDArray[np.uint8]:
        """Shine light through the two dyes: uint8 RGB `(SIDE, SIDE, 3)`."""
        rng = self.rng
        stains = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.025, (2, 3))
        # Scanned eosin is pinker than the spectrometer's: it lets less blue and red through.
        stains[1] += (0.05, -0.14, 0.18)
        stains = np.clip(stains, 0.02, None)
        stains /= np.sqrt((stains * stains).sum(axis=1, keepdims=True))
        stains *= rng.uniform([[0.8], [0.75]], [[1.3], [1.35]])
        white = rng.uniform(232, 250) + rng.uniform(-4, 4, 3)
        h, e = (4096 * amount for amount in self._amounts(contrast=self.uniform(-0.2, 0.25)))
        # One grain for all channels, as a camera's luminance noise after demosaicking.
        grain = rng.standard_normal((SIDE, SIDE), np.float32) * np.float32(rng.uniform(1.0, 3.0)) + np.float32(0.5)
        tile = np.empty((SIDE, SIDE, 3), np.uint8)
        for channel in range(3):
            absorbance = h * np.float32(stains[0, channel]) + e * np.float32(stains[1, channel])
            light = _TRANSMITTED.take(absorbance.astype(np.intp), mode="clip") * np.float32(white[channel])
            light += grain
            tile[..., channel] = np.clip(light, 0, 255, out=light)
        return tile

    def _amounts(self, contrast: float) -> tuple[Field, Field]:
        """Haematoxylin and eosin of the tile's pixels, which every tile has as much of, up to `contrast`.

        Args:
            contrast: above -1; 0 gives the amounts of `_AMOUNTS`, above 0 more pixels are dark.
        """
        cut = np.s_[_PAD : _PAD + _PAINTED, _PAD : _PAD + _PAINTED]
        dark = 1.6 * self.h[cut] + 0.6 * self.e[cut] + 0.05 * self.coarse[cut]
        rows = dark[::2] + dark[1::2]
        rank = np.empty(SIDE * SIDE, np.intp)
        rank[np.argsort(rows[:, ::2] + rows[:, 1::2], axis=None, kind="stable")] = np.arange(SIDE * SIDE)
        share = (rank.reshape(SIDE, SIDE).astype(np.float32) + np.float32(0.5)) / np.float32(SIDE * SIDE)
        share *= np.float32(1 + contrast)
        share /= 1 + np.float32(contrast) * share / np.float32(1 + contrast)
        place = (share * np.float32(_AMOUNTS.shape[1] - 1)).astype(np.intp)
        h, e = _AMOUNTS.take(place, axis=1, mode="clip")
        return h, e


def _amounts() -> Field:
    """(2, 4096) haematoxylin and eosin of a tile's pixels, from the palest to the darkest."""
    share = np.arange(4096) / 4095
    # Glass and lumen, then cytoplasm and fibres, then nuclei.
    haematoxylin = np.interp(share, [0, 0.25, 0.7, 0.82, 0.93, 1], [0.01, 0.04, 0.14, 0.6, 1.0, 1.5])
    eosin = np.interp(share, [0, 0.12, 0.25, 0.75, 0.9, 1], [0.03, 0.15, 0.45, 0.85, 0.5, 0.35])
    return np.stack([haematoxylin, eosin]).astype(np.float32)


_AMOUNTS = _amounts()


def _mean_of(values: Numbers, width: int) -> Numbers:
    """Running mean over `width` entries of a table that wraps around."""
    total = np.cumsum(np.concatenate([values[-width:], values]))
    mean: Numbers = (total[width:] - total[:-width]) / width
    return mean


def _disc(radius: Field, shorter: Field) -> Field:
    """1 within the outline (`radius` 1) and 0 beyond, over about two pixels of the `shorter` semi-axis."""
    cover = (1 - radius) * (0.45 * shorter)
    cover += 0.5
    return np.clip(cover, 0, 1, out=cover)


# --- tissues ----------------------------------------------------------------------------------------


def _tumor(c: _Canvas) -> None:
    """Sheets of large nuclei with nucleoli."""
    c.fibres(0.55, 0.3)
    c.cytoplasm(c.everywhere, c.uniform(0.45, 0.75), c.uniform(0.12, 0.3), 0.04)
    y, x = c.sites(c.uniform(18, 22), 0.2)
    c.nuclei(y, x, TUMOUR_CELL, keep=0.95)


def _stroma(c: _Canvas) -> None:
    """Wavy fibres with long, thin nuclei."""
    c.fibres(c.uniform(0.5, 0.75), c.uniform(0.5, 0.7), pitch=0.6)
    y, x = c.sites(22, 0.45)
    angle = c.uniform(0, np.pi) + c.rng.normal(0, 0.35, len(y))
    c.nuclei(y, x, FIBROBLAST, angle=angle, keep=c.uniform(0.1, 0.3))


def _adipose(c: _Canvas) -> None:
    """Fat cells that fill the plane, paler towards their middle, with thin walls."""
    y, x = (v.astype(np.float32) for v in c.sites(c.uniform(36, 48), 0.22))
    distance = np.sqrt((_Y[..., None] - y) ** 2 + (_X[..., None] - x) ** 2)
    distance.partition(1, axis=-1)
    from_wall = distance[..., 1] - distance[..., 0]
    c.e = np.clip(1 - from_wall / 22, 0, 1)
    c.h = np.float32(0.2) * np.clip(1 - from_wall / 3, 0, 1)


def _lympho(c: _Canvas) -> None:
    """Small, round, dark nuclei, one beside the other."""
    c.fibres(c.uniform(0.4, 0.75), c.uniform(0.0, 0.6))
    y, x = c.sites(c.uniform(10.5, 12), 0.32)
    c.nuclei(y, x, LYMPHOCYTE, keep=c.uniform(0.85, 0.98))


def _debris(c: _Canvas) -> None:
    """Grain, with dust of nuclei."""
    ground = 0.75 + 0.5 * c.fine + _noise(c.rng, (60, 0.5))
    ground = np.float32(c.uniform(0.4, 0.7)) * np.clip(ground, 0.04, 2)
    c.cover(c.everywhere, ground, np.float32(0.16) * ground)
    y, x = c.sites(c.uniform(4.5, 5.5), 0.5)
    c.nuclei(y, x, NUCLEAR_DUST, keep=c.uniform(0.3, 0.5))


def _mucosa(c: _Canvas) -> None:
    """Glands, each with a lumen, between fibres."""
    c.fibres(0.5, 0.2)
    radius = c.uniform(24, 30) * c.scale
    y, x = c.sites(2.15 * radius / c.scale, 0.08)
    near = (np.abs(y - _FULL / 2) < _PAINTED / 2 + radius) & (np.abs(x - _FULL / 2) < _PAINTED / 2 + radius)
    radii = radius * c.rng.uniform(0.9, 1.05, np.count_nonzero(near))
    c.glands(y[near], x[near], radii, lumen=(0.25, 0.4), goblets=0.2, dysplasia=c.uniform(0, 0.3))
