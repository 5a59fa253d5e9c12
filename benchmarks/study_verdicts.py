"""How often the verdicts of `histo study` are wrong, on simulated studies whose true differences are known.

    python benchmarks/study_verdicts.py                        # the table of docs/study.md
    python benchmarks/study_verdicts.py --studies 200 --luck 2.8

A network is right about a tile where a normal variable is positive: the sum of the arm's own quality, of how hard the
slide and the tile are (for all networks, and for this arm), of the luck of the seed (of all arms, and of this one), and
of a rest. All parts together have the variance 1, so that the accuracy of an arm over all trainings and slides is Φ of
its quality, exactly; the true differences are those of the table. A study begins with three seeds and adds one at a
time until the rule decides, as `histo study` does, so that looking again and again is a part of what is measured.

In the table, "found better" is the share of studies that end with the verdict *better* for any pair whose true
difference is above the margin, and "false better" of those that end with it for any pair whose is not. "false equal"
and "false worse" likewise, where the true difference is not within the margin, or not below its negative. "wrong pool"
is the share in which the rule decides for another pool than the smallest one that none is truly better than by more
than the margin. Pools that are better by exactly the margin are the hardest case for *better*.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histo_export.study.design import Arm
from histo_export.study.verdicts import Comparison, Recommendation, compare, recommend

RECIPE = "strong"
POOLS = (1, 2, 4, 8)
BASE = 0.80
"""True accuracy of the smallest pool."""
PARTS = {"group": 0.25, "tile": 0.35, "arm_group": 0.02, "arm_tile": 0.05, "seed": 0.005}
"""Variances; with that of an arm's seeds, the rest of 1 is of single answers."""


@dataclass(frozen=True)
class Population:
    """What studies are drawn from.

    Attributes:
        differences: true ones of the larger pools from the smallest, as fractions.
        tiles, groups: of the test; as many groups as tiles where each tile is its own.
        luck: standard deviation of an arm's accuracy over seeds, on all slides, near `BASE`.
    """

    differences: tuple[float, ...]
    tiles: int = 500
    groups: int = 500
    luck: float = 0.014

    def accuracies(self) -> npt.NDArray[np.float64]:
        return BASE + np.array([0.0, *self.differences])


@dataclass(frozen=True)
class Ended:
    """A simulated study at its end."""

    seeds: int
    comparisons: dict[tuple[Arm, Arm], Comparison | None]
    recommendation: Recommendation


def draw(population: Population, seeds: int, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Whether each network is right: `(arms, seeds, tiles)`."""
    from scipy.stats import norm

    quality = norm.ppf(population.accuracies())[:, None, None]
    arms, tiles = len(quality), population.tiles
    of_tile = np.arange(tiles) * population.groups // tiles
    parts = PARTS | {"arm_seed": (population.luck / norm.pdf(norm.ppf(BASE))) ** 2}
    scale = {name: np.sqrt(variance) for name, variance in parts.items()}
    total = quality + scale["group"] * random.normal(size=population.groups)[of_tile]
    total = total + scale["tile"] * random.normal(size=tiles)
    total = total + scale["arm_group"] * random.normal(size=(arms, 1, population.groups))[:, :, of_tile]
    total = total + scale["arm_tile"] * random.normal(size=(arms, 1, tiles))
    total = total + scale["seed"] * random.normal(size=(1, seeds, 1))
    total = total + scale["arm_seed"] * random.normal(size=(arms, seeds, 1))
    rest = np.sqrt(1 - sum(parts.values()))
    return np.asarray(total + rest * random.normal(size=(arms, seeds, tiles)) > 0)


def study(population: Population, margin: float, most: int, random: np.random.Generator) -> Ended:
    """One study, from three seeds to as many as the rule takes."""
    arms = [Arm(RECIPE, pool) for pool in POOLS[: 1 + len(population.differences)]]
    right = draw(population, most, random)
    groups = np.arange(population.tiles) * population.groups // population.tiles
    pairs = [(b, a) for place, a in enumerate(arms) for b in arms[place + 1 :]]
    for seeds in range(3, most + 1):
        by_arm = {arm: dict(enumerate(right[place, :seeds])) for place, arm in enumerate(arms)}
        comparisons = {
            (a, b): compare(a, b, by_arm, groups, margin=margin, comparisons=len(pairs), brief=True) for a, b in pairs
        }
        recommendation = recommend([RECIPE], [arm.pool for arm in arms], comparisons)
        if recommendation.decided:
            break
    return Ended(seeds, comparisons, recommendation)


def wrong(ended: Ended, population: Population, margin: float) -> dict[str, bool]:
    """What is wrong in a study; `decided` is not an error."""
    truth = dict(zip(POOLS, population.accuracies(), strict=False))
    tiny = 1e-9  # a difference of exactly the margin counts as within it
    errors = dict.fromkeys(("found better", "false better", "false equal", "false worse"), False)
    for (arm, baseline), found in ended.comparisons.items():
        assert found is not None
        true = truth[arm.pool] - truth[baseline.pool]
        errors["found better"] |= found.verdict == "better" and true > margin + tiny
        errors["false better"] |= found.verdict == "better" and true <= margin + tiny
        errors["false equal"] |= found.verdict == "equal within the margin" and abs(true) > margin + tiny
        errors["false worse"] |= found.verdict == "worse" and true >= -margin - tiny
    shipped = ended.recommendation.arm.pool
    good = (pool for pool in truth if all(truth[q] - truth[pool] <= margin + tiny for q in truth if q > pool))
    errors["wrong pool"] = ended.recommendation.decided and shipped != next(good)
    errors["decided"] = ended.recommendation.decided
    return errors


def rates(population: Population, margin: float, studies: int, most: int = 10, seed: int = 0) -> dict[str, float]:
    """The share of studies with each error, the share that decided, and the mean number of seeds."""
    rows, seeds = [], []
    for number in range(studies):
        ended = study(population, margin, most, np.random.default_rng([seed, number]))
        rows.append(wrong(ended, population, margin))
        seeds.append(ended.seeds)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"seeds": float(np.mean(seeds))}


CASES: dict[str, tuple[float, ...]] = {
    "all equal": (0.0, 0.0, 0.0),
    "larger pools 1 point better, the margin": (0.01, 0.01, 0.01),
    "larger pools 4 points better": (0.04, 0.04, 0.04),
    "each pool 2 points worse": (-0.02, -0.04, -0.06),
}


def table(studies: int, margin: float, tests: Sequence[tuple[int, int]], luck: float) -> Iterator[str]:
    """Markdown, line by line."""
    names = ("decided", "seeds", "found better", "false better", "false equal", "false worse", "wrong pool")
    yield f"| true differences | test | {' | '.join(names)} |"
    yield "|---|---|" + "---|" * len(names)
    for case, differences in CASES.items():
        for tiles, groups in tests:
            found = rates(Population(differences, tiles, groups, luck), margin, studies)
            cells = [f"{found[name]:.1f}" if name == "seeds" else f"{100 * found[name]:.1f} %" for name in names]
            test = f"{tiles:,} tiles" if tiles == groups else f"{tiles:,} tiles of {groups} slides"
            yield f"| {case} | {test} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400, help="of each row")
    parser.add_argument("--margin", type=float, default=1.0, help="points")
    parser.add_argument("--tests", default="500:500,5000:5000,5000:100", help="tiles:groups of the test, a row each")
    parser.add_argument("--luck", type=float, default=1.4, help="points of accuracy, see `Population`")
    args = parser.parse_args()
    tests = [(int(tiles), int(groups)) for tiles, groups in (text.split(":") for text in args.tests.split(","))]
    for line in table(args.studies, args.margin / 100, tests, args.luck / 100):
        print(line, flush=True)


if __name__ == "__main__":
    main()
