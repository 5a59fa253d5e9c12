"""The rows of `gpu_check.py`, most important first, and the process that runs one of them.

    python benchmarks/gpu_rows.py ROW DEVICE FOLDER RESULT

runs one row and writes what came out of it to RESULT as JSON: `status` ("passed", "failed" or "not run"), `reason`, and
`figures`. Rows share FOLDER, and nothing else. What needs a long import is imported by the row that needs it.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from histo_export._core import usable_cpus
from histo_export.bundle_files import GOLDEN, NATIVE
from histo_export.errors import HistoError, place_of
from histo_export.files import write_atomic
from histo_export.strict_json import dump_json

Figures = dict[str, Any]

TRAINED_TILES = 60
"""Of each class, in the row that trains."""
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
"""The mean of each class's pixels there."""
EPOCHS = 2
BATCHES = (1, 32)
"""Tiles per call where time is measured."""
BENCH_ROUNDS, BENCH_SECONDS = 7, 1.0
EVENT_RUNS = 50
ROUNDED = 1e-6
"""Half a digit of the probabilities in tiles.csv, and more."""
MANTISSA_BITS = {"fp16": 10, "bf16": 7}
"""Stored bits of each 16-bit type. Three more bits make the rounding error an eighth."""
SMI = (
    *("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu"),
    *("power.draw", "memory.used", "memory.total"),
)
"""What nvidia-smi is asked for."""


class NotRunError(Exception):
    """The row can't be run here, and nothing is wrong: its text says what the row needs."""


class FailedError(Exception):
    """The row ran and something is wrong; `figures` are what was measured by then."""

    def __init__(self, reason: str, figures: Figures | None = None) -> None:
        super().__init__(reason)
        self.figures = figures or {}


@dataclass(frozen=True)
class Place:
    """Where a row runs.

    Attributes:
        device: "cuda" or "cpu".
        folder: that the rows share.
    """

    device: str
    folder: Path

    @property
    def bundle(self) -> Path:
        """The bundle that the row "model" makes."""
        return self.folder / "bundle"

    def tiles(self) -> np.ndarray:
        """The golden tiles of the bundle."""
        from histo_export.parity import Golden

        return Golden.read(self.bundle / GOLDEN).tiles


@dataclass(frozen=True)
class Row:
    """A line of the check.

    Attributes:
        name: its name in the table, the JSON and `--rows`.
        what: what it shows, in words.
        run: does it; returns what it measured, or raises `NotRunError`, `FailedError` or any other error.
        limit_s: seconds after which it is ended. It is started only if so many are left.
        needs: packages that must be installed beside those of a light installation and torch, as they are imported.
        after: rows that must have passed.
    """

    name: str
    what: str
    run: Callable[[Place], Figures]
    limit_s: float
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ("device", "model")


def device_row(place: Place) -> Figures:
    """What is there; and a product of integers, which every arithmetic of a GPU computes exactly."""
    import torch

    from histo_export.machine import why_no_cuda

    if place.device == "cuda" and (reason := why_no_cuda()):
        raise NotRunError(f"no device: {reason}")
    left = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) % 7
    product = (left.to(place.device) @ left.to(place.device)).cpu()
    figures: Figures = {"torch": torch.__version__}
    if place.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "devices": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "built_for": torch.cuda.get_arch_list(),
            "state": gpu_state(),
        }
    if not torch.equal(product, left @ left):
        raise FailedError("a product of integers is wrong", figures)
    return figures


def gpu_state() -> dict[str, str] | None:
    """Clocks, temperature, power and memory as the driver tells them, of the GPU that torch uses.

    None where nvidia-smi is missing or fails. It numbers all GPUs, and torch those that CUDA_VISIBLE_DEVICES leaves, so
    the GPU is named by its UUID.
    """
    import torch

    command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
    if uuid := getattr(torch.cuda.get_device_properties(0), "uuid", None):
        command.append(f"--id=GPU-{uuid}")
    try:
        told = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(SMI, (value.strip() for value in told.partition("\n")[0].split(",")), strict=False))


def model_row(place: Place) -> Figures:
    """Makes the bundle; float64 on the CPU gives the logits that all other rows are compared with."""
    from gpu_model import SPECS, write_bundle

    from histo_export.export.bundle import open_bundle

    write_bundle(place.bundle, SPECS[place.device])
    opened = open_bundle(place.bundle)
    largest = abs(float(np.abs(_golden(place).logits).max()))
    return {"spec": opened.config.histo.spec, "files": sorted(opened.config.histo.files), "largest_logit": largest}


def _golden(place: Place) -> Any:
    from histo_export.parity import Golden

    return Golden.read(place.bundle / GOLDEN)


def parity_row(place: Place, runtime: str) -> Figures:
    """A file in a runtime in fp32, without TF32: what `histo verify --device` does."""
    from histo_export.export.formats import format_of
    from histo_export.parity import check_file
    from histo_export.runtimes import Variant

    _require(runtime, place.device)
    file = place.bundle / Variant(runtime).file
    tolerance = format_of(file.name).tolerance
    result = check_file(file, runtime, place.bundle / GOLDEN, _golden(place), usable_cpus(), place.device, tolerance)
    figures = asdict(result) | {"ms_per_tile": {str(n): ms for n, ms in result.ms_per_tile.items()}}
    if not result.passed:
        reason = f"logits differ by {result.max_relative:.2g} of a tile's largest where {tolerance:.0e} is allowed"
        raise FailedError(f"{reason}; first diverging stage: {result.diverges}", figures)
    return figures


def _require(runtime: str, device: str) -> None:
    """NotRunError where a runtime lacks what a user may well lack; HistoError where libtorch does not compile."""
    from histo_export.runtimes import runtime_class

    if runtime == "libtorch":
        from histo_export.runtimes import libtorch

        if (state := libtorch.describe()).startswith("not available"):
            raise NotRunError(state.removeprefix("not available: "))
        libtorch.compiled_library()  # a compiler that is there and fails is a fault, and not a lack
    if reason := runtime_class(runtime).unavailable(device):
        raise NotRunError(reason)


def compiled_row(place: Place) -> Figures:
    """torch.compile, which needs Triton on a GPU."""
    if place.device == "cuda" and importlib.util.find_spec("triton") is None:
        raise NotRunError("needs triton")
    return parity_row(place, "torch-compile")


def onnx_row(place: Place, runtime: str) -> Figures:
    """ONNX Runtime with the provider of NVIDIA's libraries; writes `model.onnx` first."""
    from gpu_model import add_onnx

    _require(runtime, place.device)
    add_onnx(place.bundle)
    return parity_row(place, runtime)


def tensorrt_row(place: Place) -> Figures:
    """The same through TensorRT, whose libraries do not come with ONNX Runtime."""
    import ctypes.util

    if importlib.util.find_spec("tensorrt") is None and ctypes.util.find_library("nvinfer") is None:
        raise NotRunError("needs TensorRT (libnvinfer)")
    return onnx_row(place, "onnxruntime-tensorrt")


def sixteen_bit_row(place: Place, runtime: str, precision: str) -> Figures:
    """The network with convolutions and maps of 16 bits against float64.

    What is allowed for bf16 is what `histo bench` allows: a multiple of the error of bf16's own definition on these
    weights and tiles (`bench.contestants.ROUNDINGS`). fp16 rounds eight times finer, so an eighth is allowed.
    """
    import torch
    from gpu_model import write_16_bit_torchscript

    from histo_export.bench.contestants import ROUNDINGS
    from histo_export.bench.subjects import Subject
    from histo_export.export.bundle import open_bundle, spec_of
    from histo_export.runtimes import open_runtime

    _require(runtime, place.device)
    file = place.folder / f"torchscript-{precision}.pt"
    if not file.exists():
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        write_16_bit_torchscript(place.bundle / NATIVE, file, dtype)
    own = Subject("random weights", place.bundle, spec_of(open_bundle(place.bundle))).rounding("bf16")
    allowed = ROUNDINGS * own * 2.0 ** (MANTISSA_BITS["bf16"] - MANTISSA_BITS[precision])
    golden = _golden(place)
    opened = open_runtime(runtime, file, threads=usable_cpus(), device=place.device)
    error = golden.spread_error(opened.run(golden.tiles))
    figures = {"spread_error": error, "allowed": allowed, "error_of_bf16_by_definition": own}
    if not error <= allowed:  # written so that NaN fails
        raise FailedError(f"logits differ by {error:.2g} of their spread where {allowed:.2g} is allowed", figures)
    return figures


def predict_row(place: Place) -> Figures:
    """`histo predict` over PNG files; its table is compared with float64."""
    from PIL import Image

    from histo_export.parity import FP32_TOLERANCE

    golden = _golden(place)
    folder = place.folder / "tiles"
    folder.mkdir()
    for i, tile in enumerate(golden.tiles):
        Image.fromarray(tile).save(folder / f"{i:03}.png")
    out = place.folder / "predictions"
    arguments = ("predict", place.bundle, folder, "--out", out, "--runtime", "torchscript", "--device", place.device)
    facts = json.loads(histo(*arguments, "--json", "--quiet"))
    (table,) = out.rglob("tiles.csv")
    with table.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    found = np.array([[float(row[name]) for name in row if name.startswith("prob_")] for row in rows])
    shifted = np.exp(golden.logits - golden.logits.max(1, keepdims=True))
    difference = float(np.abs(found - shifted / shifted.sum(1, keepdims=True)).max())
    # No probability moves by more than half of the largest error of a logit.
    allowed = FP32_TOLERANCE * max(1.0, float(np.abs(golden.logits).max())) + ROUNDED
    figures = {"tiles": len(rows), "executed": facts["executed"], "difference": difference, "allowed": allowed}
    if len(rows) != len(golden.tiles) or not difference <= allowed:
        raise FailedError(f"probabilities differ by {difference:.2g} where {allowed:.2g} is allowed", figures)
    return figures


def histo(*arguments: object) -> str:
    """What `histo ARGUMENTS…` prints; FailedError with its last line on stderr where it fails."""
    command = [sys.executable, "-m", "histo_export", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FailedError(f"histo {arguments[0]} failed: {lines[-1]}")
    return done.stdout


def train_row(place: Place) -> Figures:
    """Two epochs from the command line; then export, and verify on the device."""
    from gpu_model import SPECS

    spec = SPECS[place.device]
    rng = np.random.default_rng(0)
    data = place.folder / "data"
    data.mkdir()
    tiles = np.concatenate([rng.normal(mean, 40, (TRAINED_TILES, *[spec.tile_size] * 2, 3)) for mean in COLOURS])
    np.save(data / "tiles.npy", np.clip(tiles, 0, 255).astype(np.uint8))
    np.save(data / "labels.npy", np.repeat(np.arange(len(COLOURS)), TRAINED_TILES))
    run, bundle = place.folder / "run", place.folder / "trained"
    options = ("--pool", spec.pool, "--crop", spec.crop, "--epochs", EPOCHS, "--device", place.device)
    start = time.perf_counter()
    report = json.loads(histo("train", "--data", data, "--out", run, *options, "--json", "--quiet"))
    seconds = time.perf_counter() - start
    histo("export", run, "--out", bundle, "--formats", "native", "--quiet")  # one file, so that few workers start
    verified = json.loads(histo("verify", bundle, "--device", place.device, "--json", "--quiet"))
    shutil.rmtree(bundle)
    kept = ("device", "precision", "epochs", "seconds_per_epoch", "history")
    figures = {"train_s": seconds} | {name: report[name] for name in kept}
    return figures | {"verified": verified["files"], "unchecked": verified["unchecked"]}


def bench_row(place: Place) -> Figures:
    """`histo bench` of the bundle in the runtimes for GPUs whose files are there; clocks before and after."""
    from histo_export.bench.run import run_bench
    from histo_export.bench.settings import Settings
    from histo_export.runtimes import default_variants

    compiled = {"torch-compile", "onnxruntime-tensorrt"}  # minutes; they have rows of their own
    runtimes = [
        variant
        for variant in default_variants(place.device)
        if "cuda" in variant.entry.timed_on
        and (place.bundle / variant.file).exists()
        and variant.runtime not in compiled
    ]
    settings = Settings(
        runtimes=tuple(runtimes),
        batches=BATCHES,
        threads=(usable_cpus(),),
        rounds=BENCH_ROUNDS,
        seconds=BENCH_SECONDS,
        device=place.device,
        may_lack=True,
    )
    on_gpu = place.device == "cuda"
    before = gpu_state() if on_gpu else None
    report = run_bench([place.bundle], [], settings, command="gpu_check")
    rows = [
        {
            "runtime": ranked.runtime,
            "batch": table.conditions.batch,
            "ms": 1e3 * ranked.seconds.median,
            "ms_interval": [1e3 * ranked.seconds.low, 1e3 * ranked.seconds.high],
            "tiles_per_second": ranked.tiles_per_second,
        }
        for table in report.tables
        for ranked in table.ranked
    ]
    executed = {row.runtime: f"{row.executed}; {', '.join(row.devices)}" for row in report.rows}
    states = {"before": before, "after": gpu_state() if on_gpu else None}
    return {"rows": rows, "executed": executed, "left_out": report.left_out, "state": states}


def events_row(place: Place) -> Figures:
    """The time of a call on the GPU's own clock (CUDA events) and on the wall's, and the memory that it takes there."""
    import torch

    from histo_export.runtimes import open_runtime

    runtime: Any = open_runtime("torch", place.bundle / NATIVE, threads=usable_cpus(), device=place.device)
    golden, on_gpu = place.tiles(), place.device == "cuda"
    figures: Figures = {}
    for batch in BATCHES:
        tiles = golden[:batch]
        for _ in range(3):
            runtime.run(tiles)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        wall, device = [], []
        for _ in range(EVENT_RUNS if on_gpu else 3):
            began = time.perf_counter()
            if on_gpu:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                runtime.forward(tiles)
                last.record()
                last.synchronize()
                device.append(first.elapsed_time(last))
            else:
                runtime.forward(tiles)
            wall.append(1e3 * (time.perf_counter() - began))
        figures[f"batch {batch}"] = {
            "wall_ms": statistics.median(wall),
            "device_ms": statistics.median(device) if device else None,
            "device_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None,
        }
    return figures | {"state": gpu_state() if on_gpu else None}


TRAIN = ("torchvision", "pytorch_lightning", "tensorboard", "matplotlib", "onnx", "onnxscript")
ONNX_PACKAGES = ("onnxruntime", "onnx", "onnxscript")

ROWS = (
    Row("device", "The GPU, its driver, and one exact product on it", device_row, 60, after=()),
    Row("model", "A bundle of random weights, its logits in float64 on the CPU", model_row, 60, after=("device",)),
    Row("torchscript", "TorchScript in fp32", partial(parity_row, runtime="torchscript"), 60),
    Row("train", "Two epochs, export, and verify on the device", train_row, 180, TRAIN, ("device",)),
    Row("libtorch", "TorchScript in C++ in fp32", partial(parity_row, runtime="libtorch"), 150),
    Row("predict", "histo predict over PNG files", predict_row, 60),
    *(
        Row(
            f"{runtime}-{precision}",
            f"{name} in {precision}",
            partial(sixteen_bit_row, runtime=runtime, precision=precision),
            limit,
        )
        for runtime, name, limit in (("torchscript", "TorchScript", 60), ("libtorch", "TorchScript in C++", 150))
        for precision in MANTISSA_BITS
    ),
    Row("onnxruntime", "ONNX Runtime in fp32", partial(onnx_row, runtime="onnxruntime"), 90, ONNX_PACKAGES),
    Row("bench", "histo bench: time of each runtime, clocks", bench_row, 120),
    Row("events", "Time on the GPU's own clock, and memory", events_row, 60),
    Row("torch", "PyTorch eager in fp32", partial(parity_row, runtime="torch"), 60),
    Row("torch-cuda-graph", "A CUDA graph for each batch", partial(parity_row, runtime="torch-cuda-graph"), 60),
    Row("onnxruntime-tensorrt", "TensorRT in fp32", tensorrt_row, 180, ONNX_PACKAGES),
    Row("torch-compile", "torch.compile in fp32", compiled_row, 180),
)


def outcome_of(row: Row, place: Place) -> Mapping[str, Any]:
    """Runs a row: `status`, `reason` (None where it passed) and `figures`."""
    try:
        return {"status": "passed", "reason": None, "figures": row.run(place)}
    except NotRunError as error:
        return {"status": "not run", "reason": str(error), "figures": {}}
    except FailedError as error:
        return {"status": "failed", "reason": str(error), "figures": error.figures}
    except HistoError as error:
        return {"status": "failed", "reason": str(error), "figures": {}}
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] != "histo_export":
            return {"status": "not run", "reason": f"needs {error.name}", "figures": {}}
        return {"status": "failed", "reason": place_of(error), "figures": {}}
    except Exception as error:  # the table tells every error in one line; stderr keeps the traceback
        import traceback

        traceback.print_exc()
        return {"status": "failed", "reason": place_of(error), "figures": {}}


def main() -> None:
    name, device, folder, result = sys.argv[1:]
    row = next(row for row in ROWS if row.name == name)
    write_atomic(Path(result), dump_json(outcome_of(row, Place(device, Path(folder)))))


if __name__ == "__main__":
    main()
