"""Statistics: the summary of a row of timings, whether two rows differ, and the interval of an accuracy.

Two rows are compared by the times of the same rounds. A round runs every row once, in shuffled order, so whatever slows
the machine for a while slows both rows and leaves their ratio within the round unchanged. The independent observation
is therefore the round and not the call: calls of one round are correlated, and counting them as independent would make
every interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
POWER = 0.8
"""The probability of finding a difference of the size that is called visible."""

MIN_ROUNDS = 7
"""With fewer rounds, two of them trimmed, the t quantile is so large that only differences above 30 % are found."""
RESAMPLES = 2000
TRIM = 0.2
"""Share of the rounds left out at each end, because one round that another process disturbed tells nothing."""

FEW_GROUPS = 10
"""Groups (slides or patients) below which an interval by group says little."""

Verdict = Literal["different", "not distinguishable"]


@dataclass(frozen=True)
class Summary:
    """Times of one row, in seconds.

    Attributes:
        median, p90, p99: of single calls.
        mad: median absolute deviation of single calls from their median (not scaled).
        low, high: 95 % interval of the median, by bootstrap over rounds.
        calls, rounds: numbers of timed calls and of rounds.
    """

    median: float
    p90: float
    p99: float
    mad: float
    low: float
    high: float
    calls: int
    rounds: int


@dataclass(frozen=True)
class Ratio:
    """How many times as long `a` takes as `b`.

    Attributes:
        ratio: of their times, estimated from their rounds.
        low, high: 95 % interval of the ratio.
        verdict: "different" where 1 lies outside the interval at the level of the verdict (`compare`).
        visible: the smallest relative difference that these rounds would have found with a probability of `POWER`.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict
    visible: float


def summarise(rounds: Sequence[Sequence[float]], seed: int = 0) -> Summary:
    """The summary of a row.

    Args:
        rounds: seconds of each call, by round.
        seed: of the bootstrap.
    """
    calls = np.concatenate([np.asarray(calls, np.float64) for calls in rounds])
    median, p90, p99 = np.quantile(calls, (0.5, 0.9, 0.99))
    medians = np.log(round_medians(rounds))
    half = _quantile_t(1 - (1 - LEVEL) / 2, len(medians)) * _standard_error(medians, seed)
    return Summary(
        median=float(median),
        p90=float(p90),
        p99=float(p99),
        mad=float(np.median(np.abs(calls - median))),
        low=float(median * math.exp(-half)),
        high=float(median * math.exp(half)),
        calls=len(calls),
        rounds=len(rounds),
    )


def round_medians(rounds: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Seconds `(rounds,)` of the median call of each round."""
    return np.array([np.median(calls) for calls in rounds], np.float64)


def compare(a: Sequence[float], b: Sequence[float], *, comparisons: int = 1, seed: int = 0) -> Ratio:
    """Compares two rows by their seconds in the same rounds.

    The estimate is the trimmed mean of the logarithms of the rounds' ratios; its standard error comes from a bootstrap
    over rounds, and the interval is a t interval on it. A percentile bootstrap would be too narrow for
    ten rounds (Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015).

    Args:
        a, b: seconds, one for each round, at least `MIN_ROUNDS`.
        comparisons: how many verdicts are read together. The verdict is taken at 95 % for all of them at once
            (Bonferroni), so that a table of many pairs does not find differences by chance; the interval is that of
            the single ratio.
        seed: of the bootstrap.

    Raises:
        ValueError: too few rounds, or unequal numbers of them.
    """
    if len(a) != len(b) or len(a) < MIN_ROUNDS:
        raise ValueError(f"{len(a)} and {len(b)} rounds; at least {MIN_ROUNDS} of each are needed, in pairs")
    logs = np.log(np.asarray(a, np.float64) / np.asarray(b, np.float64))
    return _judge(float(_trimmed_mean(logs)), _standard_error(logs, seed), len(logs), comparisons)


def compare_unpaired(a: Sequence[float], b: Sequence[float], *, comparisons: int = 1, seed: int = 0) -> Ratio:
    """As `compare`, for rows of two runs, whose rounds are not paired."""
    if min(len(a), len(b)) < MIN_ROUNDS:
        raise ValueError(f"{len(a)} and {len(b)} rounds; at least {MIN_ROUNDS} of each are needed")
    logs = [np.log(np.asarray(values, np.float64)) for values in (a, b)]
    error = math.hypot(*(_standard_error(values, seed) for values in logs))
    return _judge(float(_trimmed_mean(logs[0]) - _trimmed_mean(logs[1])), error, min(len(a), len(b)), comparisons)


def _judge(estimate: float, error: float, rounds: int, comparisons: int) -> Ratio:
    half = _quantile_t(1 - (1 - LEVEL) / 2, rounds) * error
    needed = _quantile_t(1 - (1 - LEVEL) / (2 * comparisons), rounds) * error
    return Ratio(
        ratio=math.exp(estimate),
        low=math.exp(estimate - half),
        high=math.exp(estimate + half),
        verdict="different" if abs(estimate) > needed else "not distinguishable",
        visible=math.expm1(needed + _quantile_t(POWER, rounds) * error),
    )


def _trimmed_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Along the last axis."""
    count = values.shape[-1]
    cut = int(TRIM * count)
    return np.asarray(np.sort(values)[..., cut : count - cut].mean(axis=-1))


def _standard_error(values: npt.NDArray[np.float64], seed: int) -> float:
    """Of the trimmed mean, by bootstrap; a resample of n has the variance of n - 1, which the factor undoes."""
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    means = _trimmed_mean(values[picks])
    return float(np.std(means) * math.sqrt(len(values) / (len(values) - 1)))


def _quantile_t(probability: float, rounds: int) -> float:
    """Student's t with the degrees of freedom that a trimmed mean of `rounds` values has (Tukey & McLaughlin, 1963).

    Cornish-Fisher expansion about the normal quantile (Abramowitz & Stegun 26.7.5), within 1 % from 4 degrees on.
    """
    freedom = rounds - 2 * int(TRIM * rounds) - 1
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


# Accuracies.


def bootstrap_interval(correct: int, tiles: int, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap interval of an accuracy (Efron and Tibshirani 1993, chapter 13).

    Drawing `tiles` tiles with replacement and counting the correct ones is a binomial draw, so no tile moves.
    """
    resampled = np.random.default_rng(seed).binomial(tiles, correct / tiles, resamples) / tiles
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def paired_difference_interval(only_first: int, only_second: int, tiles: int) -> tuple[float, float]:
    """95 % interval of the accuracy of one network minus that of another one on the same tiles, as fractions.

    Half a tile is added to each of the four cells of the table (Agresti and Min, Statistics in Medicine 24, 2005), so
    that two networks that agree on few tiles do not look surely equal, as they would by a bootstrap.

    Args:
        only_first, only_second: tiles that only this one has right.
        tiles: all.
    """
    first, second, n = only_first + 0.5, only_second + 0.5, tiles + 2
    difference = (first - second) / n
    half = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2) * math.sqrt((first + second) / n - difference**2) / math.sqrt(n)
    return max(-1.0, difference - half), min(1.0, difference + half)


def resample_weights(
    tiles: int,
    resamples: int,
    seed: int = 0,
    groups: npt.NDArray[np.generic] | None = None,
    *,
    at_once: int = 4_000_000,
) -> Iterator[npt.NDArray[np.float64]]:
    """Bootstrap resamples, as how often each tile is drawn: float64 `(some, tiles)`, in parts of one sequence.

    Args:
        tiles: how many there are.
        resamples: how many rows all parts have together.
        seed: of the draws.
        groups: `(tiles,)`; tiles of one group are drawn together, as many groups as there are (Davison and Hinkley
            1997, section 3.8). None: each tile for itself.
        at_once: weights of one part, at most.
    """
    random = np.random.default_rng(seed)
    of_tile = np.arange(tiles) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    units = int(of_tile.max()) + 1
    part = max(1, at_once // tiles)
    for start in range(0, resamples, part):
        rows = min(part, resamples - start)
        picks = random.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units)[:, of_tile].astype(np.float64)


def interval_of(resampled: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % percentile interval of the resamples in which a figure is defined (not NaN); None where there are none."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(
    values: npt.NDArray[np.float64],
    seed: int = 0,
    groups: npt.NDArray[np.generic] | None = None,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of a value of each tile, such as 1 where it is right.

    Args:
        values: `(tiles,)`.
        seed: of the draws.
        groups: see `resample_weights`. Of one group no interval is known, so that it is `limits`.
        labels: int64 `(tiles,)`; the interval is then that of the mean over classes of the mean of their tiles.
        limits: least and largest possible mean.
    """
    classes = np.zeros(len(values), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    k = int(classes.max()) + 1
    if groups is None:  # tiles of one value and class are alike: how many of them are drawn is a multinomial draw
        distinct, which = np.unique(values, return_inverse=True)
        counts = np.bincount(which * k + classes, minlength=len(distinct) * k)
        drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), RESAMPLES)
        by_value = drawn.reshape(RESAMPLES, len(distinct), k)
        sums, tiles = np.einsum("rvk,v->rk", by_value, distinct), by_value.sum(1)
    else:
        names, of_tile = np.unique(groups, return_inverse=True)
        if len(names) == 1:
            return limits
        cell = of_tile.reshape(-1) * k + classes
        of_group = [np.bincount(cell, part, len(names) * k).reshape(-1, k) for part in (values, None)]
        parts = [[weights @ part for part in of_group] for weights in resample_weights(len(names), RESAMPLES, seed)]
        sums, tiles = map(np.concatenate, zip(*parts, strict=True))
    with np.errstate(invalid="ignore"):  # a class that no tile was drawn of
        low, high = np.percentile(np.nanmean(sums / tiles, axis=1), [2.5, 97.5])
    return float(low), float(high)
