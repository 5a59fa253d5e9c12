"""Is `histo bench` right? Three experiments for a quiet machine; each exits with 1 where it is not.

python benchmarks/trust.py planted    # a planted 3 % slowdown is found and a planted 0 % is not, in five runs of five
python benchmarks/trust.py alone      # A/A: a runtime is as fast among all the others as alone
python benchmarks/trust.py peer       # OpenVINO's own benchmark_app gets the same figure within 5 %
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from histo_export import _core
from histo_export.bench import worker
from histo_export.bench.measure import measure
from histo_export.bench.progress import Progress
from histo_export.bench.rows import Row
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import Subject, untrained_subjects
from histo_export.bench.worker_handle import Worker
from histo_export.runtimes import Runtime, Tiles, Variant, all_variants, default_variants, variants
from histo_export.statistics import compare

SLOWED = "slowed"
"""Name of the folder whose model the worker slows down."""

log = Console(stderr=True, highlight=False)


def model(folder: Path, runtimes: Sequence[Variant], pool: int = 2) -> Subject:
    (subject,) = untrained_subjects([pool], folder, {runtime.file for runtime in runtimes}, log.print)
    return subject


def show(progress: Progress) -> None:
    log.print(f"\r{progress.doing}, about {progress.left_s:.0f} s left\033[K", end="")


def serve_slowed(fraction: float) -> None:
    """A worker that, with the slowed model, spins after each call for `fraction` of the time that the call took."""
    from histo_export import runtimes

    original = runtimes.open_runtime

    def open_slowed(runtime: str, file: Path, **options: Any) -> Runtime:
        opened = original(runtime, file, **options)
        if file.parent.name == SLOWED:
            run = opened.run

            def slow_run(tiles: Tiles) -> np.ndarray:
                start = time.perf_counter()
                logits = run(tiles)
                end = start + (time.perf_counter() - start) * (1 + fraction)
                while time.perf_counter() < end:
                    pass
                return logits

            opened.run = slow_run  # type: ignore[method-assign]
        return opened

    runtimes.open_runtime = open_slowed
    worker.serve()


def planted(args: argparse.Namespace) -> bool:
    """Three copies of one model: as it is, as it is, and slowed. The first pair must not differ, the other must."""
    right = 0
    with tempfile.TemporaryDirectory() as home:
        plain = model(Path(home) / "models", variants(args.runtime))
        copies = [plain]
        for name in ("same", SLOWED):
            folder = Path(home) / name
            shutil.copytree(plain.folder, folder)
            copies.append(replace(plain, label=name, folder=folder))
        settings = Settings(variants(args.runtime), (args.batch,), (args.threads,), args.rounds, args.time)
        command = [sys.executable, __file__, "serve", str(args.slower)]
        for run in range(args.runs):
            rows, _ = measure(copies, replace(settings, seed=run), show, command)
            medians = [row.medians.tolist() for row in rows]
            same, slowed = (compare(medians[i], medians[0], comparisons=2) for i in (1, 2))
            good = same.verdict == "not distinguishable" and slowed.verdict == "different"
            right += good
            print(f"run {run + 1}: {'right' if good else 'WRONG'}")
            for planted_fraction, ratio in ((0.0, same), (args.slower, slowed)):
                print(
                    f"  planted {planted_fraction:.0%}: found {ratio.ratio - 1:+.2%} [{ratio.low - 1:+.2%}, "
                    f"{ratio.high - 1:+.2%}], {ratio.verdict}, visible from {ratio.visible:.2%}",
                    flush=True,
                )
    print(f"{right} of {args.runs} runs right")
    return right == args.runs


def alone(args: argparse.Namespace) -> bool:
    """Blocks of all runtimes interleaved and of each by itself, in new processes each time; compared block by block."""
    runtimes = variants(*args.runtimes.split(",")) if args.runtimes else default_variants("cpu")
    among: dict[str, list[float]] = {str(runtime): [] for runtime in runtimes}
    by_itself: dict[str, list[float]] = {str(runtime): [] for runtime in runtimes}

    def median(row: Row) -> float:
        return float(np.median(row.medians))

    with tempfile.TemporaryDirectory() as home:
        subject = model(Path(home) / "models", runtimes)
        settings = Settings(runtimes, (args.batch,), (args.threads,), 7, args.time)
        for block in range(args.blocks):
            # Which of the two comes first alternates, so that a drift of the machine favours neither.
            for together in (True, False) if block % 2 else (False, True):
                groups = [runtimes] if together else [(runtime,) for runtime in runtimes]
                for group in groups:
                    rows, _ = measure([subject], replace(settings, runtimes=group, seed=block), show)
                    for row in rows:
                        (among if together else by_itself)[row.runtime].append(median(row))
            log.print(f"\rblock {block + 1} of {args.blocks} done\033[K")
    good = True
    for runtime in by_itself:
        ratio = compare(among[runtime], by_itself[runtime], comparisons=len(runtimes))
        good &= ratio.verdict == "not distinguishable"
        print(
            f"{runtime}: {statistics.median(by_itself[runtime]) * 1e3:.2f} ms alone; among all {ratio.ratio - 1:+.2%} "
            f"[{ratio.low - 1:+.2%}, {ratio.high - 1:+.2%}], {ratio.verdict}, visible from {ratio.visible:.2%}"
        )
    return good


def peer(args: argparse.Namespace) -> bool:
    """Our worker and OpenVINO's benchmark_app in turn, with the same file, threads, stream and precision.

    Ours also turns bytes to floats, theirs doesn't; at batch 1 that is about 1 % of the time.
    """
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent)) or shutil.which("benchmark_app")
    if program is None:
        sys.exit("benchmark_app is not installed: pip install 'histo-export[openvino]'")
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as home:
        subject = model(Path(home) / "models", variants("openvino"))
        side = subject.spec.tile_size
        file = subject.file("model.onnx")
        command = [program, "-m", str(file), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1"]
        command += ["-nthreads", str(args.threads), "-infer_precision", "f32", "-t", f"{args.time:.0f}"]
        command += ["-data_shape", f"tiles[{args.batch},3,{side},{side}]"]
        with Worker("openvino") as handle:
            golden = subject.folder / "golden.safetensors"
            handle.open(Variant("openvino"), file, golden, threads=args.threads, device="cpu")
            handle.warm(args.batch)
            for turn in range(args.turns):
                ours.append(statistics.median(handle.time(args.batch, args.time)) * 1e3)
                output = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
                found = re.search(r"Median:\s+([\d.]+) ms", output)
                if found is None:
                    sys.exit(f"benchmark_app told no median:\n{output}")
                theirs.append(float(found[1]))
                print(f"turn {turn + 1}: ours {ours[-1]:.2f} ms, benchmark_app {theirs[-1]:.2f} ms", flush=True)
    ratio = compare(ours, theirs)
    print(f"ours / theirs: {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
    return abs(ratio.ratio - 1) <= 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(function: object, batch: int, seconds: float) -> argparse.ArgumentParser:
        name = function.__name__  # type: ignore[attr-defined]
        sub = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        sub.add_argument("--batch", type=int, default=batch)
        sub.add_argument("--threads", type=int, default=_core.usable_cpus())
        sub.add_argument("--time", type=float, default=seconds, help="timed seconds of each row and run, block or turn")
        sub.set_defaults(function=function)
        return sub

    sub = command(planted, 1, 12.0)
    sub.add_argument("--runs", type=int, default=5)
    sub.add_argument("--rounds", type=int, default=40)
    sub.add_argument("--slower", type=float, default=0.03)
    sub.add_argument("--runtime", default="onnxruntime", choices=[str(variant) for variant in all_variants()])
    sub = command(alone, 1, 2.0)
    sub.add_argument("--blocks", type=int, default=8)
    sub.add_argument("--runtimes", metavar="R,R,…")
    command(peer, 1, 5.0).add_argument("--turns", type=int, default=7)
    sub = commands.add_parser("serve")
    sub.add_argument("slower", type=float)
    sub.set_defaults(function=lambda args: serve_slowed(args.slower) is None)
    args = parser.parse_args()
    sys.exit(0 if args.function(args) else 1)


if __name__ == "__main__":
    main()
