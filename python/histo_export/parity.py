"""Parity: each exported file in each of its runtimes, in a process of its own, against the checkpoint in float64.

The reference travels with the bundle (`golden.safetensors`), so that the same check runs at export, later, and on
another machine. `python -m histo_export.parity RUNTIME FILE GOLDEN RESULT THREADS DEVICE SECONDS` is the worker that
opens one file.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from histo_export.bundle_files import GOLDEN
from histo_export.errors import HistoError, UsageError, not_written, system_error
from histo_export.files import ELSEWHERE, temporary_folder
from histo_export.runtimes import Runtime, Tiles, open_runtime
from histo_export.spec import STAGES
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.model.checkpoint import Checkpoint

BATCHES = (1, 2, 3, 7, 33)
TILES = 33
TIMED_BATCHES = (1, 32)
TIMING_S = 0.5
"""Seconds of timed calls at each of `TIMED_BATCHES`, at least."""

WORKER = ("-m", "histo_export.parity")
FORESEEN = 3
"""Exit status of a worker whose last line on stderr is a HistoError."""

FP32_TOLERANCE = 5e-5
"""Allowed |Δ| of a tile's logits in fp32, in units of that tile's largest reference logit (of at least 1).

A forward pass of ResNet34 in fp32 differs from float64 by 1e-6 to 3e-6 of that magnitude;
TF32 or bf16 arithmetic, a wrong crop or a missing layer differ by 1e-3 and more. The unit is the tile's own, because
noise can drive logits to thousands and would otherwise excuse anything on a real tile.
"""


@dataclass(frozen=True)
class Golden:
    """Input tiles and what the checkpoint makes of them in float64.

    Attributes:
        tiles: uint8 `(33, side, side, 3)`: `real` real tiles, then noise, one black and one white tile.
        logits: float64 `(33, classes)`.
        stages: per stage float32 `(2, channels, h, w)`, for the first real tile and the first noise tile.
        real: how many of the tiles are real.
    """

    tiles: Tiles
    logits: npt.NDArray[np.float64]
    stages: Mapping[str, npt.NDArray[np.float32]]
    real: int

    @property
    def stage_tiles(self) -> Tiles:
        """The tiles that `stages` belong to."""
        return self.tiles[[0, self.real]]

    def relative_error(self, logits: npt.NDArray[np.float32]) -> float:
        """The largest |Δlogit| in the unit of `FP32_TOLERANCE`.

        Args:
            logits: float32 `(n, classes)` of the tiles in order, starting again with the first tile after the last;
                n of any size.
        """
        reference = np.take(self.logits, range(len(logits)), axis=0, mode="wrap")
        scale = np.maximum(1.0, np.abs(reference).max(axis=1))
        return float((np.abs(logits - reference).max(axis=1) / scale).max())

    def spread_error(self, logits: npt.NDArray[np.float32]) -> float:
        """The RMS error of the real tiles' logits in units of their spread, see `arithmetic.logit_error`.

        This is for precisions whose error is rounding, where the largest error of a few tiles says little. Only real
        tiles count, because the ranges of int8 were found on real tiles. `logits` as in `relative_error`.
        """
        import torch

        from histo_export.model.arithmetic import logit_error

        rows = np.arange(len(logits)) % len(self.logits)
        real = rows < self.real
        return logit_error(torch.from_numpy(logits[real]), torch.from_numpy(self.logits[rows[real]]))

    def to_bytes(self) -> bytes:
        """`golden.safetensors`."""
        tensors: dict[str, npt.NDArray[Any]] = {"tiles": self.tiles, "logits": self.logits}
        tensors |= {f"stage.{name}": np.ascontiguousarray(value) for name, value in self.stages.items()}
        return safetensors.numpy.save(tensors, metadata={"histo.format": "1", "histo.real": str(self.real)})

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Reads `golden.safetensors`; HistoError where it is damaged."""
        try:
            with safe_open(path, framework="np") as file:
                real = int((file.metadata() or {})["histo.real"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            stages = {k.removeprefix("stage."): v for k, v in tensors.items() if k.startswith("stage.")}
            return cls(tensors["tiles"], tensors["logits"], stages, real)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise HistoError(path, f"is not a readable golden file ({error})", "Export again") from error


def make_golden(checkpoint: Checkpoint) -> Golden:
    """Runs the unlowered network in float64 over the checkpoint's real tiles and over synthetic ones."""
    import torch
    from torchvision.transforms.functional import center_crop

    from histo_export.model.net import normalise

    spec = checkpoint.spec
    real = checkpoint.golden[: TILES - 3]
    noise = np.random.default_rng(0).integers(0, 256, (TILES - len(real), *real.shape[1:]), dtype=np.uint8)
    noise[-2], noise[-1] = 0, 255
    tiles = np.concatenate([real, noise])
    net = checkpoint.net(torch.float64)

    def run(batch: Tiles) -> dict[str, npt.NDArray[np.float64]]:
        cropped = center_crop(torch.from_numpy(batch).permute(0, 3, 1, 2), [spec.crop, spec.crop])
        return {name: out.numpy() for name, out in net.stages(normalise(cropped, spec, torch.float64))}

    with torch.inference_mode():
        logits = np.concatenate([run(tiles[i : i + 1])["head"] for i in range(TILES)])
        stages = {name: out.astype(np.float32) for name, out in run(tiles[[0, len(real)]]).items()}
    return Golden(tiles, logits, stages, len(real))


@dataclass(frozen=True)
class FileParity:
    """The result of checking one file in one runtime.

    Attributes:
        file: name within the bundle.
        runtime_id: key of `runtimes.RUNTIMES`.
        runtime, executed: what ran it, and on which device in which precision.
        max_abs, mean_abs: |Δlogit| over the real tiles, all batches.
        max_relative: over all tiles and batches, |Δlogit| in the unit of `FP32_TOLERANCE`.
        agreement: share of all tiles, over all batches, whose top class is the reference's.
        tolerance: `max_relative` allowed here.
        ms_per_tile: median milliseconds per tile, by batch.
        diverges: the first stage that differs by more than the tolerance; None where the file is right.
    """

    file: str
    runtime_id: str
    runtime: str
    executed: str
    max_abs: float
    mean_abs: float
    max_relative: float
    agreement: float
    tolerance: float
    ms_per_tile: Mapping[int, float]
    diverges: str | None

    @property
    def passed(self) -> bool:
        return self.diverges is None


def check_file(
    file: Path,
    runtime_id: str,
    golden_path: Path,
    golden: Golden,
    threads: int,
    device: str = "cpu",
    tolerance: float = FP32_TOLERANCE,
) -> FileParity:
    """Runs `file` in a fresh process at all of `BATCHES`, compares it with the reference, and times it.

    Args:
        file: a model file of a bundle.
        runtime_id: a key of `runtimes.RUNTIMES`; it runs in fp32.
        golden_path, golden: `golden.safetensors`, and what it holds.
        threads: of the runtime.
        device: "cpu" or "cuda".
        tolerance: of the file's format, see `FP32_TOLERANCE`.

    Raises:
        HistoError: the file can't be opened, its process died, or it has other classes. A file that runs but differs is
            returned as such.
    """
    with temporary_folder() as folder:
        result_path = folder / "result.safetensors"
        command = [sys.executable, *WORKER, runtime_id, str(file), str(golden_path)]
        done = subprocess.run(
            [*command, str(result_path), str(threads), device, str(TIMING_S)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if not result_path.exists():
            raise _why_it_failed(file, runtime_id, done)
        with safe_open(result_path, framework="np") as result:
            metadata = json.loads(result.metadata()["result"])
            outputs = {key: result.get_tensor(key) for key in result.keys()}  # noqa: SIM118 (not a dict)
    return compare(file.name, golden, outputs, metadata, tolerance)


def _why_it_failed(file: Path, runtime_id: str, done: subprocess.CompletedProcess[str]) -> HistoError:
    """The error of a worker that ended without a result."""
    lines = done.stderr.strip().splitlines() or [""]
    if done.returncode == FORESEEN:
        thing, cause, next_step, exit_code = json.loads(lines[-1])
        return (UsageError if exit_code == UsageError.exit_code else HistoError)(thing, cause, next_step)
    if done.returncode < 0:
        reason, step = f"signal {-done.returncode} ended it", "See whether memory ran out, then run it again"
    else:
        reason, step = (
            lines[-1] or f"exit status {done.returncode}",
            "See histo doctor; if all is well there, report this",
        )
    return HistoError(file, f"could not be run by {runtime_id} ({reason})", step)


def compare(
    file: str,
    golden: Golden,
    outputs: Mapping[str, npt.NDArray[np.float32]],
    metadata: Mapping[str, Any],
    tolerance: float = FP32_TOLERANCE,
) -> FileParity:
    """Judges a worker's outputs: `batch.N` logits `(33, classes)` for each batch N, `stage.NAME` for each stage that
    the file names.

    Raises:
        HistoError: the logits are of another number of classes.
    """
    classes = {outputs[f"batch.{n}"].shape[1] for n in BATCHES}
    if classes != {golden.logits.shape[1]}:
        raise HistoError(
            f"{file} in {metadata['runtime']}",
            f"gives {', '.join(map(str, classes))} logits for a tile, and {GOLDEN} has {golden.logits.shape[1]}",
            "Do not ship it; export again",
        )
    logits = np.stack([outputs[f"batch.{n}"] for n in BATCHES]).astype(np.float64)
    difference = np.abs(logits - golden.logits)
    scale = np.maximum(1.0, np.abs(golden.logits).max(axis=1))
    max_relative = float((difference.max(axis=(0, 2)) / scale).max())
    # Of two top logits closer than the tolerance either may win; any other disagreement is a failure of its own.
    best, second = np.sort(golden.logits, axis=1)[:, :-3:-1].T
    agree = logits.argmax(-1) == golden.logits.argmax(-1)
    wrong = bool(np.any(~agree & (best - second > 2 * tolerance * scale)))
    diverges = None
    if wrong or not max_relative <= tolerance:  # written so that NaN fails
        told = {name: outputs[f"stage.{name}"] for name in STAGES if f"stage.{name}" in outputs}
        stages = (name for name, output in told.items() if _differs(output, golden.stages[name], tolerance))
        diverges = next(stages, "head") if len(told) == len(STAGES) else "unknown, because the file names no stages"
    return FileParity(
        file=file,
        runtime_id=metadata["runtime_id"],
        runtime=metadata["runtime"],
        executed=metadata["executed"],
        max_abs=float(difference[:, : golden.real].max()),
        mean_abs=float(difference[:, : golden.real].mean()),
        max_relative=max_relative,
        agreement=float(agree.mean()),
        tolerance=tolerance,
        ms_per_tile={int(n): ms for n, ms in metadata["ms_per_tile"].items()},
        diverges=diverges,
    )


def _differs(output: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], tolerance: float) -> bool:
    """Whether any tile differs by more than the tolerance, in units of its own largest reference value, or in shape."""
    if output.shape != reference.shape:  # of a model with another crop
        return True
    values = tuple(range(1, reference.ndim))
    scale = np.maximum(1.0, np.abs(reference).max(axis=values))
    return not bool((np.abs(output - reference).max(axis=values) <= tolerance * scale).all())


def _milliseconds_per_tile(runtime: Runtime, tiles: Tiles, seconds: float) -> float:
    """Median over calls that together take `seconds`, at least three, after warm-up."""
    runtime.warmup(len(tiles), tiles.shape[1])
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        runtime.run(tiles)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3 / len(tiles)


def _worker(arguments: Sequence[str]) -> None:
    """Runs the file and writes logits, stages and times to the result file, see `compare`."""
    runtime_id, file, golden_path, result_path, threads, device, seconds = arguments
    golden = Golden.read(Path(golden_path))
    runtime = open_runtime(runtime_id, Path(file), threads=int(threads), device=device)
    outputs: dict[str, npt.NDArray[np.float32]] = {}
    for size in BATCHES:
        # Every call has exactly `size` tiles; the last one is filled up with the first tiles.
        starts = range(0, TILES, size)
        logits = [runtime.run(np.take(golden.tiles, range(i, i + size), axis=0, mode="wrap")) for i in starts]
        outputs[f"batch.{size}"] = np.concatenate(logits)[:TILES]
    outputs |= {f"stage.{name}": np.ascontiguousarray(v) for name, v in runtime.stages(golden.stage_tiles).items()}
    result = {
        "runtime_id": runtime_id,
        "runtime": runtime.name,
        "executed": runtime.executed,
        "ms_per_tile": {n: _milliseconds_per_tile(runtime, golden.tiles[:n], float(seconds)) for n in TIMED_BATCHES},
    }
    try:
        safetensors.numpy.save_file(outputs, result_path, metadata={"result": dump_json(result)})
    except SafetensorError as error:
        raise not_written(Path(result_path).parent, system_error(error) or OSError(str(error)), ELSEWHERE) from error


if __name__ == "__main__":
    try:
        _worker(sys.argv[1:])
    except HistoError as error:
        print(json.dumps([error.thing, error.cause, error.next_step, error.exit_code]), file=sys.stderr)
        sys.exit(FORESEEN)
