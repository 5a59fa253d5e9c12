"""Weights that other tools trained and saved: the exported model computes what the model in that tool does."""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from histo_export._core import Engine
from histo_export.data.demo import make_tile
from histo_export.errors import HistoError, UsageError
from histo_export.export.elsewhere import checkpoint_of_weights
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes
from histo_export.model.net import normalise
from histo_export.spec import ModelSpec
from random_norms import randomise_batch_norms

Histo = Callable[..., tuple[int, str, str]]
CLASSES = tuple("ABCDEF")
SIDE = 64
SPEC = ModelSpec(1, CLASSES, crop=SIDE, tile_size=SIDE, mpp=0.5)
TILES = np.stack([make_tile(3, 2, kind, 0)[:SIDE, :SIDE] for kind in range(4)])


def trained(net: nn.Module) -> nn.Module:
    """As after training: batch norms whose every value matters."""
    torch.manual_seed(5)
    randomise_batch_norms(net)
    return net.eval()


def notebook(pool: int = 2) -> nn.Module:
    """The notebook behind the report."""
    net = torchvision.models.resnet34()
    net.avgpool = nn.AdaptiveAvgPool2d(pool)
    net.fc = nn.Linear(512 * pool * pool, 6)
    return trained(net)


class OwnBlock(nn.Module):
    """A basic block with the names that torchvision and timm share."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class OwnNet(nn.Module):
    """A ResNet34 that is neither torchvision's class nor ours, with global pooling and timm's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for i, (outputs, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            first = OwnBlock(inputs, outputs, 1 if i == 1 else 2)
            setattr(
                self, f"layer{i}", nn.Sequential(first, *(OwnBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
            )
            inputs = outputs
        self.fc = nn.Linear(512, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for i in (1, 2, 3, 4):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


class Module(nn.Module):
    """A LightningModule as its checkpoint shows it: the network, and a loss with weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def make_timm() -> nn.Module:
    return trained(pytest.importorskip("timm", exc_type=ImportError).create_model("resnet34", num_classes=6))


def dropout_head() -> nn.Module:
    net = notebook(1)
    net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 6))
    return net.eval()


def averaged() -> nn.Module:
    net = notebook()
    average = AveragedModel(net, use_buffers=True)
    average.update_parameters(net)
    return average.eval()


def in_float16() -> nn.Module:
    """What the saved numbers are; torch computes with them in float32."""
    return notebook().half().float()


def state_of(net: nn.Module) -> Any:
    return net.state_dict()


def as_lightning(net: nn.Module) -> Any:
    return {"state_dict": net.state_dict(), "hyper_parameters": {"lr": 1e-3}, "pytorch-lightning_version": "2.6.4"}


def as_timm(net: nn.Module) -> Any:
    """As timm's CheckpointSaver; the averaged weights beside them are others."""
    average = {key: value * 2 if value.is_floating_point() else value for key, value in net.state_dict().items()}
    entries = {"epoch": 1, "arch": "resnet34", "version": 2, "args": argparse.Namespace(lr=0.1), "metric": 0.9}
    return {**entries, "state_dict": net.state_dict(), "state_dict_ema": average}


def as_ddp_with_average(net: nn.Module) -> Any:
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    average = {key: value * 2 if value.is_floating_point() else value for key, value in state.items()}
    return {"model": state, "model_ema": {"n_averaged": torch.tensor(3), **average}, "epoch": 3}


def as_halves(net: nn.Module) -> Any:
    return copy.deepcopy(net).half().state_dict()


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], int]] = {
    "the report's notebook": (notebook, state_of, 2),
    "torchvision": (lambda: notebook(1), state_of, 1),
    "timm": (make_timm, as_timm, 1),
    "timm's names": (lambda: trained(OwnNet()), as_timm, 1),
    "MedMNIST at 224": (lambda: notebook(1), lambda net: {"net": net.state_dict()}, 1),
    "Lightning": (lambda: Module(notebook()), as_lightning, 2),
    "DataParallel": (lambda: nn.DataParallel(notebook()), state_of, 2),
    "torch.compile": (notebook, lambda net: torch.compile(net).state_dict(), 2),
    "AveragedModel": (averaged, state_of, 2),
    "safetensors": (notebook, state_of, 2),
    "DDP with an average": (notebook, as_ddp_with_average, 2),
    "float16": (in_float16, as_halves, 2),
    "dropout before the head": (dropout_head, state_of, 1),
    "pool 3": (lambda: notebook(3), state_of, 3),
}


@pytest.fixture(autouse=True)
def _no_weights_left(tmp_path: Path) -> Iterator[None]:
    """pytest keeps three sessions' folders, and these files have 85 MB each."""
    yield
    for path in tmp_path.rglob("*.*"):
        if path.is_file() and path.stat().st_size > 1_000_000:
            path.unlink()


@pytest.mark.parametrize(("make", "content", "pool"), KINDS.values(), ids=KINDS)
def test_the_export_is_the_model_of_its_maker(
    make: Callable[[], nn.Module], content: Callable[[nn.Module], Any], pool: int, tmp_path: Path
) -> None:
    net = make()
    file = tmp_path / ("w.safetensors" if content is state_of and pool == 2 and make is notebook else "w.pth")
    (save_file if file.suffix == ".safetensors" else torch.save)(content(net), file)
    checkpoint = checkpoint_of_weights(file, SPEC)
    assert checkpoint.spec.pool == pool
    native = tmp_path / "model.safetensors"
    native.write_bytes(native_bytes(lower(checkpoint.net(), checkpoint.spec), checkpoint.spec))
    logits = Engine(native, threads=1).run(TILES)
    with torch.inference_mode():
        expected = net(normalise(torch.from_numpy(TILES).permute(0, 3, 1, 2), SPEC)).numpy()
    assert (np.abs(logits - expected) <= 1e-5 * np.abs(expected).max(1, keepdims=True)).all()
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max(), "the tiles differ by far more than that"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pool 2, six classes."""
    path = tmp_path_factory.mktemp("elsewhere") / "my weights.pth"
    torch.save(notebook().state_dict(), path)
    yield path
    path.unlink()


GIVEN: dict[str, object] = {
    "--classes": "A,B,C,D,E,F",
    "--mean": "imagenet",
    "--std": "0.229,0.224,0.225",
    "--crop": SIDE,
}


def arguments(**changed: object) -> tuple[object, ...]:
    """The options of an export from elsewhere, some of them changed or added."""
    options = GIVEN | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return tuple(word for pair in options.items() for word in pair)


def test_one_command_exports_weights_from_elsewhere(histo: Histo, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    code, stdout, err = histo("export", "--weights", file, *arguments(), "--formats", "onnx", "--out", out)
    assert code == 0, err
    assert "pool 2, 6 classes, trained elsewhere, accuracy unknown" in stdout
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    tiles = torch.from_numpy(TILES).permute(0, 3, 1, 2)
    (logits,) = session.run(None, {"tiles": (tiles.float() / 255).numpy()})
    net = notebook()
    net.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        expected = net(normalise(tiles, SPEC)).numpy()
    assert (np.abs(logits - expected) <= 1e-5 * np.abs(expected).max(1, keepdims=True)).all()
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"] == list(CLASSES)
    assert config["patch_size_pixels"] == SIDE
    training = config["histo"]["training"]
    assert training["trained_elsewhere"] is True
    assert training["weights"] == "my weights.pth"
    assert training["golden"] == "synthetic"
    assert not {"test", "val_accuracy", "recipe", "epochs"} & training.keys()
    assert "trained_on.safetensors" not in config["histo"]["files"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Test accuracy: unknown, because the network was trained elsewhere" in card
    assert not re.search(r"accuracy: \d", card)


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "neither": ((), "says neither what to train on .* To train from it add --data TILES; to export it as it is"),
    "no mean": (("--classes", "A,B"), "--mean: is missing, and with another.*imagenet"),
    "no std": (
        ("--classes", "A,B", "--mean", "imagenet"),
        "--std: is missing.*divided pixels by 255, give --mean 0,0,0",
    ),
    "bytes": (arguments(mean="123.7,116.3,103.5"), "mean .* is not three numbers from 0 to 1"),
    "words": (arguments(std="a,b,c"), "--std a,b,c: is not three numbers. Use e.g. --std 0.229,0.224,0.225"),
    "two": (arguments(std="0.2,0.2"), "--std 0.2,0.2: is not three numbers"),
    "not finite": (arguments(std="inf,1,1"), "std .* is not three numbers from 0.001 to 1000"),
    "pool": (arguments(pool=3), "--pool 3: contradicts .* fc has 2,048 inputs. Use --pool 2"),
    "classes": (arguments(classes="A,B"), "--classes A,B: are 2 names, and fc in .* has 6 outputs"),
    "crop": (arguments(tile_size=50), "crop 64: is larger than the tiles"),
    "zero": (arguments(crop=0), "crop 0: is below 32 pixels"),
    "training": (arguments(epochs=3), "--epochs: says how to train, and there is no --data"),
    "split": (arguments(split="0.7,0.1,0.2"), "--split: says how to train"),
    "precision": (arguments(precision="bf16"), "--precision bf16: is measured on the tiles of the training"),
    "with data": (arguments(data="demo"), "--mean: is for weights that were trained elsewhere"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_told(
    options: tuple[object, ...], message: str, histo: Histo, file: Path, tmp_path: Path
) -> None:
    code, _, err = histo("export", "--weights", file, *options, "--out", tmp_path / "bundle")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "bundle").exists()


def test_options_for_other_weights_are_refused_without_them(histo: Histo) -> None:
    code, _, err = histo("export", "--pool", 1, "--tile-size", 200)
    assert code == 2
    assert "--tile-size: is for weights that were trained elsewhere" in err


HEADS: dict[str, tuple[dict[str, Tensor], str]] = {
    "hidden": (
        {"fc.0.weight": torch.ones(8, 512), "fc.0.bias": torch.ones(8), "fc.2.weight": torch.ones(6, 8)},
        r"fc is more than one layer \(fc.0, fc.2\)",
    ),
    "none": ({}, "there is no fc in the file"),
    "elsewhere": ({"classifier.weight": torch.ones(6, 512)}, "there is no fc in the file, only classifier.weight"),
    "not a square": ({"fc.weight": torch.ones(6, 512 * 3)}, "fc with 1,536 inputs, which is not 512 × n²"),
    "too few": ({"fc.weight": torch.ones(6, 100)}, "fc with 100 inputs"),
    "attention": ({"fc.weight": torch.ones(6, 512), "attn.weight": torch.ones(3, 3)}, "layers that a ResNet34 has not"),
}


@pytest.mark.parametrize(("head", "message"), HEADS.values(), ids=HEADS)
def test_heads_that_cannot_be_exported_are_named(head: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = torchvision.models.resnet34().state_dict()
    body = {k: torch.ones((), dtype=v.dtype).expand(v.shape) for k, v in state.items() if not k.startswith("fc.")}
    torch.save(body | head, tmp_path / "w.pth")
    with pytest.raises(HistoError, match=message):
        checkpoint_of_weights(tmp_path / "w.pth", SPEC)


def test_the_pool_that_is_asked_for_must_be_that_of_the_file(file: Path) -> None:
    with pytest.raises(UsageError, match="Use --pool 2"):
        checkpoint_of_weights(file, SPEC, pool=4)
    assert checkpoint_of_weights(file, SPEC, pool=2).golden.shape == (16, SIDE, SIDE, 3)


def test_our_own_checkpoint_is_not_from_elsewhere(histo: Histo, checkpoint_file: Path) -> None:
    """As such it would lose its accuracy and its record of tiles."""
    code, _, err = histo("export", "--weights", checkpoint_file, *arguments())
    assert code == 2
    assert f"is a checkpoint of histo train. Use --checkpoint {checkpoint_file} alone." in err


@pytest.mark.parametrize("shape", [(0, 512), (512,)])
def test_an_fc_that_is_no_layer_is_named_with_its_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(notebook(1).state_dict() | {"fc.weight": torch.zeros(shape)}, tmp_path / "a.pth")
    with pytest.raises(HistoError, match=re.escape(f"fc.weight has shape {shape}, not (outputs, inputs)")):
        checkpoint_of_weights(tmp_path / "a.pth", SPEC)
