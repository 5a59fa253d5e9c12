"""What a study runs: each recipe with each pool, with the same seeds.

**Pairs.** Of one seed, all pools and recipes share the split, the order of the tiles, what augmentation draws for each
tile (of one recipe), and the first weights of the backbone. The split is that of the data, whatever the seed. The order
is a function of seed and epoch (`training.module.EpochSampler`), augmentation of seed, epoch and tile
(`data.transforms.TorchTiles`). The backbone's weights are drawn before those of the linear layer (`model.net.TileNet`),
so that they do not depend on the pool. What differs is the pool, its linear layer, and dropout's draws, if there are
any, because there are as many as inputs of the linear layer. Precision is fp32 in all runs, because a measured choice
(`--autocast auto`) might be another one in each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from histo_export.errors import UsageError
from histo_export.spec import CHANNELS, ModelSpec
from histo_export.training.recipes import TrainConfig

LEAST_SEEDS = 2


@dataclass(frozen=True, order=True)
class Arm:
    """What is compared: a recipe and a pool."""

    recipe: str
    pool: int

    def __str__(self) -> str:
        return f"{self.recipe}, pool {self.pool}"


@dataclass(frozen=True)
class Design:
    """A study, fixed before anything is run.

    Attributes:
        spec: of the models, but for their pool.
        config: of the runs, but for recipe and seed; `epochs` or `steps` None: each recipe's own.
        recipes: the first one is shipped unless another one is better.
        pools: from the smallest.
        seeds: of every arm at least; then one more at a time until the rule decides.
        max_seeds: at most.
        margin: the smallest difference of accuracy that matters, a fraction.
        quick: only the linear layers are trained, on the feature maps of one backbone for each recipe and seed.
        data: name and fingerprint of the tiles, see `TileData`.

    Raises:
        UsageError: there is nothing to compare, or too few seeds.
    """

    spec: ModelSpec
    config: TrainConfig
    recipes: tuple[str, ...]
    pools: tuple[int, ...]
    seeds: int = 3
    max_seeds: int = 10
    margin: float = 0.01
    quick: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pools", tuple(sorted(self.pools)))
        if len(self.arms) < 2:
            cause = "leaves nothing to compare"
            raise UsageError(f"--pools {self.pools[0]}", cause, "Name two pools or more, e.g. --pools 1,2,4,8")
        for name, values in (("--pools", self.pools), ("--recipes", self.recipes)):
            if len(set(values)) < len(values):
                raise UsageError(f"{name} {','.join(map(str, values))}", "names one twice", "Name each once")
        if self.seeds < LEAST_SEEDS:
            cause = "tells nothing about the spread between trainings"
            raise UsageError(f"--seeds {self.seeds}", cause, f"Use {LEAST_SEEDS} or more; 3 are a start")
        if self.max_seeds < self.seeds:
            cause = f"is below --seeds {self.seeds}"
            raise UsageError(f"--max-seeds {self.max_seeds}", cause, f"Use {self.seeds} or more")
        if not 0 < self.margin < 1:
            cause = "is not a number of points above 0 and below 100"
            raise UsageError(f"--margin {100 * self.margin:g}", cause, "Use e.g. --margin 1")
        for recipe in self.recipes:
            replace(self.config, recipe=recipe)  # UsageError for an unknown one

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that is compared, by recipe and pool."""
        return tuple(Arm(recipe, pool) for recipe in self.recipes for pool in self.pools)

    @property
    def pairs(self) -> tuple[tuple[Arm, Arm], ...]:
        """(arm, baseline): each larger pool against each smaller one of its recipe; each recipe against those that are
        named before it, with the same pool."""
        by_pool = [(b, a) for a, b in combinations(self.arms, 2) if a.recipe == b.recipe]
        by_recipe = [(b, a) for a, b in combinations(self.arms, 2) if a.pool == b.pool]
        return (*by_pool, *by_recipe)

    def spec_of(self, arm: Arm) -> ModelSpec:
        """The model of an arm."""
        return replace(self.spec, pool=arm.pool)

    def config_of(self, arm: Arm, seed: int) -> TrainConfig:
        """The training run of an arm with a seed."""
        return replace(self.config, recipe=arm.recipe, seed=seed)

    def head_parameters(self, pool: int) -> int:
        """Weights and biases of the linear layer."""
        classes = len(self.spec.classes)
        return CHANNELS * pool * pool * classes + classes

    def map_note(self) -> str | None:
        """A sentence where pools are larger than the last feature map, so that they repeat its cells."""
        side = self.spec.map_size
        repeated = [pool for pool in self.pools if pool > side]
        if not repeated:
            return None
        return (
            f"the last feature map has {side}×{side} cells at crop {self.spec.crop}, so that "
            f"pool{'s' * (len(repeated) > 1)} {' and '.join(map(str, repeated))} "
            f"see{'s' * (len(repeated) == 1)} nothing that pool {side} does not: "
            "cells are repeated, and what differs is how the linear layer begins and learns"
        )

    def record(self) -> dict[str, Any]:
        """Plain values of all that must stay the same when a study goes on; `max_seeds` may grow."""
        spec = {name: value for name, value in self.spec.to_dict().items() if name != "pool"}
        runs = {}
        for recipe in self.recipes:
            config = replace(self.config, recipe=recipe)
            identity = config.identity(config.epochs or config.resolved_recipe.epochs)
            runs[recipe] = {name: value for name, value in identity.items() if name != "seed"} | {"steps": config.steps}
        return {
            "pools": list(self.pools),
            "recipes": list(self.recipes),
            "seeds": self.seeds,
            "max_seeds": self.max_seeds,
            "margin": self.margin,
            "quick": self.quick,
            "device": self.config.device,
            "allow_duplicates": self.config.allow_duplicates,
            "data": self.data,
            "spec": spec,
            "runs": runs,
        }


def differences(before: Any, now: Any, path: Sequence[str] = ()) -> list[str]:
    """What differs between two records, as "name 1 was 2"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [text for key in keys for text in differences(before.get(key), now.get(key), (*path, key))]
    return [] if before == now else [f"{'.'.join(path)} {_shown(now)} was {_shown(before)}"]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
