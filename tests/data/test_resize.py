"""`--resize`: the network sees more of each tile, and all that follows knows the new scale."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export.cli.options import TileOptions
from histo_export.cli.tiles import check_model, open_tiles
from histo_export.data import open_data
from histo_export.errors import UsageError
from histo_export.export.bundle import wsinfer_fields
from histo_export.export.card import _crop_lines
from histo_export.spec import ModelSpec

from .conftest import noise_tile, save

MakeSplit = Callable[..., Path]


def test_tiles_are_resampled_and_keep_their_identity(make_split: MakeSplit) -> None:
    data = replace(open_data(make_split(), crop=8), mpp=0.5)
    half = data.resized(16)
    expected = np.asarray(Image.fromarray(noise_tile(0, 1, 1)).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(half.train.tile(4), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(half.train)).tile(4), expected)
    assert (half.tile_size, half.mpp, half.resized_from) == (16, 1.0, 32)
    assert half.fingerprint == data.fingerprint, "the size is a part of the model's spec"
    np.testing.assert_array_equal(half.train.hashes, data.train.hashes)
    assert half.description.endswith("; resized from 32 to 16 pixels")
    assert data.resized(32) is data
    with pytest.raises(UsageError, match=r"--resize 33: is larger than the tiles \(32 pixels\)"):
        data.resized(33)


def test_tiles_of_several_sizes_would_have_several_scales(make_split: MakeSplit) -> None:
    root = make_split()
    save(root / "val" / "A" / "wide.png", noise_tile(9, side=40))
    data = open_data(root, crop=8)
    assert not data.one_size
    with pytest.raises(UsageError, match="needs square tiles of one size"):
        data.resized(16)


def test_the_model_and_what_other_tools_read_have_the_new_scale(tmp_path: Path) -> None:
    for side, count in (("train", 2), ("val", 1), ("test", 1)):
        for k, c in enumerate("AB"):
            for i in range(count):
                save(tmp_path / "t" / side / c / f"{i}.png", noise_tile(len(side), k, i, side=80))
    options = TileOptions(resize=40, crop=32, mpp=0.25)
    spec, data = open_tiles(str(tmp_path / "t"), options, pool=1, dropout=0.0, seed=0)
    assert (spec.tile_size, spec.crop, spec.mpp, spec.resized_from) == (40, 32, 0.5, 80)
    assert data.train.tile(0).shape == (40, 40, 3)
    fields = wsinfer_fields(spec, "float")
    assert fields["patch_size_pixels"] == 40
    assert fields["spacing_um_px"] == 0.5
    assert fields["transform"][0] == {"name": "Resize", "arguments": {"size": 40}}
    assert "trained on tiles of 80 px that were resized to 40 px" in "\n".join(_crop_lines(spec))
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert spec.scale_of(1.0) == 2.0, "--mpp of a later export is that of the tiles, too"


def test_impossible_sizes_are_refused_before_tiles_are_read() -> None:
    with pytest.raises(UsageError, match=r"--resize 100: is smaller than the crop of 128 pixels"):
        check_model(TileOptions(resize=100), 1, 0.0)
    check_model(TileOptions(resize=100, crop=64), 1, 0.0)
    for wrong in (75, 74, True, 70_000, 80.5):
        with pytest.raises(UsageError, match="resized from"):
            ModelSpec(1, ("a", "b"), crop=64, tile_size=75, resized_from=wrong)  # type: ignore[arg-type]
