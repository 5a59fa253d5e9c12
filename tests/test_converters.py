"""Formats made from others of the bundle: fixed batch, float16, and those of other people's converters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from histo_export.errors import HistoError, UsageError
from histo_export.export import converters
from histo_export.export.converters import Converter, convert
from histo_export.export.formats import FORMATS, FP16_TOLERANCE, Source
from histo_export.export.onnx_fixed import fixed_bytes
from histo_export.export.onnx_fp16 import fp16_bytes
from histo_export.extras import installed
from histo_export.model.checkpoint import Checkpoint
from histo_export.parity import FP32_TOLERANCE, Golden
from histo_export.runtimes import open_runtime
from histo_export.runtimes.base import TileSide
from histo_export.spec import STAGES

Histo = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the files that others are made from."""
    folder = tmp_path_factory.mktemp("converted")
    for name in ("model.onnx", "torchscript_model.pt"):
        (folder / name).symlink_to(bundle / name)
    return folder


@pytest.fixture(scope="module")
def golden(bundle: Path) -> Golden:
    return Golden.read(bundle / "golden.safetensors")


@pytest.fixture
def source(checkpoint: Checkpoint) -> Source:
    return Source(checkpoint, batch_size=4)


def test_a_fixed_batch(folder: Path, source: Source, golden: Golden) -> None:
    (name,) = FORMATS["onnx-fixed"].writer.write(folder, source)
    graph = onnx.load(folder / name).graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        assert all(dim.HasField("dim_value") for dim in dims), value.name
        assert not dims or dims[0].dim_value == 4, value.name
    runtime = open_runtime("onnxruntime-fixed", folder / name, threads=1)
    assert runtime.side == TileSide(75, fixed=True)
    for n in (1, 4, 6):
        assert golden.relative_error(runtime.run(golden.tiles[:n])) < FP32_TOLERANCE
    stages = runtime.stages(golden.stage_tiles)
    assert tuple(stages) == STAGES
    assert stages["layer4"].shape == golden.stages["layer4"].shape


def test_the_batch_of_a_reshape_is_fixed_too(make_checkpoint: Callable[..., Checkpoint]) -> None:
    """Some tools take no -1."""
    program = Source(make_checkpoint(1, 32, 32), opset=13)
    from histo_export.export.onnx_graph import onnx_bytes

    graph = onnx.load_from_string(fixed_bytes(onnx_bytes(program.program, {}), 3)).graph
    (reshape,) = (node for node in graph.node if node.op_type in ("Reshape", "Flatten"))
    if reshape.op_type == "Reshape":
        shape = next(item for item in graph.initializer if item.name == reshape.input[1])
        assert onnx.numpy_helper.to_array(shape).tolist() == [3, 512]


def test_float16(folder: Path, source: Source, golden: Golden) -> None:
    (name,) = FORMATS["onnx-fp16"].writer.write(folder, source)
    assert (folder / name).stat().st_size < 0.51 * (folder / "model.onnx").stat().st_size
    runtime = open_runtime("onnxruntime-fp16", folder / name, threads=1)
    logits = runtime.run(golden.tiles)
    assert logits.dtype == np.float32
    assert 1e-6 < golden.relative_error(logits) < FP16_TOLERANCE
    assert runtime.stages(golden.stage_tiles)["layer1"].dtype == np.float16


def test_a_weight_beyond_float16_is_refused(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    item = next(item for item in model.graph.initializer if item.name == "layer1.0.conv1.bias")
    item.CopyFrom(onnx.numpy_helper.from_array(np.full(64, 1e5, np.float32), item.name))
    with pytest.raises(HistoError, match=r"layer1\.0\.conv1\.bias has a weight of 1e\+05, and float16 ends at 65504"):
        fp16_bytes(model.SerializeToString())


@pytest.mark.foreign
@pytest.mark.parametrize(
    ("name", "runtime", "module", "program"),
    [
        ("openvino", "openvino-ir", "openvino", None),
        ("ncnn", "ncnn", "ncnn", "pnnx"),
        pytest.param("litert", "litert", "ai_edge_litert", "onnx2tf", marks=pytest.mark.slow),
    ],
)
def test_what_converters_make_is_the_model(
    folder: Path, source: Source, golden: Golden, name: str, runtime: str, module: str, program: str | None
) -> None:
    if not installed(module) or (program and converters.found(program) is None):
        pytest.skip(f"{program or module} is not installed; see docs/interop.md")
    written = FORMATS[name].writer.write(folder, source)
    assert all(FORMATS[name].makes(file) and (folder / file).is_file() for file in written)
    opened = open_runtime(runtime, folder / str(FORMATS[name].file), threads=1)
    assert opened.side == TileSide(75, fixed=True)
    assert golden.relative_error(opened.run(golden.tiles[:3])) < FP32_TOLERANCE
    assert opened.stages(golden.stage_tiles)["head"].shape == (2, 6)


@pytest.mark.foreign
@pytest.mark.filterwarnings("ignore")
def test_core_ml(folder: Path, source: Source) -> None:
    """Linux converts, and can't run."""
    if not installed("coremltools"):
        pytest.skip("coremltools is not installed; see docs/interop.md")
    written = FORMATS["coreml"].writer.write(folder, source)
    assert written[-1].startswith("model.mlpackage/")
    assert all(FORMATS["coreml"].makes(file) and (folder / file).is_file() for file in written)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formats", "tensorrt"], "is built on the GPU that runs it, for that GPU alone. Export onnx, and run there"),
        (
            ["--formats", "timm"],
            "--formats timm: makes no file that histo runs, so that nothing could check the bundle",
        ),
        (["--formats", "ncnn", "--input", "uint8"], "--formats ncnn: can't take bytes. Leave out --input uint8."),
        (["--formats", "onnx", "--fixed-batch", "8"], "Add onnx-fixed to --formats, or leave it out"),
        (["--formats", "onnx-fixed", "--fixed-batch", "0"], "--fixed-batch 0: is not from 1 to 1024"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_done(
    histo: Histo, tmp_path: Path, options: list[str], message: str
) -> None:
    code, _, stderr = histo("export", *options, "--out", tmp_path / "out")
    assert code == 2
    assert message in " ".join(stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_converter_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "found", lambda program: None)
    with pytest.raises(UsageError, match=r"needs the command onnx2tf, .* environment of its own: pipx install onnx2tf"):
        Converter(apart="onnx2tf").check("--formats litert", "float")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first; echo 'no such operator' >&2; exit 3", "exit status 3: no such operator"),
        ("exit 0", "exit status 0: it said nothing"),
        ("kill -SEGV $$", "exit status -11: it said nothing"),
    ],
)
def test_a_converter_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    program = tmp_path / "converter"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(HistoError, match=rf"converter: could not convert the model \({said}\)\. .*leave its format"):
        convert("converter", [], tmp_path, ["made"])
