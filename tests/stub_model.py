"""`histo predict` around a stub in the place of a model, in this process or as a program: STUB_FOLDER ARGUMENTS…."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from histo_export.predict import run, work
from histo_export.runtimes import Variant
from histo_export.spec import ModelSpec

SIDE = 32
SPEC = ModelSpec(1, ("dark", "bright"), crop=SIDE, tile_size=SIDE, mpp=0.5)


class StubRuntime:
    """Tells bright tiles from dark ones."""

    name = "stub"
    executed = "cpu fp32, stub"
    features = 0

    def batch_target(self) -> StubRuntime:
        return self

    def run(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        brightness = tiles.mean((1, 2, 3)) / 255
        return np.stack([1 - brightness, brightness], 1).astype(np.float32)


@contextmanager
def stub_model(folder: Path, spec: ModelSpec = SPEC) -> Iterator[Path]:
    """In the block, any bundle is this stub; `folder` can be given as the bundle."""
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "golden.safetensors"):
        (folder / name).write_text("{}", encoding="utf-8")
    block = SimpleNamespace(files={}, training={}, input="float", precision="fp32", opset=13, low_precision=None)
    block.batch_size = 1
    config: Any = SimpleNamespace(histo=block, histo_precision_costs=None)
    bundle = SimpleNamespace(path=folder, config=config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "check_model", lambda *_: (bundle, spec, Variant("native")))
        patch.setattr(work, "open_model", lambda *_: StubRuntime())
        yield folder


def write_tiles(folder: Path, tiles: int = 3) -> Path:
    """A folder of tiles, from dark to bright."""
    folder.mkdir(parents=True)
    for i in range(tiles):
        Image.new("RGB", (SIDE, SIDE), (255 * i // max(1, tiles - 1),) * 3).save(folder / f"{i}.png")
    return folder


if __name__ == "__main__":
    from histo_export.cli import main

    with stub_model(Path(sys.argv.pop(1))):
        main()
