"""What is judged before a run writes anything: the place of its results, the model, and what is installed.

None of this is the fault of an input, so it ends the run, with the exit code of wrong use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from histo_export.bundle_files import CONFIG, GOLDEN
from histo_export.errors import HistoError, UsageError, not_written
from histo_export.export.again import RUN, command_again
from histo_export.export.bundle import Bundle
from histo_export.extras import needs
from histo_export.predict.features import check_features
from histo_export.predict.inputs import Input, SlideInput
from histo_export.predict.per_slide import check_files
from histo_export.predict.settings import PredictSettings
from histo_export.predict.work import Worker
from histo_export.spec import ModelSpec


def check_places(out: Path, tiles_out: str | None) -> None:
    """UsageError where results can't be put at `out`, or pictures of tiles at `tiles_out`."""
    _check_place(out, "--out")
    if tiles_out is None:
        return
    _check_place(Path(tiles_out), "--tiles-out")
    place, results = (Path(os.path.realpath(path)) for path in (tiles_out, out))
    if place.is_relative_to(results):  # a result could get the place of its folders
        raise UsageError(tiles_out, f"lies in {out}, which is for results", "Choose another --tiles-out")


def _check_place(out: Path, option: str) -> None:
    """UsageError where nothing can be put at `out`, the value of `option`."""
    try:
        place = Path(os.path.realpath(out))
        for folder in (place, *place.parents):
            if folder.exists() and not folder.is_dir():
                cause = "is a file" if folder == place else f"would lie in {folder}, which is a file"
                raise UsageError(out, cause, f"Choose another {option}")
            if (folder / CONFIG).is_file() and (folder / GOLDEN).is_file():
                raise UsageError(out, f"would put results into the bundle {folder}", f"Choose another {option}")
    except OSError as error:
        raise not_written(out, error, f"choose another {option}") from error


def check_slides(bundle: Bundle, spec: ModelSpec, inputs: Sequence[Input], settings: PredictSettings) -> None:
    """UsageError where `inputs` include a slide, and this model or this installation can't do slides as asked."""
    slides = sum(isinstance(item, SlideInput) for item in inputs)
    if not slides:
        return
    if spec.mpp is None:
        again = command_again(bundle, "--mpp", "0.5")
        meant = {RUN: "is the folder of its training run", "TILES": "are its tiles (add --split if the run had it)"}
        words = [f"{word} {text}" for word, text in meant.items() if f" {word} " in again]
        where = f", where {' and '.join(words)}" if words else ""
        raise UsageError(
            bundle.path,
            "does not state its µm per pixel, which slides need",
            f"Export it again with that of its training tiles, here 0.5: {again}{where}",
        )
    needs("Reading slides", "slides")
    for module in ("readers", "whole_slide"):  # what is installed may still not load; the command line tells so
        importlib.import_module(f"histo_export.predict.{module}")
    if settings.features is not None:
        check_features(settings.features)
    if settings.slide.coords is not None:
        from histo_export.predict.coords import check_coords

        check_coords(settings.slide.coords, slides)
    if not settings.slide.everywhere:
        from histo_export.predict.regions import MASK, ROI

        for option, place, kind in (("--roi", settings.slide.roi, ROI), ("--mask", settings.slide.mask, MASK)):
            if place is not None:
                check_files(option, place, slides, kind)


def check_class_map(spec: ModelSpec, class_map: Mapping[str, str] | None) -> None:
    """UsageError where a map of classes names a class that the model does not have."""
    unknown = [name for name in dict.fromkeys((class_map or {}).values()) if name and name not in spec.classes]
    if unknown:
        step = f"The classes are {', '.join(spec.classes)}; leave the cell empty where tiles are not to be judged"
        raise UsageError("--class-map", f"names {', '.join(unknown)}, which the model does not know", step)


def check_ray(address: str | None) -> None:
    """UsageError where Ray is asked for and not installed."""
    if address is not None:
        needs("--ray", "ray")
        importlib.import_module("histo_export.predict.on_ray")


def open_worker(bundle: Bundle, spec: ModelSpec, out: Path, settings: PredictSettings) -> Worker:
    """The model, opened; UsageError where this machine can't run it as the settings say."""
    with _of_the_command():
        return Worker(bundle, spec, out, settings)


@contextmanager
def _of_the_command() -> Iterator[None]:
    """Turns a HistoError of the block into a UsageError: no input is at fault, and nothing has been done."""
    try:
        yield
    except HistoError as error:
        raise UsageError(error.thing, error.cause, error.next_step) from error
