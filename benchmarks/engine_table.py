"""The native engine beside the fastest of all other runtimes, fp32, with the share of the machine's peak.

python benchmarks/engine_table.py                          # everything; three quarters of an hour on two cores
python benchmarks/engine_table.py main --pools 2           # one part of it

Parts: `main` (128 pixels, all threads, batches 1 to 64, each pool), `single` (one thread), `avx2` (all held to AVX2),
`large` (224 and 256 pixels), `stages` (time and share of peak of each stage and layer), `threads` (all over one).

All rows of a table are interleaved in one run of `histo_export.bench.measure`, which checks every logit before and
after. A lead is the time of the fastest peer over ours within the rounds, with its 95 % interval; `<` marks one below
its goal. At batch 1 ours is the latency profile, from 32 on throughput, between them the faster of the two.

ONNX Runtime offers no way to hold it to AVX2, so in `avx2` it is shown and not counted among the peers; torch-compile
is not there, because torch 2.15's computes NaN with ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from histo_export import _core
from histo_export.bench.measure import measure
from histo_export.bench.progress import Progress
from histo_export.bench.rows import Row
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import Subject, untrained_subjects
from histo_export.bench.worker_handle import COMMAND
from histo_export.bundle_files import INT8_ONNX
from histo_export.machine import this_machine, versions
from histo_export.runtimes import variants
from histo_export.runtimes.native import median_layer_times
from histo_export.spec import Precision
from histo_export.statistics import compare

OURS = ("native-latency", "native")
PEERS = (
    "onnxruntime",
    "openvino",
    "openvino-streams",
    "libtorch",
    "torch",
    "torch-channels-last",
    "torch-compile",
)
GOALS: Mapping[int, float] = {1: 1.6, 8: 2.2, 32: 2.3, 64: 2.3}
AVX2 = {"HISTO_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

log = Console(stderr=True, highlight=False)
out = Console(width=120, highlight=False)


@dataclass(frozen=True)
class Part:
    """One table: what is measured, and the lead that each batch should have."""

    title: str
    goals: Mapping[int, float]
    threads: int
    pools: Sequence[int]
    crop: int = 128
    tile_size: int = 150
    environment: Mapping[str, str] = field(default_factory=dict)
    peers: Sequence[str] = PEERS
    not_held: Sequence[str] = ()


def show(progress: Progress) -> None:
    log.print(f"\r{progress.doing}, about {progress.left_s:.0f} s left\033[K", end="")


def make(folder: Path, part: Part, pool: int, int8: bool = False) -> Subject:
    files = {variant.file for variant in variants(*OURS, *PEERS)} | ({INT8_ONNX} if int8 else set())
    (subject,) = untrained_subjects([pool], folder, files, int8=int8, crop=part.crop, tile_size=part.tile_size)
    return subject


def lead_table(part: Part, rounds: int, seconds: float) -> None:
    batches = tuple(part.goals)
    columns = ["pool", "batch", "ours", "ms per tile", "fastest peer", "ms per tile", "lead [95 %]", "goal"]
    table = Table(*columns, title=part.title, title_justify="left")
    every = Table("pool", "runtime", "executed", "kernels for", *(f"batch {batch}" for batch in batches))
    command = ["env", *(f"{name}={value}" for name, value in part.environment.items()), *COMMAND]
    for pool in part.pools:
        with tempfile.TemporaryDirectory() as home:
            subject = make(Path(home) / "models", part, pool)
            settings = Settings(variants(*OURS, *part.peers), batches, (part.threads,), rounds, seconds, may_lack=True)
            rows, left_out = measure([subject], settings, show, command)
        for runtime, reason in left_out.items():
            log.print(f"\r{runtime} is left out: {reason}\033[K")
        for batch, goal in part.goals.items():
            cells = {row.runtime: row for row in rows if row.batch == batch and row.precision == "fp32"}
            peers = [row for runtime, row in cells.items() if runtime not in (*OURS, *part.not_held)]
            ours = [cells[name] for name in of_batch(OURS, batch)]
            table.add_row(str(pool), str(batch), *lead(ours, peers, goal))
        for runtime in dict.fromkeys(row.runtime for row in rows):
            mine = {row.batch: row for row in rows if row.runtime == runtime}
            first = next(iter(mine.values()))
            name = runtime + (" (not held)" if runtime in part.not_held else "")
            every.add_row(
                str(pool), name, first.executed, first.isa or "not told", *(per_tile(mine[b]) for b in batches)
            )
    log.print("\r\033[K", end="")
    out.print(table)
    out.print("All rows, ms per tile:")
    out.print(every)


def of_batch(ours: Sequence[str], batch: int) -> Sequence[str]:
    """Those of our runtimes (latency first) that a user would choose for this batch."""
    return ours[:1] if batch == 1 else ours[1:] if batch >= 32 else ours


def lead(ours: Sequence[Row], peers: Sequence[Row], goal: float) -> list[str]:
    """Cells: our fastest runtime, the fastest peer, its time over ours, and the goal; `<` marks a missed goal."""
    mine, other = fastest(ours), fastest(peers)
    ratio = compare(other.medians.tolist(), mine.medians.tolist())
    shown = f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]{' <' if ratio.ratio < goal else ''}"
    return [mine.runtime, per_tile(mine), other.runtime, per_tile(other), shown, f"{goal}"]


def fastest(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: float(np.median(row.medians)))


def per_tile(row: Row) -> str:
    return f"{np.median(row.medians) / row.batch * 1e3:.2f}"


def peaks(threads: int) -> dict[str, float]:
    """Operations per second of multiply-adds in registers, by the precision of a layer, of those that this CPU has.

    "int16" are the words of int8's Winograd; bf16x3 forms three products for each of the network's.
    """
    found = {peak["products"]: 2 * peak["multiply_adds"] for peak in _core.measure_peaks(threads, 0.5)}
    return found | ({"bf16x3": found["bf16"] / 3} if "bf16" in found else {})


def stages(threads: int, pool: int, rounds: int, precision: Precision = "fp32") -> None:
    """Where our own time goes: medians of `layer_times`, and arithmetic done per second as a share of the peak.

    Each layer's share is of the peak of its own precision; of several, what they would take at their peaks over what
    they took.
    """
    tops = peaks(threads)
    shown = ", ".join(f"{name} {top / 1e9:.0f}" for name, top in tops.items())
    out.print(
        f"Stages of the native engine, {precision}, {threads} threads; peaks measured in this run, GFLOP/s: {shown}"
    )
    with tempfile.TemporaryDirectory() as home:
        part = Part("", {}, threads, [pool])
        file = make(Path(home) / "models", part, pool, int8=precision == "int8").file("model.safetensors")
        for profile, batch in (("latency", 1), ("latency", 8), ("throughput", 8), ("throughput", 64)):
            engine = _core.Engine(file, threads=threads, profile=profile, precision=precision)
            tiles = np.random.default_rng(0).integers(0, 256, (batch, part.tile_size, part.tile_size, 3), np.uint8)
            engine.warmup(batch)
            layers = median_layer_times(engine, tiles, max(rounds, 64 // batch))
            title = f"{profile} profile, batch {batch}, per tile"
            columns = ["", "algorithm", "MMAC", "executed", "ms", "of time", "of peak", "direct would need"]
            table = Table(*columns, title=title, title_justify="left")
            total = sum(layer["seconds"] for layer in layers)
            for stage in dict.fromkeys(layer["name"].split(".")[0] for layer in layers):
                inside = [layer for layer in layers if layer["name"].split(".")[0] == stage]
                table.add_section()
                table.add_row(*share(f"[bold]{stage}", inside, batch, total, tops), style="bold")
                for layer in inside:
                    table.add_row(*share(f"  {layer['name']}", [layer], batch, total, tops))
            table.add_section()
            table.add_row(*share("all", layers, batch, total, tops), style="bold")
            out.print(table)


def share(
    name: str, layers: Sequence[Mapping[str, Any]], batch: int, total: float, tops: Mapping[str, float]
) -> list[str]:
    """A line of the stage table; "of peak" counts what is executed, after Winograd's reduction."""
    seconds = sum(layer["seconds"] for layer in layers)
    asked, executed = (sum(layer[key] for layer in layers) for key in ("multiply_adds", "executed_multiply_adds"))
    at_peak, direct = (
        sum(2 * layer[key] / top_of(layer, tops) for layer in layers)
        for key in ("executed_multiply_adds", "multiply_adds")
    )
    kinds = " ".join(dict.fromkeys(layer["precision"] for layer in layers))
    return [
        name,
        f"{layers[0]['convolution']} {kinds}" if len(layers) == 1 else "",
        f"{asked / 1e6:.1f}",
        f"{executed / 1e6:.1f}",
        f"{seconds / batch * 1e3:.3f}",
        f"{seconds / total:.0%}",
        f"{at_peak * batch / seconds:.0%}",
        f"{direct * 1e3:.3f}",
    ]


def top_of(layer: Mapping[str, Any], tops: Mapping[str, float]) -> float:
    """The peak of the instruction that a layer multiplies with; where the CPU has none, the engine takes floats."""
    words = layer["precision"] == "int8" and layer["convolution"].startswith("winograd")
    return tops.get("int16" if words else layer["precision"], tops["fp32"])


def threads_table(threads: int, pool: int, rounds: int) -> None:
    """The speed of all threads over that of one thread, in turn in one process, at batch 64."""
    times: dict[int, list[float]] = {1: [], threads: []}
    with tempfile.TemporaryDirectory() as home:
        part = Part("", {}, threads, [pool])
        file = make(Path(home) / "models", part, pool).file("model.safetensors")
        engines = {n: _core.Engine(file, threads=n) for n in times}
        tiles = np.random.default_rng(0).integers(0, 256, (64, part.tile_size, part.tile_size, 3), np.uint8)
        logits = [engine.run(tiles) for engine in engines.values()]
        if not np.array_equal(logits[0], logits[-1]):
            raise SystemExit("the logits depend on the number of threads")
        for _ in range(rounds):
            for n, engine in engines.items():
                engine.run(tiles[:1])  # wakes its threads
                start = time.perf_counter()
                engine.run(tiles)
                times[n].append(time.perf_counter() - start)
    ratio = compare(times[1], times[threads])
    out.print(
        f"{threads} threads over one, batch 64: {ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}], goal 1.85"
        f"{' <' if ratio.ratio < 1.85 else ''}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("main", "single", "avx2", "large", "stages", "threads")
    parser.add_argument("parts", nargs="*", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--pools", default="1,2,4,8", metavar="N,N,…", help="of `main`; the others take the second")
    parser.add_argument("--threads", type=int, default=_core.usable_cpus())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--time", type=float, default=2.0, help="timed seconds of each row, at least")
    args = parser.parse_args()
    pools = [int(pool) for pool in args.pools.split(",")]
    one, threads = pools[min(1, len(pools) - 1)], args.threads
    of_threads = f"{threads} thread{'s' * (threads > 1)}"
    tables = {
        "main": [Part(f"128 pixels, {of_threads}", GOALS, threads, pools)],
        "single": [Part("128 pixels, 1 thread", GOALS, 1, [one])],
        "avx2": [
            Part(
                f"128 pixels, {of_threads}, held to AVX2",
                {32: 1.5},
                threads,
                [one],
                environment=AVX2,
                peers=[peer for peer in PEERS if peer != "torch-compile"],
                not_held=("onnxruntime",),
            )
        ],
        "large": [
            Part(f"{side} pixels, {of_threads}", {16: 1.8}, threads, [one], crop=side, tile_size=side)
            for side in (224, 256)
        ],
    }
    out.print(f"{this_machine()}; {', '.join(f'{name} {version}' for name, version in versions().items())}; fp32\n")
    for name in args.parts:
        for part in tables.get(name, ()):
            lead_table(part, args.rounds, args.time)
        if name == "stages":
            stages(threads, one, args.rounds)
        if name == "threads":
            threads_table(threads, one, 3 * args.rounds)


if __name__ == "__main__":
    main()
