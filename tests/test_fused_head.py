"""FusedHead against torch's pooling and linear layer in float64."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from histo_export._core import FusedHead, usable_isas

Advance = Callable[[Callable[[], object]], bool]
Array = npt.NDArray[np.float32]
LAYOUTS = ("nchw", "nhwc")


def random_head(
    rng: np.random.Generator, pool: int, channels: int, classes: int, threads: int = 1, isa: str | None = None
) -> tuple[FusedHead, Array, Array]:
    weight = rng.standard_normal((classes, channels * pool * pool), dtype=np.float32)
    bias = rng.standard_normal(classes, dtype=np.float32)
    return FusedHead(weight, bias, pool, threads=threads, isa=isa), weight, bias


def torch_logits(features: Array, weight: Array, bias: Array, pool: int) -> torch.Tensor:
    pooled = functional.adaptive_avg_pool2d(torch.from_numpy(features).double(), pool)
    return functional.linear(pooled.flatten(1), torch.from_numpy(weight).double(), torch.from_numpy(bias).double())


def sum_bound(features: Array, weight: Array, bias: Array, pool: int) -> npt.NDArray[np.float64]:
    """How far float32 sums may be from the exact logits, whatever their order.

    n additions and multiply-adds change a sum by at most n·u / (1 - n·u) times the sum of the terms' absolute values,
    u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 4.2). No term goes through more of them
    than a tile has features, and three: its weight's rounding, the multiplication and the bias.
    """
    n = (features[0].size + 3) * 2.0**-24
    return n / (1 - n) * torch_logits(abs(features), abs(weight), abs(bias), pool).numpy()


def in_layout(features: Array, layout: str) -> Array:
    return features if layout == "nchw" else np.ascontiguousarray(features.transpose(0, 2, 3, 1))


def assert_close(logits: Array, features: Array, weight: Array, bias: Array, pool: int) -> None:
    expected = torch_logits(features, weight, bias, pool).numpy()
    assert logits.dtype == np.float32
    assert logits.shape == expected.shape
    excess = abs(logits - expected) - sum_bound(features, weight, bias, pool)
    assert excess.max() <= 0, f"{excess.max():.2e} beyond the bound"


@settings(deadline=None)  # a busy machine is not an error
@given(
    pool=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 20),
    batch=st.integers(1, 9),
    channels=st.integers(1, 40),
    classes=st.integers(1, 13),
    threads=st.integers(1, 4),
    isa=st.sampled_from(usable_isas()),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_torch_for_any_shape(
    pool: int,
    height: int,
    width: int,
    batch: int,
    channels: int,
    classes: int,
    threads: int,
    isa: str,
    layout: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    head, weight, bias = random_head(rng, pool, channels, classes, threads, isa)
    features = rng.standard_normal((batch, channels, height, width), dtype=np.float32)
    given_features = in_layout(features, layout)
    logits = head.run(given_features, layout=layout)
    assert_close(logits, features, weight, bias, pool)

    # Exponentials turn an error in a logit into a relative one, twice: in the class's own and in the sum.
    expected = torch_logits(features, weight, bias, pool).softmax(1).numpy()
    worst = sum_bound(features, weight, bias, pool).max(axis=1, keepdims=True)
    probabilities = head.run(given_features, softmax=True, layout=layout)
    rounding = 2.0**-23 * expected + 2.0**-149  # the least that float32 knows
    assert (abs(probabilities - expected) <= np.expm1(2 * worst) * expected + rounding).all()

    # bf16 is the upper half of float32's bits.
    half = (given_features.view(np.uint32) >> 16).astype(np.uint16)
    widened = (half.astype(np.uint32) << 16).view(np.float32)
    same = widened if layout == "nchw" else np.ascontiguousarray(widened.transpose(0, 3, 1, 2))
    assert_close(head.run(half, layout=layout, bf16=True), same, weight, bias, pool)


@settings(deadline=None)
@given(
    pool=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 5),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_reference_is_exact(pool: int, height: int, width: int, channels: int, layout: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    head, weight, bias = random_head(rng, pool, channels, classes=3)
    features = rng.standard_normal((2, channels, height, width), dtype=np.float32)
    expected = torch_logits(features, weight, bias, pool)
    # The sums are in float64, so only the rounding to float32 is left (and cancellation, next to nothing).
    reference = head.run_reference(in_layout(features, layout), layout=layout)
    np.testing.assert_allclose(reference, expected, rtol=2.0**-24, atol=1e-12)
    probabilities = head.run_reference(in_layout(features, layout), softmax=True, layout=layout)
    np.testing.assert_allclose(probabilities, expected.softmax(1), rtol=2.0**-24 + 1e-12, atol=1e-12)


@pytest.mark.parametrize("isa", usable_isas())
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", [1, 2, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("side", [4, 7])
def test_equals_torch_on_resnet34_maps(pool: int, side: int, layout: str, isa: str) -> None:
    rng = np.random.default_rng(pool)
    head, weight, bias = random_head(rng, pool, channels=512, classes=6, isa=isa)
    features = rng.random((3, 512, side, side), dtype=np.float32)
    assert_close(head(in_layout(features, layout), layout=layout), features, weight, bias, pool)


@settings(deadline=None)
@given(
    pool=st.integers(1, 8),
    side=st.sampled_from([4, 7, 16]),
    threads=st.integers(1, 4),
    layout=st.sampled_from(LAYOUTS),
    isa=st.sampled_from(usable_isas()),
    cuts=st.lists(st.integers(1, 32), max_size=5),
)
def test_a_row_depends_on_its_own_tile_alone(
    pool: int, side: int, threads: int, layout: str, isa: str, cuts: list[int]
) -> None:
    rng = np.random.default_rng(pool)
    head, weight, bias = random_head(rng, pool, channels=160, classes=5, isa=isa)
    features = rng.standard_normal((33, 160, side, side), dtype=np.float32)
    tiles = in_layout(features, layout)
    together = head.run(tiles, layout=layout)
    other = FusedHead(weight, bias, pool, threads=threads, isa=isa)
    parts = [other.run(part, layout=layout) for part in np.split(tiles, sorted(set(cuts)))]
    assert np.array_equal(np.concatenate(parts), together)


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
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 3, ValueError, "not a multiple of pool"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 0, ValueError, "pool is 0"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), -1, ValueError, "pool is -1"),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2**62, ValueError, "not a multiple of pool"),
        (np.zeros((6, 0), np.float32), np.zeros(6, np.float32), 2, ValueError, "channels is 0"),
        (np.zeros((0, 16), np.float32), np.zeros(0, np.float32), 2, ValueError, "classes is 0"),
        (
            np.zeros((6, 16), np.float32).tolist(),
            np.zeros(6, np.float32),
            2,
            TypeError,
            "weight is list; a NumPy array",
        ),
        (np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2.0, TypeError, "pool is float; an integer"),
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
        (torch.zeros(2, 4, 3, 3), TypeError, "features is Tensor; a NumPy array"),
        (None, TypeError, "features is NoneType"),
    ],
)
def test_bad_features_are_refused(features: Array, error: type[Exception], message: str) -> None:
    head = FusedHead(np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2)
    with pytest.raises(error, match=message):
        head(features)


def test_channels_last_features_have_their_channels_on_the_last_axis() -> None:
    head = FusedHead(np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2)
    assert head(np.zeros((2, 3, 5, 4), np.float32), layout="nhwc").shape == (2, 6)
    with pytest.raises(ValueError, match="takes 4 channels on axis 3"):
        head(np.zeros((2, 4, 3, 5), np.float32), layout="nhwc")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "chwn"}, ValueError, 'layout "chwn" is unknown; choose from nchw, nhwc'),
        ({"bf16": True}, TypeError, "features has dtype float32; uint16"),
    ],
)
def test_a_bad_option_of_run_is_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    head = FusedHead(np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2)
    for run in (head.run, head.run_reference):
        with pytest.raises(error, match=message):
            run(np.zeros((2, 4, 3, 3), np.float32), **options)


@pytest.mark.parametrize(("options", "message"), [({"isa": "avx9"}, "avx9"), ({"threads": -1}, "threads is -1")])
def test_a_bad_option_of_the_head_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedHead(np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2, **options)


def test_threads_and_isa_are_what_was_asked_for() -> None:
    head = FusedHead(np.zeros((6, 16), np.float32), np.zeros(6, np.float32), 2, threads=3, isa="portable")
    assert (head.threads, head.isa) == (3, "portable")


def test_threads_share_one_head() -> None:
    rng = np.random.default_rng(0)
    head, _, _ = random_head(rng, pool=3, channels=64, classes=6)
    tiles = [rng.standard_normal((1, 64, 4, 4), dtype=np.float32) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        logits = list(pool.map(head, tiles))
    assert np.array_equal(np.concatenate(logits), head(np.concatenate(tiles)))


def test_other_threads_run_meanwhile(other_threads_advance: Advance) -> None:
    head = FusedHead(np.zeros((512, 64 * 64), np.float32), np.zeros(512, np.float32), 8, isa="portable")
    features = np.zeros((2000, 64, 4, 4), np.float32)  # 1 G multiply-adds, four at a time: some 0.1 s
    assert other_threads_advance(lambda: head.run(features)), "the GIL was held while FusedHead worked"
