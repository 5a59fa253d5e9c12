"""The bundle: the folder that is shipped.

`config.json` is a valid WSInfer configuration with one more block, `histo`, that holds what WSInfer has no word for.
A bundle is written whole or not at all, and every file's sha256 is checked before anything in it is opened.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from histo_export.errors import HistoError, UsageError
from histo_export.whole import whole_folder

FORMATS = {
    "onnx": "model.onnx",
    "torchscript": "torchscript_model.pt",
    "native": "model.safetensors",
    "pt2": "model.pt2",
}
"""What `--formats` names → the model file it makes."""

TRITON = "triton"
"""One more name for `--formats`: the folder of a Triton model repository around `model.onnx` (see `export.triton`)."""

TRITON_FILE = re.compile(TRITON + r"/[A-Za-z0-9_-]+/(config\.pbtxt|labels\.txt|1/model\.onnx)")

CONFIG, GOLDEN, CARD = "config.json", "golden.safetensors", "README.md"

FORMAT_1_CHECKED_BY = {
    "model.onnx": "onnxruntime",
    "torchscript_model.pt": "torchscript",
    "model.safetensors": "torch",
    "model.pt2": "torch-export",
}
"""Format 1 of `HistoBlock` knew one runtime for each file, and did not name it by its id."""


class FileEntry(BaseModel):
    """A file of the bundle."""

    model_config = ConfigDict(extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class HistoBlock(BaseModel):
    """What WSInfer's configuration has no word for.

    Attributes:
        format: version of this block.
        spec: `ModelSpec.to_dict()`.
        head_pool: the pool that the exported head keeps (see `lowering.head_pool`).
        input: what ONNX, TorchScript and .pt2 take (see `lowering.InputKind`).
        precision: of weights and arithmetic.
        files: name → size and sha256.
        parity: per file and runtime (an id of `runtimes.RUNTIMES`) what the check at export found.
        unchecked: runtime → why it could not be had at export.
        training: provenance.
        versions: of the tools that made the bundle.
    """

    model_config = ConfigDict(extra="forbid")
    format: Literal[2]
    spec: dict[str, Any]
    head_pool: int
    input: Literal["float", "uint8"]
    precision: Literal["fp32"]
    files: dict[str, FileEntry]
    parity: dict[str, dict[str, dict[str, Any]]]
    unchecked: dict[str, str] = {}
    training: dict[str, Any]
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _from_format_1(cls, block: Any) -> Any:
        """Files that format 1 did not know make the rest of the validation fail, as they should."""
        if isinstance(block, dict) and block.get("format") == 1 and isinstance(block.get("parity"), dict):
            parity = {name: {FORMAT_1_CHECKED_BY.get(name, ""): found} for name, found in block["parity"].items()}
            return block | {"format": 2, "parity": parity}
        return block


class BundleConfig(BaseModel):
    """`config.json`: WSInfer's fields (spec_version "1.0") and ours."""

    model_config = ConfigDict(extra="allow")
    spec_version: Literal["1.0"] = "1.0"
    architecture: Literal["resnet34"] = "resnet34"
    num_classes: int = Field(ge=2)
    patch_size_pixels: int = Field(ge=32)
    spacing_um_px: float = Field(gt=0)
    class_names: list[str]
    transform: list[dict[str, Any]]
    histo: HistoBlock


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have all been checked against their sha256."""

    path: Path
    config: BundleConfig

    @property
    def models(self) -> list[str]:
        """The model files it holds, in the order of `FORMATS`."""
        return [name for name in FORMATS.values() if name in self.config.histo.files]


def entry(content: bytes) -> FileEntry:
    """Size and sha256 of a file's content."""
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def open_bundle(path: Path) -> Bundle:
    """Reads `config.json` and checks the size and sha256 of every file it lists; opens none of them.

    Raises:
        UsageError: there is no bundle at `path`.
        HistoError: the configuration is invalid, or a file is missing, truncated or changed.
    """
    if not (path / CONFIG).is_file():
        raise UsageError(path, "is not a bundle (it has no config.json)", "Name a folder that histo export wrote")
    try:
        config = BundleConfig.model_validate_json((path / CONFIG).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise HistoError(
            path / CONFIG, f"is not a bundle's configuration ({where}: {first['msg']})", "Export again"
        ) from (error)
    known = {*FORMATS.values(), GOLDEN, CARD}
    for name, expected in config.histo.files.items():
        # Also keeps a hostile name, with other slashes or dots, from reaching the file system.
        if name not in known and not TRITON_FILE.fullmatch(name):
            raise HistoError(path / CONFIG, f"lists a file that no bundle has, {name!r}", "Export again")
        file = path / name
        if not file.is_file():
            raise HistoError(file, "is missing from the bundle", "Copy the bundle again, or export again")
        if file.stat().st_size != expected.bytes:
            raise HistoError(
                file,
                f"has {file.stat().st_size:,} bytes where the bundle says {expected.bytes:,}",
                "Copy the bundle again, or export again",
            )
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected.sha256:
                raise HistoError(file, "differs from its sha256 in config.json", "Do not load it; copy or export again")
    if GOLDEN not in config.histo.files:
        raise HistoError(path / CONFIG, f"lists no {GOLDEN}", "Export again")
    return Bundle(path, config)


@contextmanager
def staging(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes otherwise.

    Args:
        out: the bundle's folder.
        force: replace a bundle that is there. Anything else there is never replaced.

    Raises:
        UsageError: `out` exists and may not be replaced.
        HistoError: the folder can't be written.
    """
    check_destination(out, force)
    try:
        with whole_folder(out) as folder:
            yield folder
    except OSError as error:
        raise HistoError(
            error.filename or out, f"could not be written ({error.strerror})", "Free some space or choose another --out"
        ) from error


def check_destination(out: Path, force: bool) -> None:
    """Fails where `staging(out, force)` would, so that nobody trains for hours first."""
    if out.is_symlink() or out.exists():
        if not (out / CONFIG).is_file() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError(out, "exists and is not a bundle", "Choose another --out")
        if not force and (out / CONFIG).is_file():
            raise UsageError(out, "exists", "Add --force to replace the bundle, or choose another --out")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise HistoError(parent, "is not a folder that can be written to", "Choose another --out")
