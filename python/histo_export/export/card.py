"""The bundle's README: a model card that a stranger can use."""

from __future__ import annotations

from histo_export.export.bundle import INT8_ONNX, BundleConfig, LowPrecision
from histo_export.spec import ModelSpec

_RUN = {
    "model.onnx": """```python
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {{"tiles": {onnx_example}}})[0]  # {shape}
```""",
    "torchscript_model.pt": """```python
import torch
model = torch.jit.load("torchscript_model.pt").eval()
logits = model({torch_example})  # {shape}
```""",
}


def model_card(config: BundleConfig, spec: ModelSpec) -> str:
    """Markdown: what the model is, what it was trained on, how exact the files are, how to run them."""
    block, training = config.histo, config.histo.training
    data = training.get("data", {})
    side = spec.tile_size
    as_bytes = block.input == "uint8"
    names = {
        "shape": f"uint8 (n, {side}, {side}, 3), RGB" if as_bytes else f"float32 (n, 3, {side}, {side}), RGB in [0, 1]",
        "onnx_example": f"np.zeros((1, {side}, {side}, 3), np.uint8)"
        if as_bytes
        else f"np.zeros((1, 3, {side}, {side}), np.float32)",
        "torch_example": f"torch.zeros(1, {side}, {side}, 3, dtype=torch.uint8)"
        if as_bytes
        else f"torch.zeros(1, 3, {side}, {side})",
    }
    lines = [f"# ResNet34 tile classifier, pool {spec.pool}", ""]
    if data.get("synthetic"):
        lines += ["**Trained on synthetic tiles, for demonstration. It knows nothing about tissue.**", ""]
    lines += [
        f"Classes: {', '.join(spec.classes)}.",
        "",
        f"Input: {names['shape']}, tiles of {side} px; centre crop to {spec.crop} px and normalisation are inside the "
        "files. Output: logits; apply softmax for probabilities.",
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
    lines += ["", "## Use", ""]
    for name, text in _RUN.items():
        if name in block.files:
            lines += [text.format(**names), ""]
    if "torchscript_model.pt" in block.files:
        if as_bytes:
            lines += ["The graphs take bytes; QuPath and WSInfer feed floats and can't use this bundle.", ""]
        else:
            lines += ["QuPath and WSInfer: this folder is a model folder; config.json is WSInfer's.", ""]
    if served := [name.split("/")[1] for name in block.files if name.endswith("/config.pbtxt")]:
        lines += [f"Triton Inference Server: `tritonserver --model-repository triton` serves it as `{served[0]}`.", ""]
    return "\n".join(lines)


def _accuracy_lines(training: dict[str, object]) -> list[str]:
    """Validation and test accuracy, where the checkpoint has them."""
    lines = []
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
    for name, found in low.precisions.items():
        lines.append(
            f"| {name} | {found.accuracy:.1%} | {found.interval[0]:.1%} to {found.interval[1]:.1%} "
            f"| {found.agreement:.1%} | {found.drop:.2f} | {found.measured_with} |"
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
