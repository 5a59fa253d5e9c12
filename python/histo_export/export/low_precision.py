"""How much accuracy a precision below fp32 loses, and whether that is acceptable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from histo_export.bundle_files import INT8_ONNX
from histo_export.errors import HistoError
from histo_export.export.bundle import LowPrecision, Measured, OnnxCheck, PrecisionCost, PrecisionCosts
from histo_export.model.arithmetic import Scales, Simulation, logit_error
from histo_export.model.lowering import LoweredNet
from histo_export.parity import Golden
from histo_export.runtimes import Tiles, open_runtime
from histo_export.spec import PRECISIONS, Precision, percent
from histo_export.statistics import bootstrap_interval, paired_difference_interval

if TYPE_CHECKING:
    from histo_export.data.tiles import TileSet

MAX_DROP = 0.5
"""Percentage points of accuracy that a bundle may lose by default."""

ONNX_ALLOWED = 2.0
"""Two computations of one int8 model may differ by this many times the error of int8 itself.

A sum that differs in its last bit can be rounded to the other neighbour. Such differences of one step grow through a
deep network until the two computations differ as two independent roundings do: by 1.4 times the error of either.
"""

MOST_TILES, MOST_SIMULATED = 1000, 300
"""Validation tiles on which bf16 is measured where nobody asked for a precision: some seconds on two CPUs, where the
native engine runs it, and about fifteen where torch simulates it."""

SIMULATION = "PyTorch simulation"
NO_SCALES = "the bundle has no scales for int8, which histo export --precision int8 finds"

_BATCH = 32

Run = Callable[[Tiles], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Answers:
    """What the precisions answer.

    Attributes:
        chosen: precision → top class of each tile, int64 `(n,)`; fp32 is among them.
        labels: the true classes, int64 `(n,)`.
        measured_with: precision → what ran it.
        not_native: precision → why the native engine could not run it.
        of_tiles: the tiles of the split, of which these are all or some.
    """

    chosen: Mapping[Precision, npt.NDArray[np.int64]]
    labels: npt.NDArray[np.int64]
    measured_with: Mapping[Precision, str]
    not_native: Mapping[Precision, str]
    of_tiles: int


def answers(
    file: Path,
    lowered: LoweredNet,
    scales: Mapping[str, Scales],
    tiles: TileSet,
    threads: int,
    *,
    briefly: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> Answers:
    """Runs every precision that the file has, with the native engine or else simulated in torch.

    Args:
        file: `model.safetensors`.
        lowered, scales: the content of the file.
        tiles: of the validation split.
        threads: of the engine.
        briefly: at most `MOST_TILES`, or `MOST_SIMULATED` where the engine can't run bf16 here, and no simulation but
            that of bf16.
        report: told of progress.
    """
    runs: dict[Precision, tuple[Run, str]] = {}
    not_native: dict[Precision, str] = {}
    for precision in PRECISIONS:
        if precision != "int8" or scales:
            try:
                runs[precision] = _engine(file, precision, threads)
            except (ValueError, RuntimeError) as error:
                not_native[precision] = str(error).removeprefix(f"{file}: ")  # without the path, which is temporary
                if not briefly or precision in ("fp32", "bf16"):
                    runs[precision] = _simulation(lowered, precision, scales), SIMULATION
    most = len(tiles) if not briefly else MOST_SIMULATED if "bf16" in not_native else MOST_TILES
    numbers = np.unique(np.linspace(0, len(tiles) - 1, min(most, len(tiles))).round().astype(np.int64))
    runners = {precision: run for precision, (run, _) in runs.items()}
    return Answers(
        _top_classes(runners, tiles, numbers, lowered.stem.crop, report),
        tiles.labels[numbers],
        {precision: how for precision, (_, how) in runs.items()},
        not_native,
        len(tiles),
    )


def _top_classes(
    runs: Mapping[Precision, Run],
    tiles: TileSet,
    numbers: npt.NDArray[np.int64],
    crop: int,
    report: Callable[[str], None],
) -> dict[Precision, npt.NDArray[np.int64]]:
    from histo_export.data.images import center_crop

    top: dict[Precision, list[npt.NDArray[np.int64]]] = {precision: [] for precision in runs}
    for start in range(0, len(numbers), _BATCH):
        report(f"measuring {', '.join(runs)}: {start:,} of {len(numbers):,} validation tiles")
        batch = np.stack([center_crop(tiles.tile(i), crop) for i in numbers[start : start + _BATCH].tolist()])
        for precision, run in runs.items():
            top[precision].append(run(batch).argmax(1))
    return {precision: np.concatenate(parts) for precision, parts in top.items()}


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


def figures(found: Answers) -> dict[Precision, Measured]:
    """The figures of each precision."""
    chosen, labels = found.chosen, found.labels
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
            measured_with=found.measured_with[precision],
        )
        for precision, top in chosen.items()
    }


def costs(found: Answers, fingerprint: str, max_drop: float) -> PrecisionCosts:
    """What each precision costs beside fp32.

    Args:
        found: the answers of the precisions.
        fingerprint: of the data.
        max_drop: percentage points that may be lost.
    """
    n = len(found.labels)
    right = {precision: top == found.labels for precision, top in found.chosen.items()}
    measured: dict[Precision, PrecisionCost] = {}
    for precision, top in found.chosen.items():
        if precision == "fp32":
            continue
        worse = int((right["fp32"] & ~right[precision]).sum())
        better = int((right[precision] & ~right["fp32"]).sum())
        low, high = paired_difference_interval(worse, better, n)
        measured[precision] = PrecisionCost(
            lost=100 * (worse - better) / n,
            interval=(100 * low, 100 * high),
            worse=worse,
            better=better,
            changed=int((top != found.chosen["fp32"]).sum()),
            measured_with=found.measured_with[precision],
        )
    missing = {p: found.not_native.get(p, NO_SCALES) for p in PRECISIONS if p not in found.chosen}
    return PrecisionCosts(
        tiles=n,
        of_tiles=found.of_tiles,
        fingerprint=fingerprint,
        max_drop=max_drop,
        measured=measured,
        not_measured=missing,
    )


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
