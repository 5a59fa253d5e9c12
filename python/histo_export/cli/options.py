"""Options that several commands share, how their texts are read, and how a command takes them as dataclasses.

A frozen dataclass stands for a group of options: each field is an option, with its default and, in its annotation, its
help. A command takes the group as one parameter, and `expand_options` turns the command into a function with one
parameter for each option, which is what Typer reads:

    def train(data: …, tiles: TileOptions) -> None: …

    app.command()(expand_options(train))        # histo train --data … --classes … --split … --crop … --mpp …

In the help, a group is a panel with the name of its class: "Tile options".

To add an option to the commands that share a group, add the field, and its place in `TRAINING_ORDER` if they use that.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from histo_export.errors import UsageError, nearest
from histo_export.spec import PRECISIONS, Precision

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MOST_DIGITS = 1000
"""Of an integer; Python refuses to read some thousands."""


def integer(text: str) -> int:
    """The integer in a text.

    Raises:
        ValueError: the text is another one, such as those that `int` reads too: "1_0", " 10", digits of other scripts.
        OverflowError: it has thousands of digits.
    """
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f"{text!r} is not an integer")
    if len(text) > MOST_DIGITS:
        raise OverflowError(f"{text[:20]}… is too large")
    return int(text)


def number(text: str) -> float:
    """The number in a text; ValueError for another text, such as those that `float` would read too ("1_0.5")."""
    if not re.fullmatch(r"[!-^`-~]+", text):  # ASCII without blanks and _
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def _pool(text: str) -> int:
    try:
        if (pool := integer(text)) >= 1:
            return pool
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"--pool {text}", "is not an integer of 1 or more", "Use --pool 1, 2, 3, …")


Pool = Annotated[
    int | None,
    typer.Option("--pool", parser=_pool, metavar="N", help="n of the n×n adaptive average pool; any n ≥ 1."),
]
Crop = Annotated[
    int | None,
    typer.Option(
        metavar="PX", help="Side of the centre crop, all that the network sees of a tile.  [dim]\\[default: 128][/dim]"
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="Print the result as JSON; nothing else goes to stdout.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="No progress, only the result.")]
BundleArgument = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="A folder that [b]histo export[/b] wrote, or [b]hf://[/b]ORG/NAME\\[@REV]."),
]


@dataclass(frozen=True)
class TileOptions:
    """Which tiles a network learns from, and which part of each tile it sees."""

    classes: Annotated[str | None, typer.Option(metavar="A,B,…", help="Use these classes only, in this order.")] = None
    split: Annotated[
        str | None,
        typer.Option(metavar="T,V,T", help="Train, val and test of one folder: fractions, or tiles per class."),
    ] = None
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="G",
            help="Tiles of one slide or patient stay in one split: a CSV (path,group), [b]folder:1[/b] (the tile's own "
            "folder; 2: the one above), a regular expression on names with one (group), or [b]kather2016[/b].",
        ),
    ] = None
    class_map: Annotated[
        str | None,
        typer.Option(
            metavar="CSV",
            help="Columns folder,class: which class each folder or label is, several may be one; an empty class leaves "
            "its tiles out.",
        ),
    ] = None
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates", metavar="", help="Train although tiles of two splits are the same or nearly so."
        ),
    ] = False
    resize: Annotated[
        int | None,
        typer.Option(
            metavar="PX", help="Resample each tile to this side before the crop, so that the crop shows more of it."
        ),
    ] = None
    crop: Crop = None
    mpp: Annotated[
        float | None,
        typer.Option(metavar="UM", help="µm per pixel of the tiles (before --resize), where the data don't state it."),
    ] = None

    @property
    def class_names(self) -> list[str] | None:
        """The classes one by one; None for all."""
        return [name.strip() for name in self.classes.split(",")] if self.classes else None


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained."""

    weights: Annotated[
        str,
        typer.Option(
            metavar="W", help="Weights to start from: [b]none[/b], [b]imagenet[/b], or a .pth or .safetensors file."
        ),
    ] = "none"
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="[b]strong[/b] (default), [b]report[/b] (the report's, no augmentation), or [b]short[/b] (for a few "
            "hundred steps).",
        ),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Passes over the training tiles.  [dim]\\[default: the recipe's][/dim]"),
    ] = None
    balance: Annotated[
        bool, typer.Option("--balance", metavar="", help="Draw each class equally often, however many tiles it has.")
    ] = False
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Length in optimiser steps in place of epochs, rounded up to whole epochs."),
    ] = None
    keep: Annotated[
        str,
        typer.Option(
            metavar="W",
            help="Weights to keep: [b]best[/b] epoch by validation, [b]last[/b], or [b]ema[/b]: their moving average.",
        ),
    ] = "best"
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            metavar="",
            help="Fit a temperature on validation; exported files then have it.",
        ),
    ] = False
    positive: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Of two classes the one to find: tells the sensitivity at --specificity."),
    ] = None
    specificity: Annotated[float, typer.Option(metavar="S", help="With --positive: the specificity to keep.")] = 0.95
    dropout: Annotated[
        float, typer.Option(metavar="P", help="Probability of dropout before the linear layer, while training.")
    ] = 0.0
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Tiles per step and device.  [dim]\\[default: 32][/dim]")
    ] = None
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="R", help="Learning rate of Adam, at its peak.  [dim]\\[default: 0.001][/dim]"),
    ] = None
    autocast: Annotated[
        str, typer.Option(metavar="T", help="Arithmetic of training: [b]auto[/b] (measured), fp32, bf16 or fp16.")
    ] = "auto"
    device: Annotated[
        str, typer.Option(metavar="DEV", help="[b]auto[/b], [b]cpu[/b] or [b]cuda[/b]. An error if it is not usable.")
    ] = "auto"
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of all random numbers: first weights, order, augmentation, splits.")
    ] = 0


@dataclass(frozen=True)
class OutputOptions:
    """What becomes of earlier results, and how this one is reported."""

    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Replace what an earlier run left at the same place.")
    ] = False
    as_json: AsJson = False
    quiet: Quiet = False


TRAINING_ORDER = (
    *("context", "source", "pool", "data", "checkpoint", "study", "weights", "recipe", "epochs", "steps"),
    *("classes", "split", "groups", "class_map", "allow_duplicates", "resize", "crop"),
    *("mpp", "mean", "std", "tile_size"),
    *("balance", "keep", "calibrate", "positive", "specificity"),
    *(
        "dropout",
        "batch",
        "lr",
        "formats",
        "input_kind",
        "opset",
        "fixed_batch",
        "precision",
        "max_drop",
        "accept_drop",
    ),
    *("autocast", "device", "devices", "nodes", "strategy", "seed", "out", "resume", "force", "as_json", "quiet"),
)
"""The order of help for `export` and `train`, of the panels and within them: what people set most often first."""


def expand_options(command: Callable[..., None], order: Sequence[str] = ()) -> Callable[..., None]:
    """A function for Typer in place of a command that takes dataclasses of options.

    Args:
        command: parameters whose type is a dataclass are replaced by the fields of that class.
        order: names of all parameters, in the order of the help, where required ones come first; default: as they are
            in the signature and in the classes.

    Returns:
        A function with keyword parameters only, which builds the dataclasses and calls `command`.

    Raises:
        ValueError: two parameters have one name, or `order` lacks one.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[DataclassInstance]] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _parameters_of(hints[name])
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))
    if order:
        parameters.sort(key=lambda p: (p.default is not Parameter.empty, order.index(p.name)))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters_of(group: type[DataclassInstance]) -> list[Parameter]:
    """A parameter for each field of a dataclass, with the field's default and annotation."""
    hints = get_type_hints(group, include_extras=True)
    words = re.findall("[A-Z][a-z]*", group.__name__)
    panel = " ".join(words).capitalize()
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=_in_panel(hints[field.name], panel),
        )
        for field in dataclasses.fields(group)
    ]


def _in_panel(annotation: Any, panel: str) -> Any:
    """The annotation of an option that the help shows in this panel."""
    value_type, option = get_args(annotation)
    option = copy.copy(option)  # several groups, and commands without a group, share some annotations
    option.rich_help_panel = panel
    return Annotated[value_type, option]


def given(options: DataclassInstance) -> list[str]:
    """The options of a group that differ from their defaults, as a user types them."""
    changed = (field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default)
    return [f"--{name.replace('_', '-')}" for name in changed]


FEW = 16
"""Values that a message may list: more than there are formats, fewer than there are runtimes, of which `histo doctor`
prints a list."""

VALUE_SYNONYMS = {
    **{"gpu": "cuda", "ort": "onnxruntime", "onnx": "onnxruntime", "pytorch": "torch", "jit": "torchscript"},
    **{"float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"},
    **{"nchw": "float", "nhwc": "uint8", "safetensors": "native", "tensorrt": "onnxruntime-tensorrt"},
    **{"tflite": "litert", "mlpackage": "coreml", "core-ml": "coreml", "fp16": "onnx-fp16", "ir": "openvino"},
}
"""Other tools' names of values → ours, where `difflib` finds another one or none."""


def one_of(option: str, value: str, known: Sequence[str], offered: Sequence[str] = ()) -> None:
    """UsageError unless `value` is one of `known`; it names the near ones, or all if they are few.

    Of a long list only those of `offered` are named, where there are some.
    """
    if value in known:
        return
    text = value.lower()
    meant = text if text in known else VALUE_SYNONYMS.get(text, text)
    if len(known) > FEW:  # only runtimes are that many
        raise UsageError(f"{option} {value}", "is unknown", nearest(meant, known, offered))
    near = [meant] if meant in known else difflib.get_close_matches(text, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Use {' or '.join(known)}"
    raise UsageError(f"{option} {value}", "is unknown", hint)


def three_numbers(option: str, text: str | None) -> Any:
    """ "425,100,100" → ints; "0.7,0.15,0.15" → floats; None stays None."""
    if text is None:
        return None
    try:
        parts = [part.strip() for part in text.split(",")]
        numbers = tuple(number(part) if "." in part else integer(part) for part in parts)
    except (ValueError, OverflowError):
        numbers = ()
    if len(numbers) != 3:
        raise UsageError(f"{option} {text}", "is not three numbers", f"Use e.g. {option} 425,100,100")
    return numbers


def counts(option: str, text: str) -> tuple[int, ...]:
    """ "1,8,32" → different integers of 1 or more."""
    try:
        numbers = tuple(integer(part.strip()) for part in text.split(","))
    except (ValueError, OverflowError):
        numbers = (0,)
    if min(numbers) < 1:
        raise UsageError(f"{option} {text}", "is not a list of integers of 1 or more", f"Use e.g. {option} 1,8")
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"{option} {text}", "names a number twice", "Name each once")
    return numbers


def precisions(text: str) -> tuple[Precision, ...]:
    """ "fp32,int8" → different precisions, from the most exact on."""
    names = dict.fromkeys(part.strip() for part in text.split(","))
    for name in names:
        one_of("--precision", name, PRECISIONS)
    return tuple(name for name in PRECISIONS if name in names)


def usable_cpus() -> int:
    """The CPUs that this process may use, by affinity and cgroup."""
    from histo_export import _core

    return _core.usable_cpus()
