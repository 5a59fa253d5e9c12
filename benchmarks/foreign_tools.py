"""Opens a bundle's files in tools of other people, and compares their logits with the checkpoint in float64.

    python benchmarks/foreign_tools.py bundles/tiles-pool2

Each tool that this Python can import runs; the others are listed as not installed. Their packages ask for versions that
exclude each other, so give each an environment of its own: the script itself needs numpy and safetensors only. The
table of docs/interop.md is made of such runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Path, Array], Array]
"""A bundle's folder and float32 tiles (n, 3, side, side) in [0, 1] → logits (n, classes)."""

ALLOWED = 5e-5
"""As `histo_export.parity.FP32_TOLERANCE`."""


@dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes:
        package: whose version is printed.
        modules: that must be importable.
        file: of the bundle, that is opened.
        call: how, in short.
        run: does it.
        programs: commands that must be there.
    """

    package: str
    modules: tuple[str, ...]
    file: str
    call: str
    run: Run
    programs: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """What is not installed; None where nothing is missing."""
        modules = [name for name in self.modules if importlib.util.find_spec(name) is None]
        return next(iter([*modules, *(name for name in self.programs if command(name) is None)]), None)


def command(name: str) -> str | None:
    """The path of a command, beside this Python or on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def onnxruntime(bundle: Path, tiles: Array) -> Array:
    import onnxruntime as ort

    session = ort.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"tiles": tiles})[0]


def reference(bundle: Path, tiles: Array) -> Array:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(bundle / "model.onnx")).run(None, {"tiles": tiles})[0]


def openvino(bundle: Path, tiles: Array) -> Array:
    import openvino as ov

    compiled = ov.compile_model(bundle / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([tiles])[0]


def opencv(bundle: Path, tiles: Array) -> Array:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(bundle / "model.onnx"))
    net.setInput(tiles)
    return net.forward()


def onnx2torch(bundle: Path, tiles: Array) -> Array:
    import onnx2torch
    import torch

    with torch.inference_mode():
        return onnx2torch.convert(str(bundle / "model.onnx")).eval()(torch.from_numpy(tiles)).numpy()


def mnn(bundle: Path, tiles: Array) -> Array:
    from MNN import expr, nn

    with tempfile.TemporaryDirectory() as folder:
        made = f"{folder}/model.mnn"
        options = ["-f", "ONNX", "--modelFile", str(bundle / "model.onnx"), "--MNNModel", made, "--bizCode", "histo"]
        _convert("mnnconvert", options, folder)
        net = nn.load_module_from_file(made, ["tiles"], ["logits"], precision_mode=1)
        given = expr.const(tiles, list(tiles.shape), expr.NCHW, expr.float)
        return np.array(net.forward([given])[0].read())


def onnx2tf(bundle: Path, tiles: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    with tempfile.TemporaryDirectory() as folder:
        _convert("onnx2tf", ["-i", str((bundle / "model.onnx").resolve()), "-o", "made", "-n"], folder)
        net = Interpreter(f"{folder}/made/model_float32.tflite")
        given, got = net.get_input_details()[0]["index"], net.get_output_details()[0]["index"]
        last = np.ascontiguousarray(tiles.transpose(0, 2, 3, 1))
        net.resize_tensor_input(given, last.shape)
        net.allocate_tensors()
        net.set_tensor(given, last)
        net.invoke()
        return net.get_tensor(got)


def pnnx(file: str) -> Run:
    def run(bundle: Path, tiles: Array) -> Array:
        import ncnn

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, f"model{Path(file).suffix}")
            shutil.copyfile(bundle / file, model)
            shape = ",".join(map(str, (1, *tiles.shape[1:])))
            _convert("pnnx", [model.name, f"inputshape=[{shape}]", "fp16=0"], folder)
            net = ncnn.Net()
            net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
            if net.load_param(f"{folder}/model.ncnn.param") or net.load_model(f"{folder}/model.ncnn.bin"):
                raise RuntimeError("ncnn does not load what pnnx made")
            logits = []
            for tile in tiles:
                with net.create_extractor() as extractor:
                    extractor.input("in0", ncnn.Mat(tile).clone())
                    logits.append(np.array(extractor.extract("out0")[1]))
            return np.stack(logits)

    return run


def coremltools(bundle: Path, tiles: Array) -> Array:
    import coremltools as ct
    import torch

    shape = (ct.RangeDim(1, 64, default=1), *tiles.shape[1:])
    model = ct.convert(
        torch.jit.load(bundle / "torchscript_model.pt").eval(),
        inputs=[ct.TensorType("tiles", shape)],
        outputs=[ct.TensorType("logits")],
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
    )
    if sys.platform != "darwin":
        raise NotImplementedError("converted; Core ML runs on Apple's systems only")
    return np.concatenate([model.predict({"tiles": tile[None]})["logits"] for tile in tiles])


def tvm(bundle: Path, tiles: Array) -> Array:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(onnx.load(bundle / "model.onnx"), shape_dict={"tiles": list(tiles.shape)})
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(tiles)).numpy()


def _convert(program: str, arguments: list[str], folder: str) -> None:
    path = command(program)
    assert path is not None, "Tool.missing() names it"
    done = subprocess.run([path, *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-200:]}")


TOOLS: Mapping[str, Tool] = {
    "onnxruntime": Tool("onnxruntime", ("onnxruntime",), "model.onnx", "InferenceSession", onnxruntime),
    "onnx-reference": Tool("onnx", ("onnx",), "model.onnx", "onnx.reference.ReferenceEvaluator", reference),
    "openvino": Tool("openvino", ("openvino",), "model.onnx", "compile_model", openvino),
    "opencv": Tool("opencv-python-headless", ("cv2",), "model.onnx", "cv2.dnn.readNetFromONNX", opencv),
    "onnx2torch": Tool("onnx2torch", ("onnx2torch", "torch"), "model.onnx", "onnx2torch.convert", onnx2torch),
    "mnn": Tool("MNN", ("MNN",), "model.onnx", "mnnconvert -f ONNX", mnn, ("mnnconvert",)),
    "onnx2tf": Tool("onnx2tf", ("ai_edge_litert",), "model.onnx", "onnx2tf -n, LiteRT", onnx2tf, ("onnx2tf",)),
    "pnnx-onnx": Tool("pnnx", ("ncnn",), "model.onnx", "pnnx, ncnn", pnnx("model.onnx"), ("pnnx",)),
    "pnnx": Tool("pnnx", ("ncnn",), "torchscript_model.pt", "pnnx, ncnn", pnnx("torchscript_model.pt"), ("pnnx",)),
    "coremltools": Tool("coremltools", ("coremltools", "torch"), "torchscript_model.pt", "convert", coremltools),
    "tvm": Tool("apache-tvm", ("tvm", "onnx"), "model.onnx", "relax.frontend.onnx.from_onnx", tvm),
}


def golden(bundle: Path, count: int) -> tuple[Array, Array]:
    """The first golden tiles as float32 (n, 3, side, side) in [0, 1], and their logits in float64."""
    from safetensors import safe_open

    with safe_open(bundle / "golden.safetensors", framework="np") as file:
        tiles, logits = file.get_tensor("tiles")[:count], file.get_tensor("logits")[:count]
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255), logits


def relative_error(logits: Array, expected: Array) -> float:
    """The largest difference of a logit, in units of the tile's largest logit (of at least 1)."""
    scale = np.maximum(1.0, np.abs(expected).max(axis=1))
    return float((np.abs(logits - expected).max(axis=1) / scale).max())


def version(tool: Tool) -> str:
    """Of the package, by whatever name it is installed: onnxruntime-gpu has the module onnxruntime, too."""
    names = [tool.package, *metadata.packages_distributions().get(tool.package, [])]
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tools", default=",".join(TOOLS), help=f"of {', '.join(TOOLS)}; default: all")
    parser.add_argument("--tiles", type=int, default=5)
    options = parser.parse_args()
    names = options.tools.split(",")
    if unknown := [name for name in names if name not in TOOLS]:
        parser.error(f"--tools {unknown[0]} is unknown; use some of {', '.join(TOOLS)}")
    if not (options.bundle / "golden.safetensors").is_file():
        parser.error(f"{options.bundle} is not a bundle: it has no golden.safetensors")
    tiles, expected = golden(options.bundle, options.tiles)
    print("| tool | version | file | how | relative difference |\n|---|---|---|---|---|")
    for name in names:
        tool = TOOLS[name]
        if missing := tool.missing():
            result = f"not installed here ({missing})"
        else:
            try:
                result = f"{relative_error(tool.run(options.bundle, tiles), expected):.1e}"
            except Exception as error:  # whatever they raise is the answer
                result = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())[:150]]))
        print(f"| {name} | {version(tool)} | {tool.file} | {tool.call} | {result} |", flush=True)


if __name__ == "__main__":
    main()
