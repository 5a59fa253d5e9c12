"""The names of a bundle and of its files. Imports nothing else of the package, so that all its rooms can share them."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG, GOLDEN, CARD = "config.json", "golden.safetensors", "README.md"
TRAINED_ON = "trained_on.safetensors"
"""Hashes of the tiles that the network was trained on (see `trained_on.TrainedOn`)."""

ONNX = "model.onnx"
INT8_ONNX = "model-int8.onnx"
"""The quantised model for other runtimes; beside `ONNX` where the bundle is int8 (see `export.qdq`)."""
TORCHSCRIPT = "torchscript_model.pt"
"""The name that WSInfer and QuPath expect."""
NATIVE = "model.safetensors"
"""The native engine's file (see `model.native_file`)."""
PT2 = "model.pt2"
FP16_ONNX, FIXED_ONNX = "model-fp16.onnx", "model-fixed.onnx"
OPENVINO, NCNN, LITERT, COREML = "model.xml", "model.ncnn.param", "model.tflite", "model.mlpackage"
"""Files of other people's converters; OpenVINO's and ncnn's have their weights in a second file, Core ML's is a folder.
"""
MODELS = (ONNX, INT8_ONNX, FP16_ONNX, FIXED_ONNX, TORCHSCRIPT, NATIVE, PT2, OPENVINO, NCNN, LITERT)
"""What runtimes open."""


def model_name(bundle: Path) -> str:
    """What servers call a bundle: its folder's name, or its repository's, with dashes for characters that a URL would
    escape."""
    origin = hub_origin(bundle)
    name = bundle.absolute().name if origin is None else origin["repository"].partition("/")[2]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "model"


def hub_origin(folder: Path) -> dict[str, str] | None:
    """Repository and commit of a folder in the cache of Hugging Face's hub; None for any other folder."""
    parts = folder.absolute().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    return {"repository": parts[-3].removeprefix("models--").replace("--", "/", 1), "commit": parts[-1]}
