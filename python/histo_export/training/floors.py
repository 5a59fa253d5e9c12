"""The colour floor: how well a classifier does that sees nothing but the colours of a tile.

Tiles of one class often come from few slides, which have a stain of their own. Then colour alone tells the classes
apart on tiles of these slides, and a network can learn the stain in place of the tissue. A network that is no better
than the floor has shown nothing of what it is trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from histo_export.data.images import center_crop
from histo_export.metrics import against_colour, class_mean, majority_share
from histo_export.spec import percent
from histo_export.statistics import mean_interval
from histo_export.system import allowed_cpus

if TYPE_CHECKING:
    from histo_export.data.tiles import TileSet

TREES = 200
MOST_TILES = 5000
"""Of training, and of validation: of more, so many are used, with each class's share kept, so that it takes seconds."""
MOST_PIXELS = 16_384
"""About so many pixels of a tile are counted, on a regular grid."""
LEVELS = 8
"""Of each channel."""


@dataclass(frozen=True)
class ColourFloor:
    """Extremely randomised trees on the colours of the same tiles, beside the network.

    Attributes:
        accuracy: of the trees on the test tiles; all accuracies here are balanced ones where `balanced`.
        interval: its 95 % bootstrap interval, as that of the network.
        val_accuracy: on the validation tiles.
        ahead: by how much the network's accuracy is higher.
        ahead_interval: its 95 % interval, by resampling the same tiles (or groups) for both; -1 to 1, which says
            nothing, where there is one group.
        training_tiles: of the trees.
        balanced: the network was trained with each class drawn equally often. So are the trees then, and both are
            judged by balanced accuracy.
        no_skill: the accuracy without looking at a tile: always the largest class; where `balanced`, a guess.
        groups: of the judged test tiles; None: unknown.
    """

    accuracy: float
    interval: tuple[float, float]
    val_accuracy: float
    ahead: float
    ahead_interval: tuple[float, float]
    training_tiles: int
    balanced: bool
    no_skill: float
    groups: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ColourFloor | None:
        """Inverse of `to_dict`; None for what another version wrote."""
        if values.keys() != {f.name for f in fields(cls)}:
            return None
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)

    def remark(self) -> str | None:
        """A sentence where the network is not surely better than colour alone; None where it is."""
        judgement = against_colour(self.to_dict())
        if not judgement:
            return None
        low, high = self.ahead_interval
        interval = "" if self.groups == 1 else f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
        return (
            f"colour floor: trees that see only the colours of the tiles reach {percent(self.accuracy)} on test"
            f"{' (balanced accuracy)' if self.balanced else ''}, and the network is {100 * self.ahead:+.1f} points "
            f"from that{interval}; {judgement}"
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
    balanced: bool = False,
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
        balanced: see `ColourFloor`.
        report: told of each step.
    """
    fitted, tried = (_subset(tiles.labels, MOST_TILES, seed) for tiles in (train, val))
    colours = colours_of(train, crop, fitted, report)
    trees = fit_trees(colours, train.labels[fitted], seed, balanced=balanced)
    labels = test.labels[judged]
    hits = (trees(colours_of(test, crop, np.flatnonzero(judged), report)) == labels).astype(np.float64)
    val_labels = val.labels[tried]
    val_hits = trees(colours_of(val, crop, tried, report)) == val_labels
    ahead = right.astype(np.float64) - hits

    def mean(values: npt.NDArray[np.generic], of: npt.NDArray[np.int64]) -> float:
        return class_mean(values, of) if balanced else float(values.mean())

    by_class = labels if balanced else None
    support = np.bincount(labels)
    return ColourFloor(
        accuracy=mean(hits, labels),
        interval=mean_interval(hits, seed, groups, labels=by_class),
        val_accuracy=mean(val_hits, val_labels),
        ahead=mean(ahead, labels),
        ahead_interval=mean_interval(ahead, seed, groups, labels=by_class, limits=(-1.0, 1.0)),
        training_tiles=len(fitted),
        balanced=balanced,
        no_skill=1 / np.count_nonzero(support) if balanced else majority_share(support.tolist()),
        groups=None if groups is None else len(np.unique(groups)),
    )


def _subset(labels: npt.NDArray[np.int64], most: int, seed: int) -> npt.NDArray[np.int64]:
    """Up to `most` indices, in order, drawn so that each class keeps its share, and none is lost."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))  # from 0 to 1 within the class
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = np.arange(len(own)) / len(own)
    return np.sort(np.argsort(place, kind="stable")[:most])


def fit_trees(
    colours: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int = 0, *, balanced: bool = False
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """scikit-learn's extremely randomised trees (Geurts et al. 2006), as a function from colours to labels.

    Args:
        colours, labels: of the training tiles.
        seed: of the trees.
        balanced: each class weighs the same.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    weights = "balanced" if balanced else None
    forest = ExtraTreesClassifier(TREES, random_state=seed % 2**32, class_weight=weights, n_jobs=len(allowed_cpus()))
    forest.fit(colours, labels)
    forest.set_params(n_jobs=1)  # threads would add the trees' answers in any order, which can change the last bit
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
