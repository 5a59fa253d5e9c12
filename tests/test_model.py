"""The model: any pool, torchvision's keys, weights from elsewhere, true counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from histo_export.errors import HistoError, UsageError
from histo_export.model.layers import layer_table
from histo_export.model.net import TileNet, normalise
from histo_export.model.weights import load_weights
from histo_export.spec import IMAGENET_MEAN, ModelSpec, map_size

SIX = tuple("abcdef")


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


def test_normalise_is_torchvisions() -> None:
    tiles = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    spec = ModelSpec(1, SIX)
    expected = torchvision.transforms.functional.normalize(tiles.float() / 255, spec.mean, spec.std)
    torch.testing.assert_close(normalise(tiles, spec), expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_copy_every_shared_layer_and_say_the_rest(tmp_path: Path, suffix: str) -> None:
    source = torchvision.models.resnet34(num_classes=1000)
    torch.nn.init.uniform_(source.bn1.weight)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    net = TileNet(2, 6)
    report = load_weights(net, str(path))
    assert torch.equal(net.bn1.weight, source.bn1.weight)
    assert torch.equal(net.layer4[2].conv2.weight, source.layer4[2].conv2.weight)
    assert set(report.left_out) == {"fc.weight", "fc.bias"}
    assert len(report.copied) == len(source.state_dict()) - 2
    assert "fc.weight (shape (1000, 512), here (6, 2048))" in report.summary()


def test_weights_under_a_wrapper_and_a_prefix(tmp_path: Path) -> None:
    source = torchvision.models.resnet34(num_classes=6)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    assert not load_weights(TileNet(1, 6), str(tmp_path / "w.pth")).left_out


def test_imagenet_weights_come_through_torchvisions_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's loader reads its cache; a file there whose hash it does not check is used without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    source = torchvision.models.resnet34()
    torch.save(source.state_dict(), cache / "resnet34-b627a593.pth")
    net = TileNet(4, 6)
    report = load_weights(net, "imagenet")
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    assert set(report.left_out) == {"fc.weight", "fc.bias"}
    assert ModelSpec(1, SIX).mean == IMAGENET_MEAN


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_weights_that_would_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(HistoError, match="objects other than tensors"):
        load_weights(TileNet(1, 2), "evil.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", os.urandom(2000)])
def test_damaged_weights_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HistoError, match=name):
        load_weights(TileNet(1, 2), str(tmp_path / name))


def test_a_misspelt_source_is_recognised() -> None:
    with pytest.raises(UsageError, match="Did you mean imagenet"):
        load_weights(TileNet(1, 2), "imagnet")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(HistoError, match="shares no tensor"):
        load_weights(TileNet(1, 2), str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "bad",
    [
        {"pool": 0},
        {"pool": "two"},
        {"classes": ("one",)},
        {"classes": ("a", "a")},
        {"crop": 16},
        {"crop": 151},
        {"mpp": 0.0},
        {"dropout": 1.0},
    ],
)
def test_impossible_specs_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ModelSpec(**({"pool": 1, "classes": SIX} | bad))  # type: ignore[arg-type]


def test_spec_survives_its_dict() -> None:
    spec = ModelSpec(3, SIX, crop=100, tile_size=224, mpp=0.25, dropout=0.1)
    assert ModelSpec.from_dict(spec.to_dict()) == spec
