"""What checkpoints and bundles record of a training, checked where it is read, so that nobody else has to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

_Fraction = Annotated[float, Field(ge=0, le=1)]
_Interval = Annotated[list[_Fraction], Field(min_length=2, max_length=2)]
_Count = Annotated[int, Field(ge=0)]


class _Entries(BaseModel):
    """Entries that something computes with or prints. Any may be absent, as in older files; others are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Data(_Entries):
    name: str = ""
    description: str = ""
    synthetic: bool = False
    fingerprint: str = ""
    tiles: dict[str, _Count] = {}
    tile_size: _Count = 0
    mpp: float | None = None
    split: str = ""
    groups: dict[str, _Count] | None = None
    notes: list[str] = []
    licence: str = ""
    citation: str = ""


class _Measure(_Entries):
    value: float | None
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None


class _OperatingPoint(_Entries):
    positive: str
    threshold: _Fraction | None
    sensitivity: _Measure
    specificity: _Fraction


class _Measures(_Entries):
    balanced_accuracy: _Measure
    macro_f1: _Measure
    log_loss: _Measure
    brier: _Measure
    calibration_error: _Measure
    roc_auc: list[_Measure]
    average_precision: list[_Measure]
    operating_point: _OperatingPoint | None = None


class _Test(_Entries):
    accuracy: _Fraction
    interval: _Interval
    tiles: _Count = 0
    classes: list[str] = []
    precision: list[_Fraction] = []
    recall: list[_Fraction] = []
    f1: list[_Fraction] = []
    support: list[_Count] = []
    measures: _Measures | None = None

    @model_validator(mode="after")
    def _one_figure_per_class(self) -> _Test:
        names = ("classes", "precision", "recall", "f1", "support")
        given = [name for name in names if name in self.model_fields_set]
        if len({len(getattr(self, name)) for name in given}) > 1:
            raise ValueError(f"{', '.join(given)} differ in length")
        if self.measures and {len(self.measures.roc_auc), len(self.measures.average_precision)} != {len(self.classes)}:
            raise ValueError("classes, measures.roc_auc, measures.average_precision differ in length")
        return self


class _Reliability(_Entries):
    calibration_error: _Fraction
    log_loss: Annotated[float, Field(ge=0)]
    brier: Annotated[float, Field(ge=0, le=2)]


class _Calibration(_Entries):
    temperature: Annotated[float, Field(gt=0, le=1000)]
    tiles: _Count
    val_before: _Reliability
    val_after: _Reliability
    test_before: _Reliability
    test_after: _Reliability


class _ColourFloor(_Entries):
    accuracy: _Fraction
    interval: _Interval
    ahead: Annotated[float, Field(ge=-1, le=1)]
    ahead_interval: Annotated[list[float], Field(min_length=2, max_length=2)]
    balanced: bool = False
    no_skill: _Fraction = 0.0
    groups: _Count | None = None


class _Floors(_Entries):
    chance: _Fraction
    majority: _Fraction
    colour: _ColourFloor


class _Training(_Entries):
    recipe: str = ""
    described_recipe: str = ""
    epochs: _Count = 0
    batch_size: _Count = 0
    lr: float = 0.0
    seed: _Count = 0
    balance: bool = False
    weights: str = ""
    weights_sha256: str = ""
    weights_notes: list[str] = []
    weights_report: str = ""
    trained_elsewhere: bool = False
    date: str = ""
    device: str = ""
    precision: dict[str, Any] = {}
    notes: list[str] = []
    epoch: _Count = 0
    extended: list[dict[str, _Count]] = []
    history: list[dict[str, Any]] = []
    val_accuracy: _Fraction | None = None
    data: _Data = _Data()
    test: _Test | None = None
    floors: _Floors | None = None
    calibration: _Calibration | None = None
    keep: str = "best"


def first_fault(error: ValidationError) -> str:
    """The first of several, such as "data.name: Input should be a valid string"."""
    fault = error.errors()[0]
    reason = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    return ": ".join(filter(None, (".".join(map(str, fault["loc"])), reason)))


def checked_training(value: dict[str, Any]) -> dict[str, Any]:
    """The record of a training, as it is; ValueError with the name of an entry that no training records like this."""
    try:
        _Training.model_validate(value)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error
    return value


def best_row(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the best epoch: highest validation accuracy; of equals the lower validation loss, then the earlier."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))


def kept_weights(training: Mapping[str, Any]) -> str:
    """Which weights these are, in words, and whether their validation accuracy is optimistic; "" where unknown."""
    history = [row for row in training.get("history", []) if {"epoch", "val_accuracy", "val_loss"} <= row.keys()]
    keep = training.get("keep", "best")
    if not history or (keep == "ema") != bool(training.get("averaged")):
        return ""
    if keep in ("ema", "last"):
        epoch, epochs = training["epoch"], training.get("epochs", training["epoch"])
        unfinished = f" of {epochs}; the run is not complete" if epoch < epochs else ""
        if keep == "ema":
            return f"moving average of the weights after epoch {epoch}{unfinished}"
        return f"epoch {epoch}{unfinished or ', the last'}"
    if training.get("epochs", 2) == 1 or best_row(history)["epoch"] != training.get("epoch"):
        return ""
    return f"epoch {training['epoch']}, chosen because its validation accuracy is the highest, which is optimistic"
