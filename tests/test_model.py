"""The model: any pool, torchvision's keys, true counts, and specs that are possible."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from histo_export.errors import UsageError
from histo_export.model.layers import LayerInfo, layer_table
from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec, map_size

SIX = tuple("abcdef")
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(("crop", "side"), [(32, 1), (33, 2), (128, 4), (150, 5), (224, 7), (299, 10)])
def test_map_size(crop: int, side: int) -> None:
    with torch.device("meta"):
        net = TileNet(1, 2).eval()
        *_, (_, features), _ = net.stages(torch.empty(1, 3, crop, crop))
    assert features.shape[-1] == side == map_size(crop)


@pytest.mark.parametrize("pool", [1, 2, 3, 5, 8])
def test_keys_are_torchvisions(pool: int) -> None:
    with torch.device("meta"):
        ours, theirs = TileNet(pool, 6, dropout=0.3), torchvision.models.resnet34(num_classes=6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.fc.in_features == 512 * pool * pool


def test_pool_1_is_torchvisions_resnet34() -> None:
    theirs = torchvision.models.resnet34(num_classes=6).eval()
    ours = TileNet(1, 6).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("pool", "head"), [(1, 3_078), (2, 12_294), (4, 49_158), (8, 196_614)])
def test_layer_table_counts_the_reports_network(pool: int, head: int) -> None:
    table = {layer.name: layer for layer in layer_table(ModelSpec(pool, SIX))}
    assert table["fc"].parameters == head
    assert table["avgpool"].output == (512, pool, pool)
    convolutions = [layer for layer in table.values() if layer.kind == "Conv2d"]
    assert len(convolutions) == 36
    assert sum(layer.macs for layer in convolutions) == 1_196_163_072
    assert table["conv1"].macs == 38_535_168
    backbone = sum(layer.parameters for name, layer in table.items() if name != "fc")
    assert backbone == sum(p.numel() for p in torchvision.models.resnet34().parameters()) - 513_000


@pytest.mark.parametrize(("pool", "crop", "classes"), [(1, 128, 2), (3, 33, 6), (8, 299, 3), (2, 65, 2)])
def test_layer_table_is_that_of_the_network(pool: int, crop: int, classes: int) -> None:
    spec = ModelSpec(pool, SIX[:classes], crop=crop, tile_size=crop)
    with torch.device("meta"):
        net = TileNet.of(spec).eval()
    table: list[LayerInfo] = []

    def record(name: str, module: nn.Module, output: torch.Tensor) -> None:
        macs = 0
        if isinstance(module, nn.Conv2d):
            macs = output[0].numel() * module.in_channels * module.kernel_size[0] ** 2
        elif isinstance(module, nn.Linear):
            macs = module.in_features * module.out_features
        parameters = sum(p.numel() for p in module.parameters())
        table.append(LayerInfo(name, type(module).__name__, tuple(output.shape[1:]), parameters, macs))

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Linear)
    for name, module in net.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out))
    net(torch.empty(1, 3, crop, crop, device="meta"))
    assert layer_table(spec) == table


def test_normalise_is_torchvisions() -> None:
    tiles = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    spec = ModelSpec(1, SIX)
    expected = torchvision.transforms.functional.normalize(tiles.float() / 255, spec.mean, spec.std)
    torch.testing.assert_close(normalise(tiles, spec), expected)


@pytest.mark.parametrize(
    "bad",
    [
        *({"pool": pool} for pool in (0, -1, "two", 2.0, True, None, 4000, 10**30)),
        *({"classes": names} for names in (("one",), ("a", "a"), (), "ab", None, ("a", 1), ["a", "b"])),
        *({"classes": ("a", name)} for name in ("", "  ", "\t", "\0", "a\0b", "a\nb", "\x7f", "\x85", "\ud800", b"b")),
        *({"crop": crop} for crop in (16, 151, 32.5, 64.0, True, "64", None)),
        *({"tile_size": side} for side in (0, 150.5, 65537, INF, None)),
        *({"mpp": mpp} for mpp in (0.0, -1, 0.001, 101, INF, NAN, True, "0.5")),
        *({"dropout": dropout} for dropout in (1.0, 1, -0.1, NAN, INF, True, "0.1", None)),
        *({"mean": mean} for mean in ((0.5,), (0.5,) * 4, (INF,) * 3, (NAN, 0, 0), (123.7, 116.3, 103.5), 0.5, None)),
        *({"mean": (0.5, 0.5, value)} for value in (True, "0.5", None, -0.01)),
        *({"std": std} for std in ((0.2,), (0, 1, 1), (1e-40,) * 3, (INF,) * 3, (NAN,) * 3, (-1, 1, 1), 1.0)),
        {"pool": 3, "crop": 65536, "tile_size": 65536},  # its head is folded to a map of 2048×2048
    ],
    ids=repr,
)
def test_impossible_specs_are_refused_from_options_and_files(bad: dict[str, Any]) -> None:
    """In one line, and never with another exception."""
    values = {"pool": 1, "classes": SIX} | bad
    with pytest.raises(UsageError) as error:
        ModelSpec(**values)
    assert str(error.value).isprintable()
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    if values["classes"] != ["a", "b"]:  # JSON and checkpoints have lists
        with pytest.raises(ValueError) as problem:  # noqa: PT011 (its callers name the file)
            ModelSpec.from_dict(listed)
        assert str(problem.value).isprintable()


@pytest.mark.parametrize("values", [{}, {"pool": 1}, [], None, 3, {"classes": list(SIX)}])
def test_files_without_a_spec_are_a_value_error(values: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize(
    "good",
    [
        {"classes": ("a,b", 'q"', "/", "_x", "*:=", "cost$5^^6$", "Größe", "腺癌", "🙂", "a b")},
        {"mean": (0, 0, 0), "std": (1, 1, 1)},
        {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
        {"mpp": 1},
        {"pool": 400},
        {"pool": 600, "crop": 32, "tile_size": 32, "classes": ("a", "b")},
    ],
    ids=repr,
)
def test_unusual_specs_are_taken(good: dict[str, Any]) -> None:
    spec = ModelSpec(**({"pool": 1, "classes": SIX} | good))
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_largest_pool_is_named() -> None:
    with pytest.raises(UsageError, match=r"Use --pool 403 or less") as error:
        ModelSpec(4000, SIX)
    assert "8,192,000,000 inputs, more than 2 GB for 6 classes" in str(error.value)
    assert ModelSpec(403, SIX).pool == 403


def test_spec_survives_its_dict() -> None:
    spec = ModelSpec(3, SIX, crop=100, tile_size=224, mpp=0.25, dropout=0.1)
    assert ModelSpec.from_dict(spec.to_dict()) == spec
