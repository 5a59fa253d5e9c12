"""The model: torchvision's ResNet34 with adaptive average pooling to n×n before the linear layer.

State-dict keys are torchvision's, so weights move freely between this class and `torchvision.models.resnet34`.
"""

from __future__ import annotations

import contextlib
import difflib
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet34_Weights
from torchvision.models.resnet import BasicBlock

from histo_export._core import BLOCK_COUNTS
from histo_export.errors import HistoError, UsageError
from histo_export.spec import CHANNELS, STAGES, ModelSpec


class TileNet(ResNet):
    """ResNet34 with `AdaptiveAvgPool2d(pool)`, an optional dropout and a linear layer of 512·pool² inputs.

    Input: float `(n, 3, h, w)`, normalised, RGB. Output: logits `(n, num_classes)`.
    """

    def __init__(self, pool: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__(BasicBlock, list(BLOCK_COUNTS), num_classes=num_classes)
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(CHANNELS * pool * pool, num_classes)

    @classmethod
    def of(cls, spec: ModelSpec) -> TileNet:
        """The untrained network that `spec` describes."""
        return cls(spec.pool, len(spec.classes), spec.dropout)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The output of each of `STAGES` in turn; the last one is the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        yield "stem", x
        for name in STAGES[1:-1]:
            x = getattr(self, name)(x)
            yield name, x
        yield "head", self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))

    def forward(self, x: Tensor) -> Tensor:
        for _, out in self.stages(x):
            x = out
        return x


def normalise(tiles: Tensor, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 `(n, 3, h, w)` → what `TileNet` takes: scaled to [0, 1], less the mean, over the standard deviation."""
    mean = torch.tensor(spec.mean, dtype=dtype, device=tiles.device).view(3, 1, 1)
    std = torch.tensor(spec.std, dtype=dtype, device=tiles.device).view(3, 1, 1)
    return (tiles.to(dtype) / 255 - mean) / std


@dataclass
class WeightReport:
    """What `load_weights` did: the keys copied, and for each key left out the reason."""

    source: str
    copied: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for the user, naming what was not copied."""
        line = f"{len(self.copied)} tensors copied from {self.source}"
        if self.left_out:
            line += "; not copied: " + ", ".join(f"{key} ({why})" for key, why in sorted(self.left_out.items()))
        return line


def load_weights(net: TileNet, source: str) -> WeightReport:
    """Copies every tensor that exists in both, bn1 and the running statistics too.

    Args:
        net: changed in place.
        source: "none", "imagenet" (torchvision's own loader and cache), or a `.pth`, `.pt`, `.ckpt` or
            `.safetensors` file. Pickled code is never run: `torch.load(weights_only=True)`.

    Raises:
        UsageError: there is no such file.
        HistoError: the file cannot be read or shares no tensor with the network.
    """
    report = WeightReport(source)
    if source == "none":
        return report
    if source != "imagenet" and not Path(source).is_file():
        near = difflib.get_close_matches(source, ("none", "imagenet"), n=1)
        hint = f"Did you mean {near[0]}?" if near else "Use none, imagenet, or the path of a .pth or .safetensors file"
        raise UsageError(f"--weights {source}", "is not a file", hint)
    state = _imagenet_state() if source == "imagenet" else read_state_dict(Path(source))
    own = net.state_dict()
    for key, value in state.items():
        if key not in own:
            report.left_out[key] = "no such layer here"
        elif own[key].shape != value.shape:
            report.left_out[key] = f"shape {tuple(value.shape)}, here {tuple(own[key].shape)}"
        else:
            own[key].copy_(value)  # state_dict shares storage with the network
            report.copied.append(key)
    for key in own.keys() - state.keys():
        report.left_out[key] = "not in the source"
    if not report.copied:
        raise HistoError(source, "shares no tensor with ResNet34", "Give the weights of a torchvision ResNet34")
    return report


def _imagenet_state() -> Mapping[str, Tensor]:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints there, and stdout is for results
            state: Mapping[str, Tensor] = ResNet34_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise HistoError(
            "--weights imagenet",
            f"torchvision could not download its weights ({error})",
            f"Put {ResNet34_Weights.IMAGENET1K_V1.url.rsplit('/', 1)[-1]} in {torch.hub.get_dir()}/checkpoints, "
            "name a local file, or use --weights none",
        ) from error
    return state


def load_torch_file(path: Path) -> Any:
    """`torch.load` on the CPU with `weights_only=True`; every way in which a file can be bad is a HistoError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(path, "does not exist", "Check the path") from error
    except pickle.UnpicklingError as error:
        raise HistoError(
            path,
            "holds Python objects other than tensors, or is damaged; not loaded",
            "Save a plain state_dict",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HistoError(path, f"is not a readable PyTorch file ({reason})", "Check that it is whole") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a PyTorch file, under torchvision's keys.

    A `state_dict` or `model` entry is looked into, and a `module.`, `model.` or `net.` prefix that all keys share
    is dropped, as training scripts commonly leave them.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except FileNotFoundError as error:
            raise UsageError(path, "does not exist", "Check the path") from error
        except (OSError, SafetensorError) as error:
            raise HistoError(path, f"is not a readable safetensors file ({error})", "Check that it is whole") from error
    else:
        state = load_torch_file(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise HistoError(path, "holds no state_dict", "Save net.state_dict() of a torchvision ResNet34")
    for prefix in ("module.", "model.", "net."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


@dataclass(frozen=True)
class LayerInfo:
    """One line of `histo inspect`: output shape for one tile, parameters, multiply-accumulates per tile."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


def layer_table(spec: ModelSpec) -> list[LayerInfo]:
    """Convolutions, batch norms, pools and the linear layer of the unfolded network, in order of execution.

    Nothing is allocated or computed: the network runs on torch's meta device.
    """
    with torch.device("meta"):
        net = TileNet.of(spec).eval()
    table: list[LayerInfo] = []

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        macs = 0
        if isinstance(module, nn.Conv2d):
            macs = output[0].numel() * (module.in_channels // module.groups) * module.kernel_size[0] ** 2
        elif isinstance(module, nn.Linear):
            macs = module.in_features * module.out_features
        parameters = sum(p.numel() for p in module.parameters())
        table.append(LayerInfo(name, type(module).__name__, shape, parameters, macs))

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Linear)
    for name, module in net.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out))
    net(torch.empty(1, 3, spec.crop, spec.crop, device="meta"))
    return table
