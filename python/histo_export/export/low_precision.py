"""How much accuracy a precision below fp32 loses, and whether that is acceptable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from histo_export.bundle_files import INT8_ONNX
from histo_export.errors import HistoError
from histo_export.export.bundle import LowPrecision, Measured, OnnxCheck
from histo_export.model.arithmetic import Scales, Simulation, logit_error
from histo_export.model.lowering import LoweredNet
from histo_export.parity import Golden
from histo_export.runtimes import Tiles, open_runtime
from histo_export.spec import PRECISIONS, Precision, percent
from histo_export.statistics import bootstrap_interval

if TYPE_CHECKING:
    from histo_export.data.tiles import TileSet

MAX_DROP = 0.5
"""Percentage points of accuracy that a bundle may lose by default."""

ONNX_ALLOWED = 2.0
"""Two computations of one int8 model may differ by this many times the error of int8 itself.

A sum that differs in its last bit can be rounded to the other neighbour. Such differences of one step grow through a
deep network until the two computations differ as two independent roundings do: by 1.4 times the error of either.
"""

_BATCH = 32

Run = Callable[[Tiles], npt.NDArray[np.float32]]


def measure(
    file: Path,
    lowered: LoweredNet,
    scales: Mapping[str, Scales],
    tiles: TileSet,
    threads: int,
    report: Callable[[str], None] = lambda step: None,
) -> tuple[dict[Precision, Measured], dict[str, str]]:
    """Measures every precision that the file can run in, with the native engine or else simulated in torch.

    Args:
        file: `model.safetensors`.
        lowered, scales: the content of the file.
        tiles: of the validation split.
        threads: of the engine.
        report: told of progress.

    Returns:
        Precision → figures; and precision → why the native engine could not compute it.
    """
    from histo_export.data.images import center_crop

    runs: dict[Precision, tuple[Run, str]] = {}
    not_native: dict[str, str] = {}
    for precision in PRECISIONS:
        if precision != "int8" or scales:
            try:
                runs[precision] = _engine(file, precision, threads)
            except (ValueError, RuntimeError) as error:
                not_native[precision] = str(error).removeprefix(f"{file}: ")  # without the path, which is temporary
                runs[precision] = _simulation(lowered, precision, scales), "PyTorch simulation"
    top: dict[Precision, list[npt.NDArray[np.int64]]] = {precision: [] for precision in runs}
    for start in range(0, len(tiles), _BATCH):
        report(f"measuring {', '.join(runs)}: {start:,} of {len(tiles):,} validation tiles")
        numbers = range(start, min(start + _BATCH, len(tiles)))
        batch = np.stack([center_crop(tiles.tile(i), lowered.stem.crop) for i in numbers])
        for precision, (run, _) in runs.items():
            top[precision].append(run(batch).argmax(1))
    chosen = {precision: np.concatenate(parts) for precision, parts in top.items()}
    return figures(chosen, tiles.labels, {precision: how for precision, (_, how) in runs.items()}), not_native


def _engine(file: Path, precision: Precision, threads: int) -> tuple[Run, str]:
    """The native engine; ValueError or RuntimeError where this build or this CPU has no such arithmetic."""
    from histo_export._core import Engine

    engine = Engine(file, threads=threads, precision=precision)
    info = engine.info()
    if info["precision"] != precision:
        raise RuntimeError(f"the engine computes in {info['precision']}")
    return engine.run, f"native engine, {info['isa']}"


def _simulation(lowered: LoweredNet, precision: Precision, scales: Mapping[str, Scales]) -> Run:
    simulation = Simulation.of(lowered, precision, scales)
    return lambda batch: simulation(torch.from_numpy(batch)).numpy()


def figures(
    chosen: Mapping[Precision, npt.NDArray[np.int64]],
    labels: npt.NDArray[np.int64],
    measured_with: Mapping[Precision, str],
) -> dict[Precision, Measured]:
    """The figures of each precision.

    Args:
        chosen: precision → top class of each tile, int64 `(n,)`; fp32 is among them.
        labels: the true classes, int64 `(n,)`.
        measured_with: precision → what ran it.
    """
    correct = {precision: int((top == labels).sum()) for precision, top in chosen.items()}
    n = len(labels)
    return {
        precision: Measured(
            accuracy=correct[precision] / n,
            interval=bootstrap_interval(correct[precision], n),
            agreement=float((top == chosen["fp32"]).mean()),
            drop=100
            * (correct["fp32"] - correct[precision])
            / n,  # from counts, so that 0.5 is 0.5 and not 0.50000000000004
            measured_with=measured_with[precision],
        )
        for precision, top in chosen.items()
    }


def raise_if_lossy(precision: Precision, low: LowPrecision) -> None:
    """HistoError where `precision` loses more accuracy than allowed, unless the user accepted that."""
    own, full = low.precisions[precision], low.precisions["fp32"]
    if own.drop > low.max_drop and not low.drop_accepted:
        safer = PRECISIONS[PRECISIONS.index(precision) - 1]  # the next more accurate one
        raise HistoError(
            f"--precision {precision}",
            f"loses {own.drop:.2f} points of accuracy where {low.max_drop:g} are allowed: {percent(own.accuracy)} of "
            f"{low.tiles:,} validation tiles right, fp32 {percent(full.accuracy)}; "
            f"{percent(own.agreement)} of top classes agree ({own.measured_with})",
            f"Use --precision {safer}, allow more with --max-drop, or export anyway with --accept-drop",
        )


def check_int8_onnx(
    folder: Path, lowered: LoweredNet, scales: Mapping[str, Scales], golden: Golden, threads: int
) -> OnnxCheck:
    """Runs `model-int8.onnx` on the golden tiles and compares it with the same arithmetic in torch."""
    runtime = open_runtime("onnxruntime", folder / INT8_ONNX, threads=threads)
    logits = torch.from_numpy(runtime.run(golden.tiles))
    expected = Simulation(lowered, "fp32", scales)(torch.from_numpy(golden.tiles))
    real = slice(0, golden.real)
    own_error = logit_error(expected[real], torch.from_numpy(golden.logits)[real])
    return OnnxCheck(
        runtime=f"{runtime.name} ({runtime.executed.split()[0]})",
        error=logit_error(logits[real], expected[real]),
        allowed=ONNX_ALLOWED * own_error,
        agreement=float((logits.argmax(1) == expected.argmax(1)).float().mean()),
    )


def raise_if_onnx_differs(check: OnnxCheck) -> None:
    """HistoError where `model-int8.onnx` is not the quantised model."""
    if not check.error <= check.allowed:  # written so that NaN fails
        raise HistoError(
            f"{INT8_ONNX} in {check.runtime}",
            f"is not the quantised model: its logits differ by {check.error:.2g} of their spread where "
            f"{check.allowed:.2g} is allowed",
            "Do not ship it; histo doctor shows the runtimes",
        )
