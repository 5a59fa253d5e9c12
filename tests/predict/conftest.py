"""Slides that look enough like slides: pink tissue on white glass, as TIFF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from histo_export import figures

tifffile = pytest.importorskip("tifffile", reason='slides need pip install "histo-export[slides]"')
pytest.importorskip("openslide", reason='slides need pip install "histo-export[slides]"')

MPP = 0.5
Pixels = npt.NDArray[np.uint8]


def draw_slide(height: int = 700, width: int = 1000) -> Pixels:
    """An ellipse of textured tissue, a speck, and noisy glass."""
    rng = np.random.default_rng(3)
    y, x = np.ogrid[:height, :width]
    pixels = np.full((height, width, 3), 243, np.float64)
    inside = ((y - height * 0.5) / (height * 0.36)) ** 2 + ((x - width * 0.45) / (width * 0.33)) ** 2 < 1
    pixels[inside] = (205, 120, 170)
    pixels[10:16, 20:26] = (205, 120, 170)
    pixels += rng.normal(0, 4, pixels.shape) + np.where(inside[..., None], rng.normal(0, 25, (height, width, 1)), 0)
    return pixels.clip(0, 255).astype(np.uint8)


def write_tiff(
    path: Path,
    pixels: Pixels,
    *,
    mpp: float | tuple[float, float] | None = MPP,
    tiled: bool = True,
    levels: int = 2,
) -> Path:
    x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"} if x and y else {}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels if tiled else 1):
            image = pixels[:: 2**level, :: 2**level]
            extra = {"tile": (256, 256)} if tiled else {"rowsperstrip": 64}
            kind = {"subfiletype": 1} if level else {}
            writer.write(image, photometric="rgb", metadata=None, **extra, **resolution, **kind)
    return path


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    return draw_slide()


@pytest.fixture(name="write_tiff", scope="session")
def _write_tiff() -> Callable[..., Path]:
    return write_tiff


@pytest.fixture(scope="session")
def slide_file(pixels: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("slides") / "made.tif", pixels)


@pytest.fixture(scope="session")
def large_slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a side that makes a TIFF a slide and no tile."""
    return write_tiff(tmp_path_factory.mktemp("slides") / "large.tiff", draw_slide(400, 1200))


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    """Drawing a slide's pictures takes longer than running its tiles here; what is on them is the same in any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        yield
