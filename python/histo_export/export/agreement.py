"""Whether all files of a bundle describe one model.

Every file says what it was made for. A `config.json` that says something else would mislabel every tile, and it has no
sha256 of its own. What the files say is read from their headers, without the libraries that run them, so that opening a
bundle stays cheap and needs neither torch nor onnx.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, get_args

from safetensors import SafetensorError, safe_open

from histo_export.bundle_files import CONFIG, GOLDEN
from histo_export.errors import HistoError, one_line
from histo_export.spec import InputKind, ModelSpec, describe_input
from histo_export.strict_json import load_json

SPEC, INPUT, HEAD_POOL, PRECISION = "histo.spec", "histo.input", "histo.head_pool", "histo.precision"
"""Keys of the metadata of model files."""

Statements = dict[str, Any]
"""Field → value, as far as a file states it. All fields are those of `statements`."""

_STEM = "spec.crop, as the side of the map after the stem"
_CLASSES = "spec.classes, as their number"


def statements(spec: ModelSpec, head: int, kind: str, precision: str) -> Statements:
    """What the configuration states; `head`, `kind` and `precision` are fields of `bundle.HistoBlock`."""
    fields = {f"spec.{key}": value for key, value in spec.to_dict().items()}
    stem = (spec.crop + 3) // 4  # two halvings, each rounding up
    fields |= {_STEM: stem, _CLASSES: len(spec.classes)}
    return fields | {"head_pool": head, "input": kind, "precision": precision}


def check_agreement(folder: Path, stated: Statements, files: Collection[str]) -> None:
    """Compares what `config.json` states with what each of the bundle's files states.

    Args:
        folder: the bundle.
        stated: see `statements`.
        files: names of its files.

    Raises:
        HistoError: two differ, named with both values and both files; or a file's header is unreadable.
    """
    for name in sorted(files, key=GOLDEN.__eq__):  # last, because it states the crop in another unit
        read = _READERS.get(name) or _READERS.get(Path(name).name) or _READERS.get(Path(name).suffix)
        if read is None:
            continue
        try:
            found = read(folder / name)
        except _UNREADABLE as error:
            raise HistoError(folder / name, f"has no readable header ({one_line(error)})", "Export again") from error
        for field, value in found.items():
            if value != stated[field]:
                raise contradiction(folder, field, stated[field], name, value)


_UNREADABLE = (OSError, ValueError, LookupError, TypeError, SafetensorError, zipfile.BadZipFile, HistoError)


def contradiction(folder: Path, field: str, value: Any, other: str, others_value: Any) -> HistoError:
    """The error of a `config.json` that says `value`, where `other` says `others_value`."""
    mpp = field in ("spec.mpp", "spacing_um_px")
    return HistoError(
        folder / CONFIG,
        f"says {field} is {_shown(value)}, and {other} says {_shown(others_value)}",
        "Put the old config.json back, or export again: histo export --checkpoint CKPT" + (" --mpp UM" if mpp else ""),
    )


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str("unknown" if value is None else value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _of_metadata(metadata: Mapping[str, str]) -> Statements:
    """The statements in a model file's metadata; files of older versions have fewer, or none."""
    found: Statements = {}
    if SPEC in metadata:
        spec = ModelSpec.from_dict(load_json(metadata[SPEC]))
        found = {f"spec.{key}": value for key, value in spec.to_dict().items()}
        if INPUT in metadata:
            kinds = {" ".join(describe_input(kind, spec.tile_size)): kind for kind in get_args(InputKind)}
            found["input"] = kinds.get(metadata[INPUT], metadata[INPUT])
    if HEAD_POOL in metadata:
        found["head_pool"] = int(metadata[HEAD_POOL])
    if PRECISION in metadata:
        found["precision"] = metadata[PRECISION]
    return found


def _of_safetensors(file: Path) -> Statements:
    with safe_open(file, framework="np") as opened:
        return _of_metadata(opened.metadata() or {})


def _of_archive(file: Path) -> Statements:
    """Of TorchScript and `.pt2`: the extra files of torch's archives, `NAME/extra/KEY`."""
    with zipfile.ZipFile(file) as archive:
        extra = {name.rpartition("/extra/")[2]: name for name in archive.namelist() if "/extra/" in name}
        return _of_metadata({key: archive.read(extra[key]).decode() for key in (SPEC, INPUT) if key in extra})


def _of_onnx(file: Path) -> Statements:
    return _of_metadata(onnx_properties(file))


def _of_golden(file: Path) -> Statements:
    with safe_open(file, framework="np") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 (not a dict)
    classes = shapes["logits"][1]
    return {"spec.tile_size": shapes["tiles"][1], _CLASSES: classes, _STEM: shapes["stage.stem"][2]}


def _of_labels(file: Path) -> Statements:
    """Triton's: a class in each line."""
    return {"spec.classes": file.read_text(encoding="utf-8").splitlines()}


_READERS: Mapping[str, Callable[[Path], Statements]] = {
    GOLDEN: _of_golden,
    "labels.txt": _of_labels,
    "model.safetensors": _of_safetensors,
    ".onnx": _of_onnx,
    ".pt": _of_archive,
    ".pt2": _of_archive,
}
"""Name or suffix of a file → what reads its statements; no other file states anything."""


def onnx_properties(file: Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file, found by stepping over all other fields of its outermost protobuf message.

    Raises:
        ValueError: it is not a protobuf message.
        OSError: it can't be read.
    """
    properties: dict[str, str] = {}
    size = file.stat().st_size
    with file.open("rb") as stream:
        while stream.tell() < size:
            tag = _varint(stream)
            if tag == 14 << 3 | 2:  # ModelProto.metadata_props
                pair = _strings(stream.read(_varint(stream)))
                properties[pair.get(1, "")] = pair.get(2, "")
            elif tag & 7 == 2:
                stream.seek(_varint(stream), 1)
            elif tag & 7 == 0:
                _varint(stream)
            else:
                raise ValueError("it is not an ONNX file")
        if stream.tell() > size:
            raise ValueError("it ends too early")
    return properties


def _strings(message: bytes) -> dict[int, str]:
    """The fields of a protobuf message that has strings only, by number."""
    stream = io.BytesIO(message)
    fields: dict[int, str] = {}
    while stream.tell() < len(message):
        tag = _varint(stream)
        if tag & 7 != 2:
            raise ValueError("its metadata are not strings")
        fields[tag >> 3] = stream.read(_varint(stream)).decode()
    return fields


def _varint(stream: BinaryIO) -> int:
    """A protobuf integer: seven bits a byte, the lowest first; the last byte is below 128."""
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("it ends too early")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("it is not an ONNX file")
