"""What an engine gives besides logits, from pixels in any format, in Python: the arithmetic is tested in C++."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

import histo_export
from histo_export._core import PIXEL_FORMATS, Engine
from histo_export.errors import UsageError

Tiles = npt.NDArray[np.uint8]
EVERYTHING = ("logits", "probabilities", "embedding", "contributions")


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return Engine(bundle / "model.safetensors", threads=1)


@pytest.fixture(scope="module")
def tiles(bundle: Path) -> Tiles:
    found: Tiles = load_file(bundle / "golden.safetensors")["tiles"][:3]
    return found


def in_format(rgb: Tiles, name: str) -> tuple[Tiles, Tiles]:
    """Pixels `(…, channels)` of a format, and the RGB that they are worth."""
    letters = "g" if name == "grey" else name.split("_")[0]
    planes = dict(zip("rgb", np.moveaxis(rgb, -1, 0), strict=True)) | {"g": rgb[..., 1]}
    alpha = np.random.default_rng(0).integers(0, 256, rgb.shape[:-1], np.uint8)
    if name == "grey":
        return rgb[..., 1:2].copy(), np.repeat(rgb[..., 1:2], 3, axis=-1)
    if name == "bgra_premultiplied":
        planes = {letter: np.minimum(plane, alpha) for letter, plane in planes.items()}
        rgb = np.stack([planes[letter] + (255 - alpha) for letter in "rgb"], axis=-1)
    return np.stack([alpha if letter == "a" else planes[letter] for letter in letters], axis=-1), rgb


def test_the_outputs_belong_to_each_other(engine: Engine, tiles: Tiles) -> None:
    found = engine.outputs(tiles, EVERYTHING, top=2)
    assert list(found) == [*EVERYTHING, "top_classes", "top_probabilities"]
    logits = found["logits"]
    assert np.array_equal(logits, engine.run(tiles))
    exponentials = np.exp(np.float64(logits) - np.float64(logits).max(axis=1, keepdims=True))
    assert np.allclose(found["probabilities"], exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-7)
    assert np.array_equal(found["top_classes"], np.argsort(-logits, axis=1)[:, :2])
    top = np.take_along_axis(found["probabilities"], found["top_classes"].astype(np.int64), axis=1)
    assert np.array_equal(found["top_probabilities"], top)

    features = engine.stages(tiles)["layer4"].astype(np.float64)
    side, pool = engine.info()["map_side"], engine.model.pool
    assert found["contributions"].shape == (len(tiles), engine.classes, side, side)
    bias = engine.model.tensor("head.linear.bias")
    assert np.allclose(found["contributions"].sum(axis=(2, 3), dtype=np.float64) + bias, logits, rtol=0, atol=1e-5)
    assert engine.model.embedding_size == engine.info()["embedding_size"] == 512 * pool * pool
    starts = [(i * side // pool, -(-(i + 1) * side // pool)) for i in range(pool)]
    pooled = [[features[:, :, a:b, c:d].mean(axis=(2, 3)) for c, d in starts] for a, b in starts]
    expected = np.moveaxis(np.array(pooled), (0, 1), (2, 3)).reshape(len(tiles), -1)
    assert np.allclose(found["embedding"], expected, rtol=1e-6)

    floats = np.ascontiguousarray(np.moveaxis(tiles, -1, 1), np.float32) / np.float32(255)
    for name, array in engine.outputs(floats, EVERYTHING, top=2).items():
        assert np.array_equal(array, found[name])


@pytest.mark.parametrize("name", PIXEL_FORMATS)
def test_every_format_and_region_gives_the_bits_of_rgb(engine: Engine, tiles: Tiles, name: str) -> None:
    pixels, rgb = in_format(tiles, name)
    assert np.array_equal(engine.outputs(pixels, format=name)["logits"], engine.run(np.ascontiguousarray(rgb)))

    image = np.concatenate(list(pixels), axis=1)[:, 2:]  # rows with a gap
    height, width = image.shape[:2]
    side = height - 5
    corners = np.array([[0, 0], [width - side, 5], [40, 3]], np.int64)
    found = engine.outputs_of_regions(image, corners, side, ("logits", "contributions"), format=name)
    whole = np.concatenate(list(rgb), axis=1)[:, 2:]
    for i, (x, y) in enumerate(corners):
        expected = engine.outputs(np.ascontiguousarray(whole[None, y : y + side, x : x + side]), EVERYTHING)
        assert np.array_equal(found["logits"][i], expected["logits"][0])
        assert np.array_equal(found["contributions"][i], expected["contributions"][0])


def test_what_is_impossible_is_refused(engine: Engine, tiles: Tiles) -> None:
    with pytest.raises(ValueError, match='output "features" is unknown; choose from logits, probabilities, embedding'):
        engine.outputs(tiles, ("features",))
    with pytest.raises(ValueError, match="no output is wanted"):
        engine.outputs(tiles, ())
    with pytest.raises(TypeError, match="names is str"):
        engine.outputs(tiles, "logits")
    with pytest.raises(ValueError, match="top is 7; it must be at most 6"):
        engine.outputs(tiles, top=7)
    with pytest.raises(ValueError, match='format "cmyk" is unknown; choose from rgb, bgr, '):
        engine.outputs(tiles, format="cmyk")
    with pytest.raises(ValueError, match=r"\(batch, height, width, 4\) is needed"):
        engine.outputs(tiles, format="bgra")
    with pytest.raises(ValueError, match="float32, which is RGB"):
        engine.outputs(np.zeros((1, 3, 75, 75), np.float32), format="bgr")
    one = tiles[0]
    corners = np.zeros((1, 2), np.int64)
    with pytest.raises(ValueError, match="region of 75 x 75 pixels at x 1, y 0 is not inside the image"):
        engine.outputs_of_regions(one, corners + np.array([1, 0]), 75)
    with pytest.raises(ValueError, match=r"corner 0 is \(-1, 0\)"):
        engine.outputs_of_regions(one, corners - np.array([1, 0]), 75)
    with pytest.raises(ValueError, match="rows that are not contiguous"):
        engine.outputs_of_regions(one[::-1], corners, 70)
    with pytest.raises(ValueError, match="rows that are not contiguous"):
        engine.outputs_of_regions(one[:, ::2], corners, 30)
    with pytest.raises(ValueError, match=r"corners has shape \(1, 3\)"):
        engine.outputs_of_regions(one, np.zeros((1, 3), np.int64), 70)
    with pytest.raises(TypeError, match="corners has dtype float64"):
        engine.outputs_of_regions(one, np.zeros((1, 2)), 70)  # type: ignore[arg-type]


def test_a_loaded_bundle_gives_embedding_and_contributions(bundle: Path, engine: Engine, tiles: Tiles) -> None:
    classifier = histo_export.load(bundle, threads=1)
    found = engine.outputs(tiles, EVERYTHING)
    assert np.array_equal(classifier.embedding(tiles, batch=2), found["embedding"])
    assert np.array_equal(classifier.contributions(tiles, batch=2), found["contributions"])
    other = histo_export.load(bundle, runtime="torchscript", threads=1)
    with pytest.raises(UsageError, match="gives logits only, and no embedding"):
        other.embedding(tiles)
