"""One training step for each pool; the report that this project starts from timed runs of hours instead.

The step is a plain PyTorch one in fp32: normalise, forward, cross-entropy, backward, Adam.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from histo_export.bench.subjects import CLASSES
from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Choice


@pytest.fixture(autouse=True)
def threads(choice: Choice) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(choice.threads)
    yield
    torch.set_num_threads(before)


def test_training_step(benchmark: BenchmarkFixture, pool: int, choice: Choice) -> None:
    batch = 32 if choice.timing else 4
    spec = ModelSpec(pool, CLASSES)
    torch.manual_seed(0)
    net = TileNet.of(spec).train().to(choice.device)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, spec.crop, spec.crop), dtype=np.uint8)
    tiles = torch.from_numpy(pixels).to(choice.device)
    labels = torch.arange(batch, device=choice.device) % len(CLASSES)
    # So slow that a few steps can only go downhill; with 1e-3 the 196,614 weights of pool 8 overshoot.
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-5)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(net(normalise(tiles, spec)), labels)
        loss.backward()
        optimiser.step()
        return float(loss.detach())  # waits for the device

    reference = TileNet.of(spec).train().double()
    reference.load_state_dict(net.state_dict())
    with torch.no_grad():
        logits = reference(normalise(tiles.cpu(), spec, torch.float64))
    first = step()
    assert first == pytest.approx(float(nn.functional.cross_entropy(logits, labels.cpu())), rel=1e-4)
    benchmark.group = f"training step, batch {batch}, {choice.settings}"
    benchmark.pedantic(step, rounds=3)
    again = step()
    assert again < first, "the steps must have learned these few tiles"
