"""The bundle: the folder that is shipped.

`config.json` is a valid WSInfer configuration with one more block, `histo`, for what WSInfer's format has no field for.
A bundle is written completely or not at all. Before any of its files is run, every sha256 is checked, and what
`config.json` says of the model is compared with what the files say (`agreement`). The model card has no sha256: nothing
computes with it, and people add to it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from histo_export.bundle_files import CARD, CONFIG, GOLDEN, TRAINED_ON
from histo_export.errors import HistoError, UsageError, not_written, one_line, system_error
from histo_export.export.agreement import check_agreement, contradiction, statements
from histo_export.export.formats import FORMATS, LOWEST_OPSET
from histo_export.files import atomic_folder
from histo_export.model.provenance import checked_training, first_fault
from histo_export.spec import InputKind, ModelSpec, Precision, head_pool
from histo_export.strict_json import read_json
from histo_export.trained_on import TrainedOn

FORMAT_1_CHECKED_BY = {
    "model.onnx": "onnxruntime",
    "torchscript_model.pt": "torchscript",
    "model.safetensors": "torch",
    "model.pt2": "torch-export",
}
"""In format 1 of `HistoBlock` one runtime checked each file, and its id was not recorded."""


NOMINAL_MPP = 0.5
"""µm per pixel. WSInfer's configuration must state one; where it is unknown, this is written, and the card says so."""


class FileEntry(BaseModel):
    """Size and sha256 of a file of the bundle."""

    model_config = ConfigDict(extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class LayerError(BaseModel):
    """The error of int8 in one convolution.

    Attributes:
        layer: its name in model.safetensors.
        precision: in which the bundle runs it.
        sqnr_db: 10·log10 of the power of its fp32 output over that of the error, when only this convolution is int8.
        logit_error: of the network when only the map that it reads is int8 (see `arithmetic.logit_error`).
        multiply_adds: its share of the network's multiply-adds.
    """

    model_config = ConfigDict(extra="forbid")
    layer: str
    precision: Literal["int8", "bf16"]
    sqnr_db: float
    logit_error: float
    multiply_adds: float


class Calibration(BaseModel):
    """How the scales of an int8 model were chosen.

    Attributes:
        split: whose tiles were used.
        tiles: number of tiles that gave the ranges.
        held_out: number of other tiles of the split, on which all errors are measured.
        seed: of the choice of the tiles.
        errors: activation method and weight scales → `arithmetic.logit_error` with every map in int8.
        chosen: the key of `errors` whose scales are used.
        bf16_error: the same error in bf16, which no int8 model of the same weights can be expected to beat.
        error: of the model that is shipped, with `kept` in bf16.
        kept: convolutions that stay in bf16.
        kept_multiply_adds: their share of the network's multiply-adds.
        tried: number of maps that the search tried in bf16.
        layers: all convolutions that could be int8, in the order of the computation.
    """

    model_config = ConfigDict(extra="forbid")
    split: Literal["train"] = "train"
    tiles: int
    held_out: int
    seed: int
    errors: dict[str, float]
    chosen: str
    bf16_error: float
    error: float
    kept: list[str]
    kept_multiply_adds: float
    tried: int
    layers: list[LayerError]


class Measured(BaseModel):
    """One precision on the validation split.

    Attributes:
        accuracy, interval: fraction of correct tiles, and its 95 % bootstrap interval.
        agreement: fraction of tiles whose top class is fp32's.
        drop: fp32's accuracy minus this one, in percentage points.
        measured_with: what ran it.
    """

    model_config = ConfigDict(extra="forbid")
    accuracy: float
    interval: tuple[float, float]
    agreement: float
    drop: float
    measured_with: str


class OnnxCheck(BaseModel):
    """`model-int8.onnx` in ONNX Runtime against the same arithmetic in torch, on the golden tiles.

    Attributes:
        runtime: what ran the file.
        error: `arithmetic.logit_error` over the real tiles.
        allowed: upper limit of `error`.
        agreement: fraction of all golden tiles whose top class is the same.
    """

    model_config = ConfigDict(extra="forbid")
    runtime: str
    error: float
    allowed: float
    agreement: float


class LowPrecision(BaseModel):
    """The loss of accuracy below fp32.

    Attributes:
        split, tiles: on which it is measured: all tiles of the split by which the run chose its best epoch.
        fingerprint: of the data.
        precisions: all precisions that model.safetensors can run in, fp32 first.
        max_drop: percentage points; the export fails where the bundle's precision loses more.
        drop_accepted: whether a larger loss was accepted at export.
        not_native: precision → why the native engine could not measure it at export.
        calibration: int8 only.
        onnx: int8 only, where the file was asked for.
    """

    model_config = ConfigDict(extra="forbid")
    split: Literal["val"] = "val"
    tiles: int
    fingerprint: str
    precisions: dict[Precision, Measured]
    max_drop: float
    drop_accepted: bool
    not_native: dict[str, str]
    calibration: Calibration | None = None
    onnx: OnnxCheck | None = None


class PrecisionCost(BaseModel):
    """What a precision below fp32 costs, measured in pairs: each tile in fp32 and in this precision.

    Attributes:
        lost: fp32's accuracy minus this one's, in percentage points.
        interval: its 95 % interval (`statistics.paired_difference_interval`), which takes tiles as independent.
        worse, better: tiles that only fp32, and that only this precision has right.
        changed: tiles whose top class is not fp32's.
        measured_with: what ran it.
    """

    model_config = ConfigDict(extra="forbid")
    lost: float
    interval: tuple[float, float]
    worse: int
    better: int
    changed: int
    measured_with: str


class PrecisionCosts(BaseModel):
    """What the precisions below fp32 cost; the loss that is accepted is a `max_drop`.

    Attributes:
        split, tiles: on which it is measured: `tiles` of the `of_tiles` of this split, evenly spread.
        fingerprint: of the data.
        max_drop: percentage points that may be lost.
        measured: precision → what it costs.
        not_measured: precision → why it is not among them.
    """

    model_config = ConfigDict(extra="forbid")
    split: Literal["val"] = "val"
    tiles: int = Field(ge=1)
    of_tiles: int = Field(ge=1)
    fingerprint: str
    max_drop: float = Field(ge=0, le=100)
    measured: dict[Precision, PrecisionCost]
    not_measured: dict[Precision, str]


class HistoBlock(BaseModel):
    """What WSInfer's configuration has no field for.

    Attributes:
        format: version of this block.
        spec: `ModelSpec.to_dict()`.
        head_pool: the pool that the exported head keeps (see `lowering.head_pool`).
        input: what the ONNX, TorchScript and .pt2 files take (see `lowering.InputKind`).
        precision: that the bundle is made for; the native engine can run it in others.
        opset: of the ONNX files.
        batch_size: of `model-fixed.onnx`.
        files: name → size and sha256, of every file but this one and the model card, which may be edited.
        parity: file → runtime (an id of `runtimes.RUNTIMES`) → result of the check at export.
        unchecked: runtime → why it was unavailable at export.
        low_precision: the loss of accuracy below fp32; fp32 bundles have none.
        training: provenance.
        versions: of the tools that made the bundle.
    """

    model_config = ConfigDict(extra="forbid")
    format: Literal[2]
    spec: dict[str, Any]
    head_pool: int
    input: InputKind
    precision: Precision
    opset: int = LOWEST_OPSET
    batch_size: int = Field(default=1, ge=1)
    files: dict[str, FileEntry]
    parity: dict[str, dict[str, dict[str, Any]]]
    unchecked: dict[str, str] = {}
    low_precision: LowPrecision | None = None
    training: Annotated[dict[str, Any], AfterValidator(checked_training)]
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _from_format_1(cls, block: Any) -> Any:
        """Converts format 1. A file that format 1 did not have makes the rest of the validation fail, as it should."""
        if isinstance(block, dict) and block.get("format") == 1 and isinstance(block.get("parity"), dict):
            parity = {name: {FORMAT_1_CHECKED_BY.get(name, ""): result} for name, result in block["parity"].items()}
            return block | {"format": 2, "parity": parity}
        return block


class BundleConfig(BaseModel):
    """`config.json`: WSInfer's fields (spec_version "1.0") and ours.

    Attributes:
        histo_precision_costs: None where nothing was measured, and in bundles of older versions. It is beside `histo`
            and not in it, because older versions ignore what they don't know here, and refuse it there.
    """

    model_config = ConfigDict(extra="allow")
    spec_version: Literal["1.0"] = "1.0"
    architecture: Literal["resnet34"] = "resnet34"
    num_classes: int = Field(ge=2)
    patch_size_pixels: int = Field(ge=32)
    spacing_um_px: float = Field(gt=0)
    class_names: list[str]
    transform: list[dict[str, Any]]
    histo: HistoBlock
    histo_precision_costs: PrecisionCosts | None = None


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have all been checked against their sha256."""

    path: Path
    config: BundleConfig

    @property
    def models(self) -> list[str]:
        """The model files it holds, in the order of `FORMATS`."""
        files = (row.file for row in FORMATS.values())
        return [file for file in files if file is not None and file in self.config.histo.files]


def entry(content: bytes) -> FileEntry:
    """Size and sha256 of a file's content."""
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def open_bundle(path: Path) -> Bundle:
    """Reads `config.json`, and checks the size and sha256 of every file that it lists, except the model card.

    Raises:
        UsageError: there is no bundle at `path`.
        HistoError: the configuration is invalid or contradicts itself or a file, or a file is missing, truncated or
            changed.
    """
    if not (path / CONFIG).is_file():
        raise _no_bundle(path)
    config = _read_config(path / CONFIG)
    spec = _spec(path, config)
    _check_fields(path, config, spec)
    for name, expected in config.histo.files.items():
        if name == CARD:  # older bundles list it; nothing computes with it, and people are meant to edit it
            continue
        # Also keeps a hostile name, with other slashes or dots, from reaching the file system.
        if name not in (GOLDEN, TRAINED_ON) and not any(row.makes(name) for row in FORMATS.values()):
            raise HistoError(path / CONFIG, f"lists a file that no bundle has, {name!r}", "Export again")
        _check_file(path / name, expected)
    if GOLDEN not in config.histo.files:
        raise HistoError(path / CONFIG, f"lists no {GOLDEN}", "Export again")
    bundle = Bundle(path, config)
    if not bundle.models:
        raise HistoError(path / CONFIG, "lists no model file", "Export again")
    block = config.histo
    stated = statements(spec, block.head_pool, block.input, block.precision)
    check_agreement(path, stated, [name for name in block.files if name != CARD])
    if unlisted := [name for name in block.parity if name not in block.files]:
        cause = f"names {unlisted[0]!r} in parity, but not in files, so nothing vouches for it"
        raise HistoError(path / CONFIG, cause, "Copy the bundle again, or export again")
    return bundle


def _no_bundle(path: Path) -> UsageError:
    """What to say of a path that is no bundle."""
    from histo_export.training.folder import RunFolder

    if not path.exists():
        return UsageError(path, "does not exist", "Name a folder that histo export wrote")
    run = RunFolder(path)
    if path.suffix == ".ckpt" or run.best.is_file() or run.last.is_file():
        kind = "a training run" if path.is_dir() else "a checkpoint"
        source = run.last if path.is_dir() and not run.best.is_file() else path
        export = shlex.join(["histo", "export", str(source)])
        return UsageError(path, f"is {kind}, not a bundle", f"Make a bundle of it: {export}")
    if path.is_file() and (path.parent / CONFIG).is_file():
        return UsageError(path, "is a file of a bundle", f"Name its folder, {path.parent}")
    return UsageError(path, f"is not a bundle (it has no {CONFIG})", "Name a folder that histo export wrote")


def spec_of(bundle: Bundle) -> ModelSpec:
    """The model's spec."""
    return _spec(bundle.path, bundle.config)


def _spec(path: Path, config: BundleConfig) -> ModelSpec:
    try:
        return ModelSpec.from_dict(config.histo.spec)
    except (TypeError, ValueError, KeyError) as error:
        raise HistoError(path / CONFIG, f"has an invalid spec ({error})", "Export again") from error
    except UsageError as error:  # of the command line's options, which nobody gave here
        raise HistoError(path / CONFIG, f"has an invalid spec ({error.thing} {error.cause})", "Export again") from error


def _read_config(file: Path) -> BundleConfig:
    try:
        return BundleConfig.model_validate(read_json(file))
    except ValidationError as error:
        reason = first_fault(error)
    except (ValueError, OSError) as error:
        reason = one_line(error)
    raise HistoError(file, f"is not a bundle's configuration ({reason})", "Export again")


def wsinfer_fields(spec: ModelSpec, kind: InputKind) -> dict[str, Any]:
    """The fields of `config.json` that WSInfer and QuPath read.

    Crop and normalisation are inside the graph. WSInfer and QuPath cut the model's tile (in µm) from the finest level,
    so that a slide of half the µm per pixel gives tiles of twice the side. TorchScript takes those too, and would crop
    them to a quarter of the area. Hence Resize.
    """
    resize = {"name": "Resize", "arguments": {"size": spec.tile_size}}
    return {
        "num_classes": len(spec.classes),
        "patch_size_pixels": spec.tile_size,
        "spacing_um_px": spec.mpp or NOMINAL_MPP,
        "class_names": list(spec.classes),
        "transform": [resize, {"name": "ToTensor"}] if kind == "float" else [],  # WSInfer has none that gives bytes
    }


def _check_fields(path: Path, config: BundleConfig, spec: ModelSpec) -> None:
    """HistoError where fields of the configuration contradict each other."""
    block = config.histo
    for field, expected in wsinfer_fields(spec, block.input).items():
        value = getattr(config, field)
        if value != expected and not (field == "transform" and value == [{"name": "ToTensor"}] == expected[1:]):
            raise contradiction(path, field, value, "its own histo.spec", expected)
    if block.head_pool != (expected := head_pool(spec.pool, spec.map_size)):
        raise contradiction(path, "head_pool", block.head_pool, "its own histo.spec", expected)
    low = block.low_precision
    measured = ["fp32"] if low is None else list(low.precisions)
    if block.precision not in measured or (block.precision == "fp32") != (low is None):
        raise contradiction(path, "precision", block.precision, "its own histo.low_precision", measured)


def trained_on(bundle: Bundle) -> TrainedOn | None:
    """The tiles that the network was trained on; None in bundles of older versions. HistoError where it is damaged."""
    return TrainedOn.read(bundle.path / TRAINED_ON) if TRAINED_ON in bundle.config.histo.files else None


def _check_file(file: Path, expected: FileEntry) -> None:
    """HistoError where the file is missing or differs from its entry in `config.json`."""
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


@contextmanager
def staging(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out`. It becomes `out` when the block ends without an error, and is removed otherwise.

    Two exports to one `out` never mix: without `force` the first to end wins, with it the last.

    Args:
        out: the bundle's folder. If it is a link, the folder that it leads to is written, and the link stays.
        force: replace a bundle at `out`. Anything else at `out` is never replaced.

    Raises:
        UsageError: `out` exists and may not be replaced.
        HistoError: the folder can't be written.
    """
    check_destination(out, force)
    try:
        with atomic_folder(out, replace=force) as folder:
            yield folder
    except HistoError:
        raise
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        if cause.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            check_destination(out, force)  # another export has ended meanwhile
        raise not_written(out, cause) from error


def check_destination(out: Path, force: bool) -> None:
    """Fails where `staging(out, force)` would, so that nobody trains for hours first."""
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(out, "is or holds the folder that this command runs in", "Name a new folder with --out")
    if out.is_symlink() or out.exists():
        if not (out / CONFIG).is_file() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError(out, "exists and is not a bundle", "Choose another --out")
        if not force and (out / CONFIG).is_file():
            raise UsageError(out, "exists", "Add --force to replace the bundle, or choose another --out")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise HistoError(parent, "is not a folder that can be written to", "Choose another --out")
