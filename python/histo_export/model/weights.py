"""Initial weights of a `TileNet`: torchvision's ImageNet weights, or a file of the user's. No pickled code is run."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torchvision.models import ResNet34_Weights

from histo_export.errors import HistoError, one_line
from histo_export.model.foreign import HEAD, ForeignWeights, read_resnet34
from histo_export.model.net import TileNet
from histo_export.model.weight_source import weight_file

IMAGENET_URL: str = ResNet34_Weights.IMAGENET1K_V1.url
"""Its last part is the name of the file in torch's cache; that ends with the first digits of the file's sha256."""


@dataclass
class WeightReport:
    """What `load_weights` did.

    Attributes:
        source: as the user named it.
        copied: keys that were copied.
        left_out: key of the network → why it starts new.
        notes: see `ForeignWeights`.
    """

    source: str
    copied: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for the user, naming what was not copied."""
        if self.source == "none":
            return "random first weights"
        parts = [f"{len(self.copied)} tensors copied from {self.source}", *self.notes]
        if self.left_out:
            parts.append("not copied: " + ", ".join(f"{key} ({why})" for key, why in sorted(self.left_out.items())))
        return "; ".join(parts)


def load_weights(net: TileNet, source: str) -> WeightReport:
    """Copies a ResNet34's weights, running statistics included. A head of another shape starts new.

    Args:
        net: changed in place.
        source: "none", "imagenet" (torchvision's weights, from torch's cache or downloaded to it), or a file: see
            `foreign.read_resnet34`. Pickled code is never run.

    Raises:
        UsageError: there is no such file.
        HistoError: the file cannot be read, or is not a ResNet34's.
    """
    if source == "none":
        return WeightReport(source)
    file = weight_file(source)
    found = _imagenet() if file is None else read_resnet34(file)
    report = WeightReport(source, notes=found.notes)
    own = net.state_dict()
    for key, value in found.state.items():
        if own[key].shape == value.shape:
            own[key].copy_(value)  # state_dict shares storage with the network
            report.copied.append(key)
        else:
            report.left_out[key] = f"shape {tuple(value.shape)}, here {tuple(own[key].shape)}"
    report.left_out |= {key: found.headless for key in HEAD if key not in found.state}
    return report


def _imagenet() -> ForeignWeights:
    """torchvision's weights. Their hash is checked each time, because anybody may have put a file into the cache."""
    name = IMAGENET_URL.rpartition("/")[2]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    expected = re.findall(r"-([0-9a-f]{8,})\.", name)[-1]
    if not file.exists():
        _download(file, expected)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise HistoError(file, f"cannot be read ({one_line(error)})", "Delete it, or name a local file") from error
    if not digest.startswith(expected):
        raise HistoError(
            file,
            f"is damaged or another file: its sha256 begins with {digest[: len(expected)]}, not with {expected}",
            "Delete it, and it is downloaded again",
        )
    return read_resnet34(file)


def _download(file: Path, expected: str) -> None:
    """Downloads torchvision's weights to `file`, which appears only when it is complete and has the expected hash."""
    print(f"downloading {IMAGENET_URL} to {file}", file=sys.stderr)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(IMAGENET_URL, str(file), hash_prefix=expected, progress=False)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise HistoError(
            "--weights imagenet",
            f"torchvision's weights could not be downloaded ({one_line(error)})",
            f"Put {file.name} in {file.parent}, name a local file, or use --weights none",
        ) from error
