"""How good the probabilities of a classifier are, and the bootstrap intervals of all its figures.

Values come from scikit-learn, which the extras `train` and `report` install. A thousand resamples times a dozen figures
would take scikit-learn minutes, so that the resamples are computed here, all at once: a resample is a row of weights,
how often each tile (or each tile of each group) was drawn. The figures of all rows are then products of matrices, or
cumulative sums along the tiles in the order of their scores. A test compares them with scikit-learn on each resample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from histo_export.statistics import interval_of, resample_weights

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

BINS = 15
"""Of equal width, for the calibration error, as in Guo et al. 2017 (arXiv:1706.04599)."""
RESAMPLES = 1000
MOST_WEIGHTS = 100_000_000
"""Resamples × tiles × classes. Where there are more tiles or classes, fewer are drawn, but `FEW_RESAMPLES`."""
FEW_RESAMPLES = 200
LARGE_WEIGHTS = 270_000_000
"""Where so many take more than this, still fewer are drawn, but `FEWEST_RESAMPLES`: of a million tiles and nine classes
30. The interval of so many tiles is narrow, however roughly it is known."""
FEWEST_RESAMPLES = 20
SPECIFICITY_ROUNDING = 1e-12
"""By which a share of tiles may miss the specificity that is asked for: 1 - 7/100 is below 0.93."""
AT_ONCE = 100_000
"""Weights that are in memory together: as many as a cache holds."""


@dataclass(frozen=True)
class Measure:
    """A figure and its 95 % percentile bootstrap interval; None where it is undefined.

    A class without tiles has no ROC AUC and no average precision. Resamples where a figure is undefined are left out.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class OperatingPoint:
    """The decision between two classes at a chosen specificity.

    Attributes:
        positive: the class that is looked for.
        asked: the specificity that was asked for.
        threshold: a tile is positive where the probability of `positive` is at least this. It is the lowest one whose
            specificity is at least `asked` on these same tiles, so both figures are a little optimistic. None where
            none is high enough, because other tiles have the highest probability, too; nothing is then positive.
        sensitivity: share of the positive tiles that are found; its interval is over resamples with thresholds of their
            own.
        specificity: share of the other tiles that are not taken for positive.
    """

    positive: str
    asked: float
    threshold: float | None
    sensitivity: Measure
    specificity: float


@dataclass(frozen=True)
class Measures:
    """Figures of the probabilities, and intervals of those of the counts.

    Attributes:
        balanced_accuracy, macro_f1: see `AccuracyReport`.
        log_loss: mean cross entropy in nats.
        brier: mean over tiles of the sum over classes of squared differences of probability and truth, from 0 to 2.
        calibration_error: expected calibration error of the top class, with `BINS` bins.
        roc_auc, average_precision: of each class against the rest, in the order of the classes.
        resamples: of the bootstrap.
        operating_point: where a positive class was named.
    """

    balanced_accuracy: Measure
    macro_f1: Measure
    log_loss: Measure
    brier: Measure
    calibration_error: Measure
    roc_auc: tuple[Measure, ...]
    average_precision: tuple[Measure, ...]
    resamples: int
    operating_point: OperatingPoint | None = None


@dataclass(frozen=True)
class Positive:
    """What an `OperatingPoint` is asked for."""

    name: str
    specificity: float = 0.95


def probabilities_of(logits: npt.NDArray[np.floating]) -> Floats:
    """The softmax of logits `(n, classes)`, in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def log_losses(logits: npt.NDArray[np.floating], labels: Labels) -> Floats:
    """-log softmax(logits)[label] of each tile, float64 `(n,)` in nats."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels])


def calibration_bins(probabilities: Floats, labels: Labels) -> tuple[Labels, Floats, Floats]:
    """The bin of each tile by the probability of its top class, that probability, and 1 where it is right, else 0."""
    confidence = probabilities.max(1)
    right = (probabilities.argmax(1) == labels).astype(np.float64)
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1), confidence, right


def calibration_error(probabilities: Floats, labels: Labels) -> float:
    """The expected calibration error: the mean over tiles of their bin's |accuracy - mean confidence|."""
    bins, confidence, right = calibration_bins(probabilities, labels)
    gaps = np.bincount(bins, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(labels))


def resamples_of(weights: int) -> int:
    """How many resamples are drawn, given tiles × classes."""
    fewest = max(FEWEST_RESAMPLES, min(FEW_RESAMPLES, LARGE_WEIGHTS // weights))
    return int(np.clip(MOST_WEIGHTS // weights, fewest, RESAMPLES))


def measures_of(
    classes: Sequence[str],
    logits: npt.NDArray[np.floating],
    labels: Labels,
    *,
    counted: tuple[float, float],
    seed: int = 0,
    groups: npt.NDArray[np.generic] | None = None,
    positive: Positive | None = None,
) -> Measures | None:
    """The figures of logits `(n, classes)` against labels `(n,)`; None where a logit is not finite.

    Args:
        classes: names.
        logits, labels: of the tiles.
        counted: balanced accuracy and macro F1, which are there already.
        seed: of the bootstrap.
        groups: `(n,)`, the slide or patient of each tile; whole groups are drawn. None: tiles are drawn.
        positive: for two classes, see `OperatingPoint`.
    """
    from sklearn.metrics import average_precision_score, mean_squared_error, roc_auc_score

    if not np.isfinite(logits).all():
        return None
    tiles = _Tiles(probabilities_of(logits), labels, log_losses(logits, labels))
    n, k = tiles.probabilities.shape
    resamples = resamples_of(n * k)
    column = None if positive is None else list(classes).index(positive.name)
    drawn = _Resampled(tiles, None if positive is None or column is None else (column, positive.specificity))
    drawn.one_group = groups is not None and len(np.unique(groups)) == 1
    for weights in resample_weights(n, resamples, seed, groups, at_once=AT_ONCE):
        drawn.add(weights)
    truth = tiles.truth
    ranked = [both for both in range(k) if 0 < truth[:, both].sum() < n]
    auc = {c: float(roc_auc_score(truth[:, c], tiles.probabilities[:, c])) for c in ranked}
    precision = {c: float(average_precision_score(truth[:, c], tiles.probabilities[:, c])) for c in ranked}
    return Measures(
        balanced_accuracy=drawn.measure("balanced_accuracy", counted[0]),
        macro_f1=drawn.measure("macro_f1", counted[1]),
        log_loss=drawn.measure("log_loss", float(tiles.losses.mean())),
        brier=drawn.measure("brier", float(mean_squared_error(truth, tiles.probabilities)) * k),
        calibration_error=drawn.measure("calibration_error", calibration_error(tiles.probabilities, labels)),
        roc_auc=tuple(drawn.measure(f"roc_auc {c}", auc.get(c)) for c in range(k)),
        average_precision=tuple(drawn.measure(f"average_precision {c}", precision.get(c)) for c in range(k)),
        resamples=resamples,
        operating_point=None
        if positive is None or column is None
        else _operating_point(positive, column, tiles, drawn),
    )


def _operating_point(positive: Positive, column: int, tiles: _Tiles, drawn: _Resampled) -> OperatingPoint | None:
    from sklearn.metrics import roc_curve

    truth = tiles.truth[:, column]
    if not 0 < truth.sum() < len(truth):
        return None
    false, true, thresholds = roc_curve(truth, tiles.probabilities[:, column], drop_intermediate=False)
    chosen = int(np.flatnonzero(1 - false >= positive.specificity - SPECIFICITY_ROUNDING)[-1])
    return OperatingPoint(
        positive=positive.name,
        asked=positive.specificity,
        threshold=float(thresholds[chosen]) if np.isfinite(thresholds[chosen]) else None,
        sensitivity=drawn.measure("sensitivity", float(true[chosen])),
        specificity=float(1 - false[chosen]),
    )


class _Ranking:
    """The order of the tiles by their scores for a class, from the highest on; equal scores have one threshold."""

    def __init__(self, scores: Floats, truth: Floats) -> None:
        self.order = np.argsort(-scores, kind="stable")
        self.ends = np.append(np.flatnonzero(np.diff(scores[self.order])), len(scores) - 1)
        self.truth = truth[self.order, None]

    def counts(self, drawn: Floats) -> tuple[Floats, Floats]:
        """True and false positives `(thresholds + 1, resamples)`, from the highest threshold on; the first are 0.

        `drawn` is `(n, resamples)`: along its first axis the sums are of whole rows, several times as fast.
        """
        ordered = drawn.take(self.order, axis=0)
        both = np.cumsum(ordered, axis=0)[self.ends]
        ordered *= self.truth
        true = np.cumsum(ordered, axis=0)[self.ends]
        none = np.zeros((1, drawn.shape[1]))
        return np.concatenate([none, true]), np.concatenate([none, both - true])


class _Tiles:
    """What all resamples share: probabilities `(n, classes)`, labels `(n,)`, the cross entropy of each tile `(n,)`."""

    def __init__(self, probabilities: Floats, labels: Labels, losses: Floats) -> None:
        k = probabilities.shape[1]
        self.probabilities, self.losses = probabilities, losses
        self.truth: Floats = np.eye(k)[labels]
        self.predicted: Floats = np.eye(k)[probabilities.argmax(1)]
        self.hits = self.truth * self.predicted
        self.brier: Floats = ((probabilities - self.truth) ** 2).sum(1)
        bins, confidence, right = calibration_bins(probabilities, labels)
        self.gaps = np.eye(BINS)[bins] * (right - confidence)[:, None]
        self.rankings = [_Ranking(probabilities[:, column], self.truth[:, column]) for column in range(k)]


@dataclass
class _Resampled:
    """The figures of resamples, by name; `positive`: column and specificity, for the sensitivity.

    `one_group`: all resamples are the same, so that no interval is known.
    """

    tiles: _Tiles
    positive: tuple[int, float] | None
    values: dict[str, list[Floats]] = field(default_factory=dict)
    one_group: bool = False

    def measure(self, name: str, value: float | None) -> Measure:
        """A figure with the interval of its resamples."""
        unknown = value is None or self.one_group
        return Measure(value, None if unknown else interval_of(np.concatenate(self.values[name])))

    def add(self, weights: Floats) -> None:
        """Computes all figures of some resamples; weights are `(resamples, n)`."""
        with np.errstate(invalid="ignore", divide="ignore"):  # a class that no tile was drawn of gives NaN
            for name, values in self._figures(weights):
                self.values.setdefault(name, []).append(values)

    def _figures(self, weights: Floats) -> Iterator[tuple[str, Floats]]:
        tiles = self.tiles
        total = weights.sum(1)
        yield "log_loss", weights @ tiles.losses / total
        yield "brier", weights @ tiles.brier / total
        yield "calibration_error", np.abs(weights @ tiles.gaps).sum(1) / total
        support, hits, answers = weights @ tiles.truth, weights @ tiles.hits, weights @ tiles.predicted
        yield "balanced_accuracy", np.nanmean(hits / support, axis=1)
        yield "macro_f1", np.nanmean(np.where(support > 0, 2 * hits / (support + answers), np.nan), axis=1)
        drawn = np.ascontiguousarray(weights.T)
        for column, ranking in enumerate(tiles.rankings):
            true, false = ranking.counts(drawn)
            positives, negatives = true[-1], false[-1]
            area = (np.diff(false, axis=0) * (true[1:] + true[:-1])).sum(0) / 2
            yield f"roc_auc {column}", area / (positives * negatives)
            precision = np.where(true[1:] > 0, true[1:] / (true[1:] + false[1:]), 0)
            yield f"average_precision {column}", (np.diff(true, axis=0) * precision).sum(0) / positives
            if self.positive is not None and self.positive[0] == column:
                specific = 1 - false / negatives >= self.positive[1] - SPECIFICITY_ROUNDING
                yield "sensitivity", np.where(specific, true, 0).max(0) / positives
