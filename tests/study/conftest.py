"""Studies whose runs are drawn instead of trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drawn_studies import drawn_outcome
from drawn_tiles import COLOURS, SIDE, coloured_data
from histo_export.data import TileData, TileSet
from histo_export.spec import ModelSpec
from histo_export.study.design import Arm, Design
from histo_export.study.outcome import Outcome
from histo_export.study.runs import Runner, Study, StudyFolder
from histo_export.training.recipes import TrainConfig


@pytest.fixture(scope="session")
def data() -> TileData:
    """300 test tiles of 30 groups."""
    made = coloured_data(4, 2, 100)
    test = made.test
    groups = np.array([f"slide {i % 30}" for i in range(len(test))])
    grouped = TileSet(test.classes, test.labels, test.names, test.tile, test.hashes, groups)
    return replace(made, test=grouped, groups_from="a test")


@pytest.fixture
def design() -> Design:
    spec = ModelSpec(1, COLOURS, crop=32, tile_size=SIDE, mpp=0.5)
    config = TrainConfig(recipe="report", epochs=1, batch_size=8, device="cpu", autocast="fp32")
    return Design(spec, config, ("report",), (1, 2), seeds=2, max_seeds=3, data={"name": "drawn"})


@pytest.fixture
def make_study(data: TileData, tmp_path: Path) -> Callable[..., Study]:
    """A study whose networks have the given accuracies; `log` gets each run."""

    def make(
        design: Design, accuracies: Mapping[Any, float], log: list[tuple[Arm, int]] | None = None, **rest: Any
    ) -> Study:
        def run(arm: Arm, seed: int) -> Outcome:
            if log is not None:
                log.append((arm, seed))
            return drawn_outcome(data, arm, seed, accuracies[arm.pool])

        runner: Runner = rest.pop("runner", run)
        return Study(design, data, StudyFolder(tmp_path / "study"), runner, **rest)

    return make


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiles this small gain nothing from threads, and lose much where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
