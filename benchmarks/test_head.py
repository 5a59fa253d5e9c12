"""Pooling and linear head on ResNet34's final map: FusedHead beside torch eager, in both layouts, one thread each.

Quick checks that time calls from Python. benchmarks/head_table.py measures the head against all its peers, in C++ too,
and against the bandwidth of the machine.
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

BATCH, CHANNELS, SIDE, CLASSES = 32, 512, 4, 6

Array = npt.NDArray[np.float32]
Runtime = Callable[[nn.Sequential, torch.Tensor, str], Callable[[], Array]]


def fused(model: nn.Sequential, features: torch.Tensor, layout: str) -> Callable[[], Array]:
    pool, _, linear = model
    head = FusedHead(linear.weight.detach().numpy(), linear.bias.detach().numpy(), pool.output_size)
    if layout == "nchw":
        return lambda: head.run(features.numpy())
    channels_last = features.permute(0, 2, 3, 1).contiguous().numpy()
    return lambda: head.run(channels_last, layout="nhwc")


def torch_eager(model: nn.Sequential, features: torch.Tensor, layout: str) -> Callable[[], Array]:
    order = torch.contiguous_format if layout == "nchw" else torch.channels_last
    tensor = features.contiguous(memory_format=order)

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
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pool", [1, 2, 4, 8])
def test_head(benchmark: BenchmarkFixture, pool: int, layout: str, runtime: Runtime) -> None:
    torch.manual_seed(pool)
    linear = nn.Linear(CHANNELS * pool * pool, CLASSES)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten(), linear).eval()
    features = torch.rand(BATCH, CHANNELS, SIDE, SIDE)
    run = runtime(model, features, layout)

    with torch.inference_mode():
        pooled = nn.functional.adaptive_avg_pool2d(features.double(), pool).flatten(1)
        expected = nn.functional.linear(pooled, linear.weight.double(), linear.bias.double()).numpy()
        magnitude = nn.functional.linear(pooled, linear.weight.double().abs(), linear.bias.double().abs()).numpy()
    # No order of float32 sums is further off: one rounding, 2**-24 of the terms' sum, per addition.
    bound = (CHANNELS * max(pool, SIDE) ** 2 + 3) * 2.0**-24 * magnitude

    assert (abs(run() - expected) <= bound).all()
    benchmark.group = f"head, pool {pool}, {layout}, batch {BATCH}, 1 thread, float32"
    benchmark(run)
    assert (abs(run() - expected) <= bound).all()
