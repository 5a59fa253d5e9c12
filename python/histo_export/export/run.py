"""From a checkpoint to a verified bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histo_export
from histo_export.bundle_files import CARD, CONFIG, GOLDEN, INT8_ONNX, NATIVE, TRAINED_ON, model_name
from histo_export.errors import UsageError
from histo_export.export import bundle
from histo_export.export.card import model_card
from histo_export.export.checks import Checks, check_files, raise_if_diverged, raise_if_unproven
from histo_export.export.formats import (
    DEFAULT_FORMATS,
    FORMATS,
    LOWEST_OPSET,
    Source,
    check_formats,
    with_needs,
    write_formats,
)
from histo_export.export.low_precision import (
    MAX_DROP,
    Answers,
    answers,
    check_int8_onnx,
    costs,
    figures,
    raise_if_lossy,
    raise_if_onnx_differs,
)
from histo_export.machine import package_versions
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.native_file import read_quantised
from histo_export.parity import Golden, make_golden
from histo_export.spec import InputKind, Precision, head_pool
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.data.tiles import TileData
    from histo_export.export.quantise import Quantisation


def versions() -> dict[str, str]:
    """The versions of all packages that shape an exported file."""
    packages = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")
    return {"histo-export": histo_export.__version__} | package_versions(packages)


@dataclass(frozen=True)
class ExportSettings:
    """What a bundle is to hold.

    Attributes:
        formats: keys of `formats.FORMATS`; those that they need are added.
        kind: what the graphs take.
        precision: that the bundle is made for.
        max_drop: points of accuracy that `precision` may lose on the validation split.
        accept_drop: export even where it loses more.
        force: replace an existing bundle.
        threads: of the runtimes that check the files.
        opset: of ONNX files, from `formats.LOWEST_OPSET` to `formats.HIGHEST_OPSET`.
        batch_size: of the ONNX file with a fixed batch.
    """

    formats: Sequence[str] = DEFAULT_FORMATS
    kind: InputKind = "float"
    precision: Precision = "fp32"
    max_drop: float = MAX_DROP
    accept_drop: bool = False
    force: bool = False
    threads: int = 1
    opset: int = LOWEST_OPSET
    batch_size: int = 1


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    settings: ExportSettings,
    *,
    data: TileData | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> Checks:
    """Writes every file, checks each against the checkpoint, and only then lets the bundle appear.

    The files hold float32 weights in every precision and are checked in fp32. With `data`, what lower precisions cost
    is measured too: on the whole validation split where the bundle is made for one of them, else briefly. int8 adds
    scales to `model.safetensors` and, beside `model.onnx`, `model-int8.onnx`.

    Args:
        checkpoint: what is exported.
        out: the bundle's folder.
        settings: what the bundle is to hold.
        data: what the checkpoint was trained on: its training split for the scales of int8, its validation split for
            what lower precisions cost. Needed below fp32.
        report: told of each step.

    Raises:
        UsageError: the precision is below fp32 without `data`, or without the native file.
        HistoError: a file differs from the checkpoint (the first diverging stage is named), or can't be written; or
            the precision loses too much.
    """
    formats = with_needs(settings.formats)
    precision = settings.precision
    if precision != "fp32":
        if data is None:
            raise UsageError(f"--precision {precision}", "needs the tiles that the model was trained on", "Add --data")
        if "native" not in formats:
            raise UsageError(f"--precision {precision}", "is for the native engine's file", "Add native to --formats")
    check_formats(formats, settings.kind)
    checkpoint = checkpoint.calibrated()
    with bundle.staging(out, settings.force) as folder:
        report("computing the reference in float64")
        (folder / GOLDEN).write_bytes(make_golden(checkpoint).to_bytes())
        quantisation = _quantisation(checkpoint, data, report) if data is not None and precision == "int8" else None
        scales = quantisation.scales if quantisation else None
        name = model_name(out)
        source = Source(
            checkpoint, settings.kind, scales, name, settings.opset, precision, batch_size=settings.batch_size
        )
        written = [GOLDEN, *write_formats(folder, formats, source, report)]
        written += _write_record(folder, checkpoint, data)
        models = [file for name in formats if (file := FORMATS[name].file)]
        checks = check_files(folder, models, settings.threads, report=report)
        raise_if_diverged(checks.results)
        raise_if_unproven(checks)
        if data is not None and "native" in formats:
            calibration = quantisation.calibration if quantisation else None
            checks = _measure(folder, data, settings, calibration, checks, report)
        files = {name: bundle.entry((folder / name).read_bytes()) for name in written}
        config = _config(checkpoint, settings, files, checks)
        (folder / CARD).write_text(model_card(config, checkpoint.spec), encoding="utf-8")
        # Left out where it says nothing, because older versions refuse fields that they don't know.
        unused = {"low_precision"} if checks.low_precision is None else set()
        if settings.opset == LOWEST_OPSET:
            unused.add("opset")
        if settings.batch_size == 1:
            unused.add("batch_size")
        left_out: dict[str, Any] = {"histo": unused}
        if checks.precision_costs is None:
            left_out["histo_precision_costs"] = True
        content = dump_json(config.model_dump(mode="json", exclude=left_out), indent=2)
        (folder / CONFIG).write_text(content + "\n", encoding="utf-8")
    return checks


def _write_record(folder: Path, checkpoint: Checkpoint, data: TileData | None) -> list[str]:
    """Writes the record of the tiles of training, if there is one; returns the names of its files."""
    record = checkpoint.trained_on
    if record is None and data is not None:  # the checkpoint is of an older version, but its tiles are here
        record = data.trained_on
    if record is None:
        return []
    (folder / TRAINED_ON).write_bytes(record.to_bytes())
    return [TRAINED_ON]


def _quantisation(checkpoint: Checkpoint, data: TileData, report: Callable[[str], None]) -> Quantisation:
    from histo_export.export.quantise import choose_tiles, quantise

    lowered = lower(checkpoint.net(), checkpoint.spec)
    return quantise(lowered, checkpoint.spec, choose_tiles(data.train, checkpoint.spec), report=report)


def _measure(
    folder: Path,
    data: TileData,
    settings: ExportSettings,
    calibration: bundle.Calibration | None,
    checks: Checks,
    report: Callable[[str], None],
) -> Checks:
    """The checks, and what lower precisions cost; HistoError where that of the bundle loses too much."""
    found = _answers(folder, data, settings, report)
    checks = replace(checks, precision_costs=costs(found, data.fingerprint, settings.max_drop))
    if settings.precision == "fp32":
        return checks
    low = _low_precision(folder, data, settings, calibration, found, report)
    raise_if_lossy(settings.precision, low)
    return replace(checks, low_precision=low)


def _answers(folder: Path, data: TileData, settings: ExportSettings, report: Callable[[str], None]) -> Answers:
    """What the native file in `folder`, read back from there, answers in each precision."""
    file = folder / NATIVE
    lowered, _, scales = read_quantised(file)
    briefly = settings.precision == "fp32"
    return answers(file, lowered, scales, data.val, settings.threads, briefly=briefly, report=report)


def _low_precision(
    folder: Path,
    data: TileData,
    settings: ExportSettings,
    calibration: bundle.Calibration | None,
    found: Answers,
    report: Callable[[str], None],
) -> bundle.LowPrecision:
    """The loss of accuracy, and the check of the quantised ONNX file."""
    onnx = check_quantised(folder, settings.threads, report)
    if onnx is not None:
        raise_if_onnx_differs(onnx)
    return bundle.LowPrecision(
        tiles=len(found.labels),
        fingerprint=data.fingerprint,
        precisions=figures(found),
        max_drop=settings.max_drop,
        drop_accepted=settings.accept_drop,
        not_native={precision: why for precision, why in found.not_native.items()},
        calibration=calibration,
        onnx=onnx,
    )


def check_quantised(
    folder: Path, threads: int, report: Callable[[str], None] = lambda step: None
) -> bundle.OnnxCheck | None:
    """Compares `model-int8.onnx` with the quantised model in `model.safetensors`; None where there is no such file."""
    if not (folder / INT8_ONNX).exists():
        return None
    report(f"checking {INT8_ONNX} in ONNX Runtime against the quantised model")
    lowered, _, scales = read_quantised(folder / NATIVE)
    return check_int8_onnx(folder, lowered, scales, Golden.read(folder / GOLDEN), threads)


def _config(
    checkpoint: Checkpoint, settings: ExportSettings, files: dict[str, bundle.FileEntry], checks: Checks
) -> bundle.BundleConfig:
    spec = checkpoint.spec
    parity: dict[str, dict[str, dict[str, Any]]] = {}
    for result in checks.results:
        figures = asdict(result)
        parity.setdefault(figures.pop("file"), {})[figures.pop("runtime_id")] = figures
    return bundle.BundleConfig(
        **bundle.wsinfer_fields(spec, settings.kind),
        histo=bundle.HistoBlock(
            format=2,
            spec=spec.to_dict(),
            head_pool=head_pool(spec.pool, spec.map_size),
            input=settings.kind,
            precision=settings.precision,
            opset=settings.opset,
            batch_size=settings.batch_size,
            files=files,
            parity=parity,
            unchecked=checks.unchecked,
            low_precision=checks.low_precision,
            training=checkpoint.training,
            versions=versions(),
        ),
        histo_precision_costs=checks.precision_costs,
    )
