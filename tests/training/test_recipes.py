import math
import subprocess
import sys

import pytest

from histo_export.errors import UsageError
from histo_export.training.recipes import RECIPES, TrainConfig, rate_factor


def test_half_a_cosine_from_the_rate_to_zero() -> None:
    factor = rate_factor(100, warmup=0.0)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert factor(100) == 0
    assert all(factor(i) > factor(i + 1) for i in range(100))


def test_warm_up_rises_to_the_rate_and_then_falls_to_zero() -> None:
    factor = rate_factor(100, warmup=0.1)
    assert [factor(i) for i in range(10)] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factor(10) == 1
    assert factor(100) == 0


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_shortest_runs_have_a_rate(steps: int) -> None:
    for recipe in RECIPES.values():
        factor = rate_factor(steps, recipe.warmup)
        assert all(0 < factor(i) <= 1 for i in range(steps))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"recipe": "stong"}, "stong"),
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": 0}, "--batch 0"),
        ({"batch_size": 10**9}, "--batch 1000000000: is not an integer from 1 to"),
        ({"lr": float("inf")}, "--lr inf"),
        ({"lr": 1e3}, "--lr 1000.0: is not above 0 and at most 10"),
        ({"strategy": "deepspeed"}, "--strategy deepspeed: is unknown. Use auto or ddp"),
        ({"nodes": 0}, "--nodes 0"),
        ({"seed": 2**63}, "--seed"),
        ({"epochs": 2.5}, "--epochs 2.5: is not an integer"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"lr": -1.0}, "--lr -1.0"),
        ({"device": "gpu"}, "--device gpu"),
        ({"autocast": "half"}, "--autocast half"),
        ({"workers": -1}, "--workers -1"),
        ({"devices": 0}, "--devices 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_reading_recipes_and_checkpoints_does_not_import_lightning() -> None:
    code = (
        "import sys, histo_export.training.recipes; assert 'torch' not in sys.modules;"
        "import histo_export.model.checkpoint; assert not [m for m in sys.modules if 'lightning' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
