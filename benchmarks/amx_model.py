"""What bounds each convolution on AMX: products, caches or memory, by counting; and, where there is AMX, its time.

python benchmarks/amx_model.py                                   # bf16, batches 1, 8, 64: by counting alone
python benchmarks/amx_model.py --precision int8 --batch 64 --ghz 2.7 --memory 36
python benchmarks/amx_model.py --bundle bundles/tiles-pool2      # beside them the times of this CPU, if it has AMX

The rows are of cpp/src/cpu/kernels/amx.inl: 32 pixels x 32 channels are computed together, and a step of 64 cycles
multiplies two tiles of 16 pixels by two of 16 channels. A layer takes at least as long as the largest of
  products   16 cycles for each product of two tiles
  L1         a line per row of a tile, two a cycle; two lines where a row is not aligned (the stem); sixteen loads and
             stores more for a tile of pixels that is gathered
  L2         2 KiB of weights for each step, and the pixels of a window once, at `L2_BYTES` a cycle; where the weights
             push the pixels out of L1, up to twice as much
  memory     weights once per batch, which do not stay in the caches between two batches
  end        `END_CYCLES` for each vector of sums: bias, residual, ReLU, conversion. It runs beside the products.
Share: of the peak of the products that follows. All of it is an estimate; only the last column is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from histo_export import Engine
from histo_export.runtimes.native import median_layer_times

BYTES = {"int8": 1, "bf16": 2, "bf16x3": 6}
"""Of a number of a map: bf16x3 keeps three parts."""

L2_BYTES = 48
"""A cycle, that a core of Sapphire Rapids gets from its second-level cache in a long run."""

END_CYCLES = 5
"""For sixteen sums: about twenty instructions, four in a cycle."""

INTERLEAVED = 4


class Layer(NamedTuple):
    """A convolution, as `Engine.layer_times` names it; `side`: of its output."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    side: int


class Cycles(NamedTuple):
    """Of one tile on one core."""

    products: float
    first_cache: float
    second_cache: float
    memory: float
    end: float


def layers(crop: int) -> Iterator[Layer]:
    """ResNet34's, in the order of the computation."""
    side = (crop + 1) // 2
    yield Layer("stem.conv", 3, 64, 7, 2, side)
    side, inputs = (side + 1) // 2, 64
    for stage, (outputs, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        stride = 1 if stage == 1 else 2
        side = (side + stride - 1) // stride
        for block in range(blocks):
            first = stride if block == 0 else 1
            yield Layer(f"layer{stage}.{block}.conv1", inputs, outputs, 3, first, side)
            if first == 2:
                yield Layer(f"layer{stage}.{block}.shortcut", inputs, outputs, 1, 2, side)
            yield Layer(f"layer{stage}.{block}.conv2", outputs, outputs, 3, 1, side)
            inputs = outputs


def cycles(layer: Layer, precision: str, batch: int, memory_bytes: float) -> Cycles:
    """The bounds of a layer; `memory_bytes`: that a core gets from memory in a cycle."""
    stem = layer.kernel == 7
    size = BYTES["bf16" if stem and precision == "int8" else precision]
    runs = layer.kernel * (-(-layer.kernel * 3 * size // 64) if stem else layer.kernel * layer.inputs * size // 64)
    whole = layer.stride == 1 and (batch >= INTERLEAVED or layer.side % 16 == 0)
    rows = batch * layer.side**2
    tiles, steps = -(-rows // 16), runs * layer.outputs / 32  # of pixels; of a tile of them
    pairs = (tiles + 1) // 2
    load_pixels = 16 if stem else 8 if whole else 8 + 8 + 16
    window = 0 if stem else 32 * layer.kernel * layer.inputs * size / 2  # two blocks of channels share it
    return Cycles(
        products=tiles * steps * 32 / batch,
        first_cache=steps * (tiles * load_pixels + pairs * 16) / batch,
        second_cache=pairs * (steps * 2048 + window * layer.outputs / 32) / L2_BYTES / batch,
        memory=runs * 64 * layer.outputs / memory_bytes / batch,
        end=rows * layer.outputs / 16 * END_CYCLES / batch,
    )


def measured(bundle: Path, precision: str, batch: int, threads: int) -> dict[str, float]:
    """Seconds per tile of each layer, where AMX executes the precision here; else nothing."""
    engine = Engine(bundle / "model.safetensors", threads=threads, precision=precision)
    info = engine.info()
    if info["isa"] != "amx":
        return {}
    tiles = np.random.default_rng(0).integers(0, 256, (batch, info["crop"], info["crop"], 3), np.uint8)
    engine.run(tiles)
    return {str(layer["name"]): layer["seconds"] / batch for layer in median_layer_times(engine, tiles)}


def table(args: argparse.Namespace, batch: int) -> Table:
    hertz = args.ghz * 1e9 * args.threads
    times = measured(args.bundle, args.precision, batch, args.threads) if args.bundle else {}
    shown = Table(title=f"{args.precision}, batch {batch}, {args.threads} threads at {args.ghz} GHz, ms per tile")
    for name in ("layer", *Cycles._fields, "bound", "share", "measured", "share"):
        shown.add_column(name.replace("first_cache", "L1").replace("second_cache", "L2"), justify="right")
    sums = dict.fromkeys((*Cycles._fields, "bound", "measured"), 0.0)
    for layer in layers(args.crop):
        bounds = cycles(layer, args.precision, batch, args.memory / args.ghz / args.threads)
        bound = max(bounds)
        for name, value in (*bounds._asdict().items(), ("bound", bound)):
            sums[name] += value
        seconds = times.get(layer.name)
        sums["measured"] += (seconds or 0.0) * hertz
        shown.add_row(layer.name, *row(bounds, bound, seconds and seconds * hertz, hertz))
    total = Cycles(*(sums[name] for name in Cycles._fields))
    shown.add_row("all", *row(total, sums["bound"], sums["measured"] or None, hertz))
    return shown


def row(bounds: Cycles, bound: float, spent: float | None, hertz: float) -> list[str]:
    cells = [f"{value / hertz * 1e3:.4f}" for value in (*bounds, bound)]
    cells.append(f"{bounds.products / bound:.0%}")
    if spent is None:
        return [*cells, "", ""]
    return [*cells, f"{spent / hertz * 1e3:.4f}", f"{bounds.products / spent:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=tuple(BYTES), default="bf16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--crop", type=int, default=128, help="of the counted layers; measured is the bundle's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ghz", type=float, default=2.7, help="of cores that multiply by AMX")
    parser.add_argument("--memory", type=float, default=36.0, help="GB/s of all cores together")
    parser.add_argument("--bundle", type=Path, help="with model.safetensors, to measure where there is AMX")
    args = parser.parse_args()
    console = Console(width=140)
    for batch in args.batch:
        console.print(table(args, batch))


if __name__ == "__main__":
    main()
