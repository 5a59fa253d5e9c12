"""TorchScript files: a program without branches, which converters take, and which refuses wrong tiles all the same."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.torchscript import load_torchscript, torchscript_bytes
from histo_export.spec import InputKind

OPERATORS = frozenset(
    {"aten::add", "aten::avg_pool2d", "aten::clone", "aten::conv2d", "aten::div_", "aten::flatten", "aten::linear"}
    | {"aten::max_pool2d", "aten::relu", "aten::slice", "aten::split_with_sizes", "aten::sub_"}
    | {"prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::ListUnpack"}
)
OF_BYTES = {"aten::bitwise_and", "aten::permute", "aten::to"}

KINDS: tuple[InputKind, ...] = ("float", "uint8")


def node_kinds(graph: Any) -> Iterator[str]:
    """Of a graph or a block, and of all blocks within."""
    for node in graph.nodes():
        yield node.kind()
        for block in node.blocks():
            yield from node_kinds(block)


@pytest.fixture(scope="module")
def programs(checkpoint: Checkpoint) -> dict[InputKind, Any]:
    lowered = {kind: lower(checkpoint.net(), checkpoint.spec, kind) for kind in KINDS}
    return {kind: load_torchscript(io.BytesIO(torchscript_bytes(net))) for kind, net in lowered.items()}


def images(checkpoint: Checkpoint, kind: InputKind) -> torch.Tensor:
    tiles = torch.from_numpy(checkpoint.golden)
    return tiles if kind == "uint8" else tiles.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_has_no_branch_and_no_arithmetic_on_shapes(programs: dict[InputKind, Any], kind: InputKind) -> None:
    """Core ML's converter and pnnx take neither; operators of later releases would end torch 1.12."""
    found = set(node_kinds(programs[kind].inlined_graph))
    assert not found & {"prim::If", "prim::Loop", "prim::RaiseException", "aten::size"}
    assert found <= OPERATORS | (OF_BYTES if kind == "uint8" else set())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("crop", "tile_size"), [(64, 75), (64, 64), (63, 64)])
def test_it_computes_what_the_network_computes(
    make_checkpoint: Callable[..., Checkpoint], kind: InputKind, crop: int, tile_size: int
) -> None:
    """Bit by bit, in batches of any size; the caller's tiles stay as they were."""
    checkpoint = make_checkpoint(1, crop, tile_size)
    lowered = lower(checkpoint.net(), checkpoint.spec, kind)
    program = load_torchscript(io.BytesIO(torchscript_bytes(lowered)))
    tiles = images(checkpoint, kind)
    before = tiles.clone()
    with torch.inference_mode():
        for n in (1, 2, 5):
            assert torch.equal(program(tiles[:n]), lowered(tiles[:n]))
        assert torch.equal(program.stem.of_floats(images(checkpoint, "float")), lowered.stem(tiles))
    assert torch.equal(tiles, before)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_tiles_are_an_error(checkpoint: Checkpoint, programs: dict[InputKind, Any], kind: InputKind) -> None:
    """Whoever runs the file has none of our own checks. Grey tiles were taken for RGB."""
    right = images(checkpoint, kind)
    height, width, channels = (2, 3, 1) if kind == "float" else (1, 2, 3)
    wrong = {
        "lower": (right.narrow(height, 0, 74), r"split_sizes to sum exactly to 74 .* split_sizes=\[75\]"),
        "wider": (torch.cat([right, right], width), r"split_sizes to sum exactly to 150 .* split_sizes=\[75\]"),
        "a pixel": (right.narrow(height, 0, 1).narrow(width, 0, 1), "split_sizes to sum exactly to 1 "),
        "grey": (right.narrow(channels, 0, 1), "doesn't match the broadcast shape"),
        "two images in one": (torch.cat([right, right], channels), "must match the size of tensor b"),
        "double": (right.double(), "should be the same|not implemented for 'Double'"),
        "the other type": (
            torch.zeros(right.shape, dtype=torch.uint8 if kind == "float" else torch.float32),
            "can't be cast to the desired output type Byte|not implemented for 'Float'",
        ),
        "no batch": (right[0], "Dimension|number of dimensions"),
    }
    for tiles, message in wrong.values():
        with torch.inference_mode(), pytest.raises(RuntimeError, match=message):
            programs[kind](tiles)


@pytest.mark.parametrize("kind", KINDS)
def test_files_say_what_they_take(checkpoint: Checkpoint, programs: dict[InputKind, Any], kind: InputKind) -> None:
    """Under the names of all versions; runtimes read them, in Python and in C++."""
    stem = programs[kind].stem
    assert (stem.bytes, stem.crop, stem.tile_size) == (kind == "uint8", checkpoint.spec.crop, checkpoint.spec.tile_size)
