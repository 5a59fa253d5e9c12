"""Initial weights of a `TileNet`: torchvision's ImageNet weights, or a file of the user's. No pickled code is run."""

from __future__ import annotations

import contextlib
import difflib
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import ResNet34_Weights

from histo_export.errors import HistoError, UsageError
from histo_export.model.net import TileNet


@dataclass
class WeightReport:
    """What `load_weights` did: the keys that were copied, and for each other key the reason."""

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
    """Copies every tensor that exists in both, including bn1 and the running statistics.

    Args:
        net: changed in place.
        source: "none", "imagenet" (torchvision's own loader and cache), or a `.pth`, `.pt`, `.ckpt` or
            `.safetensors` file. Pickled code is never run: the file is read by `torch.load(weights_only=True)`.

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
    """`torch.load` on the CPU with `weights_only=True`; any damaged or foreign file is a HistoError."""
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
        raise HistoError(path, f"is not a readable PyTorch file ({reason})", "Check that it is complete") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a PyTorch file, under torchvision's keys.

    Training scripts often store the weights in a `state_dict` or `model` entry, or with a `module.`, `model.` or `net.`
    prefix: such an entry is opened, and a prefix that all keys share is removed.

    Raises:
        UsageError: there is no such file.
        HistoError: it cannot be read or holds no state_dict.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except FileNotFoundError as error:
            raise UsageError(path, "does not exist", "Check the path") from error
        except (OSError, SafetensorError) as error:
            raise HistoError(
                path, f"is not a readable safetensors file ({error})", "Check that it is complete"
            ) from error
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
