"""The lowered network is the trained one, for every pool and map, out of static operators only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, linear
from torchvision.transforms.functional import center_crop

from histo_export.export.formats import HIGHEST_OPSET, LOWEST_OPSET
from histo_export.export.onnx_graph import OPERATORS, declare_opset, onnx_bytes
from histo_export.export.torch_program import exported_program
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import Head, LoweredNet, Stem, fold_head, lower, pooling_matrix
from histo_export.model.net import normalise
from histo_export.spec import CHANNELS, InputKind, ModelSpec, head_pool

MakeCheckpoint = Callable[..., Checkpoint]

POOLS = (1, 2, 3, 4, 5, 8)
MAPS = (1, 4, 5, 7, 9)


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("pool", POOLS)
def test_folded_head_is_adaptive_pooling_then_linear(pool: int, size: int) -> None:
    features = torch.randn(3, 5, size, size, dtype=torch.float64)
    weight = torch.randn(4, 5 * pool * pool, dtype=torch.float64)
    expected = linear(adaptive_avg_pool2d(features, pool).flatten(1), weight)
    torch.testing.assert_close(features.flatten(1) @ fold_head(weight, pool, size).T, expected, rtol=0, atol=1e-12)


def test_pooling_matrix_averages_overlapping_bins() -> None:
    expected = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(pooling_matrix(3, 4), expected)


@pytest.mark.parametrize(("pool", "size", "kept"), [(1, 4, 1), (2, 4, 2), (3, 4, 4), (4, 4, 4), (8, 4, 4), (7, 7, 7)])
def test_head_keeps_a_dividing_pool_and_folds_the_rest(pool: int, size: int, kept: int) -> None:
    assert head_pool(pool, size) == kept


def test_pool_8_on_a_4x4_map_shrinks_to_a_quarter() -> None:
    """The figures of docs/pooling.md: 196,614 head parameters become 49,158."""
    assert sum(p.numel() for p in Head(8, 4, 6).parameters()) == 49_158
    assert CHANNELS * 8 * 8 * 6 + 6 == 196_614


@pytest.mark.parametrize("size", [4, 5, 7])
@pytest.mark.parametrize("pool", POOLS)
def test_exported_head_has_static_operators_only(pool: int, size: int) -> None:
    head = Head(pool, size, 6).eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(head, (torch.randn(2, CHANNELS, size, size),), dynamic_shapes={"x": batch})
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called <= {"aten.avg_pool2d.default", "aten.flatten.using_ints", "aten.linear.default"}


@pytest.mark.parametrize(("pool", "crop"), [(1, 64), (2, 64), (3, 64), (8, 64), (2, 100), (3, 33)])
def test_lowered_network_is_the_trained_one(make_checkpoint: MakeCheckpoint, pool: int, crop: int) -> None:
    checkpoint = make_checkpoint(pool, crop, crop + 11)
    tiles = torch.from_numpy(checkpoint.golden)
    lowered = lower(checkpoint.net(), checkpoint.spec)
    crops = center_crop(tiles.permute(0, 3, 1, 2), [crop, crop])
    with torch.inference_mode():
        expected = checkpoint.net(torch.float64)(normalise(crops, checkpoint.spec, torch.float64))
        got = lowered(tiles.permute(0, 3, 1, 2).float() / 255)
        as_bytes = lower(checkpoint.net(), checkpoint.spec, "uint8")(tiles)
    scale = float(expected.abs().max())
    assert float((got - expected).abs().max()) < 1e-5 * scale
    assert float((as_bytes - expected).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("side", range(40, 48))
def test_crop_starts_where_torchvision_starts(side: int) -> None:
    """Python rounds a half to even: of the odd margins 41-40 … 47-40 some round up and some down."""
    spec = ModelSpec(1, ("a", "b"), crop=40, tile_size=side, mean=(0.0,) * 3, std=(1.0,) * 3)
    stem = Stem(spec, "float").eval()
    tiles = torch.rand(2, 3, side, side + 1)
    cropped = center_crop(tiles, [40, 40])
    expected = torch.max_pool2d(torch.relu(stem.conv(cropped)), 3, 2, 1)
    assert torch.equal(stem(tiles), expected)


@pytest.fixture(scope="module")
def onnx_content(make_checkpoint: MakeCheckpoint) -> bytes:
    checkpoint = make_checkpoint(pool=1, crop=64, tile_size=66)  # with an average pool, a crop and a Reshape
    return onnx_bytes(
        exported_program(lower(checkpoint.net(), checkpoint.spec), checkpoint.spec, "float"), {"key": "value"}
    )


def test_onnx_is_static_named_and_free_of_this_machine(onnx_content: bytes) -> None:
    import onnx

    model = onnx.load_from_string(onnx_content)
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    values = {output for node in model.graph.node for output in node.output}
    assert {"stem", "layer1", "layer2", "layer3", "layer4", "logits"} <= values
    assert {p.key: p.value for p in model.metadata_props} == {"key": "value"}
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    }
    assert shapes["tiles"] == ["batch", 3, 66, 66]
    assert shapes["layer4"] == ["batch", 512, 2, 2]
    assert shapes["logits"] == ["batch", 6]
    for item in model.graph.initializer:
        item.ClearField("raw_data")  # 85 MB of weights hold any three bytes by chance
    assert b".py" not in model.SerializeToString(), "the exporter's stack traces name files of this machine"


def test_onnx_asks_for_no_more_than_it_needs(onnx_content: bytes) -> None:
    """Opset 13, for scales per channel in the int8 file, and the IR version that came with it."""
    import onnx

    model = onnx.load_from_string(onnx_content)
    assert (model.ir_version, [(item.domain, item.version) for item in model.opset_import]) == (7, [("", 13)])
    assert not any(attribute.name == "allowzero" for node in model.graph.node for attribute in node.attribute)
    assert not any(node.metadata_props or node.overload or node.domain for node in model.graph.node)
    onnx.checker.check_model(model, full_check=True)


def test_onnx_computes_the_same_in_every_opset(onnx_content: bytes) -> None:
    """In those in which a definition changed, and in the highest."""
    import onnx
    import onnxruntime

    tiles = {"tiles": np.random.default_rng(0).random((2, 3, 66, 66), np.float32)}
    logits = []
    for opset in (LOWEST_OPSET, 14, 18, 19, 21, HIGHEST_OPSET):
        model = onnx.load_from_string(onnx_content)
        declare_opset(model, opset)
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == opset
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        logits.append(session.run(None, tiles)[0])
    assert all(np.array_equal(each, logits[0]) for each in logits)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_tiles_that_are_none_are_an_error_in_the_network_itself(kind: InputKind) -> None:
    """A tile smaller than the crop gave logits of a sliver."""
    network = LoweredNet(ModelSpec(1, ("a", "b"), crop=32, tile_size=40), kind).eval()
    right, wrong = (torch.float32, torch.uint8) if kind == "float" else (torch.uint8, torch.float32)

    def tiles(height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros((1, 3, height, width) if kind == "float" else (1, height, width, 3), dtype=dtype)

    with torch.inference_mode():
        for height, width in ((32, 32), (40, 33)):
            assert network(tiles(height, width, right)).shape == (1, 2)
        for height, width in ((31, 32), (32, 31), (1, 1), (31, 31), (17, 400)):
            with pytest.raises(ValueError, match=f"tiles are {height} x {width} pixels, less than the crop of 32"):
                network(tiles(height, width, right))
        with pytest.raises(ValueError, match="tiles must be"):
            network(tiles(40, 40, wrong))
