"""`histo export`, which is `histo-export` too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.elsewhere import ForeignWeightsOptions, file_to_export, model_of_options
from histo_export.cli.options import OutputOptions, Pool, TileOptions, TrainingOptions, given, one_of, usable_cpus
from histo_export.cli.tiles import tiles_of_checkpoint
from histo_export.cli.train import RunOptions, prepare, run_training
from histo_export.errors import HistoError, UsageError
from histo_export.export.formats import (
    DEFAULT_FORMATS,
    FORMATS,
    HIGHEST_OPSET,
    LOWEST_OPSET,
    OWN_FORMATS,
    check_formats,
    with_needs,
)
from histo_export.extras import needs
from histo_export.spec import PRECISIONS

if TYPE_CHECKING:
    from histo_export.data import TileData
    from histo_export.export.checks import Checks
    from histo_export.export.run import ExportSettings
    from histo_export.model.checkpoint import Checkpoint
    from histo_export.training.result import TrainResult
    from histo_export.training.run import Existing


LARGEST_BATCH = 1024
"""Of --fixed-batch: such a batch of feature maps takes gigabytes."""


@dataclass(frozen=True)
class BundleOptions:
    """What the bundle is to hold."""

    formats: Annotated[
        str,
        typer.Option(
            metavar="F,F,…",
            help=f"Files to write: {', '.join(FORMATS)}; or [b]all[/b] up to {OWN_FORMATS[-1]}. timm takes pool 1 "
            "alone; the others are made by converters that you install.",
        ),
    ] = ",".join(DEFAULT_FORMATS)
    input_kind: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="KIND",
            help="What the ONNX, TorchScript and .pt2 files take: [b]float[/b] tiles (n, 3, height, width) with values "
            "from 0 to 1, or [b]uint8[/b] tiles (n, height, width, 3) as a decoder gives them.",
        ),
    ] = "float"
    opset: Annotated[
        int,
        typer.Option(
            metavar="N",
            help=f"Of ONNX files, {LOWEST_OPSET} to {HIGHEST_OPSET}; the lowest works in the most programs.",
        ),
    ] = LOWEST_OPSET
    fixed_batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of the file of onnx-fixed, whose batch is fixed.  [dim]\\[default: 1][/dim]"),
    ] = None
    precision: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="In which the bundle is meant to run: fp32, bf16x3, bf16 or int8. Below fp32 the loss of accuracy is "
            "measured; with --checkpoint, --data must name its tiles.",
        ),
    ] = "fp32"
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="PTS", help="Percentage points of accuracy that --precision may lose.  [dim]\\[default: 0.5][/dim]"
        ),
    ] = None
    accept_drop: Annotated[
        bool, typer.Option("--accept-drop", metavar="", help="Export even where more than that is lost.")
    ] = False


def export(
    tiles: TileOptions,
    training: TrainingOptions,
    bundle: BundleOptions,
    elsewhere: ForeignWeightsOptions,
    output: OutputOptions,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="The folder of a run of [b]histo train[/b], or its best.ckpt: exported."),
    ] = None,
    pool: Pool = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="TILES",
            help="A folder of images, an archive, a table, .npy arrays, a public set ([b]histo data[/b]) or "
            "[b]demo[/b] (synthetic).",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="Export what [b]histo train[/b] wrote instead of training.")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Export the network that the [b]histo study[/b] in this folder recommends."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bundle.  [dim]\\[default: bundles/DATA-poolN][/dim]")
    ] = None,
) -> None:
    """Train if necessary, export to every format, and prove that each file is the same model.

    Weights that were trained elsewhere are exported as they are: --weights FILE --classes A,B,… --mean … --std …

    Without --data, --checkpoint or --weights FILE it trains on generated, synthetic tiles, as a one-minute
    demonstration.
    """
    formats = _formats(bundle.formats)
    _check_precision(bundle, formats)
    if "timm" in formats and pool not in (None, 1):
        cause = f"is for pool 1, and this network has pool {pool}"
        raise UsageError("--formats timm", cause, "Leave timm out, or use --pool 1")
    checkpoint = _checkpoint_file(source, checkpoint) if study is None else _of_study(study, source or checkpoint)
    if checkpoint is not None:
        _check_checkpoint_options(data, tiles, training, bundle)
    foreign = file_to_export(training, data, checkpoint)
    model = model_of_options(foreign, pool, tiles, training, elsewhere, bundle.precision)

    needs("histo export", "train", *(["onnx"] if "onnx" in with_needs(formats) else []))
    with show.status("starting torch", output.quiet):
        import histo_export.export.run  # noqa: F401 (here, where a line says why it takes seconds)
        from histo_export.export.elsewhere import checkpoint_of_weights
        from histo_export.model.checkpoint import read_checkpoint

    result = opened = None
    if foreign is not None and model is not None:
        checkpoint, loaded = foreign, checkpoint_of_weights(foreign, model, pool)
    else:
        if checkpoint is None:
            options = RunOptions(data or "demo", pool or 1, tiles, training)
            out = out or Path("bundles") / options.name
            opened, result = _train(options, out, output)
            checkpoint = result.checkpoint
        loaded = read_checkpoint(checkpoint)
        _check_agreement(loaded, pool, tiles)
        _note_missing_calibration(checkpoint, loaded)
    loaded = _with_scale(loaded, tiles.mpp)
    if opened is None and data is not None:
        opened = tiles_of_checkpoint(loaded, data, tiles)
    out = out or _default_place(loaded)
    checks = _export(loaded, out, _settings(bundle, formats, output.force), opened, output.quiet)
    following = _next_steps(out, formats, slides=loaded.spec.mpp is not None)
    if output.as_json:
        _print_json(checkpoint, loaded, out, checks, bundle.precision, following)
    else:
        _print(result, loaded, out, checks, bundle.precision, [] if output.quiet else following)


def _with_scale(checkpoint: Checkpoint, mpp: float | None) -> Checkpoint:
    """The checkpoint with another µm per pixel, of the tiles before they were resized; as it is where that is None."""
    spec = checkpoint.spec
    return checkpoint if mpp is None else replace(checkpoint, spec=replace(spec, mpp=spec.scale_of(mpp)))


def _default_place(checkpoint: Checkpoint) -> Path:
    """The bundle of a checkpoint where the user names none."""
    name = checkpoint.training.get("data", {}).get("name", "model")
    return Path("bundles") / f"{name}-pool{checkpoint.spec.pool}"


def _note_missing_calibration(file: Path, checkpoint: Checkpoint) -> None:
    """Says where the run that left a checkpoint is to be calibrated, and this one is not yet: a run is at its test."""
    if checkpoint.training.get("calibration"):
        return
    try:
        options = RunOptions.recorded(file.parent)
    except HistoError:  # of another program, or damaged: it is not needed here
        return
    if options is not None and options.training.calibrate:
        run = file.parent
        complete, again = (
            show.command_line("histo", "train", "--resume", run),
            show.command_line("histo", "export", run),
        )
        show.log.print(
            f"[yellow]note:[/] the run was made with --calibrate, but {escape(file.name)} has no temperature, so the "
            f"bundle is not calibrated. Complete the run with {escape(complete)}, then {escape(again)} --force",
            soft_wrap=True,
        )


def _checkpoint_file(source: Path | None, checkpoint: Path | None) -> Path | None:
    """The checkpoint that the user named, perhaps by the folder of its run; None where none was named."""
    if source is not None and checkpoint is not None:
        raise UsageError(f"--checkpoint {checkpoint}", f"names another model than {source}", "Leave one of them out")
    path = source or checkpoint
    if path is None or not path.is_dir():
        return path
    from histo_export.training.folder import RunFolder

    best = RunFolder(path).best
    if not best.is_file():
        if (last := RunFolder(path).last).is_file():
            step = f"Export its last epoch: {show.command_line('histo', 'export', last)}"
            raise UsageError(path, f"has {last.name} but no {best.name}", step)
        cause = f"is not the folder of a training run (no {best.name})"
        raise UsageError(path, cause, f"To train on the tiles in it: {show.command_line('--data', path)}")
    return best


def _of_study(study: Path, other: Path | None) -> Path:
    """The checkpoint that a study recommends; UsageError where another one is named, too."""
    if other is not None:
        raise UsageError(f"--study {study}", f"names another model than {other}", "Leave one of them out")
    from histo_export.study.report import recommended_checkpoint

    checkpoint, decided = recommended_checkpoint(study)
    if not decided:
        show.log.print("[yellow]note:[/] The study had not decided; this is its pool so far.", soft_wrap=True)
    return checkpoint


def _train(options: RunOptions, out: Path, output: OutputOptions) -> tuple[TileData, TrainResult]:
    """Trains beside the place of the bundle `out`; a run that is there with the same options goes on or is used."""
    from histo_export.export.bundle import check_destination

    check_destination(out, output.force)
    run = out.with_name(f"{out.name}-run")
    tiles, spec, config = prepare(options, run, output.quiet)
    existing: Existing = "replace" if output.force else "reuse"
    go_on = "the same command, without --force" if output.force else "the same command"
    return tiles, run_training(tiles, spec, config, run, options, output, existing, go_on)


def _formats(text: str) -> list[str]:
    """ "onnx,native" or "all" → keys of `FORMATS`, in its order. "all" are those that every model can have."""
    known = tuple(FORMATS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        one_of("--formats", name, (*known, "all"))
    if not names:
        raise UsageError("--formats", "names no format", f"Use some of {', '.join(known)}")
    return [name for name in known if name in names or ("all" in names and name in OWN_FORMATS)]


def _check_precision(bundle: BundleOptions, formats: Sequence[str]) -> None:
    """UsageError where the options of the bundle contradict each other."""
    one_of("--input", bundle.input_kind, ("float", "uint8"))
    one_of("--precision", bundle.precision, PRECISIONS)
    if not LOWEST_OPSET <= bundle.opset <= HIGHEST_OPSET:
        raise UsageError(
            f"--opset {bundle.opset}",
            f"is not from {LOWEST_OPSET} to {HIGHEST_OPSET}",
            f"Leave it out for {LOWEST_OPSET}, which every runtime reads that reads a newer one",
        )
    if bundle.opset != LOWEST_OPSET and "onnx" not in with_needs(formats):
        raise UsageError(f"--opset {bundle.opset}", "is for ONNX files", "Add onnx to --formats, or leave it out")
    _check_fixed_batch(bundle.fixed_batch, formats)
    check_formats(formats, bundle.input_kind)  # type: ignore[arg-type]  # checked above
    low = bundle.precision != "fp32"
    if not low and (bundle.max_drop is not None or bundle.accept_drop):
        raise UsageError(
            "--max-drop" if bundle.max_drop is not None else "--accept-drop",
            "is for precisions below fp32",
            "Add --precision int8, or leave it out",
        )
    if bundle.max_drop is not None and not 0 <= bundle.max_drop <= 100:
        raise UsageError(
            f"--max-drop {bundle.max_drop:g}", "is not a number of points from 0 to 100", "Use e.g. --max-drop 1"
        )
    if low and "native" not in formats:
        raise UsageError(
            f"--precision {bundle.precision}", "is for the native engine's file", "Add native to --formats"
        )


def _check_fixed_batch(fixed_batch: int | None, formats: Sequence[str]) -> None:
    """UsageError where --fixed-batch is not one, or has no file."""
    if fixed_batch is None:
        return
    if not 1 <= fixed_batch <= LARGEST_BATCH:
        raise UsageError(
            f"--fixed-batch {fixed_batch}", f"is not from 1 to {LARGEST_BATCH}", "Use e.g. --fixed-batch 32"
        )
    if "onnx-fixed" not in formats:
        step = "Add onnx-fixed to --formats, or leave it out: all other files take every batch"
        raise UsageError(f"--fixed-batch {fixed_batch}", "is for the ONNX file with a fixed batch", step)


def _check_checkpoint_options(
    data: str | None, tiles: TileOptions, training: TrainingOptions, bundle: BundleOptions
) -> None:
    """UsageError for an option that says how to train, and where a precision lacks the tiles to measure it on."""
    low = bundle.precision != "fp32"
    if low and data is None:
        raise UsageError(
            f"--precision {bundle.precision}",
            "is measured on tiles, and a checkpoint has none",
            "Add --data, and --split and --groups if there were any, as the checkpoint was trained",
        )
    clash = given(training) + [option for option in given(tiles) if option in ("--allow-duplicates", "--resize")]
    if training.calibrate:
        run = "--calibrate", "is fitted on validation tiles when a run is tested"
        raise UsageError(*run, "Use histo train --resume RUN --calibrate, then export")
    if data is None:
        pairs = (("--split", tiles.split), ("--groups", tiles.groups), ("--class-map", tiles.class_map))
        clash += [option for option, value in pairs if value is not None]
    if clash:
        raise UsageError(clash[0], "says how to train, and --checkpoint is trained already", "Leave one of them out")


def _check_agreement(checkpoint: Checkpoint, pool: int | None, tiles: TileOptions) -> None:
    """UsageError where an option contradicts the checkpoint."""
    spec = checkpoint.spec
    pairs = {
        "--pool": (pool, spec.pool),
        "--crop": (tiles.crop, spec.crop),
        "--classes": (tiles.class_names, list(spec.classes)),
    }
    for option, (asked, recorded) in pairs.items():
        if asked is not None and asked != recorded:
            shown = ",".join(recorded) if isinstance(recorded, list) else recorded
            raise UsageError(option, f"contradicts the checkpoint, which has {shown}", f"Leave {option} out")


def _settings(bundle: BundleOptions, formats: Sequence[str], force: bool) -> ExportSettings:
    from histo_export.export.low_precision import MAX_DROP
    from histo_export.export.run import ExportSettings

    return ExportSettings(
        formats,
        kind=bundle.input_kind,  # type: ignore[arg-type]  # checked by _check_precision
        precision=bundle.precision,  # type: ignore[arg-type]  # checked by _check_precision
        max_drop=MAX_DROP if bundle.max_drop is None else bundle.max_drop,
        accept_drop=bundle.accept_drop,
        force=force,
        threads=usable_cpus(),
        opset=bundle.opset,
        batch_size=bundle.fixed_batch or 1,
    )


def _export(checkpoint: Checkpoint, out: Path, settings: ExportSettings, tiles: TileData | None, quiet: bool) -> Checks:
    from histo_export.export.run import export_bundle

    with show.status("exporting", quiet) as report:
        return export_bundle(checkpoint, out, settings, data=tiles, report=report)


def _next_steps(out: Path, formats: Sequence[str], slides: bool = True) -> list[str]:
    """Shell commands to go on with; without `slides`, for a model whose µm per pixel is unknown, on tiles."""
    # From the end of the table: what serves the model comes before what only opens a file.
    steps = (FORMATS[name].writer.next_step(out) for name in reversed(FORMATS) if name in formats)
    ours = [show.command_line("histo", name, out) for name in ("verify", "inspect", "bench")]
    ours.insert(1, show.command_line("histo", "predict", out, "slides/" if slides else "tiles/"))
    return [*ours, *(step for step in steps if step)]


def _print_json(
    file: Path, checkpoint: Checkpoint, out: Path, checks: Checks, precision: str, following: Sequence[str]
) -> None:
    show.print_json(
        {
            "bundle": str(out),
            "checkpoint": str(file),
            "synthetic": bool(checkpoint.training.get("data", {}).get("synthetic")),
            **{key: checkpoint.training.get(key) for key in ("test", "floors", "calibration")},
            "files": [show.file_facts(out, result) for result in checks.results],
            "unchecked": checks.unchecked,
            "precision": precision,
            "low_precision": checks.low_precision and checks.low_precision.model_dump(),
            "precision_costs": checks.precision_costs and checks.precision_costs.model_dump(),
            "next": following,
        }
    )


def _print(
    result: TrainResult | None,
    checkpoint: Checkpoint,
    out: Path,
    checks: Checks,
    precision: str,
    following: Sequence[str],
) -> None:
    from histo_export.export.card import epoch_note

    spec, training = checkpoint.spec, checkpoint.training
    if result is not None:
        show.print_accuracy(result)
    if training.get("test") or training.get("calibration"):
        show.print_measures(training.get("test"), training.get("calibration"), exported=True)
        show.out_console.print()
    synthetic = ", trained on synthetic tiles" if checkpoint.training.get("data", {}).get("synthetic") else ""
    origin = ", trained elsewhere, accuracy unknown" if checkpoint.training.get("trained_elsewhere") else synthetic
    if note := epoch_note(checkpoint.training):
        show.log.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    title = f"{out}: ResNet34, pool {spec.pool}, {len(spec.classes)} classes{origin}"
    show.print_files(title, out, checks, checkpoint.training)
    show.print_passed(len(checks.results))
    if checks.low_precision is not None:
        show.out_console.print()
        show.print_low_precision(precision, checks.low_precision)
    if checks.precision_costs is not None:
        show.out_console.print()
        show.print_precision_costs(checks.precision_costs)
    if spec.mpp is None and not synthetic:
        show.log.print("[yellow]µm per pixel unknown:[/] config.json says 0.5; state the true one with --mpp.")
    if following:
        show.out_console.print("\nNext:")
        for line in following:
            show.out_console.print(f"  {line}", markup=False, soft_wrap=True)
