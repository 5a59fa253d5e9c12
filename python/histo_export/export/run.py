"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histo_export
from histo_export.errors import HistoError, UsageError
from histo_export.export import bundle
from histo_export.export.card import model_card
from histo_export.export.low_precision import (
    MAX_DROP,
    check_int8_onnx,
    measure,
    raise_if_lossy,
    raise_if_onnx_differs,
)
from histo_export.machine import package_versions
from histo_export.model.arithmetic import Scales
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import InputKind, head_pool, lower
from histo_export.model.native_file import native_bytes, read_quantised
from histo_export.parity import FileParity, Golden, check_file, make_golden
from histo_export.runtimes import CHECKED_BY, runtime_class
from histo_export.spec import STAGES, ModelSpec, Precision

if TYPE_CHECKING:
    from histo_export.data.tiles import TileData
    from histo_export.export.quantise import Quantisation

NOMINAL_MPP = 0.5
"""WSInfer's configuration must name a spacing; where nobody knows it, this is written and the model card says so."""


def versions() -> dict[str, str]:
    """Of everything that shapes an exported file."""
    packages = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")
    return {"histo-export": histo_export.__version__} | package_versions(packages)


@dataclass(frozen=True)
class Checks:
    """What `check_files` did.

    Attributes:
        results: of every file in every runtime that could be had.
        unchecked: the runtimes that could not be had here → why.
        low_precision: of a bundle below fp32, what that costs.
    """

    results: list[FileParity]
    unchecked: dict[str, str]
    low_precision: bundle.LowPrecision | None = None


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    formats: Sequence[str],
    kind: InputKind = "float",
    precision: Precision = "fp32",
    data: TileData | None = None,
    max_drop: float = MAX_DROP,
    accept_drop: bool = False,
    force: bool = False,
    threads: int = 1,
    report: Callable[[str], None] = lambda step: None,
) -> Checks:
    """Writes every file, checks each against the checkpoint, and only then lets the bundle appear.

    The files hold float32 weights in every precision and are checked in fp32. Below fp32 the loss of accuracy is
    measured too, and int8 adds scales to `model.safetensors` and, beside `model.onnx`, `model-int8.onnx`.

    Args:
        checkpoint: what is exported.
        out: the bundle's folder.
        formats: keys of `bundle.FORMATS`, and `bundle.TRITON`, which needs the ONNX file and adds it.
        kind: what the graphs take.
        precision: that the bundle is made for.
        data: what the checkpoint was trained on. Needed below fp32: its training split for the scales of int8, its
            validation split for the accuracy.
        max_drop: points of accuracy that `precision` may lose on the validation split.
        accept_drop: let it lose more.
        force: replace an existing bundle.
        threads: for the check and its timing.
        report: told of each step.

    Raises:
        UsageError: `precision` is not fp32 and the data or the native file are not asked for.
        HistoError: a file differs from the checkpoint (the first diverging stage is named), or can't be written; or
            `precision` loses too much.
    """
    spec = checkpoint.spec
    wanted = {*formats, "onnx"} if bundle.TRITON in formats else set(formats)
    models = [name for name in bundle.FORMATS if name in wanted]
    if precision != "fp32":
        if data is None:
            raise UsageError(f"--precision {precision}", "needs the tiles that the model was trained on", "Add --data")
        if "native" not in models:
            raise UsageError(f"--precision {precision}", "is for the native engine's file", "Add native to --formats")
    with bundle.staging(out, force) as folder:
        files: dict[str, bundle.FileEntry] = {}

        def write(name: str, content: bytes) -> None:
            (folder / name).write_bytes(content)
            files[name] = bundle.entry(content)

        report("computing the reference in float64")
        golden = make_golden(checkpoint)
        write(bundle.GOLDEN, golden.to_bytes())
        quantisation = _quantisation(checkpoint, data, report) if data is not None and precision == "int8" else None
        scales = quantisation.scales if quantisation else None
        for name, content in model_files(checkpoint, models, kind, report, scales):
            write(name, content)
            if scales and name == bundle.FORMATS["onnx"]:
                from histo_export.export.qdq import qdq_bytes

                report(f"writing {bundle.INT8_ONNX}")
                write(bundle.INT8_ONNX, qdq_bytes(content, scales))
        checks = check_files(folder, [bundle.FORMATS[name] for name in models], threads, report=report)
        raise_if_diverged(checks.results)
        if data is not None and precision != "fp32":
            calibration = quantisation.calibration if quantisation else None
            low = _low_precision(
                folder, data, threads, report, max_drop=max_drop, drop_accepted=accept_drop, calibration=calibration
            )
            raise_if_lossy(precision, low)
            checks = replace(checks, low_precision=low)
        if bundle.TRITON in formats:
            from histo_export.export.triton import model_name, write_repository

            for name in write_repository(folder, model_name(out), spec.classes):
                files[name] = bundle.entry((folder / name).read_bytes())

        config = _config(checkpoint, kind, precision, files, checks)
        write(bundle.CARD, model_card(config, spec).encode())
        config.histo.files = files
        unused = {"histo": {"low_precision"}} if checks.low_precision is None else None  # older readers don't know it
        (folder / bundle.CONFIG).write_text(config.model_dump_json(indent=2, exclude=unused) + "\n")
    return checks


def _quantisation(checkpoint: Checkpoint, data: TileData, report: Callable[[str], None]) -> Quantisation:
    from histo_export.export.quantise import choose_tiles, quantise

    lowered = lower(checkpoint.net(), checkpoint.spec)
    return quantise(lowered, checkpoint.spec, choose_tiles(data.train, checkpoint.spec), report=report)


def _low_precision(
    folder: Path, data: TileData, threads: int, report: Callable[[str], None], **facts: Any
) -> bundle.LowPrecision:
    """Measures the files in `folder`, read back from there; `facts` are the fields that need no measuring."""
    file = folder / bundle.FORMATS["native"]
    onnx = check_quantised(folder, threads, report)
    if onnx is not None:
        raise_if_onnx_differs(onnx)
    lowered, _, scales = read_quantised(file)
    precisions, not_native = measure(file, lowered, scales, data.val, threads, report)
    return bundle.LowPrecision(
        tiles=len(data.val),
        fingerprint=data.fingerprint,
        precisions=precisions,
        not_native=not_native,
        onnx=onnx,
        **facts,
    )


def check_quantised(
    folder: Path, threads: int, report: Callable[[str], None] = lambda step: None
) -> bundle.OnnxCheck | None:
    """Compares `model-int8.onnx` with the quantised model in `model.safetensors`; None where the first is not there."""
    if not (folder / bundle.INT8_ONNX).exists():
        return None
    report(f"checking {bundle.INT8_ONNX} in ONNX Runtime against the quantised model")
    lowered, _, scales = read_quantised(folder / bundle.FORMATS["native"])
    return check_int8_onnx(folder, lowered, scales, Golden.read(folder / bundle.GOLDEN), threads)


def model_files(
    checkpoint: Checkpoint,
    formats: Sequence[str],
    kind: InputKind = "float",
    report: Callable[[str], None] = lambda step: None,
    scales: Mapping[str, Scales] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yields (file name, content) for each of `formats`; nothing is checked yet. The native file gets the scales."""
    spec = checkpoint.spec
    lowered = lower(checkpoint.net(), spec, kind)
    program = None
    for name in formats:
        report(f"writing {bundle.FORMATS[name]}")
        if name == "native":
            content = native_bytes(lowered, spec, scales)
        elif name == "torchscript":
            from histo_export.model.torchscript import torchscript_bytes

            content = torchscript_bytes(lowered)
        else:
            from histo_export.export import torch_program

            program = program or torch_program.exported_program(lowered, spec, kind)
            if name == "onnx":
                content = torch_program.onnx_bytes(program, _graph_metadata(checkpoint, kind))
            else:
                content = torch_program.pt2_bytes(program)
        yield bundle.FORMATS[name], content


def _graph_metadata(checkpoint: Checkpoint, kind: InputKind) -> dict[str, str]:
    """The ONNX file's metadata_props: what someone needs who has the file and nothing else."""
    spec = checkpoint.spec
    shape = "uint8 (n, {0}, {0}, 3) RGB" if kind == "uint8" else "float32 (n, 3, {0}, {0}) RGB in [0, 1]"
    return {
        "histo_export_version": histo_export.__version__,
        "histo.spec": json.dumps(spec.to_dict()),
        "histo.input": shape.format(spec.tile_size),
        "histo.output": "float32 (n, classes) logits",
        "class_names": json.dumps(spec.classes),
        "training_data": str(checkpoint.training.get("data", {}).get("name", "unknown")),
    }


def _config(
    checkpoint: Checkpoint,
    kind: InputKind,
    precision: Precision,
    files: dict[str, bundle.FileEntry],
    checks: Checks,
) -> bundle.BundleConfig:
    spec = checkpoint.spec
    parity: dict[str, dict[str, dict[str, Any]]] = {}
    for result in checks.results:
        found = asdict(result)
        parity.setdefault(found.pop("file"), {})[found.pop("runtime_id")] = found
    return bundle.BundleConfig(
        num_classes=len(spec.classes),
        patch_size_pixels=spec.tile_size,
        spacing_um_px=spec.mpp or NOMINAL_MPP,
        class_names=list(spec.classes),
        transform=_transform(spec) if kind == "float" else [],  # WSInfer has no transform that gives bytes
        histo=bundle.HistoBlock(
            format=2,
            spec=spec.to_dict(),
            head_pool=head_pool(spec.pool, spec.map_size),
            input=kind,
            precision=precision,
            files=files,
            parity=parity,
            unchecked=checks.unchecked,
            low_precision=checks.low_precision,
            training=checkpoint.training,
            versions=versions(),
        ),
    )


def _transform(spec: ModelSpec) -> list[dict[str, Any]]:
    """What WSInfer and QuPath do with a tile; crop and normalisation are inside the graph.

    They cut the model's field of view from the finest level, so that a slide of half the µm per pixel gives tiles of
    twice the side. TorchScript takes those too, and would crop them to a quarter of the view.
    """
    return [{"name": "Resize", "arguments": {"size": spec.tile_size}}, {"name": "ToTensor"}]


def check_files(
    folder: Path,
    names: Sequence[str],
    threads: int,
    device: str = "cpu",
    report: Callable[[str], None] = lambda step: None,
) -> Checks:
    """`parity.check_file` for each of `names` in each of its runtimes, one by one so that timings are undisturbed."""
    golden_path = folder / bundle.GOLDEN
    golden = Golden.read(golden_path)
    if set(golden.stages) != set(STAGES):
        raise HistoError(golden_path, "does not hold the reference of every stage", "Export again")
    checks = Checks([], {})
    for name in names:
        for runtime_id in CHECKED_BY[name]:
            runtime = runtime_class(runtime_id)
            report(f"checking {name} in {runtime.names['fp32']} against the checkpoint")
            if reason := runtime.unavailable(device):
                checks.unchecked[runtime_id] = reason
            else:
                checks.results.append(check_file(folder / name, runtime_id, golden_path, golden, threads, device))
    return checks


def raise_if_diverged(results: Sequence[FileParity]) -> None:
    """Turns the first failed check into an error that names the stage."""
    for result in results:
        if not result.passed:
            raise HistoError(
                f"{result.file} in {result.runtime}",
                f"is not the checkpoint's model: logits differ by {result.max_relative:.2g} of a tile's largest "
                f"where {result.tolerance:.0e} is allowed, {result.agreement:.1%} of top classes agree, "
                f"first diverging stage: {result.diverges}",
                "Do not ship it; histo doctor shows the runtimes",
            )


def spec_of(path: Path) -> ModelSpec:
    """The spec of a bundle whose files are intact."""
    opened = bundle.open_bundle(path)
    try:
        return ModelSpec.from_dict(opened.config.histo.spec)
    except (TypeError, ValueError) as error:
        raise HistoError(path / bundle.CONFIG, f"has an invalid spec ({error})", "Export again") from error
