"""Reads files of tensors that anybody may have written. No code in them is run, and another kind of file is named."""

from __future__ import annotations

import argparse
import pickle
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histo_export.errors import HistoError, UsageError, one_line

PLAIN_CONTAINERS = (argparse.Namespace,)
"""Classes that a file may hold besides tensors and what torch allows: they carry a script's options and run no code."""

COUNTER = "num_batches_tracked"
"""Batch norm's count of training steps, the only integers of a network; nothing computes with them here."""

SAVE_STATE = "Save model.state_dict() where it was made, and give that file"

_PICKLES = (b"PK", b"\x80")
"""How files of torch.save begin: as an archive, or in the old format."""

_NOT_OURS = ("is not a PyTorch or safetensors file", "Give a .pth, .pt, .ckpt or .safetensors file")

_READ_ERRORS = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError),
    *(ImportError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile),
)
"""What torch's unpickler raises for damaged bytes, besides UnpicklingError."""


def read_tensor_file(path: Path) -> Any:
    """The content of a safetensors file or of a PyTorch file, on the CPU; what it is shows in its first bytes.

    Raises:
        UsageError: there is no file at `path`.
        HistoError: it is damaged, or of another kind.
    """
    head = _first_bytes(path)
    if path.suffix.casefold() != ".safetensors" and not _is_safetensors(head, path):
        return load_torch_file(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        cause, step = _other_kind(path, head) or (
            f"is not a readable safetensors file ({one_line(error)})",
            "Check that it is complete",
        )
        raise HistoError(path, cause, step) from error


def load_torch_file(path: Path) -> Any:
    """`torch.load` on the CPU with `weights_only=True`.

    Raises:
        UsageError: there is no file at `path`.
        HistoError: it is damaged, of another kind, or needs Python objects.
    """
    head = _first_bytes(path)
    if (other := _other_kind(path, head)) is not None:
        raise HistoError(path, *other)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(PLAIN_CONTAINERS)):
            warnings.filterwarnings("ignore", "Validating sparse tensor invariants")  # it is refused afterwards
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise HistoError(path, *_refused_object(error, head)) from error
    except _READ_ERRORS as error:
        if not head.startswith(_PICKLES):
            raise HistoError(path, *_NOT_OURS) from error
        cause = f"is not a readable PyTorch file ({one_line(error)})"
        raise HistoError(path, cause, "Check that it is complete") from error


def float32(path: Path, name: str, tensor: object) -> Tensor:
    """A weight as a dense float32 tensor. HistoError, with the tensor's name, where it is none, or not of real numbers.

    Args:
        path: of the file, for the message.
        name: of the tensor in the file.
        tensor: what the file holds under this name.
    """
    if not isinstance(tensor, Tensor):
        raise HistoError(path, f"holds {type(tensor).__name__}, not a tensor, under {name}", SAVE_STATE)
    if tensor.is_meta:
        raise HistoError(path, f"holds no values for {name} (a meta tensor)", "Save the network after its weights")
    if tensor.layout != torch.strided:
        raise HistoError(path, f"holds a sparse tensor under {name}", "Save it with .to_dense()")
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise HistoError(path, f"holds {kind} numbers under {name}, not real ones", "Save float weights")
    return tensor.detach().to(torch.float32)


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """HistoError for the first weight that is not finite, or running variance that is below zero.

    Args:
        path: of the file, for the message.
        tensors: name → weight, of floating point.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            kind = "NaN" if torch.isnan(tensor).any() else "infinite values"
            raise HistoError(path, f"holds {kind} in {name}", "Use weights from before the training diverged")
        if name.endswith("running_var") and (tensor < 0).any():
            raise HistoError(path, f"holds variances below 0 in {name}", "Use another file: this one is damaged")


def _first_bytes(path: Path) -> bytes:
    """The start of a regular file; reading anything else (a pipe, say) could block."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(path, "is a folder", "Name the file of weights in it")
        if not stat.S_ISREG(mode):
            raise UsageError(path, "is not a regular file", "Copy its content to a file first")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise UsageError(path, "does not exist", "Check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        cause = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(path, f"cannot be read ({cause})", "Check the path and its permissions") from error
    if not head:
        raise HistoError(path, "is empty", "Copy or download it again")
    return head


def _is_safetensors(head: bytes, path: Path) -> bool:
    """Whether a file begins with the length of a JSON header, and the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def _other_kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """Cause and next step for a file that is known to be neither a PyTorch nor a safetensors file; else None."""
    if head.startswith(b"PK"):
        return _other_archive(path)
    if head.lstrip()[:1] == b"<":
        return "is a web page or XML, not weights", "Download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights", "Run git lfs pull"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, such as Keras writes", "Give the weights of a PyTorch ResNet34"
    # A protobuf whose first field is a small ir_version, followed by a text or a message.
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "is an ONNX file, whose weights cannot be read back", "Give the weights of the PyTorch model"
    return None


def _other_archive(path: Path) -> tuple[str, str] | None:
    """As `_other_kind`, for a zip archive. torch.save writes one too, with `data.pkl`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is an incomplete or damaged archive", "Copy or download it again"
    if "constants.pkl" in names:
        return "is a TorchScript archive, which is a program", SAVE_STATE
    if "archive_format" in names or "archive_version" in names:
        return "is an archive of torch.export (.pt2), which is a program", SAVE_STATE
    if "data.pkl" not in names:
        return "is a zip archive without weights of torch.save", "Unpack it, and give the file of weights"
    return None


def _refused_object(error: pickle.UnpicklingError, head: bytes) -> tuple[str, str]:
    """Cause and next step where `weights_only=True` refuses a file."""
    found = re.search(r"GLOBAL (\S+)|but got <class '([^']+)'>", str(error))
    if found is None:
        if not head.startswith(_PICKLES):
            return _NOT_OURS
        return "holds Python objects other than tensors, or is damaged; not loaded", SAVE_STATE
    name = (found.group(1) or found.group(2)).encode("unicode_escape").decode()[:100]
    if name.startswith(("torch.nn.", "torchvision.", "timm.")):
        return f"is a whole pickled model ({name}), not its weights; loading it could run any code", SAVE_STATE
    return f"holds Python objects other than tensors ({name}); loading them could run any code", SAVE_STATE
