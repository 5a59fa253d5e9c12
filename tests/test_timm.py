"""`--formats timm`: the checkpoint under timm's names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from histo_export.errors import HistoError
from histo_export.export.formats import FORMATS, Source, write_formats
from histo_export.export.timm import _config
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec


def test_the_weights_are_those_of_the_checkpoint(make_checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    made = make_checkpoint(pool=1)
    names = write_formats(tmp_path, ["timm"], Source(made))
    assert names == ["timm/config.json", "timm/model.safetensors"]
    assert all(FORMATS["timm"].makes(name) for name in names)
    state = safetensors.torch.load_file(tmp_path / "timm/model.safetensors")
    TileNet.of(made.spec).load_state_dict(state, strict=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict.items())
    config = json.loads((tmp_path / "timm/config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("resnet34", len(made.spec.classes))
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]


def test_timm_resizes_no_tile() -> None:
    """It resizes to floor(crop / crop_pct), which for crop / tile_size is a pixel too few for some sizes."""
    for tile_size in range(32, 400):
        for crop in range(32, tile_size + 1, 3):
            config = _config(ModelSpec(pool=1, classes=("a", "b"), crop=crop, tile_size=tile_size))
            assert math.floor(crop / config["pretrained_cfg"]["crop_pct"]) == tile_size


def test_timm_itself_gives_the_same_logits(make_checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not part of the test environment: pip install timm")
    from PIL import Image

    made = make_checkpoint(pool=1, crop=64, tile_size=76)  # an even difference: both take the same centre
    write_formats(tmp_path, ["timm"], Source(made))
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    tile = np.random.default_rng(0).integers(0, 256, (76, 76, 3), np.uint8)
    centre = torch.from_numpy(tile[6:70, 6:70]).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = made.net().eval()(normalise(centre, made.spec))
        found = model(transform(Image.fromarray(tile))[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_other_pools_are_refused_before_training(histo: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = histo("export", "--data", "demo", "--pool", 2, "--formats", "native,timm", "--out", tmp_path / "b")
    assert (code, out) == (2, "")
    assert "--formats timm: is for pool 1, and this network has pool 2" in err


def test_other_pools_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(HistoError, match=r"can't have pool 3: .* 512 inputs, this one 4608\. Leave timm"):
        write_formats(tmp_path, ["timm"], Source(checkpoint))
    assert not list(tmp_path.iterdir())
