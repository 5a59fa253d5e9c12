"""bf16x3, bf16 and int8: how fast they are beside peers in the same precision, and what they cost.

python benchmarks/low_precision_table.py                            # speed, stages, memory
python benchmarks/low_precision_table.py speed --pools 2 --classes int8
python benchmarks/low_precision_table.py accuracy BUNDLE --data TILES --out DIR
python benchmarks/low_precision_table.py checks BUNDLE              # or without one: an untrained network

Parts: `speed` (batches 1, 8, 64, each pool: every runtime of every class interleaved in one run of
`histo_export.bench.measure`, which checks the logits; the lead over the best peer of the same class, bf16x3 over those
of fp32, since nobody else has it; `<` marks one below its goal), `stages` (time and share of peak of each stage and
layer in each precision, peaks measured in the same run), `memory` (packed weights, workspace, peak of a process),
`checks` (the errors of all runtimes and of wrong layers, between which `measure.ROUNDINGS` lies), and `accuracy`:
accuracy with its 95 % interval on the bundle's test split, agreement with fp32, largest |Δlogit|, and tiles per second
at batch 64, interleaved too, with a picture of accuracy over speed.

BUNDLE is one of `histo export --precision int8`. The networks of the other parts are untrained and calibrated on noise.
ONNX Runtime is there twice in int8: with our QDQ file, of which it computes a part in fp32, and with what its own tool
makes of model.onnx (static, QDQ, per channel, MinMax, up to 300 training tiles), which suits its kernels best.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engine_table
import numpy as np
import numpy.typing as npt
import torch
from engine_table import Part, lead, log, of_batch, per_tile, show, stages
from rich.console import Console
from rich.table import Table

from histo_export import _core
from histo_export.bench.contestants import ROUNDINGS
from histo_export.bench.measure import measure
from histo_export.bench.rows import Row
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import Subject, open_subjects
from histo_export.bench.worker_handle import Worker
from histo_export.bundle_files import GOLDEN, INT8_ONNX
from histo_export.data import TileData, open_data
from histo_export.data.tiles import TileSet
from histo_export.data.transforms import center_crop
from histo_export.errors import HistoError, UsageError
from histo_export.export.bundle import open_bundle
from histo_export.export.formats import FORMATS
from histo_export.export.quantise import TILES, choose_tiles
from histo_export.figures import COLOURS, MARKERS, add_legend, add_title, new_figure, percent_ticks, save_figure, tidy
from histo_export.machine import this_machine, versions
from histo_export.model.arithmetic import Simulation
from histo_export.model.native_file import read_native
from histo_export.parity import Golden
from histo_export.runtimes import (
    Runtime,
    Tiles,
    Variant,
    all_variants,
    open_runtime,
    runtime_class,
    to_float,
    variants,
)
from histo_export.spec import PRECISIONS, ModelSpec, Precision
from histo_export.statistics import bootstrap_interval, summarise

out = Console(width=170, highlight=False)

TOOL = "onnxruntime-tool-int8"
BATCH = 64


@dataclass(frozen=True)
class Class:
    """A precision: batch → the lead that it should have, and the peers over which it is measured."""

    goals: Mapping[int, float]
    peers: tuple[str, ...]


CLASSES: Mapping[Precision, Class] = {
    "bf16x3": Class({1: 2.1, 8: 3.8, 64: 3.8}, engine_table.PEERS),
    "bf16": Class(
        {1: 1.35, 8: 1.7, 64: 1.7},
        ("openvino-bf16", "openvino-streams-bf16", "torch-channels-last-bf16", "torch-compile-bf16"),
    ),
    "int8": Class({1: 1.7, 8: 1.9, 64: 1.8}, ("openvino-int8", "openvino-streams-int8", "onnxruntime-int8", TOOL)),
}

COMPARED = (
    *("native", "native-bf16x3", "native-bf16", "native-int8"),
    *("openvino", "openvino-streams", "openvino-bf16", "openvino-streams-bf16"),
    *("openvino-int8", "openvino-streams-int8", "onnxruntime", "onnxruntime-int8", TOOL),
    *("torch-channels-last", "torch-channels-last-bf16", "torch-compile", "torch-compile-bf16"),
)
"""What `accuracy` compares, all with the first one."""


def ours(precision: Precision) -> tuple[str, ...]:
    return tuple(str(Variant(name, precision)) for name in engine_table.OURS)


def open_variant(variant: Variant, subject: Subject, threads: int) -> Runtime:
    return open_runtime(variant.runtime, subject.file(variant.file), threads=threads, precision=variant.precision)


def quantise_with_onnxruntime(model: Path, to: Path, tiles: Tiles) -> None:
    """What ONNX Runtime's own tool makes of `model`, calibrated on uint8 `(n, side, side, 3)`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"tiles": to_float(tiles[i : i + 8])} for i in range(0, len(tiles), 8)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as home:
        prepared = Path(home) / "model.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(str(prepared), str(to), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)


@contextlib.contextmanager
def untrained(threads: int, pool: int) -> Iterator[Subject]:
    """An untrained network in every file that the runtimes of this benchmark open."""
    with tempfile.TemporaryDirectory() as home:
        subject = engine_table.make(Path(home), Part("", {}, threads, [pool]), pool, int8=True)
        golden = Golden.read(subject.folder / GOLDEN)
        quantise_with_onnxruntime(subject.file("model.onnx"), subject.folder / Variant.parse(TOOL).file, golden.tiles)
        yield subject


def speed(classes: Sequence[Precision], threads: int, pools: Sequence[int], rounds: int, seconds: float) -> None:
    batches = tuple(sorted({batch for name in classes for batch in CLASSES[name].goals}))
    runtimes = tuple(dict.fromkeys(name for p in classes for name in (*ours(p), *CLASSES[p].peers)))
    columns = ["class", "pool", "batch", "ours", "ms per tile", "fastest peer", "ms per tile", "lead [95 %]", "goal"]
    table = Table(*columns, title=f"128 pixels, {threads} threads", title_justify="left")
    every = Table("pool", "runtime", "executed", "kernels for", *(f"batch {batch}" for batch in batches))
    for pool in pools:
        with untrained(threads, pool) as subject:
            settings = Settings(variants(*runtimes), batches, (threads,), rounds, seconds, may_lack=True)
            rows, left_out = measure([subject], settings, show)
        for runtime, reason in left_out.items():
            log.print(f"\r{runtime} is left out: {reason}\033[K")
        of = {(row.runtime, row.batch): row for row in rows}
        for name in classes:
            for batch, goal in CLASSES[name].goals.items():
                mine = [of[runtime, batch] for runtime in of_batch(ours(name), batch) if (runtime, batch) in of]
                peers = [of[runtime, batch] for runtime in CLASSES[name].peers if (runtime, batch) in of]
                if mine and peers:
                    table.add_row(name, str(pool), str(batch), *lead(mine, peers, goal))
        for runtime in dict.fromkeys(row.runtime for row in rows):
            first = of[runtime, batches[0]]
            times = (per_tile(of[runtime, batch]) for batch in batches)
            every.add_row(str(pool), runtime, first.executed, first.isa or "not told", *times)
    log.print("\r\033[K", end="")
    out.print(table)
    out.print("bf16x3 is compared with fp32, and a class of its own. All rows, ms per tile:")
    out.print(every)


def memory(classes: Sequence[Precision], threads: int, pool: int) -> None:
    """What the engine allocates, and the peak of a process that has run these tiles only."""
    columns = ["precision", "profile", "batch", "weights MB", "workspace MB", "process MB", "of these before"]
    table = Table(*columns, title=f"Memory, {threads} threads, pool {pool}", title_justify="left")
    with untrained(threads, pool) as subject:
        file, golden = subject.file("model.safetensors"), subject.folder / GOLDEN
        for precision in ("fp32", *classes):
            for profile, batch in (("latency", 1), ("throughput", 8), ("throughput", BATCH)):
                engine = _core.Engine(file, threads=threads, precision=precision, profile=profile)
                engine.warmup(batch)
                info = engine.info()
                variant = Variant("native" if profile == "throughput" else "native-latency", precision)
                with Worker(str(variant)) as worker:
                    worker.open(variant, file, golden, threads=threads, device="cpu")
                    worker.call(batch)
                    found = worker.memory()
                sizes = (info["weight_bytes"] / 1e6, info["workspace_bytes"] / 1e6, found["peak"], found["before"])
                table.add_row(precision, profile, str(batch), *(f"{size:.0f}" for size in sizes))
    out.print(table)


def checks(subject: Subject, threads: int) -> None:
    """What the precisions err by definition, the runtimes over that, and one wrong layer over that.

    Wrong is each convolution in turn: left out, doubled, or its output channels swapped in pairs.
    """
    golden = Golden.read(subject.folder / GOLDEN)
    lowered, _ = read_native(subject.file("model.safetensors"))
    tiles = torch.from_numpy(golden.tiles[: golden.real])
    wrong: dict[str, float] = {}
    for name, layer in lowered.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
            weight, bias = layer.weight.clone(), layer.bias.clone()
            swapped = torch.arange(len(weight)).view(-1, 2).flip(1).flatten()
            for how, (w, b) in {
                "left out": (0 * weight, 0 * bias),
                "doubled": (2 * weight, 2 * bias),
                "swapped": (weight[swapped], bias[swapped]),
            }.items():
                layer.weight.copy_(w), layer.bias.copy_(b)
                wrong[f"{name} {how}"] = golden.spread_error(Simulation(lowered)(tiles).numpy())
            layer.weight.copy_(weight), layer.bias.copy_(bias)
    least = min(wrong, key=lambda name: wrong[name])
    columns = ["precision", "by definition", "runtime", "executed", "× definition"]
    table = Table(*columns, title=f"{subject.label}: RMS errors, of the logits' spread", title_justify="left")
    for precision in CLASSES:
        own = subject.rounding(precision)
        for variant in all_variants():
            if variant.precision == precision and (subject.folder / variant.file).exists():
                opened = open_variant(variant, subject, threads)
                error = golden.spread_error(opened.run(golden.tiles))
                table.add_row(precision, f"{own:.1e}", str(variant), opened.executed, f"{error / own:.2f}")
        table.add_row(precision, f"{own:.1e}", "fp32, least of all wrong layers", least, f"{wrong[least] / own:.2f}")
    out.print(table)
    out.print(f"Allowed: {ROUNDINGS:g}")


@contextlib.contextmanager
def with_tools_model(bundle: Path, tiles: Tiles) -> Iterator[Subject]:
    """The bundle as a subject that also holds what ONNX Runtime's tool makes of it; the bundle is not changed."""
    (subject,) = open_subjects([bundle], ["int8"])
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "bundle"
        folder.mkdir()
        for name in (*(row.file for row in FORMATS.values() if row.file), INT8_ONNX, GOLDEN):
            if (bundle / name).is_file():
                (folder / name).symlink_to((bundle / name).resolve())
        quantise_with_onnxruntime(subject.file("model.onnx"), folder / Variant.parse(TOOL).file, tiles)
        yield Subject(subject.label, folder, subject.spec)


def test_logits(runtime: str, subject: Subject, tiles: TileSet, threads: int) -> npt.NDArray[np.float32]:
    """float32 logits `(n, classes)` of all tiles of the split."""
    opened = open_variant(Variant.parse(runtime), subject, threads)
    parts = []
    for start in range(0, len(tiles), BATCH):
        numbers = range(start, min(start + BATCH, len(tiles)))
        parts.append(opened.run(np.stack([declared(tiles.tile(i), subject.spec) for i in numbers])))
        log.print(f"\r{runtime}: {numbers[-1] + 1} of {len(tiles)} test tiles\033[K", end="")
    return np.concatenate(parts)


def declared(tile: npt.NDArray[np.uint8], spec: ModelSpec) -> npt.NDArray[np.uint8]:
    """The tile, cropped to the size that the files are declared for."""
    return tile if tile.shape[0] == spec.tile_size else center_crop(tile, spec.tile_size)


def bundle_tiles(bundle: Path, data: str, split: str | None) -> tuple[TileData, npt.NDArray[np.uint8]]:
    """The data that a bundle was trained on, and those of its training tiles that int8 is calibrated on."""
    block = open_bundle(bundle).config.histo
    spec = ModelSpec.from_dict(block.spec)
    fractions = tuple(float(part) if "." in part else int(part) for part in split.split(",")) if split else None
    seed = block.training.get("seed", 0)
    tiles = open_data(data, classes=spec.classes, crop=spec.crop, split=fractions, seed=seed)  # type: ignore[arg-type]
    if block.training.get("data", {}).get("fingerprint") not in (None, tiles.fingerprint):
        raise UsageError(f"--data {data}", "is not what the bundle was trained on", "Give the same tiles and --split")
    return tiles, choose_tiles(tiles.train, replace(spec, crop=spec.tile_size), TILES).numpy()


def logits_of_all(
    runtimes: Sequence[str], subject: Subject, tiles: TileSet, threads: int
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """Runtime → logits of the test tiles; and runtime → why it is left out."""
    logits: dict[str, npt.NDArray[np.float32]] = {}
    left_out: dict[str, str] = {}
    for runtime in runtimes:
        try:
            variant = Variant.parse(runtime)
            if reason := runtime_class(variant.runtime).unavailable("cpu", variant.precision):
                raise HistoError(runtime, reason, "It is left out")
            logits[runtime] = test_logits(runtime, subject, tiles, threads)
        except HistoError as error:
            left_out[runtime] = str(error)
        gc.collect()  # ends the threads of this one
    return logits, left_out


def accuracy(bundle: Path, data: str, split: str | None, runtimes: Sequence[str], to: Path, how: Settings) -> None:
    """Table and picture; the first of `runtimes` is what the others are compared with."""
    tiles, calibration = bundle_tiles(bundle, data, split)
    with with_tools_model(bundle, calibration) as subject:
        logits, left_out = logits_of_all(runtimes, subject, tiles.test, how.threads[0])
        try:
            rows, _ = measure([subject], replace(how, runtimes=variants(*logits)), show)
        except HistoError as error:  # ONNX Runtime's tool may choose ranges that make another model of it
            if not str(error).startswith(TOOL):
                raise
            agree = (logits[TOOL].argmax(1) == logits[runtimes[0]].argmax(1)).mean()
            left_out[TOOL] = f"{error} On the test tiles its top class was that of {runtimes[0]} for {agree:.2%}."
            timed = variants(*(runtime for runtime in logits if runtime != TOOL))
            rows, _ = measure([subject], replace(how, runtimes=timed), show)
    log.print("\r\033[K", end="")
    reference = logits[runtimes[0]]
    columns = [
        "runtime",
        "executed",
        "accuracy [95 %]",
        f"as {runtimes[0]}",
        "largest |Δlogit|",
        f"tiles/s at {BATCH} [95 %]",
    ]
    table = Table(*columns, title=f"{bundle.name}: {len(reference):,} test tiles", title_justify="left")
    points = []
    for row in rows:
        own = logits[row.runtime]
        right = int((own.argmax(1) == tiles.test.labels).sum())
        low, high = bootstrap_interval(right, len(own))
        share = right / len(own)
        time = summarise(row.rounds)
        rates = tuple(row.batch / seconds for seconds in (time.median, time.high, time.low))
        points.append(Point(row, (share, low, high), rates))
        table.add_row(
            row.runtime,
            row.executed,
            f"{share:.1%} [{low:.1%}, {high:.1%}]",
            f"{(own.argmax(1) == reference.argmax(1)).mean():.2%}",
            f"{np.abs(own - reference).max():.2g}",
            "{:.0f} [{:.0f}, {:.0f}]".format(*rates),
        )
    out.print(table)
    for runtime, reason in left_out.items():
        out.print(f"{runtime} is left out: {reason}")
    to.mkdir(parents=True, exist_ok=True)
    picture = to / "accuracy-speed.png"
    draw(points, picture, f"{bundle.name}: {len(reference):,} test tiles, batch {BATCH}, {how.threads[0]} threads")
    out.print(f"{picture}")


@dataclass(frozen=True)
class Point:
    """A runtime's accuracy and tiles per second, each with its 95 % interval."""

    row: Row
    accuracy: tuple[float, float, float]
    rate: tuple[float, float, float]


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """Accuracy over speed: a colour for each engine, a marker for each precision."""
    figure = new_figure(7.2, 4.8)
    axes = figure.subplots()
    engines = dict.fromkeys(Variant.parse(point.row.runtime).runtime for point in points)
    colours = {engine: COLOURS[i % len(COLOURS)] for i, engine in enumerate(engines)}
    for point in points:
        engine = Variant.parse(point.row.runtime).runtime
        (x, x_low, x_high), (y, y_low, y_high) = point.rate, point.accuracy
        axes.errorbar(
            x,
            y,
            yerr=[[y - y_low], [y_high - y]],
            xerr=[[x - x_low], [x_high - x]],
            marker=MARKERS[PRECISIONS.index(point.row.precision)],  # type: ignore[arg-type]
            color=colours[engine],
            linewidth=0,
            elinewidth=0.8,
            capsize=2,
            markersize=7,
            label=f"{engine}, {point.row.precision}",
        )
    axes.set_xscale("log")
    ticks = [20, 50, 100, 200, 500, 1000, 2000, 5000]
    inside = [tick for tick in ticks if min(p.rate[0] for p in points) / 2 < tick < max(p.rate[0] for p in points) * 2]
    axes.set_xticks(inside, [str(tick) for tick in inside])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel("tiles per second, logarithmic (right is better)")
    axes.set_ylabel("test accuracy (up is better)")
    tidy(axes)
    add_legend(figure, axes, 3)
    note = f"whiskers: 95 % intervals; on the same tiles, so differences are surer than they look; {this_machine()}"
    add_title(figure, title, note)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("speed", "stages", "memory", "checks")
    named = f"{', '.join(parts)}, or: accuracy BUNDLE, or: checks BUNDLE"
    parser.add_argument("parts", nargs="*", default=parts[:3], metavar="PART", help=named)
    parser.add_argument("--classes", default=",".join(CLASSES), metavar="P,P,…")
    parser.add_argument("--pools", default="1,2,4,8", metavar="N,N,…", help="of `speed`; the others take the second")
    parser.add_argument("--threads", type=int, default=_core.usable_cpus())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--time", type=float, default=2.0, help="timed seconds of each row, at least")
    parser.add_argument("--data", help="of `accuracy`: what the bundle was trained on")
    parser.add_argument("--split", metavar="T,V,T", help="of `accuracy`: as the bundle was trained")
    parser.add_argument("--runtimes", default=",".join(COMPARED), metavar="R,R,…", help="of `accuracy`")
    parser.add_argument("--out", type=Path, default=Path("low-precision"), help="of `accuracy`: gets the picture")
    args = parser.parse_args()
    pools = [int(pool) for pool in args.pools.split(",")]
    classes: list[Precision] = [name for name in CLASSES if name in args.classes.split(",")]
    one = pools[min(1, len(pools) - 1)]
    first, *rest = args.parts
    judged = first == "accuracy" or (first == "checks" and len(rest) == 1 and rest[0] not in parts)
    wrong = len(rest) != 1 or (first == "accuracy" and not args.data) if judged else bool(set(args.parts) - set(parts))
    if not classes or wrong:
        parser.error(f"name some of {named}; accuracy needs --data")
    out.print(f"{this_machine()}; {', '.join(f'{name} {version}' for name, version in versions().items())}\n")
    if judged and first == "checks":
        (subject,) = open_subjects([Path(rest[0])], ["int8"])
        checks(subject, args.threads)
        return
    if judged:
        how = Settings((), (BATCH,), (args.threads,), args.rounds, args.time)
        accuracy(Path(rest[0]), args.data, args.split, args.runtimes.split(","), args.out, how)
        return
    if "speed" in args.parts:
        speed(classes, args.threads, pools, args.rounds, args.time)
    if "stages" in args.parts:
        for precision in classes:
            stages(args.threads, one, args.rounds, precision)
    if "memory" in args.parts:
        memory(classes, args.threads, one)
    if "checks" in args.parts:
        with untrained(args.threads, one) as subject:
            checks(subject, args.threads)


if __name__ == "__main__":
    main()
