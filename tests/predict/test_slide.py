from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export.errors import HistoError
from histo_export.predict.readers import open_slide
from histo_export.predict.settings import TissueSettings
from histo_export.predict.tissue import Tissue, find_tissue, otsu, saturation


@pytest.mark.parametrize("tiled", [True, False], ids=["pyramid", "strips"])
def test_tiles_are_the_slides_pixels_and_white_beyond_it(pixels, write_tiff: Callable[..., Path], tmp_path, tiled):
    slide = open_slide(write_tiff(tmp_path / "slide.tif", pixels, tiled=tiled))
    assert (slide.width, slide.height) == (1000, 700)
    assert slide.mpp == pytest.approx(0.5, rel=1e-6)
    assert len(slide.levels) == (2 if tiled else 1)
    np.testing.assert_array_equal(slide.tile(130, 70, 150, 150), pixels[70:220, 130:280])
    edge = slide.tile(950, 650, 150, 150)
    np.testing.assert_array_equal(edge[:50, :50], pixels[650:, 950:])
    assert (edge[50:] == 255).all()
    assert (edge[:, 50:] == 255).all()
    slide.close()


def test_a_coarser_tile_comes_from_the_nearest_finer_level(slide_file: Path, pixels) -> None:
    slide = open_slide(slide_file)
    np.testing.assert_array_equal(slide.tile(200, 100, 300, 150), pixels[::2, ::2][50:200, 100:250])
    # 1.6 pixels of level 0 for one: level 1 would be too coarse.
    expected = Image.fromarray(pixels[100:340, 200:440]).resize((150, 150), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(slide.tile(200, 100, 240, 150), np.asarray(expected))


def test_an_overview_is_the_slides_mean_block_by_block(slide_file: Path, pixels, monkeypatch) -> None:
    monkeypatch.setattr("histo_export.predict.slide.BLOCK", 128)
    slide = open_slide(slide_file)
    overview, downsample = slide.overview(16)
    assert downsample == 16
    assert overview.shape == (44, 63, 3)
    half = pixels[::2, ::2][:344, :496].astype(float)
    means = half.reshape(43, 8, 62, 8, 3).mean((1, 3))
    assert np.abs(overview[:43, :62] - means).max() <= 1


def test_what_is_not_a_slide_is_refused(tmp_path: Path, pixels, write_tiff: Callable[..., Path]) -> None:
    text = tmp_path / "notes.svs"
    text.write_text("not a slide")
    empty = tmp_path / "empty.svs"
    empty.touch()
    whole = write_tiff(tmp_path / "whole.tif", pixels)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[:1500])
    floats = tmp_path / "float.tif"
    import tifffile

    tifffile.imwrite(floats, np.zeros((600, 600), np.float32))
    for path, reason in (
        (text, "not a slide of a format"),
        (empty, "is empty"),
        (cut, "notes.svs|cannot|not a TIFF|damaged|not a slide"),
        (floats, r"floating-point numbers \(32 bits per channel\), not 8-bit RGB"),
        (tmp_path / "absent.svs", "does not exist"),
        (tmp_path, "is not a file"),
    ):
        with pytest.raises(HistoError, match=reason):
            open_slide(path).tile(0, 0, 150, 150)


def test_the_resolution_of_a_screen_is_not_taken_as_mpp(pixels, write_tiff: Callable[..., Path], tmp_path) -> None:
    assert open_slide(write_tiff(tmp_path / "none.tif", pixels, mpp=None)).mpp is None
    assert open_slide(write_tiff(tmp_path / "screen.tif", pixels, mpp=25400 / 72)).mpp is None


def test_otsu_separates_two_groups() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(20, 4, 5000), rng.normal(120, 20, 800)]).clip(0, 255).astype(np.uint8)
    assert 35 < otsu(values) < 80


def test_tissue_without_specks_holes_and_glass(pixels) -> None:
    overview = pixels[::4, ::4]
    found = find_tissue(overview, 4, 0.5, TissueSettings(closing_um=20, min_area_um2=4000))
    y, x = np.ogrid[: overview.shape[0], : overview.shape[1]]
    ellipse = ((y - 87.5) / 63) ** 2 + ((x - 112.5) / 82.5) ** 2 < 1
    assert (found.mask != ellipse).mean() < 0.02
    assert not found.mask[:8, :10].any()  # the speck
    glass = np.full((100, 100, 3), 243, np.uint8)
    glass[::3] -= 3
    assert not find_tissue(glass, 4, 0.5, TissueSettings()).mask.any()
    black = np.zeros((100, 100, 3), np.uint8)
    black[..., 0] = 9
    assert not saturation(black).any()
    everywhere = np.tile(np.array([205, 120, 170], np.uint8), (100, 100, 1))
    assert find_tissue(everywhere, 4, 0.5, TissueSettings()).mask.all()


def test_areas_are_exact() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((20, 30)) < 0.5
    tissue = Tissue(mask, 3.0, 0)
    fine = np.repeat(np.repeat(mask, 3, 0), 3, 1)
    x, y = rng.integers(0, 80, 50), rng.integers(0, 55, 50)
    expected = [fine[b : b + 13, a : a + 17].sum() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(tissue.areas(x, y, 17, 13), expected, atol=1e-9)
