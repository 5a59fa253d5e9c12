"""Verdicts of pairs, the rule, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import study_verdicts

from histo_export.study.design import Arm
from histo_export.study.verdicts import (
    Comparison,
    Squares,
    compare,
    posterior,
    probability,
    recommend,
    squares,
    two_way_bootstrap,
)

SMALL, LARGE, LARGEST = (Arm("strong", pool) for pool in (1, 2, 4))


def answers(accuracy: float, seeds: int, tiles: int, random: np.random.Generator) -> dict[int, np.ndarray]:
    return {seed: random.random(tiles) < accuracy for seed in range(seeds)}


def test_mean_squares_are_those_of_an_analysis_of_variance() -> None:
    random = np.random.default_rng(0)
    right, baseline = (random.integers(0, 2, (4, 12)).astype(np.float64) for _ in range(2))
    found = squares(right, baseline, np.arange(12))
    table = right - baseline
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    assert found.mean == pytest.approx(table.mean())
    assert found.seed == pytest.approx(12 * rows.var(ddof=1))
    assert found.group == pytest.approx(4 * columns.var(ddof=1))
    total = ((table - table.mean()) ** 2).sum()
    assert 3 * found.seed + 11 * found.group + 33 * found.rest == pytest.approx(total)


def test_groups_of_different_sizes_leave_the_difference_of_accuracy() -> None:
    random = np.random.default_rng(0)
    right, baseline = (random.integers(0, 2, (3, 20)).astype(np.float64) for _ in range(2))
    groups = np.array([0] * 12 + [1] * 5 + [2] * 3)
    assert squares(right, baseline, groups).mean == pytest.approx((right - baseline).mean())


def test_more_seeds_do_not_make_up_for_few_tiles() -> None:
    """The tiles are the same for all seeds, so that an interval over seeds alone would shrink to nothing."""
    tiles = np.random.default_rng(0).integers(0, 2, 40).astype(bool)
    widths = []
    for seeds in (3, 30):
        right = {LARGE: dict.fromkeys(range(seeds), tiles), SMALL: dict.fromkeys(range(seeds), np.ones(40, bool))}
        found = compare(LARGE, SMALL, right, np.arange(40), margin=0.01)
        assert found is not None
        widths.append(found.interval[1] - found.interval[0])
    assert widths[1] > 0.25


def test_an_interval_over_groups_is_wider_than_over_tiles() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 30)
    by_group = random.random(10)[groups]
    right = {
        LARGE: {seed: random.random(300) < by_group for seed in range(3)},
        SMALL: {seed: random.random(300) < 0.5 for seed in range(3)},
    }
    by_slide, by_tile = (compare(LARGE, SMALL, right, g, margin=0.01) for g in (groups, np.arange(300)))
    assert by_slide is not None
    assert by_tile is not None
    for interval in ("interval", "bootstrap"):
        wide, narrow = (np.ptp(getattr(each, interval)) for each in (by_slide, by_tile))
        assert wide > 2 * narrow


@pytest.mark.parametrize(
    ("accuracy", "tiles", "verdict"),
    [
        (0.9, 2000, "better"),
        (0.6, 2000, "worse"),
        (0.75, 30_000, "equal within the margin"),
        (0.75, 200, "not decided"),
    ],
)
def test_verdicts(accuracy: float, tiles: int, verdict: str) -> None:
    random = np.random.default_rng(0)
    right = {LARGE: answers(accuracy, 5, tiles, random), SMALL: answers(0.75, 5, tiles, random)}
    found = compare(LARGE, SMALL, right, np.arange(tiles), margin=0.01, comparisons=6)
    assert found is not None
    assert found.verdict == verdict
    assert found.worse + found.equal + found.better == pytest.approx(1)
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.needed == pytest.approx(1 - 0.05 / 6)
    assert found == compare(LARGE, SMALL, right, np.arange(tiles), margin=0.01, comparisons=6), "no other draws"


def test_networks_that_agree_on_all_tiles_are_known_to_one_tile_only() -> None:
    same = {seed: np.ones(50, bool) for seed in range(3)}
    found = compare(LARGE, SMALL, {LARGE: same, SMALL: same}, np.arange(50), margin=0.01)
    assert found is not None
    assert found.verdict == "not decided", "one tile of 50 is two points"
    assert found.interval[1] > 0.02


def test_only_seeds_of_both_count() -> None:
    random = np.random.default_rng(0)
    right = {LARGE: answers(0.8, 4, 100, random), SMALL: answers(0.7, 2, 100, random)}
    found = compare(LARGE, SMALL, right, np.arange(100), margin=0.01)
    assert found is not None
    assert found.seeds == (0, 1)
    del right[SMALL][0]
    assert compare(LARGE, SMALL, right, np.arange(100), margin=0.01) is None


def test_the_smallest_visible_difference_is_found_mostly() -> None:
    """80 %, roughly: each study tells it from its own estimate of the spread, which is above the truth or below."""
    found = []
    for number in range(150):
        random = np.random.default_rng(number)
        right = {LARGE: answers(0.85, 4, 1000, random), SMALL: answers(0.75, 4, 1000, random)}
        pair = compare(LARGE, SMALL, right, np.arange(1000), margin=0.01, brief=True)
        assert pair is not None
        again = np.random.default_rng([1, number])
        right = {LARGE: answers(0.75 + pair.visible, 4, 1000, again), SMALL: answers(0.75, 4, 1000, again)}
        second = compare(LARGE, SMALL, right, np.arange(1000), margin=0.01, brief=True)
        assert second is not None
        found.append(second.verdict == "better")
    assert 0.65 < np.mean(found) < 0.9


def equally_good(tiles: int, seeds: int) -> dict[Arm, dict[int, np.ndarray]]:
    """Two networks that are right about as many tiles in each seed, and differ on 30 %."""
    right: dict[Arm, dict[int, np.ndarray]] = {LARGE: {}, SMALL: {}}
    for seed in range(seeds):
        order = np.random.default_rng([tiles, seed]).permutation(tiles)
        part = 15 * tiles // 100
        for arm, wrong in ((LARGE, order[:part]), (SMALL, order[part : 2 * part])):
            right[arm][seed] = np.ones(tiles, bool)
            right[arm][seed][wrong] = False
    return right


def test_what_is_needed_is_enough_and_not_much_more() -> None:
    def found(tiles: int) -> Comparison:
        pair = compare(LARGE, SMALL, equally_good(tiles, 5), np.arange(tiles), margin=0.01)
        assert pair is not None
        assert pair.difference == 0
        return pair

    few = found(500)
    assert few.better > 0.05
    assert few.more_tiles is not None
    assert few.more_seeds is not None
    assert found(int(1.5 * few.more_tiles * 500)).better <= 0.05
    assert found(int(0.4 * few.more_tiles * 500)).better > 0.05
    many = found(20_000)
    assert (many.more_tiles, many.more_seeds) == (None, None), "it is decided that it is not better"


def test_the_two_way_bootstrap_has_both_sources() -> None:
    random = np.random.default_rng(0)
    by_seed = np.repeat(random.choice([-1.0, 1.0], (8, 1)), 400, axis=1)
    by_tile = np.repeat(random.choice([-1.0, 1.0], (1, 16)), 8, axis=0)
    assert np.ptp(two_way_bootstrap(by_seed, np.arange(400))) > 1
    assert np.ptp(two_way_bootstrap(by_tile, np.arange(16))) > 0.7
    assert np.ptp(two_way_bootstrap(np.ones((3, 50)), np.arange(50))) == 0


def test_the_posterior_is_students_where_only_seeds_differ() -> None:
    """Box and Tiao: with one source of chance, the posterior is a t distribution on seeds - 1."""
    from scipy import stats

    from histo_export.study.verdicts import Squares

    draws = posterior(Squares(0.02, 0.5, 0.0, 0.0, seeds=4, groups=1000, tiles=1000))
    expected = stats.t(3, 0.02, np.sqrt(0.5 / 4000))
    for share in (0.05, 0.5, 0.95):
        assert (draws < expected.ppf(share)).mean() == pytest.approx(share, abs=0.01)


def pair(arm: Arm, baseline: Arm, better: float) -> Comparison:
    word = "better" if better > 0.98 else "not decided"
    rest = 1 - better
    return Comparison(
        *(arm, baseline, (0, 1), (0.0, 0.0), 0.0, (0.0, 0.0), (0.0, 0.0)),
        *(rest / 2, rest / 2, better, 0.98, word, 0.02),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("better", "shipped", "decided"),
    [
        ({(LARGE, SMALL): 0.01, (LARGEST, SMALL): 0.02, (LARGEST, LARGE): 0.5}, SMALL, True),
        ({(LARGE, SMALL): 0.04, (LARGEST, SMALL): 0.04, (LARGEST, LARGE): 0.5}, SMALL, False),
        ({(LARGE, SMALL): 0.99, (LARGEST, SMALL): 0.99, (LARGEST, LARGE): 0.03}, LARGE, True),
        ({(LARGE, SMALL): 0.5, (LARGEST, SMALL): 0.99, (LARGEST, LARGE): 0.3}, LARGE, False),
        ({(LARGE, SMALL): 0.5, (LARGEST, SMALL): 0.99, (LARGEST, LARGE): 0.99}, LARGEST, True),
    ],
)
def test_the_rule_ships_the_smallest_pool_that_none_is_better_than(
    better: dict[tuple[Arm, Arm], float], shipped: Arm, decided: bool
) -> None:
    comparisons = {arms: pair(*arms, probability) for arms, probability in better.items()}
    found = recommend(["strong"], [1, 2, 4], comparisons)
    assert found.arm == shipped
    assert found.decided == decided
    assert bool(found.open) == (not decided)


def test_another_recipe_is_shipped_only_if_it_is_better() -> None:
    other, other_large = Arm("report", 1), Arm("report", 2)
    comparisons: dict[tuple[Arm, Arm], Comparison | None] = {
        (LARGE, SMALL): pair(LARGE, SMALL, 0.01),
        (other_large, other): pair(other_large, other, 0.99),
        (other, SMALL): pair(other, SMALL, 0.6),
    }
    assert recommend(["strong", "report"], [1, 2], comparisons).arm == SMALL
    comparisons[other, SMALL] = pair(other, SMALL, 0.99)
    assert recommend(["strong", "report"], [1, 2], comparisons).arm == other_large
    comparisons[LARGE, SMALL] = None
    found = recommend(["strong"], [1, 2], comparisons)
    assert (found.arm, found.sure, found.decided) == (SMALL, None, False)


def test_better_is_rarely_false_in_simulated_studies() -> None:
    """The hardest case for it: larger pools are better by exactly the margin. The whole table is that of the program.

    30 studies of three pools, looked at after each seed, on 200 tiles; at most 5 % would be 1.5 of them.
    """
    found = study_verdicts.rates(study_verdicts.Population((0.01, 0.01), 200, 200), 0.01, 30, most=5)
    assert found["false better"] <= 0.1
    clear = study_verdicts.rates(study_verdicts.Population((0.15,), 400, 400, luck=0.01), 0.01, 10, most=5)
    assert clear["found better"] >= 0.9
    assert clear["wrong pool"] == 0


def test_advice_is_given_as_long_as_several_pairs_together_keep_the_question_open() -> None:
    """Three pairs of 4 % each leave 12 %, so that none of them is decided for the rule."""
    pair = compare(LARGE, SMALL, equally_good(1000, 5), np.arange(1000), margin=0.014, comparisons=6)
    assert pair is not None
    assert 0.05 / 6 < pair.better < 0.05
    assert pair.more_tiles is not None


def test_the_least_variance_is_that_of_one_of_so_many_tiles() -> None:
    agree = Squares(mean=0.0, seed=0.0, group=0.0, rest=0.0, seeds=3, groups=100, tiles=100)
    assert agree.variance() == pytest.approx(1 / 100**2)
    assert agree.variance(more=4) == pytest.approx(1 / 400**2)


def test_no_probability_is_shown_as_certain() -> None:
    assert [probability(value) for value in (0.5, 0.99, 0.9996, 1.0)] == ["50.0 %", "99.0 %", "99.9 %", "99.9 %"]


def test_an_arm_without_runs_is_not_shipped_and_nothing_is_decided() -> None:
    comparisons = {arms: pair(*arms, 0.0) for arms in ((LARGE, SMALL), (LARGEST, SMALL), (LARGEST, LARGE))}
    found = recommend(["strong"], [1, 2, 4], comparisons, [SMALL])
    assert (found.arm, found.sure, found.decided) == (LARGE, None, False)
