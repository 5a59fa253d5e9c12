"""The command that makes a bundle again with something added to it, as far as the bundle tells how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from histo_export.export.bundle import Bundle, spec_of
from histo_export.export.formats import DEFAULT_FORMATS, FORMATS, LOWEST_OPSET

RUN = "RUN"
"""Stands for the folder of the training run in a command: a bundle does not record it."""


def command_again(bundle: Bundle, *more: str) -> str:
    """The command as a shell reads it.

    Args:
        bundle: to be replaced. It does not record --split, which the user must add where the run had one.
        more: options to add.
    """
    block = bundle.config.histo
    words = ["histo", "export", *_source(bundle)]
    formats = [name for name, row in FORMATS.items() if any(map(row.makes, block.files))]
    if formats and set(formats) != set(DEFAULT_FORMATS):
        words += ["--formats", ",".join(formats)]
    if block.input != "float":
        words += ["--input", block.input]
    if block.opset != LOWEST_OPSET:
        words += ["--opset", str(block.opset)]
    if block.batch_size != 1:
        words += ["--fixed-batch", str(block.batch_size)]
    if block.precision != "fp32":
        words += ["--precision", block.precision, "--data", "TILES"]
        data = block.training.get("data", {})
        if data.get("groups") and f"({data.get('name')})" not in data.get("split", ""):  # not by the table of the tiles
            words += ["--groups", "GROUPS"]
    if low := block.low_precision:
        words += ["--max-drop", f"{low.max_drop:g}", *(["--accept-drop"] if low.drop_accepted else [])]
    return shlex.join([*words, *more, "--out", str(bundle.path), "--force"])


def _source(bundle: Bundle) -> Sequence[str]:
    """What the bundle is made from: the run beside it, where `histo export` trains, or weights from elsewhere."""
    training = bundle.config.histo.training
    if training.get("trained_elsewhere"):
        spec = spec_of(bundle)
        sizes = {"--pool": spec.pool, "--crop": spec.crop, "--tile-size": spec.tile_size}
        channels = {"--mean": spec.mean, "--std": spec.std}
        return [
            *("--weights", str(training.get("weights") or "FILE"), "--classes", ",".join(spec.classes)),
            *(word for option, value in sizes.items() for word in (option, str(value))),
            *(word for option, values in channels.items() for word in (option, ",".join(map(str, values)))),
        ]
    place = bundle.path.absolute()
    beside = place.with_name(f"{place.name}-run")
    return [str(bundle.path.with_name(beside.name)) if bundle.path.name else str(beside)] if beside.is_dir() else [RUN]
