"""The Triton model repository, read with Triton's own protobuf definition and held beside the ONNX file.

No Triton server runs in these tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from histo_export.bundle_files import model_name
from histo_export.errors import HistoError
from histo_export.export.bundle import open_bundle
from histo_export.export.triton import write_repository

NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def read_config(model: Path) -> model_config_pb2.ModelConfig:
    """Fails on any field or value that Triton does not know."""
    config = model_config_pb2.ModelConfig()
    text_format.Parse((model / "config.pbtxt").read_text(), config)
    return config


def assert_agrees(config: model_config_pb2.ModelConfig, file: Path) -> None:
    """Names, types and shapes are those of the ONNX session, whose first dimension is the batch."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for told, true in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert len(told) == len(true) == 1
        data_type = model_config_pb2.DataType.Name(told[0].data_type).removeprefix("TYPE_")
        assert told[0].name == true[0].name
        assert triton_to_np_dtype(data_type) == NUMPY_TYPES[true[0].type]
        assert isinstance(true[0].shape[0], str), "the batch is symbolic"
        assert list(told[0].dims) == true[0].shape[1:]


def test_the_repository_is_what_triton_reads(bundle: Path) -> None:
    model = bundle / "triton" / "bundle"
    config = read_config(model)
    assert config.name == model.name, "Triton asks that they agree"
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [group.count for group in config.instance_group] == [1]
    assert_agrees(config, model / "1" / "model.onnx")
    labels = (model / config.output[0].label_filename).read_text().splitlines()
    assert labels == open_bundle(bundle).config.class_names
    assert len(labels) == config.output[0].dims[0]
    assert "serves it as `bundle`" in (bundle / "README.md").read_text()


def test_the_model_is_a_copy_of_the_bundles(bundle: Path) -> None:
    """It was a hard link: whoever replaced the content of one file replaced that of the other."""
    served = bundle / "triton" / "bundle" / "1" / "model.onnx"
    assert not served.samefile(bundle / "model.onnx")
    assert not served.is_symlink()
    assert served.read_bytes() == (bundle / "model.onnx").read_bytes()


@pytest.mark.parametrize("file", ["config.pbtxt", "labels.txt", "1/model.onnx"])
def test_a_changed_file_of_the_repository_is_found(
    bundle: Path,
    copy_bundle: Callable[[Path, Path], Path],
    own_file: Callable[[Path], Path],
    tmp_path: Path,
    file: str,
) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy")
    with own_file(copy / "triton" / "bundle" / file).open("r+b") as stream:
        stream.write(b"#")
    with pytest.raises(HistoError, match=f"triton/bundle/{file}: differs from its sha256"):
        open_bundle(copy)


@pytest.fixture
def bytes_model(tmp_path: Path) -> Path:
    """A bundle's folder with an ONNX file that takes bytes, as `--input uint8` makes it."""
    tiles = helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["batch", 75, 75, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("Cast", ["tiles"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Slice", ["mean", "zero", "two", "one"], ["logits"]),
    ]
    values = {"axes": [1, 2], "zero": [0], "one": [1], "two": [2]}
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in values.items()]
    graph = helper.make_graph(nodes, "small", [tiles], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


def test_a_model_that_takes_bytes(bytes_model: Path) -> None:
    write_repository(bytes_model, "small", ["A", "B"])
    config = read_config(bytes_model / "triton" / "small")
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert_agrees(config, bytes_model / "model.onnx")


def test_a_class_that_would_shift_the_labels_is_refused(bytes_model: Path) -> None:
    with pytest.raises(HistoError, match=r"'B\\n': can't be a line of labels.txt"):
        write_repository(bytes_model, "small", ["A", "B\n"])


@pytest.mark.parametrize(
    ("folder", "name"), [("tiles-pool2", "tiles-pool2"), ("a model.v2", "a-model-v2"), ("模型", "model")]
)
def test_a_models_name_is_plain(tmp_path: Path, folder: str, name: str) -> None:
    assert model_name(tmp_path / folder) == name
