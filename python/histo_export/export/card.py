"""The bundle's README.md: a model card for people who did not make the model."""

from __future__ import annotations

from histo_export.bundle_files import INT8_ONNX
from histo_export.export.bundle import BundleConfig, HistoBlock, LowPrecision
from histo_export.export.formats import FORMATS
from histo_export.spec import ModelSpec, describe_input


def model_card(config: BundleConfig, spec: ModelSpec) -> str:
    """Markdown: what the model is, what it was trained on, how exact the files are, how to run them."""
    block, training = config.histo, config.histo.training
    data = training.get("data", {})
    shape, values = describe_input(block.input, spec.tile_size)
    lines = [f"# ResNet34 tile classifier, pool {spec.pool}", ""]
    if data.get("synthetic"):
        lines += ["**Trained on synthetic tiles, for demonstration. It knows nothing about tissue.**", ""]
    lines += [
        f"Classes: {', '.join(spec.classes)}.",
        "",
        f"Input: {shape}, {values}, tiles of {spec.tile_size} px; centre crop to {spec.crop} px and normalisation are "
        "inside the files. Output: logits; apply softmax for probabilities.",
        *_crop_lines(spec),
        "",
        f"Spacing: {spec.mpp} µm/px."
        if spec.mpp
        else f"Spacing: unknown. config.json says {config.spacing_um_px} because WSInfer wants a number; "
        "export with `--mpp` to state the true one.",
        "",
        "## Training",
        "",
        f"- Data: {data.get('description') or data.get('name', 'not recorded')}",
        f"- Data fingerprint: `{data.get('fingerprint', 'not recorded')}`",
        *(f"- {key}: {training[key]}" for key in ("recipe", "epochs", "seed", "weights") if key in training),
        *_accuracy_lines(training),
        "",
        *(_precision_lines(block.precision, block.low_precision) if block.low_precision else ()),
        *_file_lines(block),
        "",
        "## Use",
        "",
    ]
    for entry in FORMATS.values():
        if any(map(entry.makes, block.files)):
            lines += entry.writer.usage(spec, block.input, block.files)
    return "\n".join(lines)


def _crop_lines(spec: ModelSpec) -> list[str]:
    """How much of a tile counts, where that is not all of it."""
    if spec.crop == spec.tile_size:
        return []
    seen = f"the centre {spec.crop} of {spec.tile_size} pixels, {spec.seen_share} of a tile's area"
    return ["", f"The network sees {seen}. Training with `--crop {spec.tile_size}` uses all."]


def _file_lines(block: HistoBlock) -> list[str]:
    """How exact each file is in each runtime."""
    lines = [
        "## Files",
        "",
        "Each file was run in each runtime below, in a process of its own, at batches 1, 2, 3, 7 and 33, on real "
        "tiles and on noise, and compared with the checkpoint in float64. `histo verify` repeats the check.",
        "",
        "| file | run by | max \\|Δlogit\\|, real tiles | relative, with noise | allowed | top-1 agreement |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_runtime in block.parity.items():
        for result in by_runtime.values():
            lines.append(
                f"| {name} | {result['runtime']} ({result['executed']}) | {result['max_abs']:.2e} "
                f"| {result['max_relative']:.1e} | {result['tolerance']:.1e} | {result['agreement']:.1%} |"
            )
    for runtime_id, reason in block.unchecked.items():
        lines += ["", f"Not checked in {runtime_id}: {reason}"]
    return lines


def _accuracy_lines(training: dict[str, object]) -> list[str]:
    """Validation and test accuracy, where the checkpoint has them."""
    lines = []
    if training.get("trained_elsewhere"):
        lines.append(
            "- Accuracy: unknown, because the network was trained elsewhere. The checks below use drawn tiles."
        )
    if isinstance(value := training.get("val_accuracy"), float):
        lines.append(f"- Validation accuracy: {value:.1%}")
    test = training.get("test")
    if isinstance(test, dict):
        low, high = test["interval"]
        lines.append(f"- Test accuracy: {test['accuracy']:.1%} (95 % bootstrap interval {low:.1%} to {high:.1%})")
    return lines


def _precision_lines(precision: str, low: LowPrecision) -> list[str]:
    """What the bundle's precision costs, for the native engine and for the quantised ONNX file."""
    lines = [
        "## Precision",
        "",
        f"Made for {precision}: ask the native engine for it by name. The weights in the files are float32 all the "
        f"same. Measured on the {low.tiles:,} tiles of the validation split, by which the run chose its best epoch; "
        f"{low.max_drop:g} points may be lost"
        + (", and a larger loss was accepted at export." if low.drop_accepted else "."),
        "",
        "| precision | accuracy | 95 % interval | top-1 as fp32 | points lost | measured with |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in low.precisions.items():
        lines.append(
            f"| {name} | {figures.accuracy:.1%} | {figures.interval[0]:.1%} to {figures.interval[1]:.1%} "
            f"| {figures.agreement:.1%} | {figures.drop:.2f} | {figures.measured_with} |"
        )
    if (calibration := low.calibration) is not None:
        kept = ", ".join(calibration.kept) or "none"
        lines += [
            "",
            f"int8 scales: {calibration.chosen}, from {calibration.tiles} tiles of the training split. "
            f"Convolutions kept in bf16 besides the stem: {kept}.",
        ]
    if low.onnx is not None:
        lines += [
            "",
            f"`{INT8_ONNX}` is the quantised model with QuantizeLinear and DequantizeLinear, its stem in fp32. In "
            f"{low.onnx.runtime} its logits differ from the same arithmetic in torch by {low.onnx.error:.1%} of their "
            f"spread, with {low.onnx.agreement:.1%} of top classes the same.",
        ]
    return [*lines, ""]
