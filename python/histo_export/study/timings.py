"""What a pool costs: seconds of a training step, and of inference in the native engine.

Both are measured interleaved, as `bench.measure` explains: a round runs each pool once in a new random order, pools are
compared within rounds, and the interval is over rounds. So a machine that is busy for a while slows all pools alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError
from torch.nn import functional
from torch.utils.data import default_collate

from histo_export.bench.measure import Circumstances, measure, orders
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import untrained_subjects
from histo_export.data.transforms import TorchTiles
from histo_export.machine import this_machine
from histo_export.model.net import TileNet, normalise
from histo_export.runtimes import variants
from histo_export.statistics import MIN_ROUNDS, Ratio, Summary, compare, round_medians, summarise
from histo_export.study.design import Design
from histo_export.training.module import derived_seed, make_optimizer, steps_per_epoch
from histo_export.training.trainer import choose_device

if TYPE_CHECKING:
    from histo_export.data import TileData

STEP_ROUNDS = 11
BATCHES = (1, 32)
RUNTIME = "native"

Rounds = dict[int, list[list[float]]]
"""Pool → seconds of each call, by round."""


def training_steps(design: Design, data: TileData, report: Callable[[str], None] = lambda doing: None) -> Rounds:
    """Seconds of a training step of each pool: one call a round.

    A step is that of `histo train` without reading and augmenting tiles, which is the same for all pools: normalise,
    forward, cross entropy, backward, Adam. Each pool has a network and an optimiser of its own, as in a run.
    """
    device = choose_device(design.config.device)
    tiles = TorchTiles(data.train, design.spec.crop)
    batch, labels = default_collate([tiles[i] for i in range(_tiles_of_step(design, data))])
    batch = batch.to(device).contiguous(memory_format=torch.channels_last)
    steps = {pool: _step(design, pool, batch, labels.to(device), device) for pool in design.pools}
    for pool, step in steps.items():
        report(f"warming up a training step of pool {pool}")
        step()
    rounds: Rounds = {pool: [] for pool in design.pools}
    for number, order in enumerate(orders(len(design.pools), STEP_ROUNDS, 0)):
        report(f"training steps, round {number + 1} of {STEP_ROUNDS}")
        for place in order:
            began = time.perf_counter()
            steps[design.pools[place]]()
            rounds[design.pools[place]].append([time.perf_counter() - began])
    return rounds


def _tiles_of_step(design: Design, data: TileData) -> int:
    return min(design.config.batch_size, len(data.train))


def _step(
    design: Design, pool: int, batch: torch.Tensor, labels: torch.Tensor, device: torch.device
) -> Callable[[], float]:
    spec = design.spec_of(next(arm for arm in design.arms if arm.pool == pool))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(0))
        net = TileNet.of(spec).train().to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(net, design.config_of(design.arms[0], 0))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(net(normalise(batch, spec)), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())  # waits for the device

    return step


def inference(
    design: Design, threads: int, report: Callable[[str], None] = lambda doing: None, *, rounds: int, seconds: float
) -> dict[int, Rounds]:
    """Batch → seconds of a call of each pool in the native engine, by `histo bench`'s own harness.

    The networks are untrained, with six classes: time depends on neither what they have learnt nor, visibly, on some
    classes more.
    """
    settings = Settings(variants(RUNTIME), BATCHES, (threads,), rounds=rounds, seconds=seconds)
    files = {variant.file for variant in settings.runtimes}
    spec = design.spec
    with tempfile.TemporaryDirectory(prefix="histo-study-") as folder:
        subjects = untrained_subjects(
            design.pools, Path(folder), files, report, crop=spec.crop, tile_size=spec.tile_size
        )
        rows, _ = measure(subjects, settings, lambda progress: report(progress.doing), circumstances=Circumstances())
    return {batch: {row.pool: row.rounds for row in rows if row.batch == batch} for batch in BATCHES}


def timed(
    design: Design,
    data: TileData,
    threads: int,
    known: Mapping[str, Any],
    save: Callable[[Mapping[str, Any]], None],
    report: Callable[[str], None] = lambda doing: None,
    *,
    rounds: int = 15,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Plain values for timings.json: what is `known`, and what was measured now.

    Args:
        threads: of inference.
        known: the content of timings.json; what is not of this version's form, or of other pools, is measured again.
        save: called with all of it, after each measurement.
        report: called with what is done now.
        rounds, seconds: of inference, see `bench.settings.Settings`.
    """
    content = {"format": 1, **known}
    if not _has_training(content, design.pools):
        steps = training_steps(design, data, report)
        content["training"] = {"batch": _tiles_of_step(design, data), **_plain(steps)}
        content["machine"] = str(this_machine(design.config.device))
        save(content)
    if not _has_inference(content, design.pools):
        by_batch = inference(design, threads, report, rounds=rounds, seconds=seconds)
        content["inference"] = {
            "runtime": RUNTIME,
            "threads": threads,
            "batches": {str(batch): _plain(of_pool) for batch, of_pool in by_batch.items()},
        }
        save(content)
    return content


class _Part(BaseModel):
    """A recorded measurement: seconds of each call, by pool and round."""

    rounds: dict[
        int, Annotated[list[Annotated[list[PositiveFloat], Field(min_length=1)]], Field(min_length=MIN_ROUNDS)]
    ]

    def of(self, pools: Sequence[int]) -> bool:
        """Whether it has as many rounds of each of these pools, and of no other one."""
        return sorted(self.rounds) == list(pools) and len({len(of_pool) for of_pool in self.rounds.values()}) == 1


class _Training(_Part):
    batch: PositiveInt


class _Inference(BaseModel):
    threads: PositiveInt
    batches: dict[int, _Part]


def _has_training(content: Mapping[str, Any], pools: Sequence[int]) -> bool:
    try:
        known = _Training.model_validate(content.get("training"))
    except ValidationError:
        return False
    return known.of(pools) and isinstance(content.get("machine"), str)


def _has_inference(content: Mapping[str, Any], pools: Sequence[int]) -> bool:
    try:
        known = _Inference.model_validate(content.get("inference"))
    except ValidationError:
        return False
    return sorted(known.batches) == sorted(BATCHES) and all(part.of(pools) for part in known.batches.values())


def _plain(rounds: Rounds) -> dict[str, Any]:
    return {"rounds": {str(pool): calls for pool, calls in rounds.items()}}


def rounds_of(part: Mapping[str, Any]) -> Rounds:
    """What `timed` has recorded of one measurement."""
    return {int(pool): calls for pool, calls in part["rounds"].items()}


def summaries(rounds: Rounds) -> dict[int, tuple[Summary, Ratio | None]]:
    """Pool → its times, and how many times as long as the smallest pool's they are; None for that itself."""
    medians = {pool: round_medians(of_pool).tolist() for pool, of_pool in rounds.items()}
    first = min(rounds)
    others = len(rounds) - 1
    return {
        pool: (
            summarise(rounds[pool]),
            None if pool == first else compare(medians[pool], medians[first], comparisons=others),
        )
        for pool in sorted(rounds)
    }


def estimated_seconds(design: Design, data: TileData, training: Mapping[str, Any]) -> dict[int, float]:
    """About the seconds of a run of each pool: its steps, and a quarter more for validation, files and the test.

    Of a quick study, those of the smallest pool alone, with which a backbone is trained; heads are not timed before.
    """
    longest = 0
    for recipe in design.recipes:
        config = design.config_of(next(arm for arm in design.arms if arm.recipe == recipe), 0)
        steps = config.steps or (config.epochs or config.resolved_recipe.epochs) * steps_per_epoch(
            len(data.train), config
        )
        longest = max(longest, steps)
    times = summaries(rounds_of(training))
    pools = design.pools[:1] if design.quick else design.pools
    return {pool: 1.25 * longest * times[pool][0].median for pool in pools}
