from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export.errors import HistoError
from histo_export.predict.readers import open_slide
from histo_export.predict.settings import TissueSettings
from histo_export.predict.tissue import Tissue, find_tissue, otsu, saturation

SCALE = (4.0, 4.0), (0.5, 0.5)
EXTENT = (0.0, 0.0, 1000.0, 700.0)


@pytest.mark.parametrize("tiled", [True, False], ids=["pyramid", "strips"])
def test_tiles_are_the_slides_pixels_and_white_beyond_it(pixels, write_tiff: Callable[..., Path], tmp_path, tiled):
    slide = open_slide(write_tiff(tmp_path / "slide.tif", pixels, tiled=tiled))
    assert (slide.width, slide.height) == (1000, 700)
    assert slide.mpp == pytest.approx((0.5, 0.5), rel=1e-6)
    assert slide.bounds is None
    assert len(slide.levels) == (2 if tiled else 1)
    np.testing.assert_array_equal(slide.tile(130, 70, (150, 150), 150), pixels[70:220, 130:280])
    edge = slide.tile(950, 650, (150, 150), 150)
    np.testing.assert_array_equal(edge[:50, :50], pixels[650:, 950:])
    assert (edge[50:] == 255).all()
    assert (edge[:, 50:] == 255).all()
    slide.close()


def test_a_coarser_tile_comes_from_the_nearest_finer_level(slide_file: Path, pixels) -> None:
    slide = open_slide(slide_file)
    np.testing.assert_array_equal(slide.tile(200, 100, (300, 300), 150), pixels[::2, ::2][50:200, 100:250])
    # 1.6 pixels of level 0 for one: level 1 would be too coarse.
    expected = Image.fromarray(pixels[100:340, 200:440]).resize((150, 150), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(slide.tile(200, 100, (240, 240), 150), np.asarray(expected))


def test_an_overview_is_the_slides_mean_block_by_block(slide_file: Path, pixels, monkeypatch) -> None:
    monkeypatch.setattr("histo_export.predict.slide.BLOCK", 128)
    slide = open_slide(slide_file)
    overview, downsample = slide.overview((16, 16))
    assert downsample == (16, 16)
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
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(HistoError, match=reason):
            open_slide(path).tile(0, 0, (150, 150), 150)


OME = (
    '<?xml version="1.0"?><OME><Image><Pixels PhysicalSizeX="0.5" %s PhysicalSizeY="0.25" SizeX="1000"/></Image></OME>'
)
SCALES = [
    ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, (0.5, 0.5)),
    ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, (0.5, 0.5)),
    ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, (0.5, 1.0)),
    ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # a screen
    ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),  # a printer
    ({"resolution": (600, 600), "resolutionunit": "INCH"}, None),
    ({"resolution": (1200, 1200), "resolutionunit": "INCH"}, None),
    ({"resolution": (2400, 2400), "resolutionunit": "INCH"}, None),  # a flatbed scanner
    ({"resolution": (0, 0), "resolutionunit": "CENTIMETER"}, None),
    ({"resolution": (20000, 0), "resolutionunit": "CENTIMETER"}, None),
    ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
    ({"resolution": (2, 2), "resolutionunit": "NONE", "description": "ImageJ=1.54f\nunit=micron\n"}, (0.5, 0.5)),
    ({"resolution": (2, 1), "resolutionunit": "NONE", "description": "ImageJ=1.54f\nunit=\\u00B5m\n"}, (0.5, 1.0)),
    ({"resolution": (2000, 2000), "resolutionunit": "NONE", "description": "ImageJ=1.54f\nunit=mm\n"}, (0.5, 0.5)),
    ({"resolution": (2, 2), "resolutionunit": "NONE", "description": "ImageJ=1.54f\nunit=pixel\n"}, None),
    ({"resolution": (72, 72), "resolutionunit": "INCH", "description": OME % ""}, (0.5, 0.25)),
    ({"description": OME % 'PhysicalSizeXUnit="nm" PhysicalSizeYUnit="nm"'}, None),
    ({}, None),
]


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "flat"])
@pytest.mark.parametrize(("tags", "mpp"), SCALES, ids=str)
def test_what_a_plain_tiff_states_as_its_scale(pixels, tmp_path: Path, tags, mpp, tiled) -> None:
    import tifffile

    layout = {"tile": (256, 256)} if tiled else {"rowsperstrip": 64}
    tifffile.imwrite(tmp_path / "slide.tif", pixels, photometric="rgb", metadata=None, **layout, **tags)
    slide = open_slide(tmp_path / "slide.tif")
    assert slide.mpp == (pytest.approx(mpp) if mpp else None)
    slide.close()


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "flat"])
def test_the_unit_of_a_tiff_is_the_inch_where_it_is_not_stated(pixels, tmp_path: Path, tiled: bool) -> None:
    import tifffile

    path = tmp_path / "slide.tif"
    layout = {"tile": (256, 256)} if tiled else {"rowsperstrip": 64}
    tags = {"resolution": (50800, 50800), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **layout, **tags)
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.tags["ResolutionUnit"].offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = (65000).to_bytes(2, "little")  # a private number: as if it had not been written
    path.write_bytes(content)
    slide = open_slide(path)
    assert slide.mpp == pytest.approx((0.5, 0.5))
    slide.close()


@pytest.mark.parametrize(
    ("stated", "mpp"), [("0.2520", (0.252, 0.252)), ("0", None), ("-0.25", None), ("nan", None), ("252.0", None)]
)
def test_what_an_aperio_file_states_as_its_scale(pixels, tmp_path: Path, stated: str, mpp) -> None:
    import tifffile

    described = f"Aperio Image Library v11.2.1\r\n1000x700 (256x256) JPEG/RGB Q=70|AppMag = 40|MPP = {stated}|Left = 1"
    path = tmp_path / "slide.svs"
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, tile=(256, 256), description=described)
    slide = open_slide(path)
    assert slide.vendor == "aperio"
    assert slide.mpp == (pytest.approx(mpp) if mpp else None)
    slide.close()


def test_otsu_separates_two_groups() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(20, 4, 5000), rng.normal(120, 20, 800)]).clip(0, 255).astype(np.uint8)
    assert 35 < otsu(values) < 80


def test_tissue_without_specks_holes_and_glass(pixels) -> None:
    overview = pixels[::4, ::4]
    found = find_tissue(overview, *SCALE, TissueSettings(closing_um=20, min_area_um2=4000), EXTENT)
    y, x = np.ogrid[: overview.shape[0], : overview.shape[1]]
    ellipse = ((y - 87.5) / 63) ** 2 + ((x - 112.5) / 82.5) ** 2 < 1
    assert (found.mask != ellipse).mean() < 0.02
    assert not found.mask[:8, :10].any()  # the speck
    glass = np.full((100, 100, 3), 243, np.uint8)
    glass[::3] -= 3
    assert not find_tissue(glass, *SCALE, TissueSettings(), EXTENT).mask.any()
    black = np.zeros((100, 100, 3), np.uint8)
    black[..., 0] = 9
    assert not saturation(black).any()
    everywhere = np.tile(np.array([205, 120, 170], np.uint8), (100, 100, 1))
    assert find_tissue(everywhere, *SCALE, TissueSettings(), EXTENT).mask.all()


def test_areas_are_exact() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((20, 30)) < 0.5
    tissue = Tissue(mask, (3.0, 2.0), 0, (0, 0, 88, 39))
    fine = np.repeat(np.repeat(mask, 2, 0), 3, 1)[:39, :88]  # the slide ends within the last row and column
    x, y = rng.integers(0, 80, 50), rng.integers(0, 35, 50)
    expected = [fine[b : b + 13, a : a + 17].sum() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(tissue.areas(x, y, x + 17, y + 13), expected, atol=1e-9)
    assert tissue.area == pytest.approx(fine.sum())
    finer = np.repeat(np.repeat(fine, 10, 0), 10, 1)
    left, top = rng.integers(0, 800, 50), rng.integers(0, 350, 50)
    expected = [finer[b : b + 47, a : a + 91].sum() / 100 for a, b in zip(left, top, strict=True)]
    found = tissue.areas(left / 10, top / 10, (left + 91) / 10, (top + 47) / 10)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    at = tissue.at(np.arange(95)[None, :] + 0.5, np.arange(45)[:, None] + 0.5)
    np.testing.assert_array_equal(at[:39, :88], fine)
    assert not at[39:].any()
    assert not at[:, 88:].any()


@pytest.mark.parametrize("size", [(4, 4), (12, 30)])
def test_glass_that_is_smaller_than_the_smallest_hole_stays_glass(size: tuple[int, int]) -> None:
    """A picture of 40,000 µm² or less; and glass at the edge of tissue, which may go on beyond the picture."""
    glass = np.full((*size, 3), 243, np.uint8)
    assert not find_tissue(glass, *SCALE, TissueSettings(), EXTENT).mask.any()
    half = np.full((100, 100, 3), (205, 120, 170), np.uint8)
    half[:, :8] = 243
    half[40:50, 40:50] = 243  # a hole
    found = find_tissue(half, *SCALE, TissueSettings(closing_um=0, min_area_um2=10_000), EXTENT).mask
    assert not found[:, :8].any()
    assert found[:, 8:].all()
