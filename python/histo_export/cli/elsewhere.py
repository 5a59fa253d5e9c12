"""The options of `histo export` for weights that were trained elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from histo_export.cli.options import TileOptions, TrainingOptions, given, number
from histo_export.errors import UsageError
from histo_export.model.weight_source import weight_file
from histo_export.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

Channels = tuple[float, float, float]

NORMALISATIONS = (
    "torchvision's ImageNet weights, and most networks that were trained from them, use --mean imagenet --std imagenet "
    f"({','.join(map(str, IMAGENET_MEAN))} and {','.join(map(str, IMAGENET_STD))}); if the training only divided "
    "pixels by 255, give --mean 0,0,0 --std 1,1,1"
)


@dataclass(frozen=True)
class ForeignWeightsOptions:
    """What a file of weights does not tell about its model."""

    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B", help="With --weights FILE alone: its mean of values in [0, 1]; or [b]imagenet[/b]."
        ),
    ] = None
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="The same for its standard deviation; or [b]imagenet[/b].")
    ] = None
    tile_size: Annotated[
        int | None,
        typer.Option(
            metavar="PX", help="With --weights FILE alone: side of the tiles.  [dim]\\[default: the crop][/dim]"
        ),
    ] = None


def file_to_export(training: TrainingOptions, data: str | None, checkpoint: Path | None) -> Path | None:
    """The file of --weights if it is to be exported as it is; None where a network is trained or a checkpoint read."""
    file = weight_file(training.weights)
    return file if data is None and checkpoint is None else None


def model_of_options(
    file: Path | None,
    pool: int | None,
    tiles: TileOptions,
    training: TrainingOptions,
    options: ForeignWeightsOptions,
    precision: str,
) -> ModelSpec | None:
    """The model of the weights in `file`, as far as the options say it: its pool is 1 where they don't.

    Returns:
        None where there is no such file.

    Raises:
        UsageError: an option is missing, impossible, or for the other case.
    """
    if file is None:
        if extra := given(options):
            step = "Leave it out, or give --weights FILE and --classes without --data"
            raise UsageError(extra[0], "is for weights that were trained elsewhere", step)
        return None
    names = tiles.class_names
    if names is None:
        cause = "says neither what to train on nor what its outputs mean"
        step = "To train from it add --data TILES; to export it as it is add --classes A,B,… --mean R,G,B --std R,G,B"
        raise UsageError(f"--weights {file}", cause, step)
    extra = [option for option in given(training) if option != "--weights"]
    extra += [option for option in given(tiles) if option not in ("--classes", "--crop", "--mpp")]
    if extra:
        step = "Add --data to train from the weights, or leave it out to export them as they are"
        raise UsageError(extra[0], "says how to train, and there is no --data to train on", step)
    if precision != "fp32":
        cause = "is measured on the tiles of the training, which weights from elsewhere come without"
        raise UsageError(f"--precision {precision}", cause, "Export them in fp32")
    for option, text in (("--mean", options.mean), ("--std", options.std)):
        if text is None:
            cause = "is missing, and with another normalisation than in training the answers are wrong"
            raise UsageError(option, cause, f"Give the values of the training; {NORMALISATIONS}")
    crop = 128 if tiles.crop is None else tiles.crop
    return ModelSpec(
        pool=pool or 1,
        classes=tuple(names),
        crop=crop,
        tile_size=crop if options.tile_size is None else options.tile_size,
        mean=_channels("--mean", options.mean, IMAGENET_MEAN),
        std=_channels("--std", options.std, IMAGENET_STD),
        mpp=tiles.mpp,
    )


def _channels(option: str, text: str | None, imagenet: Channels) -> Channels:
    """ "0.5,0.5,0.5" or "imagenet" → three numbers; `ModelSpec` judges them."""
    if text == "imagenet":
        return imagenet
    try:
        red, green, blue = (number(part.strip()) for part in (text or "").split(","))
    except ValueError as error:
        example = ",".join(map(str, imagenet))
        raise UsageError(f"{option} {text}", "is not three numbers", f"Use e.g. {option} {example}") from error
    return red, green, blue
