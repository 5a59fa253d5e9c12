from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from histo_export.data import open_data
from histo_export.data.demo import CLASSES, CROP, make_tile
from histo_export.errors import HistoError, UsageError
from histo_export.training.floors import colour_floor


def digest() -> str:
    tiles = [make_tile(0, 2, kind, i) for kind in range(6) for i in range(2)]
    return hashlib.sha256(np.stack(tiles).tobytes()).hexdigest()


def test_shape_and_defaults() -> None:
    data = open_data("demo")
    assert data.classes == CLASSES
    assert [len(s) for s in (data.train, data.val, data.test)] == [360, 60, 120]
    assert np.bincount(data.train.labels).tolist() == [60] * 6
    assert (data.synthetic, data.mpp, data.tile_size) == (True, 1.0, 75)
    assert "SYNTHETIC" in data.description
    assert "synthetic" in data.notes[0]
    tile = data.test.tile(0)
    assert (tile.shape, tile.dtype, tile.flags.c_contiguous) == ((75, 75, 3), np.uint8, True)
    tile[:] = 0
    assert data.test.tile(0).any()


def test_every_tile_is_another() -> None:
    data = open_data("demo", demo_size=(2, 2, 2))
    tiles = [s.tile(i).tobytes() for s in (data.train, data.val, data.test) for i in range(12)]
    assert len(set(tiles)) == 36
    assert open_data("demo", seed=1).train.tile(0).tobytes() not in tiles


def test_a_tile_depends_on_its_own_place_only() -> None:
    data = open_data("demo", classes=["MUCOSA", "TUMOR"], demo_size=(3, 1, 1))
    assert data.classes == ("MUCOSA", "TUMOR")
    np.testing.assert_array_equal(data.train.tile(2), open_data("demo").train.tile(5 * 60 + 2))


@pytest.mark.parametrize("disabled", ["", "AVX2 FMA3 AVX512F AVX512_SKX AVX512CD X86_V3 X86_V4"])
def test_pixels_are_the_same_in_every_process_and_with_other_instructions(disabled: str) -> None:
    code = "from test_demo import digest; print(digest())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    environment["NPY_DISABLE_CPU_FEATURES"] = disabled
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == digest()


def test_fingerprint() -> None:
    first = open_data("demo").fingerprint
    assert open_data("demo").fingerprint == first
    others = [
        open_data("demo", seed=1),
        open_data("demo", demo_size=(60, 10, 21)),
        open_data("demo", classes=CLASSES[::-1]),
    ]
    assert len({first, *(o.fingerprint for o in others)}) == 4


def calls_of(kind: int, index: int) -> int:
    """Functions that are called for one tile, NumPy's included."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        make_tile(0, 1, kind, index)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("kind", range(len(CLASSES)))
def test_it_is_quick(kind: int) -> None:
    """A tile is a few operations on arrays: a loop over nuclei or pixels would call functions ten thousand times."""
    make_tile(0, 0, 0, 0)  # fills the tables that are kept
    assert max(calls_of(kind, index) for index in range(3)) < 3000  # 450 to 1300


def test_it_looks_like_h_and_e() -> None:
    """Pink to purple on bright ground: green is the darkest channel, and blue is not above red by much."""
    data = open_data("demo", demo_size=(1, 1, 3))
    for i in range(len(data.test)):
        r, g, b = data.test.tile(i).reshape(-1, 3).mean(0)
        assert g < r
        assert g < b
        assert b - r < 60
        assert 90 < (r + g + b) / 3 < 235


def test_colours_do_not_tell_the_class() -> None:
    """The floor that every training prints, at the demo's own crop: a network that beats it has learned shapes."""
    data = open_data("demo", demo_size=(30, 5, 20))
    everything = np.ones(len(data.test), bool)
    floor = colour_floor(data.train, data.val, data.test, CROP, right=everything, judged=everything)
    assert floor.accuracy < 0.4  # a sixth is chance


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="Did you mean TUMOR"):
        open_data("demo", classes=["TUMOUR", "STROMA"])
    with pytest.raises(UsageError, match="demo size 0/1/1"):
        open_data("demo", demo_size=(0, 1, 1))
    with pytest.raises(UsageError, match="made with its splits"):
        open_data("demo", split=(1, 1, 1))
    with pytest.raises(HistoError, match=r"75x75 .* crop of 160"):
        open_data("demo", crop=160)


def test_torch_is_not_imported() -> None:
    code = "import sys, histo_export.data.demo, histo_export.data.folder; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
