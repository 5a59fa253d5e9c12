"""Initial weights: whatever lies in a file is used as the ResNet34 that it is, or named; no code in it ever runs."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from histo_export.errors import HistoError, UsageError
from histo_export.model import weights
from histo_export.model.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from histo_export.model.foreign import read_resnet34
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes, read_native
from histo_export.model.net import TileNet
from histo_export.model.weights import WeightReport, load_weights

Histo = Callable[..., tuple[int, str, str]]
State = dict[str, Any]


def sketch(net: nn.Module) -> State:
    """A state_dict of small files: each tensor is one number, shown in the tensor's shape."""
    values = {key: 0.5 + i / 1000 for i, key in enumerate(net.state_dict())}
    return {
        key: torch.tensor(values[key] if value.is_floating_point() else 7, dtype=value.dtype).expand(value.shape)
        for key, value in net.state_dict().items()
    }


@pytest.fixture(scope="module")
def state() -> State:
    return another("resnet34", num_classes=6)


@pytest.fixture(scope="module")
def net() -> TileNet:
    """For tests that look at messages: a new one takes half a second."""
    return TileNet(1, 6)


def another(name: str, **arguments: Any) -> State:
    """A sketch of one of torchvision's networks."""
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(**arguments)
    return sketch(net)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def with_tensor(state: State, key: str, value: Any) -> State:
    return {**state, key: value}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


class Options(argparse.Namespace):
    """Not the plain container."""


# --- what people have: each is the same ResNet34 ---------------------------------------------------------

WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled, then DDP": lambda s: prefixed(s, "module._orig_mod."),
    "DDP, then compiled": lambda s: prefixed(s, "_orig_mod.module."),
    "Lightning": lambda s: {"epoch": 1, "state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 1e-3}},
    "Lightning, compiled": lambda s: {"state_dict": prefixed(s, "model._orig_mod.")},
    "Lightning, with a loss": lambda s: {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(6)}},
    "backbone": lambda s: {"state_dict": prefixed(s, "backbone.")},
    "encoder": lambda s: prefixed(s, "encoder."),
    "model.resnet": lambda s: {"state_dict": prefixed(s, "model.resnet.")},
    "PyTorch's tutorial": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {}, "loss": 0.1},
    "torchvision's": lambda s: {"model": s, "optimizer": {}, "args": argparse.Namespace(lr=0.1)},
    "net": lambda s: {"net": s, "acc": 0.9},
    "network": lambda s: {"network": prefixed(s, "module.")},
    "nested": lambda s: {"checkpoint": {"weights": {"params": prefixed(s, "net.")}}},
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")},
    "EMA alone": lambda s: {"state_dict_ema": s},
    "without counters": lambda s: {key: value for key, value in s.items() if "num_batches" not in key},
    "counted by thop": lambda s: s | {"total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)},
    "with a number": lambda s: s | {"epoch": 3},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "head behind dropout": lambda s: {key.replace("fc.", "fc.1."): value for key, value in s.items()},
    "one network under two names": lambda s: {**prefixed(s, "model."), **prefixed(s, "backbone.")},
    "float16": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "bfloat16": lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
    "float64": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
}


def test_no_weights_to_start_from_are_no_copied_tensors() -> None:
    assert WeightReport("none").summary() == "random first weights"


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_every_wrapper_is_taken_off(wrap: Callable[[State], Any], state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap(state), path)
    found = read_resnet34(path)
    assert not found.headless
    assert found.state.keys() == state.keys()
    for key, value in found.state.items():
        assert value.shape == state[key].shape
        if value.is_floating_point():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, state[key], rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.pth"])
def test_safetensors_are_known_by_any_name(name: str, tmp_path: Path) -> None:
    source = torchvision.models.resnet34(num_classes=6)
    nn.init.uniform_(source.bn1.weight)
    save_file(prefixed(source.state_dict(), "module."), tmp_path / name, metadata={"format": "pt"})
    net = TileNet(1, 6)
    assert load_weights(net, str(tmp_path / name)).summary() == f"218 tensors copied from {tmp_path / name}"
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in net.state_dict().items())


def test_a_head_of_another_shape_starts_new_and_is_told(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(another("resnet34", num_classes=1000), path)
    net = TileNet(2, 6)
    before = net.fc.weight.clone()
    report = load_weights(net, str(path))
    assert torch.equal(net.fc.weight, before)
    assert (net.layer4[2].conv2.weight == another("resnet34")["layer4.2.conv2.weight"]).all()
    assert set(report.left_out) == {"fc.weight", "fc.bias"}
    assert len(report.copied) == 216
    assert "fc.weight (shape (1000, 512), here (6, 2048))" in report.summary()


NOTES: dict[str, tuple[Callable[[State], Any], str]] = {
    "prefix": (WRAPPED["model.resnet"], "found under state_dict.model.resnet"),
    "loss": (WRAPPED["Lightning, with a loss"], "ignored criterion.weight"),
    "averaged": (WRAPPED["AveragedModel"], "ignored n_averaged"),
    "half": (WRAPPED["float16"], "float16 converted to float32"),
    "EMA": (
        lambda s: {"model": s, "model_ema": prefixed(other(s), "module.")},
        "not taken: the network under model_ema",
    ),
    "timm": (lambda s: {"state_dict": s, "state_dict_ema": other(s)}, "not taken: the network under state_dict_ema"),
    "teacher": (
        lambda s: {"student": s, "teacher": another("resnet50")},
        "found under student; not taken: the network under teacher",
    ),
    "teacher beside": (
        lambda s: {**s, **prefixed(other(s), "teacher.")},
        "218 tensors copied from PATH; not taken: the network under teacher",
    ),
    "two names": (WRAPPED["one network under two names"], "not taken: the network under backbone"),
    "no bias": (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, "fc has no bias, zeros taken"),
    "no head": (
        lambda s: {k.replace("fc.", "classifier."): v for k, v in s.items()},
        "there is no fc in the file, only classifier.weight",
    ),
    "hidden layer": (
        lambda s: {**s, "fc.0.weight": torch.ones(8, 512), "fc.2.weight": torch.ones(6, 8)},
        "fc is more than one layer (fc, fc.0, fc.2)",
    ),
}


def other(state: State) -> State:
    """Another network of the same shapes."""
    return with_tensor(state, "conv1.weight", torch.tensor(0.25).expand(64, 3, 7, 7))


@pytest.mark.parametrize(("wrap", "said"), NOTES.values(), ids=NOTES)
def test_what_was_chosen_is_said(
    wrap: Callable[[State], Any], said: str, state: State, net: TileNet, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap(state), path)
    assert said in load_weights(net, str(path)).summary().replace(str(path), "PATH")


# --- what is not a ResNet34 ------------------------------------------------------------------------------


def small_images(state: State) -> State:
    """As in MedMNIST's experiments at 28 pixels: other names for shortcut and head, a 3×3 stem without pooling."""
    renamed = {k.replace("downsample", "shortcut").replace("fc.", "linear."): v for k, v in state.items()}
    return with_tensor(renamed, "conv1.weight", torch.ones(64, 3, 3, 3))


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "resnet18": (lambda s: another("resnet18"), "is a ResNet18, not a ResNet34"),
    "resnet50": (lambda s: another("resnet50"), r"is a ResNet50 \(bottleneck blocks\), not a ResNet34"),
    "resnet18 in Lightning": (lambda s: {"state_dict": prefixed(another("resnet18"), "net.")}, "is a ResNet18"),
    "resnet101": (lambda s: another("resnet101"), "is a ResNet101"),
    "densenet": (lambda s: another("densenet121"), "holds no ResNet; it has features.conv0.weight"),
    "MedMNIST at 28": (small_images, "is a ResNet34 for small images"),
    "MedMNIST's 18": (lambda s: small_images(another("resnet18")), "is a ResNet18"),
    "one channel": (
        lambda s: with_tensor(s, "conv1.weight", torch.ones(64, 1, 7, 7)),
        r"conv1.weight has shape \(64, 1, 7, 7\), not \(64, 3, 7, 7\)",
    ),
    "a layer missing": (
        lambda s: prefixed({k: v for k, v in s.items() if k != "layer3.5.bn2.running_var"}, "model."),
        "it has no model.layer3.5.bn2.running_var",
    ),
    "attention in the blocks": (
        lambda s: s | {"layer1.0.se.fc1.weight": torch.ones(4, 64)},
        "is not a plain ResNet34: it also has layer1.0.se.fc1.weight",
    ),
    "integers": (
        lambda s: with_tensor(s, "conv1.weight", torch.ones(64, 3, 7, 7, dtype=torch.int32)),
        "holds int32 numbers under conv1.weight",
    ),
    "complex": (
        lambda s: with_tensor(s, "conv1.weight", torch.ones(64, 3, 7, 7, dtype=torch.complex64)),
        "holds complex64 numbers under conv1.weight",
    ),
    "meta": (
        lambda s: {k: v.to("meta") for k, v in s.items()},
        r"holds no values for conv1.weight \(a meta tensor\)",
    ),
    "sparse": (
        lambda s: with_tensor(s, "fc.weight", torch.eye(6, 512).to_sparse()),
        "holds a sparse tensor under fc.weight",
    ),
    "NaN": (
        lambda s: prefixed(with_tensor(s, "layer4.2.conv2.weight", torch.full((512, 512, 3, 3), torch.nan)), "module."),
        "holds NaN in module.layer4.2.conv2.weight",
    ),
    "infinite in float32": (
        lambda s: with_tensor(s, "bn1.bias", torch.full((64,), 1e300, dtype=torch.float64)),
        "holds infinite values in bn1.bias",
    ),
    "variance": (
        lambda s: with_tensor(s, "bn1.running_var", torch.full((64,), -1e-3)),
        "holds variances below 0 in bn1.running_var",
    ),
    "two networks": (
        lambda s: {**prefixed(s, "student."), **prefixed(other(s), "teacher.")},
        "holds 2 different networks: student, teacher",
    ),
    "two plain entries": (
        lambda s: {"model": s, "state_dict": other(s)},
        "holds 2 different networks: model, state_dict",
    ),
    "Hugging Face's": (
        lambda s: {"resnet.encoder.stages.0.layers.0.layer.0.convolution.weight": torch.ones(64, 64, 3, 3)},
        "has the names of Hugging Face's transformers",
    ),
    "names in two lines": (lambda s: {"a\nb": torch.ones(3), "\ud800": 1}, r"it has 'a\\nb', '\\ud800'"),
    "nothing": (lambda s: {}, "is an empty dictionary"),
    "a list": (lambda s: [1, 2], "holds a list, not a state_dict"),
    "a tensor": (lambda s: torch.ones(3), "holds one tensor, not a state_dict"),
    "numbers": (lambda s: {1: torch.ones(3)}, "is an empty dictionary"),
    "code": (lambda s: s | {"x": Evil()}, r"objects other than tensors \(posix.system\)"),
    "another object": (lambda s: s | {"args": Options(lr=1)}, r"other than tensors \(.*test_weights.Options\)"),
    "whole model": (
        lambda s: nn.Sequential(nn.Conv2d(3, 4, 3)),
        r"is a whole pickled model \(torch.nn.modules.container.Sequential\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_resnet34_is_named(
    make: Callable[[State], Any],
    message: str,
    state: State,
    net: TileNet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(make(state), "w.pth")
    before = net.conv1.weight.clone()
    with pytest.raises(HistoError, match=message) as error:
        load_weights(net, "w.pth")
    assert str(error.value).startswith("w.pth: ")
    assert str(error.value).isprintable()
    assert torch.equal(net.conv1.weight, before), "a file that is refused changes nothing"
    assert not Path("pwned").exists()


def torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


def zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def truncated(path: Path, **how: Any) -> None:
    torch.save({"a": torch.ones(1000)}, path, **how)
    path.write_bytes(path.read_bytes()[:2000])


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "is a folder"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "empty": (Path.touch, "is empty"),
    "text": (lambda p: p.write_text("root:x:0:0:root:/root:/bin/bash\n" * 9), "is not a PyTorch or safetensors file"),
    "HTML": (lambda p: p.write_text("\n<!DOCTYPE html><html>403</html>"), "is a web page"),
    "LFS": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "is an HDF5 file"),
    "ONNX": (lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(99)), "is an ONNX file"),
    "TorchScript": (torchscript, "is a TorchScript archive"),
    "zip": (zip_of_text, "is a zip archive without weights"),
    "half a zip": (truncated, "is an incomplete or damaged archive"),
    "half a file of old PyTorch": (
        lambda p: truncated(p, _use_new_zipfile_serialization=False),
        "is not a readable PyTorch file",
    ),
    "a pickle's start": (lambda p: p.write_bytes(b"\x80\x02}q\x00("), "is not a readable PyTorch file|is damaged"),
}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(("write", "message"), FILES.values(), ids=FILES)
def test_files_of_other_kinds_are_named(
    write: Callable[[Path], object], message: str, name: str, net: TileNet, tmp_path: Path
) -> None:
    path = tmp_path / name
    write(path)
    unreadable = "|is not a readable safetensors file" if name == "w.safetensors" else ""
    with pytest.raises(HistoError, match=message + unreadable) as error:
        load_weights(net, str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("legacy", [True, False])
def test_damaged_bytes_are_one_line(seed: int, legacy: bool, tmp_path: Path) -> None:
    """Flipped bits give any exception of the unpickler; none may come through."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(9), "b": {"c": [1, "x"]}}, path, _use_new_zipfile_serialization=not legacy)
    content = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randint(len(content), (20,), generator=generator).tolist():
        content[place] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(HistoError):
        read_resnet34(path)


def test_a_misspelt_source_is_recognised(net: TileNet) -> None:
    with pytest.raises(UsageError, match="Did you mean imagenet"):
        load_weights(net, "imagnet")


@pytest.mark.parametrize("name", ["no\0name", "x" * 300, "absent/w.pth"])
def test_impossible_names_are_one_line(name: str, net: TileNet) -> None:
    with pytest.raises(UsageError, match=r"is not a file|cannot be read"):
        load_weights(net, name)


# --- ImageNet's -------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State) -> Iterator[Path]:
    """The place of torchvision's file in torch's cache, and a file there with the right hash in its name."""
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "good")
    digest = hashlib.sha256((folder / "good").read_bytes()).hexdigest()[:8]
    file = folder / f"resnet34-{digest}.pth"
    (folder / "good").rename(file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "IMAGENET_URL", f"http://localhost:1/models/{file.name}")
    monkeypatch.chdir(tmp_path)
    yield file
    assert not Path("pwned").exists()


def test_imagenet_weights_are_read_from_the_cache(cached: Path, state: State) -> None:
    net = TileNet(4, 3)
    report = load_weights(net, "imagenet")
    assert (net.conv1.weight == state["conv1.weight"]).all()
    assert set(report.left_out) == {"fc.weight", "fc.bias"}
    assert weights.ResNet34_Weights.IMAGENET1K_V1.url.endswith("/resnet34-b627a593.pth"), (
        "torchvision's name has the hash"
    )


CACHED: dict[str, Callable[[bytes], bytes | object]] = {
    "empty": lambda good: b"",
    "HTML": lambda good: b"<html>403</html>",
    "truncated": lambda good: good[: len(good) // 2],
    "random": lambda good: os.urandom(5000),
    "other weights": lambda good: {"x": torch.ones(2)},
    "code": lambda good: {"x": Evil()},
    "code in the old format": lambda good: Evil(),
}


@pytest.mark.parametrize("make", CACHED.values(), ids=CACHED)
def test_what_lies_in_the_cache_is_hashed_before_it_is_read(
    make: Callable[[bytes], Any], cached: Path, net: TileNet
) -> None:
    content = make(cached.read_bytes())
    if isinstance(content, bytes):
        cached.write_bytes(content)
    else:
        torch.save(content, cached, _use_new_zipfile_serialization=not isinstance(content, Evil))
    with pytest.raises(HistoError, match=r"its sha256 begins with .*Delete it") as error:
        load_weights(net, "imagenet")
    assert str(error.value).startswith(f"{cached}: ")


def test_code_with_the_right_hash_does_not_run(cached: Path, net: TileNet, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"x": Evil()}, cached)
    right = cached.with_name(f"resnet34-{hashlib.sha256(cached.read_bytes()).hexdigest()[:8]}.pth")
    cached.rename(right)
    monkeypatch.setattr(weights, "IMAGENET_URL", f"http://localhost:1/{right.name}")
    with pytest.raises(HistoError, match="objects other than tensors"):
        load_weights(net, "imagenet")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """A local server that gives the same bytes for each path."""
    content = [b""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if content[0] else 404)
            self.end_headers()
            self.wfile.write(content[0])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        name = weights.IMAGENET_URL.rpartition("/")[2]
        monkeypatch.setattr(weights, "IMAGENET_URL", f"http://localhost:{server.server_port}/{name}")
        yield lambda given: content.__setitem__(0, given)
        server.shutdown()
        thread.join()


def test_a_download_is_complete_and_right_or_leaves_nothing(
    cached: Path, serve: Callable[[bytes], None], net: TileNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = weights.IMAGENET_URL.rpartition("/")[0]
    monkeypatch.setattr(weights, "IMAGENET_URL", f"{url}/{cached.name}")
    good = cached.read_bytes()
    cached.unlink()
    for wrong in (b"", b"<html>login</html>", good[:-1]):
        serve(wrong)
        with pytest.raises(HistoError, match="could not be downloaded") as error:
            load_weights(net, "imagenet")
        assert f"Put {cached.name} in {cached.parent}" in str(error.value)
        assert list(cached.parent.iterdir()) == []
    serve(good)
    assert len(load_weights(net, "imagenet").copied) == 218
    assert [file.name for file in cached.parent.iterdir()] == [cached.name]


def test_without_a_network_the_file_is_named(cached: Path, net: TileNet) -> None:
    cached.unlink()
    with pytest.raises(HistoError, match=r"could not be downloaded.*Put resnet34-.* or use --weights none"):
        load_weights(net, "imagenet")
    assert list(cached.parent.iterdir()) == []


# --- checkpoints and bundles ------------------------------------------------------------------------------

BAD_VALUES: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "NaN": ("layer2.0.conv1.weight", lambda v: torch.full_like(v, torch.nan), "holds NaN in layer2.0.conv1.weight"),
    "infinite": ("fc.bias", lambda v: torch.full_like(v, torch.inf), "holds infinite values in fc.bias"),
    "variance": ("layer1.0.bn1.running_var", lambda v: -v, "holds variances below 0 in layer1.0.bn1.running_var"),
    "NaN in a variance": ("bn1.running_var", lambda v: v * torch.nan, "holds NaN in bn1.running_var"),
    "integers": ("conv1.weight", lambda v: v.to(torch.int16), "holds int16 numbers under conv1.weight"),
    "sparse": ("fc.weight", Tensor.to_sparse, "holds a sparse tensor under fc.weight"),
}


@pytest.mark.parametrize(("key", "change", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_checkpoint_with_impossible_weights_is_named(
    key: str, change: Callable[[Tensor], Tensor], message: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "best.ckpt"
    net = sketch(checkpoint.net())
    state = {**net, key: change(net[key])}
    write_checkpoint(path, {"state_dict": state, "histo": checkpoint.block()})
    with pytest.raises(HistoError, match=message) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop", 32.5, "crop 32.5 is not an integer"),
        ("pool", 4000, "more than 2 GB"),
        ("mean", [0.5], "is not three numbers from 0 to 1"),
        ("std", [1e-40] * 3, "is not three numbers from 0.001 to 1000"),
        ("mpp", float("inf"), "is not a number from 0.01 to 100"),
        ("classes", ["a", "b\0"], "holds a control character"),
        ("tile_size", 76, "has golden tiles of shape"),
    ],
)
def test_a_checkpoint_with_an_impossible_spec_is_named(
    field: str, value: object, message: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "best.ckpt"
    block = checkpoint.block()
    block["spec"] = {**block["spec"], field: value}
    write_checkpoint(path, {"state_dict": sketch(checkpoint.net()), "histo": block})
    with pytest.raises(HistoError, match=message) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert error.value.exit_code == 1, "the file is wrong, not the command"


def test_nan_in_a_bundles_weights_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lowered = lower(checkpoint.net(), checkpoint.spec)
    with torch.no_grad():
        lowered.layer3[1].conv2.weight[0, 0, 0, 0] = torch.nan
    path = tmp_path / "model.safetensors"
    path.write_bytes(native_bytes(lowered, checkpoint.spec))
    with pytest.raises(HistoError, match=r"holds NaN in layer3\.1\.conv2\.weight"):
        read_native(path)
    with pytest.raises(HistoError, match=r"is a bundle's model.safetensors, whose batch norms are folded"):
        load_weights(TileNet(3, 6), str(path))
