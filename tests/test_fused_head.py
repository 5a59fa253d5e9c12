"""FusedHead against torch's pooling and linear layer in float64."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from histo_export._core import FusedHead

Array = npt.NDArray[np.float32]


def random_head(rng: np.random.Generator, pool: int, channels: int, classes: int) -> tuple[FusedHead, Array, Array]:
    weight = rng.standard_normal((classes, channels * pool * pool), dtype=np.float32)
    bias = rng.standard_normal(classes, dtype=np.float32)
    return FusedHead(weight, bias, pool), weight, bias


def torch_logits(features: Array, weight: Array, bias: Array, pool: int) -> torch.Tensor:
    pooled = functional.adaptive_avg_pool2d(torch.from_numpy(features).double(), pool)
    return functional.linear(pooled.flatten(1), torch.from_numpy(weight).double(), torch.from_numpy(bias).double())


@settings(deadline=None)  # a busy machine is no error
@given(
    pool=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    classes=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_torch_for_any_shape(
    pool: int, height: int, width: int, batch: int, channels: int, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    head, weight, bias = random_head(rng, pool, channels, classes)
    features = rng.standard_normal((batch, channels, height, width), dtype=np.float32)
    expected = torch_logits(features, weight, bias, pool)

    logits = head.run(features)
    assert logits.dtype == np.float32
    assert logits.shape == (batch, classes)
    # The sums are in double, so only the rounding to float32 is left (and cancellation, next to nothing).
    np.testing.assert_allclose(logits, expected, rtol=1.2e-7, atol=1e-12)
    np.testing.assert_allclose(head.run(features, softmax=True), expected.softmax(1), rtol=1.2e-7, atol=1e-12)


@pytest.mark.parametrize("pool", [1, 2, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("side", [4, 7])
def test_equals_torch_on_resnet34_maps(pool: int, side: int) -> None:
    rng = np.random.default_rng(pool)
    head, weight, bias = random_head(rng, pool, channels=512, classes=6)
    features = rng.random((3, 512, side, side), dtype=np.float32)
    np.testing.assert_allclose(head(features), torch_logits(features, weight, bias, pool), rtol=1e-6, atol=1e-9)


def test_properties_follow_from_the_weights() -> None:
    head = FusedHead(np.zeros((6, 512 * 9), np.float32), np.zeros(6, np.float32), pool=3)
    assert (head.pool, head.channels, head.classes) == (3, 512, 6)


def test_weights_are_copied() -> None:
    weight, bias = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    head = FusedHead(weight, bias, 1)
    weight[:], bias[:] = 7, 7
    assert head(np.ones((1, 1, 1, 1), np.float32)) == 1


def test_not_a_number_stays_visible() -> None:
    features = np.ones((2, 1, 1, 1), np.float32)
    features[0] = np.nan
    logits = FusedHead(np.ones((2, 1), np.float32), np.zeros(2, np.float32), 1)(features, softmax=True)
    assert np.isnan(logits[0]).all()
    assert (logits[1] == 0.5).all()


@pytest.mark.parametrize(
    ("weight", "bias", "pool", "error", "message"),
    [
        (np.zeros((6, 16)), np.zeros(6, np.float32), 2, TypeError, "weight has dtype float64; float32"),
        (np.zeros((6, 16), ">f4"), np.zeros(6, np.float32), 2, TypeError, "weight has dtype >f4"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.int64), 2, TypeError, "bias has dtype int64"),
        (
            np.zeros(96, np.float32),
            np.zeros(6, np.float32),
            2,
            ValueError,
            r"weight has shape \(96,\); \(classes",
        ),
        (np.zeros((16, 6), np.float32).T, np.zeros(6, np.float32), 2, ValueError, "weight.*C-contiguous"),
        (np.zeros((6, 16), np.float32), np.zeros(5, np.float32), 2, ValueError, "bias has 5 elements"),
        (
            np.zeros((6, 16), np.float32),
            np.zeros((6, 1), np.float32),
            2,
            ValueError,
            r"bias has shape \(6, 1\)",
        ),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 3, ValueError, "no multiple of pool"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 0, ValueError, "pool is 0"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), -1, ValueError, "pool is -1"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2**62, ValueError, "no multiple of pool"),
        (np.zeros((6, 0), np.float32), np.zeros(6, np.float32), 2, ValueError, "channels is 0"),
        (np.zeros((0, 16), np.float32), np.zeros(0, np.float32), 2, ValueError, "classes is 0"),
        (np.zeros((6, 16), np.float32).tolist(), np.zeros(6, np.float32), 2, TypeError, "incompatible"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2.0, TypeError, "incompatible"),
    ],
)
def test_a_bad_constructor_argument_is_refused(
    weight: Array, bias: Array, pool: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FusedHead(weight, bias, pool)


def misaligned(shape: tuple[int, ...]) -> Array:
    return np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (np.zeros((2, 4, 3, 3)), TypeError, "features has dtype float64; float32"),
        (np.zeros((2, 4, 3, 3), np.float16), TypeError, "features has dtype float16"),
        (np.zeros((4, 3, 3), np.float32), ValueError, r"features has shape \(4, 3, 3\); \(batch, channels"),
        (np.zeros((2, 5, 3, 3), np.float32), ValueError, r"\(2, 5, 3, 3\); this head takes 4 channels"),
        (np.zeros((2, 3, 3, 4), np.float32).transpose(0, 3, 1, 2), ValueError, "C-contiguous"),
        (np.zeros((2, 4, 3, 6), np.float32)[..., ::2], ValueError, "C-contiguous"),
        (misaligned((2, 4, 3, 3)), ValueError, "aligned"),
        (np.zeros((0, 4, 3, 3), np.float32), ValueError, "batch is 0"),
        (np.zeros((2, 4, 0, 3), np.float32), ValueError, "height is 0"),
        (np.zeros((2, 4, 3, 0), np.float32), ValueError, "width is 0"),
        (torch.zeros(2, 4, 3, 3), TypeError, "incompatible"),
        (None, TypeError, "incompatible"),
    ],
)
def test_bad_features_are_refused(features: Array, error: type[Exception], message: str) -> None:
    head = FusedHead(np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2)
    with pytest.raises(error, match=message):
        head(features)


def test_threads_share_one_head() -> None:
    rng = np.random.default_rng(0)
    head, _, _ = random_head(rng, pool=3, channels=64, classes=6)
    tiles = [rng.standard_normal((1, 64, 4, 4), dtype=np.float32) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        logits = list(pool.map(head, tiles))
    assert np.array_equal(np.concatenate(logits), head(np.concatenate(tiles)))


def test_other_threads_run_meanwhile() -> None:
    head = FusedHead(np.zeros((256, 64 * 64), np.float32), np.zeros(256, np.float32), 8)
    features = np.zeros((400, 64, 4, 4), np.float32)  # 0.4 G multiply-adds: a fraction of a second
    worker = threading.Thread(target=head.run, args=(features,))
    worker.start()
    naps = 0
    while worker.is_alive():
        time.sleep(0.001)
        naps += 1
    assert naps > 3, "the GIL was held while FusedHead worked"
