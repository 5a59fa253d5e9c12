"""How exact is the native engine? Its largest |Δlogit| from float64, beside PyTorch's own in float32.

python benchmarks/accuracy.py BUNDLE...     # exits with 1 where the engine's error is over 10 times PyTorch's

For every instruction set of this machine, both profiles and the direct algorithm, on the bundle's golden tiles and on
inputs made to be hard: constant tiles, saturated stripes and checkerboards, noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from histo_export._core import Engine, usable_isas
from histo_export.export.bundle import open_bundle
from histo_export.model.native_file import read_native
from histo_export.parity import Golden
from histo_export.runtimes import to_float

LIMIT = 10
CONFIGURATIONS = {
    "throughput": {"profile": "throughput"},
    "latency": {"profile": "latency"},
    "direct": {"algorithm": "direct"},
}

Tiles = npt.NDArray[np.uint8]


def hard_tiles(side: int) -> Tiles:
    """Constant tiles of nine levels, stripes and checkerboards of 0 and 255 with periods 1 to 16, and noise."""
    y, x = np.indices((side, side))
    planes = [np.full((side, side), level) for level in (0, 1, 63, 64, 127, 128, 191, 254, 255)]
    for period in (1, 2, 4, 16):
        planes += [255 * (x // period % 2), 255 * (y // period % 2), 255 * ((x // period + y // period) % 2)]
    made = np.repeat(np.stack(planes)[..., None], 3, axis=3).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, (8, side, side, 3), dtype=np.uint8)
    return np.concatenate([made, noise])


@torch.inference_mode()
def torch_logits(file: Path, tiles: Tiles, dtype: torch.dtype) -> npt.NDArray[np.float64]:
    """The lowered network in `dtype`. Bytes become float32 first, as every runtime does it."""
    net = read_native(file)[0].to(dtype)
    batches = np.array_split(tiles, -(-len(tiles) // 8))
    return np.concatenate([net(torch.from_numpy(to_float(batch)).to(dtype)).double().numpy() for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    table = Table("bundle", "tiles", "largest logit", "PyTorch fp32", "engine", "|Δlogit|", "× PyTorch's")
    worst = 0.0
    for bundle in parser.parse_args().bundles:
        opened = open_bundle(bundle)
        file, golden = opened.path / "model.safetensors", Golden.read(opened.path / "golden.safetensors")
        for kind, tiles in (("real", golden.tiles[: golden.real]), ("hard", hard_tiles(golden.tiles.shape[1]))):
            reference = torch_logits(file, tiles, torch.float64)
            own = float(np.abs(torch_logits(file, tiles, torch.float32) - reference).max())
            for isa in usable_isas():
                for name, options in CONFIGURATIONS.items():
                    engine = Engine(file, isa=isa, **options)
                    error = float(np.abs(engine.run(np.ascontiguousarray(tiles)) - reference).max())
                    worst = max(worst, error / own)
                    facts = (bundle.name, f"{len(tiles)} {kind}", f"{np.abs(reference).max():.3g}", f"{own:.2e}")
                    table.add_row(*facts, f"{isa}, {name}", f"{error:.2e}", f"{error / own:.2f}")
            table.add_section()
    Console(width=120).print(table)
    if worst > LIMIT:
        raise SystemExit(f"the engine's error is {worst:.1f} times PyTorch's; {LIMIT} times is allowed")


if __name__ == "__main__":
    main()
