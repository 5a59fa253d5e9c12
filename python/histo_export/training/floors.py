"""The colour floor: how well a classifier does that sees nothing but the colours of a tile.

Tiles of one class often come from few slides, which have a stain of their own. Then colour alone tells the classes
apart on tiles of these slides, and a network can learn the stain in place of the tissue. A network that is no better
than the floor has shown nothing of what it is trained for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from histo_export.data.images import center_crop
from histo_export.spec import percent
from histo_export.statistics import mean_interval

if TYPE_CHECKING:
    from histo_export.data.tiles import TileSet

TREES = 200
MOST_TILES = 5000
"""Training tiles of the floor; of more, every n-th of a shuffled order is used, so that it takes seconds."""
MOST_PIXELS = 16_384
"""About so many pixels of a tile are counted, on a regular grid."""
LEVELS = 8
"""Of each channel."""


@dataclass(frozen=True)
class ColourFloor:
    """Extremely randomised trees on the colours of the same tiles, beside the network.

    Attributes:
        accuracy: of the trees on the test tiles.
        interval: its 95 % bootstrap interval, as that of the network.
        val_accuracy: on the validation tiles.
        ahead: by how much the network's accuracy is higher.
        ahead_interval: its 95 % interval, by resampling the same tiles (or groups) for both.
        training_tiles: of the trees.
    """

    accuracy: float
    interval: tuple[float, float]
    val_accuracy: float
    ahead: float
    ahead_interval: tuple[float, float]
    training_tiles: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def remark(self) -> str | None:
        """A sentence where the network is not surely better than colour alone; None where it is."""
        low, high = self.ahead_interval
        if low > 0:
            return None
        return (
            f"the network does not beat the colour floor: trees that see only the colours of the tiles reach "
            f"{percent(self.accuracy)} on test, and the network is {100 * self.ahead:+.1f} points from that (95 % "
            f"interval {100 * low:+.1f} to {100 * high:+.1f}), so that it may have learnt nothing but the stain"
        )


def colour_floor(
    train: TileSet,
    val: TileSet,
    test: TileSet,
    crop: int,
    *,
    right: npt.NDArray[np.bool_],
    judged: npt.NDArray[np.bool_],
    seed: int = 0,
    groups: npt.NDArray[np.generic] | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> ColourFloor:
    """Trains the trees on the training tiles and judges them on the test tiles.

    Args:
        train, val, test: the splits of the network.
        crop: side in pixels of the centre that the network sees.
        right: bool `(n,)`, of the judged test tiles: whether the network was right.
        judged: bool `(test tiles,)`: those that count as test, `n` of them.
        seed: of the trees, and of the bootstrap.
        groups: `(n,)`, of the judged test tiles, see `report_of`; None: unknown.
        report: told of each step.
    """
    chosen = np.random.default_rng(seed).permutation(len(train))[:MOST_TILES]
    trees = fit_trees(colours_of(train, crop, np.sort(chosen), report), train.labels[np.sort(chosen)], seed)
    answers = trees(colours_of(test, crop, np.flatnonzero(judged), report))
    hits = (answers == test.labels[judged]).astype(np.float64)
    val_hits = trees(colours_of(val, crop, np.arange(len(val)), report)) == val.labels
    ahead = right.astype(np.float64) - hits
    return ColourFloor(
        accuracy=float(hits.mean()),
        interval=mean_interval(hits, seed, groups),
        val_accuracy=float(val_hits.mean()),
        ahead=float(ahead.mean()),
        ahead_interval=mean_interval(ahead, seed, groups),
        training_tiles=len(chosen),
    )


def fit_trees(
    colours: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int = 0
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """scikit-learn's extremely randomised trees (Geurts et al. 2006), as a function from colours to labels."""
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(TREES, random_state=seed % 2**32)
    forest.fit(colours, labels)
    return lambda rows: np.asarray(forest.predict(rows), np.int64)


def colours_of(
    tiles: TileSet, crop: int, chosen: npt.NDArray[np.int64], report: Callable[[str], None] = lambda step: None
) -> npt.NDArray[np.float32]:
    """`colour_features` of the centres of some tiles: float32 `(chosen, features)`."""
    rows = []
    for done, index in enumerate(chosen.tolist()):
        if done % 256 == 0:
            report(f"colour floor: {done:,} of {len(chosen):,} tiles")
        rows.append(colour_features(center_crop(tiles.tile(index), crop)))
    return np.stack(rows)


def colour_features(tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The share of each colour, whatever its place: float32 `(LEVELS³,)`, a histogram of red, green and blue together.

    Args:
        tile: uint8 `(h, w, 3)`, RGB.
    """
    step = max(1, int(np.sqrt(tile.shape[0] * tile.shape[1] / MOST_PIXELS)))
    red, green, blue = tile[::step, ::step].reshape(-1, 3).T.astype(np.int64) * LEVELS // 256
    counts = np.bincount((red * LEVELS + green) * LEVELS + blue, minlength=LEVELS**3)
    return np.asarray(counts / counts.sum(), np.float32)
