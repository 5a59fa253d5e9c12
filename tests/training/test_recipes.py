import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from inspect import signature

import pytest
import torch

from histo_export.data.transforms import Augmentation
from histo_export.errors import UsageError
from histo_export.measures import Positive
from histo_export.training.recipes import AUGMENTATION, RECIPES, Recipe, TrainConfig, rate_factor


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
        ({"steps": 0}, "--steps 0: is not an integer"),
        ({"steps": 10, "epochs": 2}, "--steps 10: contradicts --epochs"),
        ({"keep": "first"}, "--keep first: is unknown. Use best or last or ema"),
        ({"positive": Positive("a", 1.5)}, "--specificity 1.5: is not a number from 0 to 1"),
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


def test_one_cycle_is_that_of_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=200, cycle_momentum=False)
    factor = rate_factor(200, 0.3, "onecycle")
    for step in range(200):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        if step < 199:
            theirs.step()


@pytest.mark.parametrize("warmup", [0.0, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_shortest_cycles_have_a_rate(steps: int, warmup: float) -> None:
    factor = rate_factor(steps, warmup, "onecycle")
    assert all(0 < factor(i) <= 1 for i in range(steps))


def test_parts_change_a_recipe_and_are_part_of_a_runs_identity() -> None:
    config = TrainConfig(parts={"stain": 0.2, "grey": 0.3, "flips": False, "schedule": "onecycle"})
    strong = RECIPES["strong"]
    assert config.resolved_recipe == replace(strong, stain=0.2, grey=0.3, flips=False, schedule="onecycle")
    identity = config.identity(3)
    assert identity["augmentation"]["grey"] == 0.3
    assert identity["settings"]["schedule"] == "onecycle"
    assert config.described_recipe == "strong, stain=0.2, grey=0.3, flips=False, schedule=onecycle"
    everything = {**identity["settings"], **identity["augmentation"], "epochs": 30}
    assert everything.keys() - {"augmentation"} == {field.name for field in fields(Recipe)}, "each part is recorded"
    assert RECIPES["report"].augmentation is None
    assert replace(RECIPES["report"], grey=0.1).augmentation is not None
    off = dict.fromkeys(("brightness", "contrast", "saturation", "stain"), 0.0)
    assert replace(strong, random_crop=False, flips=False, turns=False, **off).augmentation is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"stian": 0.2}, "part 'stian': is not a part of a recipe. Use one of random_crop, flips,"),
        ({"epochs": 2}, "part 'epochs': is not a part"),
        ({"stain": 1.0}, "part stain=1.0: is not a number from 0 to 0.99"),
        ({"stain": float("nan")}, "part stain=nan"),
        ({"flips": 1}, "part flips=1: is not True or False"),
        ({"grey": True}, "part grey=True: is not a number from 0 to 1"),
        ({"schedule": "linear"}, "part schedule='linear': is not cosine or onecycle"),
    ],
)
def test_impossible_parts_are_named(parts: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        TrainConfig(parts=parts)


def test_the_arguments_of_the_augmentation_are_the_fields_of_a_recipe() -> None:
    arguments = set(signature(Augmentation.__init__).parameters) - {"self", "crop"}
    assert arguments == set(AUGMENTATION)


def test_a_grey_tile_has_no_colour_and_each_part_can_be_left_out() -> None:
    tile = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    grey = Augmentation(32, grey=1.0)(tile)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    nothing = dict.fromkeys(AUGMENTATION, 0)
    assert torch.equal(Augmentation(32, **nothing)(tile), tile[:, 4:36, 4:36])  # type: ignore[arg-type]
    flipped = {str(Augmentation(40, **(nothing | {"flips": True}))(tile).tolist()) for _ in range(60)}  # type: ignore[arg-type]
    assert flipped == {str(tile.flip(axes).tolist()) for axes in ([], [1], [2], [1, 2])}
