"""Whether one network is better than another one, from several seeds on the same test tiles, and how sure that is.

A study has two sources of chance: the seed of a training, and which slides (or tiles) the test happens to have. All
seeds are judged on the same tiles, so that more seeds do not make the second one smaller, and an interval over seeds
alone is too narrow. The accuracies of two networks in pairs of the same seed and the same tiles are a table of seeds ×
groups with a random effect of each, as of readers × cases in radiology (Obuchowski and Rockette 1995, Communications in
Statistics 24(2):285-308).

**Model.** d[s, g] = δ + seed[s] + group[g] + rest[s, g], all normal; δ is the difference over all trainings and all
slides of which these are samples. The posterior is that of Box and Tiao (Bayesian Inference in Statistical Analysis,
1973, sections 5.2 and 6.2) with their reference prior: the expected mean squares have scaled inverse χ² distributions,
and δ is normal given them. Draws with a negative part count it as 0, where Box and Tiao leave them out. The model is
similar to the correlated t-test of Benavoli et al. (JMLR 18(77), 2017), of which the region of practical equivalence
and the level are taken. The correlated t-test itself needs a correlation between repetitions that has to be assumed (it
is known for cross-validation alone); here it is estimated, because the tiles of each seed are known one by one.

**Verdicts.** With the margin m, the smallest difference that matters: *better* where P(δ > m) is high, *worse* where
P(δ < -m) is, *equal within the margin* where P(-m ≤ δ ≤ m) ≥ 0.95, else *not decided*. Better and worse are claims that
somebody acts on, and a study looks at many pairs, so that they need 1 - 0.05 / pairs (Bonferroni), as in
`statistics.compare`. `benchmarks/study_verdicts.py` measures how often they are wrong.

**The rule.** Ship the smallest pool unless a larger one is better by more than the margin (`recommend`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from histo_export.spec import percent
from histo_export.statistics import LEVEL, POWER, RESAMPLES
from histo_export.study.design import Arm

Floats = npt.NDArray[np.float64]
Word = Literal["better", "worse", "equal within the margin", "not decided"]

DRAWS = 20_000
"""Of the posterior, from a fixed seed, so that they are the same each time. A probability of 0.01 is known within
0.0014 (two standard errors)."""
MOST_SEEDS = 100
"""More are no advice."""


@dataclass(frozen=True)
class Squares:
    """The mean squares of a table of seeds × groups of differences, with its numbers of rows and columns.

    Attributes:
        mean: of the table.
        seed, group, rest: mean squares, on `seeds - 1`, `groups - 1` and their product of degrees of freedom.
        tiles: in all groups.
    """

    mean: float
    seed: float
    group: float
    rest: float
    seeds: int
    groups: int
    tiles: int

    def variance(self, seeds: int | None = None, more: float = 1.0) -> float:
        """Of the mean, estimated for so many seeds (default: these) and `more` times as many groups."""
        s, g = self.seeds if seeds is None else seeds, self.groups * more
        by_seed = max(self.seed - self.rest, 0.0) / self.groups
        by_group = max(self.group - self.rest, 0.0) / self.seeds
        return max(by_seed / s + by_group / g + self.rest / (s * g), self.floor / more**2)

    @property
    def floor(self) -> float:
        """Least variance: that of one tile. Networks that agree on all tiles may differ on the next one."""
        return 1 / self.tiles**2


def squares(right: Floats, baseline: Floats, groups: npt.NDArray[np.int64]) -> Squares:
    """The mean squares of the differences of two networks.

    Args:
        right, baseline: `(seeds, tiles)`, 1 where a network is right, else 0; two seeds or more.
        groups: `(tiles,)`, from 0, of each tile; two groups or more.
    """
    sums, sizes = _by_group(right - baseline, groups)
    seeds, count = sums.shape
    mean = float(sums.sum() / (seeds * sizes.sum()))
    # Accuracy is a ratio, because groups differ in size: linearised (Cochran 1977, Sampling Techniques, section 6.4).
    table = (sums - mean * sizes) * count / sizes.sum() + mean
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    rest = table - rows - columns + table.mean()
    return Squares(
        mean,
        float(count * ((rows - table.mean()) ** 2).sum() / (seeds - 1)),
        float(seeds * ((columns - table.mean()) ** 2).sum() / (count - 1)),
        float((rest**2).sum() / ((seeds - 1) * (count - 1))),
        seeds,
        count,
        int(sizes.sum()),
    )


def _by_group(values: Floats, groups: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The sums over each group, `(seeds, groups)`, and the numbers of tiles, `(groups,)`."""
    sizes = np.bincount(groups).astype(np.float64)
    return np.stack([np.bincount(groups, row, len(sizes)) for row in values]), sizes


@cache
def _standard_draws(seeds: int, groups: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Degrees of freedom over χ² of the three mean squares, and normal deviates; the same in each call."""
    from scipy import stats

    random = np.random.default_rng([seeds, groups])
    freedoms = (seeds - 1, groups - 1, (seeds - 1) * (groups - 1))
    by_seed, by_group, rest = (f / stats.chi2(f).rvs(DRAWS, random_state=random) for f in freedoms)
    return by_seed, by_group, rest, stats.norm.rvs(size=DRAWS, random_state=random)


def posterior(table: Squares) -> Floats:
    """`DRAWS` draws of δ, the difference over all trainings and slides."""
    by_seed, by_group, rest, normal = _standard_draws(table.seeds, table.groups)
    rest = rest * table.rest
    parts = np.maximum(by_seed * table.seed - rest, 0) + np.maximum(by_group * table.group - rest, 0) + rest
    variance = np.maximum(parts / (table.seeds * table.groups), table.floor)
    return np.asarray(table.mean + np.sqrt(variance) * normal)


@dataclass(frozen=True)
class Comparison:
    """What is known of a pair. All differences are fractions of tiles: `arm` minus `baseline`.

    Attributes:
        arm, baseline: the pair; `arm` has the larger pool, or the recipe that is named later.
        seeds: that both have.
        by_seed: the difference of each.
        difference: mean over the seeds.
        interval: 95 % of the posterior.
        bootstrap: 95 % percentile interval over resamples of seeds and groups.
        worse, equal, better: probabilities of the three regions.
        needed: of `better` or `worse` for a verdict.
        verdict: see the module.
        visible: the smallest difference that these seeds and tiles would have found to be better than the margin with a
            probability of about `POWER`: the spread is an estimate from few seeds.
        more_seeds: seeds at which the question of the rule would be decided if this difference is the true one; None
            where no number does it, or where it is decided.
        more_tiles: how many times as many test tiles (of as many more groups) would decide it with these seeds; None
            likewise.
    """

    arm: Arm
    baseline: Arm
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    difference: float
    interval: tuple[float, float]
    bootstrap: tuple[float, float]
    worse: float
    equal: float
    better: float
    needed: float
    verdict: Word
    visible: float
    more_seeds: int | None = None
    more_tiles: float | None = None


def compare(
    arm: Arm,
    baseline: Arm,
    right: Mapping[Arm, Mapping[int, npt.NDArray[np.bool_]]],
    groups: npt.NDArray[np.int64],
    *,
    margin: float,
    comparisons: int = 1,
    brief: bool = False,
) -> Comparison | None:
    """Compares two arms on the seeds that both have; None where these are fewer than two.

    Args:
        arm, baseline: see `Comparison`.
        right: arm → seed → `(tiles,)`, whether the network is right.
        groups: `(tiles,)`, from 0; where no groups are known, each tile is its own.
        margin: fraction of tiles, above 0.
        comparisons: how many verdicts are read together.
        brief: only the posterior: `bootstrap` is the same interval, and `more_seeds`, `more_tiles` are None.
    """
    seeds = tuple(sorted(right.get(arm, {}).keys() & right.get(baseline, {}).keys()))
    if len(seeds) < 2:
        return None
    ours, theirs = (np.stack([right[each][seed] for seed in seeds]).astype(np.float64) for each in (arm, baseline))
    table = squares(ours, theirs, groups)
    draws = posterior(table)
    worse, better = float((draws < -margin).mean()), float((draws > margin).mean())
    equal = 1 - worse - better
    needed = 1 - (1 - LEVEL) / comparisons
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    reach = np.quantile(draws - table.mean, (needed, POWER)).sum()
    interval = (float(low), float(high))
    found = Comparison(
        arm=arm,
        baseline=baseline,
        seeds=seeds,
        by_seed=tuple(float(value) for value in (ours - theirs).mean(1)),
        difference=table.mean,
        interval=interval,
        bootstrap=interval if brief else two_way_bootstrap(ours - theirs, groups),
        worse=worse,
        equal=equal,
        better=better,
        needed=needed,
        verdict=_word(worse, equal, better, needed),
        visible=float(margin + reach),
    )
    if brief or found.verdict == "better" or better <= 1 - needed:
        return found
    seeds_then, tiles_then = _more(table, margin, needed)
    return replace(found, more_seeds=seeds_then, more_tiles=tiles_then)


def _word(worse: float, equal: float, better: float, needed: float) -> Word:
    if better >= needed:
        return "better"
    if worse >= needed:
        return "worse"
    return "equal within the margin" if equal >= LEVEL else "not decided"


def _more(table: Squares, margin: float, needed: float) -> tuple[int | None, float | None]:
    """Seeds, or times as many tiles, that would tell whether δ is above the margin if it is as found."""
    from scipy import stats

    distance = abs(table.mean - margin)

    def first(values: Floats, variances: Sequence[float], freedoms: Floats) -> float | None:
        enough = distance >= stats.t(freedoms).ppf(needed) * np.sqrt(variances)
        return float(values[enough][0]) if enough.any() else None

    seeds = np.arange(table.seeds + 1.0, MOST_SEEDS + 1)
    factors = 1.25 ** np.arange(1.0, 32)
    at = first(seeds, [table.variance(int(s)) for s in seeds], seeds - 1)
    tiles = first(factors, [table.variance(more=f) for f in factors], np.full(len(factors), table.seeds - 1.0))
    return None if at is None else int(at), tiles


def two_way_bootstrap(differences: Floats, groups: npt.NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over resamples of seeds and of groups, each drawn by itself.

    It is the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1(2):386-411), which is too wide rather than
    too narrow for many seeds, and too narrow for two or three, of which resamples repeat one.

    Args:
        differences: `(seeds, tiles)`.
        groups: `(tiles,)`, from 0.
        seed: of the draws.
    """
    sums, sizes = _by_group(differences, groups)
    seeds, count = sums.shape
    # Groups that are alike (tiles, mostly) are drawn together: how many of them are drawn is a multinomial draw.
    alike, counts = np.unique(np.vstack([sums, sizes]), axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    of_groups = random.multinomial(count, counts / count, RESAMPLES)
    means = ((of_seeds @ alike[:-1]) * of_groups).sum(1) / (seeds * (of_groups @ alike[-1]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Recommendation:
    """What to ship.

    Attributes:
        arm: the smallest pool that no larger one is better than by more than the margin.
        sure: least probability that no larger pool, and no recipe that is named later, is better by more than the
            margin: 1 minus the sum of theirs (Bonferroni); None where a pair has fewer than two seeds, or an arm no
            run.
        decided: `sure` is 0.95 or more.
        open: comparisons that keep the question open, the most open one first.
    """

    arm: Arm
    sure: float | None
    decided: bool
    open: tuple[Comparison, ...]


def recommend(
    recipes: Sequence[str],
    pools: Sequence[int],
    comparisons: Mapping[tuple[Arm, Arm], Comparison | None],
    without_runs: Collection[Arm] = (),
) -> Recommendation:
    """Applies the rule.

    The first recipe is the one to ship unless another one is better by more than the margin at the pool that is to be
    shipped with the first one; then it is that one, with the pool that the rule gives for it.

    Args:
        recipes: in the order in which they are named.
        pools: from the smallest.
        comparisons: (arm, baseline) → what is known; None where that is nothing.
        without_runs: arms of which no run is complete: none of them is shipped, and nothing is decided as long as there
            is one. Not all.
    """
    usable = {recipe: [pool for pool in pools if Arm(recipe, pool) not in without_runs] for recipe in recipes}
    first, *others = (recipe for recipe in recipes if usable[recipe])
    chosen = smallest(first, usable[first], comparisons)
    for recipe in others:
        other = comparisons.get((Arm(recipe, chosen.pool), chosen))
        if other is not None and other.verdict == "better":
            chosen = smallest(recipe, usable[recipe], comparisons)
    against = [comparison for (_, baseline), comparison in comparisons.items() if baseline == chosen]
    known = [comparison for comparison in against if comparison is not None]
    sure = None if without_runs or len(known) < len(against) else max(0.0, 1 - sum(each.better for each in known))
    decided = sure is not None and sure >= LEVEL
    doubtful = sorted(known, key=lambda each: -each.better)
    still_open = () if decided else tuple(each for each in doubtful if each.better > (1 - LEVEL) / len(known))
    return Recommendation(chosen, sure, decided, still_open)


MOST_SURE = 0.999


def probability(value: float) -> str:
    """As all outputs show it: never 100 %, which no number of draws and no model can tell."""
    return percent(min(value, MOST_SURE))


def smallest(recipe: str, pools: Sequence[int], comparisons: Mapping[tuple[Arm, Arm], Comparison | None]) -> Arm:
    """The smallest pool of a recipe that no larger one is better than."""
    for place, pool in enumerate(pools):
        larger = (comparisons.get((Arm(recipe, each), Arm(recipe, pool))) for each in pools[place + 1 :])
        if not any(each is not None and each.verdict == "better" for each in larger):
            break
    return Arm(recipe, pool)
