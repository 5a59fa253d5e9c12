"""Pooling and linear head on ResNet34's final map: FusedHead beside torch eager, one thread each.

FusedHead is the scalar reference for now, so what this shows is what a fast kernel has to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from histo_export._core import FusedHead

BATCH, CHANNELS, SIDE, CLASSES = 8, 512, 4, 6

Array = npt.NDArray[np.float32]
Runtime = Callable[[nn.Sequential, Array], Callable[[], Array]]


def fused(model: nn.Sequential, features: Array) -> Callable[[], Array]:
    pool, _, linear = model
    head = FusedHead(linear.weight.detach().numpy(), linear.bias.detach().numpy(), pool.output_size)
    return lambda: head.run(features)


def torch_eager(model: nn.Sequential, features: Array) -> Callable[[], Array]:
    tensor = torch.from_numpy(features)

    def run() -> Array:
        with torch.inference_mode():
            return model(tensor).numpy()

    return run


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """FusedHead works in the caller's thread; torch gets no more than that."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("runtime", [fused, torch_eager])
@pytest.mark.parametrize("pool", [1, 2, 4, 8])
def test_head(benchmark: BenchmarkFixture, pool: int, runtime: Runtime) -> None:
    torch.manual_seed(pool)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(CHANNELS * pool * pool, CLASSES)).eval()
    features = torch.rand(BATCH, CHANNELS, SIDE, SIDE).numpy()
    run = runtime(model, features)

    with torch.inference_mode():
        expected = model.double()(torch.from_numpy(features).double()).numpy()
    model.float()

    np.testing.assert_allclose(run(), expected, rtol=1e-5, atol=1e-5)
    benchmark.group = f"head, pool {pool}, batch {BATCH}, 1 thread, float32"
    benchmark(run)
    np.testing.assert_allclose(run(), expected, rtol=1e-5, atol=1e-5)
