"""The statistics keep what they promise, on noise of which the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from histo_export.statistics import MIN_ROUNDS, compare, compare_unpaired, summarise

Noise = Callable[[np.random.Generator, int], np.ndarray]

NOISE: dict[str, Noise] = {
    "normal": lambda rng, n: rng.normal(0, 0.01, n),
    "a tenth of the rounds hit": lambda rng, n: (
        rng.normal(0, 0.01, n) + (rng.random(n) < 0.1) * rng.exponential(0.3, n)
    ),
    "heavy tails": lambda rng, n: rng.standard_t(2, n) * 0.005,
}


def pair(rng: np.random.Generator, rounds: int, noise: Noise, slower: float) -> tuple[list[float], list[float]]:
    """Seconds of two rows, by round: one drifting machine, noise of each row's own, and a true ratio."""
    drift = np.cumsum(rng.normal(0, 0.03, rounds))
    a = np.exp(drift + noise(rng, rounds)) * (1 + slower)
    b = np.exp(drift + noise(rng, rounds))
    return a.tolist(), b.tolist()


@pytest.mark.parametrize("rounds", [MIN_ROUNDS, 10, 15, 30])
@pytest.mark.parametrize("noise", NOISE)
def test_the_interval_covers_the_truth(noise: str, rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    trials, covered = 300, 0
    for _ in range(trials):
        ratio = compare(*pair(rng, rounds, NOISE[noise], 0.03))
        covered += ratio.low <= 1.03 <= ratio.high
    # At a coverage of 95 % fewer than 274 of 300 come up once in a thousand times.
    assert covered >= 274


def test_the_interval_is_as_narrow_as_possible() -> None:
    """With two rows of 1 % noise each and 30 rounds, the ratio's standard error is 0.26 %."""
    rng = np.random.default_rng(0)
    widths = [np.log(r.high / r.low) for r in (compare(*pair(rng, 30, NOISE["normal"], 0)) for _ in range(50))]
    ideal = 2 * 1.96 * 0.0026
    assert ideal < np.median(widths) < 1.25 * ideal


@pytest.mark.parametrize("noise", NOISE)
def test_three_per_cent_are_found_and_nothing_is_not(noise: str) -> None:
    rng = np.random.default_rng(1)
    trials = 200
    found = sum(compare(*pair(rng, 30, NOISE[noise], 0.03)).verdict == "different" for _ in range(trials))
    imagined = sum(compare(*pair(rng, 30, NOISE[noise], 0.0)).verdict == "different" for _ in range(trials))
    assert found >= 0.9 * trials
    assert imagined <= 20  # 10 are expected at 95 %; more than 20 come up once in five hundred times


def test_many_comparisons_find_nothing_together() -> None:
    """Of 20 runs with 100 verdicts on nothing each, hardly one run has a "different"."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(20):
        ratios = (compare(*pair(rng, 15, NOISE["normal"], 0), comparisons=100) for _ in range(100))
        wrong += any(ratio.verdict == "different" for ratio in ratios)
    assert wrong <= 4


def test_what_is_called_visible_is_seen_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    visible = float(np.median([compare(*pair(rng, 20, NOISE["normal"], 0)).visible for _ in range(100)]))
    trials = 300
    found = sum(compare(*pair(rng, 20, NOISE["normal"], visible)).verdict == "different" for _ in range(trials))
    assert 0.7 < found / trials < 0.95


def test_drift_is_only_cancelled_where_rounds_are_shared() -> None:
    rng = np.random.default_rng(4)
    a, b = pair(rng, 20, NOISE["normal"], 0.0)
    paired, unpaired = compare(a, b), compare_unpaired(a, b)
    assert np.log(unpaired.high / unpaired.low) > 3 * np.log(paired.high / paired.low)


def test_a_ratio_is_the_other_way_round_when_the_rows_are() -> None:
    a, b = pair(np.random.default_rng(5), 15, NOISE["normal"], 0.1)
    forth, back = compare(a, b), compare(b, a)
    assert forth.ratio == pytest.approx(1 / back.ratio)
    assert forth.low == pytest.approx(1 / back.high)


def test_too_few_or_unpaired_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 7"):
        compare([1.0] * 6, [1.0] * 6)
    with pytest.raises(ValueError, match="in pairs"):
        compare([1.0] * 8, [1.0] * 9)
    with pytest.raises(ValueError, match="at least 7"):
        compare_unpaired([1.0] * 20, [1.0] * 6)


def test_summary_of_known_calls() -> None:
    rounds = [[float(i) for i in range(1, 102)]] * 8
    summary = summarise(rounds)
    assert (summary.median, summary.p90, summary.p99) == (51, 91, 100)
    assert summary.mad == 25
    assert (summary.calls, summary.rounds) == (808, 8)
    assert summary.low == summary.high == 51  # every round agrees


def test_calls_of_one_round_are_one_piece_of_evidence() -> None:
    """A thousand calls in each of ten rounds that disagree leave the median as uncertain as ten calls would."""
    rng = np.random.default_rng(6)
    moods = rng.normal(0, 0.05, 10)
    summary = summarise([np.exp(mood + rng.normal(0, 0.001, 1000)).tolist() for mood in moods])
    assert np.log(summary.high / summary.low) > 0.04
