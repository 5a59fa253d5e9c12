"""Finds the ResNet34 in weights that other tools wrote, whatever they wrapped it in.

Training scripts put the weights under an entry (`state_dict`, `model`, …), below other modules (`model.`, `backbone.`)
and in wrappers (`module.` of DataParallel, `_orig_mod.` of torch.compile). All of these are one prefix of the keys.
A network is therefore looked for in every dictionary of the file, by the name of one of its convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histo_export.errors import HistoError
from histo_export.model.net import TileNet
from histo_export.model.tensor_file import COUNTER, check_values, float32, read_tensor_file
from histo_export.spec import STAGES

HEAD = ("fc.weight", "fc.bias")

_MARK = "layer1.0.conv1.weight"
"""Every ResNet with torchvision's names has it."""

_PLAIN = frozenset(
    ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "module", "_orig_mod")
)
"""Where scripts put the network itself. Of several networks in a file, the only one with no other name is taken."""

_DEPTH = 4
"""Dictionaries inside each other that are looked into; checkpoints have two."""

_COUNTERS = (COUNTER, "total_ops", "total_params")
"""Batch norm's, and those that thop adds to every module when it counts operations."""

_RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "ResNet18",
    ("basic", (3, 4, 6, 3)): "ResNet34",
    ("bottleneck", (3, 4, 6, 3)): "ResNet50",
    ("bottleneck", (3, 4, 23, 3)): "ResNet101",
    ("bottleneck", (3, 8, 36, 3)): "ResNet152",
}


@dataclass(frozen=True)
class ForeignWeights:
    """A ResNet34 as a file holds it.

    Attributes:
        state: float32 by torchvision's keys: all of the backbone, and `HEAD` where fc is one linear layer. Batch
            norm's counters are int64.
        headless: why `state` has no head; "" where it has one.
        beside: other layers inside the network, by name: a network that uses them is not a ResNet34.
        notes: what was taken from where, left out, or converted; parts of a sentence.
        entries: names at the top of the file that are not tensors'.
    """

    state: dict[str, Tensor]
    headless: str
    beside: tuple[str, ...]
    notes: tuple[str, ...]
    entries: frozenset[str]


def read_resnet34(path: Path) -> ForeignWeights:
    """Reads a PyTorch or safetensors file and finds its ResNet34.

    Raises:
        UsageError: there is no file at `path`.
        HistoError: it is damaged or of another kind; holds another network, or several; or a weight is not a finite
            real number.
    """
    content = read_tensor_file(path)
    network, notes = _choose(path, list(_networks(content)), content)
    taken = {key: value for key, value in network.tensors.items() if key in _backbone()}
    state = {key: float32(path, network.prefix + key, value) for key, value in taken.items()}
    head, headless = _head(path, network)
    stored = {str(value.dtype).removeprefix("torch.") for value in taken.values()} - {"float32"}
    notes += [f"{', '.join(sorted(stored))} converted to float32"] if stored else []
    if head and HEAD[1] not in head:
        head[HEAD[1]] = torch.zeros(len(head[HEAD[0]]))
        notes.append("fc has no bias, zeros taken")
    state |= head
    check_values(path, {network.prefix + key: value for key, value in state.items()})
    others = [key for key in network.others if not key.endswith(_COUNTERS)]
    notes += [f"ignored {_some(others + network.outside)}"] if others or network.outside else []
    beside = tuple(key for key in others if network.tensors[key].dim() > 1)
    entries = frozenset(key for key, value in content.items() if isinstance(key, str) and not isinstance(value, Tensor))
    return ForeignWeights(state | network.counters(), headless, beside, tuple(notes), entries)


@dataclass(frozen=True)
class _Network:
    """Something in a file that has torchvision's names of a ResNet.

    Attributes:
        entry: keys of the dictionaries that lead to it.
        prefix: of its keys in the last of them.
        tensors: by key without the prefix.
        outside: the other keys of the same dictionary.
    """

    entry: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    outside: list[str]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that lead to it."""
        return (*self.entry, *filter(None, self.prefix.split(".")))

    @property
    def place(self) -> str:
        return ".".join(self.parts) or "the top"

    @property
    def others(self) -> list[str]:
        """Keys that are neither the backbone's nor the head's."""
        return [key for key in self.tensors if key not in _backbone() and not key.startswith("fc.")]

    def counters(self) -> dict[str, Tensor]:
        """Batch norm's, int64; zero where the file lacks them, as files of old versions of PyTorch do."""
        counters = {}
        for key in (name.replace("running_var", COUNTER) for name in _backbone() if name.endswith("running_var")):
            value = self.tensors.get(key)
            usable = value is not None and value.dim() == 0 and value.dtype == torch.int64 and not value.is_meta
            counters[key] = value if value is not None and usable else torch.tensor(0)
        return counters

    def difference(self) -> str | None:
        """What makes it another network than a ResNet34; None where nothing does."""
        kind = self._kind()
        if kind not in ("ResNet34", "ResNet"):
            return f"is a {kind}, not a ResNet34"
        stem = self.tensors.get("conv1.weight")
        if stem is not None and stem.dim() == 4 and stem.shape[2:] == (3, 3):
            return f"is a {kind} for small images (its first convolution is 3×3), which is another network"
        for key, shape in _backbone().items():
            if key not in self.tensors:
                return f"is not a ResNet34 of torchvision: it has no {self.prefix}{key}"
            if self.tensors[key].shape != shape:
                found = tuple(self.tensors[key].shape)
                return f"is not a ResNet34: {self.prefix}{key} has shape {found}, not {tuple(shape)}"
        parts = tuple(f"{stage}." for stage in ("conv1", "bn1", *STAGES[1:-1]))
        inner = [key for key in self.others if key.startswith(parts) and not key.endswith(_COUNTERS)]
        return f"is not a plain ResNet34: it also has {self.prefix}{inner[0]}" if inner else None

    def _kind(self) -> str:
        """Its name by blocks and stages, e.g. "ResNet50 (bottleneck blocks)"; "ResNet" where these are unknown."""
        blocks = [{key.split(".")[1] for key in self.tensors if key.startswith(f"layer{i}.")} for i in (1, 2, 3, 4)]
        block = "bottleneck" if "layer1.0.conv3.weight" in self.tensors else "basic"
        name = _RESNETS.get((block, tuple(map(len, blocks))), "ResNet")
        return name + (" (bottleneck blocks)" if block == "bottleneck" else "")


@cache
def _backbone() -> dict[str, torch.Size]:
    """Key → shape of every weight of a ResNet34 before the head."""
    with torch.device("meta"):
        state = TileNet(1, 2).state_dict()
    return {key: value.shape for key, value in state.items() if key not in HEAD and not key.endswith(COUNTER)}


def _networks(content: Any, entry: tuple[str, ...] = ()) -> Iterator[_Network]:
    """Every ResNet in a nested dictionary. Names that cannot be printed are no names of layers."""
    if not isinstance(content, Mapping) or len(entry) > _DEPTH:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str) and key.isprintable()}
    for key, value in named.items():
        prefix = key.removesuffix(_MARK)
        if isinstance(value, Tensor) and key.endswith(_MARK) and prefix[-1:] in ("", "."):
            inside = {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
            tensors = {k: v for k, v in inside.items() if isinstance(v, Tensor)}
            outside = [k for k, v in named.items() if isinstance(v, Tensor) and not k.startswith(prefix)]
            yield _Network(entry, prefix, tensors, outside)
        yield from _networks(value, (*entry, key))


def _choose(path: Path, networks: list[_Network], content: Any) -> tuple[_Network, list[str]]:
    """The one ResNet34 that is meant, with notes; HistoError where there is none, or no telling."""
    if not networks:
        raise HistoError(path, _nothing_found(content), "Give the weights of a ResNet34 with torchvision's names")
    if "stem.conv.weight" in networks[0].outside + networks[0].others:
        raise HistoError(path, "is a bundle's model.safetensors, whose batch norms are folded", "Give the checkpoint")
    usable = [network for network in networks if network.difference() is None]
    if not usable:
        raise HistoError(path, str(networks[0].difference()), "Give the weights of a ResNet34")
    meant = [network for network in usable if _PLAIN.issuperset(network.parts)]
    chosen = usable[0] if len(usable) == 1 or all(_equal(usable[0], other) for other in usable[1:]) else None
    if chosen is None and len(meant) == 1:
        chosen = meant[0]
    if chosen is None:
        places = ", ".join(network.place for network in usable)
        step = "Save the one that you want as a file of its own"
        raise HistoError(path, f"holds {len(usable)} different networks: {places}", step)
    notes = [] if _PLAIN.issuperset(chosen.parts) else [f"found under {chosen.place}"]
    left = [network for network in networks if network is not chosen]
    if left:
        notes.append(f"not taken: the network under {', '.join(network.place for network in left)}")
    of_left = tuple(network.prefix for network in left if network.entry == chosen.entry and network.prefix)
    inside = tuple(prefix.removeprefix(chosen.prefix) for prefix in of_left if prefix.startswith(chosen.prefix))
    tensors = {key: value for key, value in chosen.tensors.items() if not key.startswith(inside)}
    outside = [key for key in chosen.outside if not key.startswith(of_left)]
    return (replace(chosen, tensors=tensors, outside=outside) if of_left else chosen), notes


def _equal(one: _Network, other: _Network) -> bool:
    """Whether two networks have the same values, as where one module has two names."""
    keys = [*_backbone(), *(key for key in {*one.tensors, *other.tensors} if key.startswith("fc."))]
    pairs = [(one.tensors.get(key), other.tensors.get(key)) for key in keys]
    return all(
        a is not None and b is not None and a.dtype == b.dtype and not a.is_meta and not b.is_meta and torch.equal(a, b)
        for a, b in pairs
    )


def _head(path: Path, network: _Network) -> tuple[dict[str, Tensor], str]:
    """The one linear layer that fc is, or is in (behind a dropout, say); or why there is none."""
    own = {k: v for k, v in network.tensors.items() if k.startswith("fc.") and not k.endswith(_COUNTERS)}
    layers = sorted({key.rpartition(".")[0] for key in own})
    if not layers:
        linear = [key for key in network.others if network.tensors[key].dim() == 2] + network.outside
        beside = [key for key in linear if key.endswith("weight")]
        return {}, f"there is no {network.prefix}fc in the file" + (f", only {_some(beside)}" if beside else "")
    if len(layers) > 1:
        return {}, f"fc is more than one layer ({_some(layers)})"
    weight, bias = (own.pop(f"{layers[0]}.{kind}", None) for kind in ("weight", "bias"))
    if weight is not None and (weight.dim() != 2 or not len(weight)):
        return {}, f"{network.prefix}{layers[0]}.weight has shape {tuple(weight.shape)}, not (outputs, inputs)"
    if own or weight is None or (bias is not None and bias.shape != weight.shape[:1]):
        return {}, "fc is not one linear layer"
    pair = {HEAD[0]: weight} | ({} if bias is None else {HEAD[1]: bias})
    return {key: float32(path, network.prefix + key, value) for key, value in pair.items()}, ""


def _nothing_found(content: Any) -> str:
    """What a file without a ResNet holds instead."""
    if isinstance(content, Tensor):
        return "holds one tensor, not a state_dict"
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}, not a state_dict"
    keys = [key if key.isprintable() else ascii(key) for key in content if isinstance(key, str)]
    inner = [key for value in content.values() if isinstance(value, Mapping) for key in value if isinstance(key, str)]
    if any(re.search(r"encoder\.stages\.\d+\.layers\.", key) for key in keys + inner):
        return "has the names of Hugging Face's transformers, not torchvision's"
    return f"holds no ResNet; it has {_some(keys)}" if keys else "is an empty dictionary"


def _some(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:100] for name in names[:most]) + more
