"""The tiles of a data set, opened and checked for a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import TileOptions, three_numbers
from histo_export.errors import UsageError

if TYPE_CHECKING:
    from histo_export.data import TileData
    from histo_export.model.checkpoint import Checkpoint
    from histo_export.spec import ModelSpec


def open_tiles(data: str, options: TileOptions, *, pool: int, dropout: float, seed: int) -> tuple[ModelSpec, TileData]:
    """The tiles, checked, and the model that will be trained on them.

    Args:
        data: as the user typed it, see `data.open_data`.
        options: classes, split, groups, size, crop and µm per pixel.
        pool, dropout: of the model.
        seed: of the split.
    """
    from histo_export.spec import ModelSpec

    crop = 128 if options.crop is None else options.crop
    tiles = _open(data, options, options.class_names, crop, seed)
    if options.resize is not None:
        tiles = tiles.resized(options.resize)
    _print_notes(tiles)
    spec = ModelSpec(
        pool=pool,
        classes=tiles.classes,
        crop=crop,
        tile_size=tiles.tile_size,
        mpp=tiles.mpp,
        dropout=dropout,
        resized_from=tiles.resized_from,
    )
    return spec if options.mpp is None else replace(spec, mpp=spec.scale_of(options.mpp)), tiles


def _open(data: str, options: TileOptions, classes: Sequence[str] | None, crop: int, seed: int) -> TileData:
    from histo_export.data import open_data

    split = three_numbers("--split", options.split)
    known = {"classes": classes, "crop": crop, "split": split, "seed": seed}
    return open_data(data, **known, groups=options.groups, class_map=options.class_map)


def check_model(options: TileOptions, pool: int, dropout: float) -> None:
    """UsageError where options of the model are wrong whatever the tiles are, so that nobody reads these first."""
    from histo_export.data.split import check_split
    from histo_export.spec import ModelSpec

    crop = 128 if options.crop is None else options.crop
    if options.resize is not None and options.resize < crop:
        cause = f"is smaller than the crop of {crop} pixels"
        raise UsageError(f"--resize {options.resize}", cause, f"Use {crop} or more, or a smaller --crop")
    ModelSpec(pool=pool, classes=("a", "b"), crop=crop, tile_size=crop, mpp=options.mpp, dropout=dropout)
    split = three_numbers("--split", options.split)
    if split is not None:
        check_split(split)


def tiles_of_checkpoint(checkpoint: Checkpoint, data: str, options: TileOptions) -> TileData:
    """The tiles that a checkpoint was trained on, split as they were then; UsageError where they are others.

    Of `options`, split and groups count; the rest is that of the checkpoint.
    """
    spec, training = checkpoint.spec, checkpoint.training
    tiles = _open(data, options, spec.classes, spec.crop, training.get("seed", 0))
    if spec.resized_from is not None:
        tiles = tiles.resized(spec.tile_size)
    _print_notes(tiles)
    trained_on = training.get("data", {})
    if trained_on.get("fingerprint") not in (None, tiles.fingerprint):
        raise UsageError(
            f"--data {data}",
            f"is not what the checkpoint was trained on ({trained_on.get('name')}, fingerprint "
            f"{trained_on['fingerprint'][:12]}…; here {tiles.fingerprint[:12]}…)",
            "Give the same tiles, and the same --split and --groups if there were any",
        )
    return tiles


def _print_notes(tiles: TileData) -> None:
    for note in tiles.notes:
        show.log.print(f"[yellow]note:[/] {escape(note)}")
