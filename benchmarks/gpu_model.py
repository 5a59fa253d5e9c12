"""The models that `gpu_check.py` runs: a bundle of random weights, and TorchScript files that compute in 16 bits.

The network is made lowered, so that torch is the only package which a GPU machine needs beside those of a light
installation: the network as trained needs torchvision.
"""

from __future__ import annotations

import copy
import tempfile
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from histo_export.bundle_files import CONFIG, GOLDEN, NATIVE, ONNX
from histo_export.export import bundle
from histo_export.export.formats import Source, write_formats
from histo_export.files import atomic_file
from histo_export.machine import versions
from histo_export.model.lowering import LoweredNet
from histo_export.model.native_file import read_native
from histo_export.model.torchscript import torchscript_bytes
from histo_export.parity import TILES, Golden
from histo_export.runtimes import Tiles
from histo_export.spec import STAGES, ModelSpec, head_pool
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.model.checkpoint import Checkpoint

CLASSES = tuple(f"class{i}" for i in range(6))
SPECS = {
    "cuda": ModelSpec(2, CLASSES, mpp=0.5),
    "cpu": ModelSpec(2, CLASSES, crop=32, tile_size=40, mpp=0.5),
}
"""Device → the model: on the CPU the smallest, because only the code of the rows is in question there."""

TRAINING = {"data": {"name": "random weights", "synthetic": True}}
SYNTHETIC = 3
"""Golden tiles that are not drawn: noise, black and white."""
BRANCH = 0.5
"""Factor on the last convolution of each block, so that the sum of 16 blocks does not grow without bound."""

HEAD_SCALE = 0.2
"""Deviation of the linear layer's weights, so that logits are of the order of 1, in which errors are measured."""


class RandomSource(Source):
    """What the formats are written from, with a lowered network that was never trained."""

    def __init__(self, spec: ModelSpec, lowered: LoweredNet) -> None:
        facts: Any = SimpleNamespace(spec=spec, training=TRAINING)  # all that the writers read of a checkpoint
        checkpoint: Checkpoint = facts
        super().__init__(checkpoint)
        self.given = lowered

    @cached_property
    def lowered(self) -> LoweredNet:
        """The given network."""
        return self.given


def random_network(spec: ModelSpec) -> LoweredNet:
    """Weights under which activations neither vanish nor explode, and tiles get different classes; always the same."""
    torch.manual_seed(0)
    lowered = LoweredNet(spec).eval()
    with torch.no_grad():
        for name, layer in lowered.named_modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.normal_(layer.bias, std=0.1)
                if name.endswith("conv2"):
                    layer.weight.mul_(BRANCH)
        nn.init.normal_(lowered.head.linear.weight, std=HEAD_SCALE)
        tiles = torch.from_numpy(drawn_tiles(TILES, spec.tile_size)).permute(0, 3, 1, 2) / 255
        lowered.head.linear.bias.sub_(lowered(tiles).mean(0))
    return lowered.requires_grad_(False)


def drawn_tiles(count: int, side: int) -> Tiles:
    """uint8 `(count, side, side, 3)`: soft blots of colour, each tile another one; always the same."""
    rng = np.random.default_rng(0)
    cell = -(-side // 8)
    blots = rng.integers(0, 256, (count, 8, 8, 3)).repeat(cell, 1).repeat(cell, 2)[:, :side, :side]
    return np.clip(blots + rng.normal(0, 12, blots.shape), 0, 255).astype(np.uint8)


def golden_of(lowered: LoweredNet, spec: ModelSpec) -> Golden:
    """Tiles, and what the network makes of them in float64 on the CPU."""
    tiles = drawn_tiles(TILES, spec.tile_size)
    real = TILES - SYNTHETIC
    tiles[real] = np.random.default_rng(1).integers(0, 256, tiles[real].shape, dtype=np.uint8)
    tiles[real + 1], tiles[real + 2] = 0, 255
    exact = copy.deepcopy(lowered).double()

    def run(batch: Tiles) -> dict[str, Any]:
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).double() / 255
        outputs = {}
        for stage in STAGES:
            x = getattr(exact, stage)(x)
            outputs[stage] = x.numpy()
        return outputs

    with torch.inference_mode():
        logits = np.concatenate([run(tiles[i : i + 1])["head"] for i in range(TILES)])
        stages = {name: out.astype(np.float32) for name, out in run(tiles[[0, real]]).items()}
    return Golden(tiles, logits, stages, real)


def write_bundle(folder: Path, spec: ModelSpec) -> None:
    """A bundle of a random network with `model.safetensors` and `torchscript_model.pt`; no file has been run."""
    lowered = random_network(spec)
    folder.mkdir(parents=True)
    (folder / GOLDEN).write_bytes(golden_of(lowered, spec).to_bytes())
    written = [GOLDEN, *write_formats(folder, ("torchscript", "native"), RandomSource(spec, lowered))]
    config = bundle.BundleConfig(
        **bundle.wsinfer_fields(spec, "float"),
        histo=bundle.HistoBlock(
            format=2,
            spec=spec.to_dict(),
            head_pool=head_pool(spec.pool, spec.map_size),
            input="float",
            precision="fp32",
            files={name: bundle.entry((folder / name).read_bytes()) for name in written},
            parity={},
            training=TRAINING,
            versions=versions(),
        ),
    )
    (folder / CONFIG).write_text(dump_json(config.model_dump(mode="json")), encoding="utf-8")


def add_onnx(folder: Path) -> None:
    """Writes the bundle's `model.onnx`, if there is none: only some machines have the packages for that."""
    if not (folder / ONNX).exists():
        lowered, spec = read_native(folder / NATIVE)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            write_formats(Path(made), ("onnx",), RandomSource(spec, lowered))
            (Path(made) / ONNX).replace(folder / ONNX)


class _ConvIn16Bits(nn.Conv2d):
    """A convolution in the type of its weights, whatever the type of its input is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight.dtype)
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _LinearIn32Bits(nn.Linear):
    """A linear layer in float32, whatever the type of its input is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.to(torch.float32), self.weight, self.bias)


def write_16_bit_torchscript(native: Path, path: Path, dtype: torch.dtype) -> None:
    """The network of `model.safetensors` as TorchScript whose convolutions and maps are `dtype`.

    Crop, normalisation and the linear layer stay in float32, as in `model.arithmetic`.
    """
    lowered, _ = read_native(native)
    stem, head = lowered.stem.conv, lowered.head.linear
    lowered.stem.conv = _ConvIn16Bits(3, 64, 7, 2, 3)
    lowered.head.linear = _LinearIn32Bits(head.in_features, head.out_features)
    lowered.stem.conv.load_state_dict(stem.state_dict())
    lowered.head.linear.load_state_dict(head.state_dict())
    for layers in (lowered.stem.conv, lowered.layer1, lowered.layer2, lowered.layer3, lowered.layer4):
        layers.to(dtype)
    lowered.requires_grad_(False).eval()
    with atomic_file(path) as partial:
        partial.write_bytes(torchscript_bytes(lowered))
