"""`histo train`, and the training that `histo export` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import OutputOptions, Pool, TileOptions, TrainingOptions, one_of
from histo_export.cli.tiles import open_tiles
from histo_export.errors import UsageError

if TYPE_CHECKING:
    from histo_export.data import TileData
    from histo_export.spec import ModelSpec
    from histo_export.training.result import TrainResult

DEMO = TrainingOptions(recipe="report", epochs=3, batch=16, lr=3e-4)
"""What trains on the demo tiles within about a minute on two cores.

In so few steps small batches and a lower rate learn more, and augmentation only slows the start.
"""


@dataclass(frozen=True)
class ClusterOptions:
    """On how many devices and machines a network is trained."""

    devices: Annotated[int, typer.Option(metavar="N", help="GPUs (or processes) on each machine.")] = 1
    nodes: Annotated[int, typer.Option(metavar="N", help="Machines.")] = 1
    strategy: Annotated[str, typer.Option(metavar="S", help="Lightning's: auto, ddp, …")] = "auto"


def train(
    data: Annotated[
        str, typer.Option(metavar="TILES", help="A folder of images, .npy arrays, [b]kather2016[/b] or [b]demo[/b].")
    ],
    tiles: TileOptions,
    training: TrainingOptions,
    cluster: ClusterOptions,
    output: OutputOptions,
    pool: Pool = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder.  [dim]\\[default: runs/DATA-poolN][/dim]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Continue an interrupted run after its last complete epoch.")
    ] = False,
) -> None:
    """Train a classifier, keep its best epoch, and test it."""
    if resume and output.force:
        raise UsageError("--resume", "contradicts --force", "Leave one of them out")
    spec, opened = open_tiles(data, tiles, pool=pool or 1, dropout=training.dropout, seed=training.seed)
    out = out or Path("runs") / f"{opened.name}-pool{spec.pool}"
    result = run_training(opened, spec, training, out, output, cluster, resume=resume)

    from histo_export.training.run import is_main_process

    if not is_main_process():
        return
    following = [show.command_line("histo", "export", "--checkpoint", result.checkpoint)]
    if output.as_json:
        show.print_json({"run": str(out), **result.to_dict(), "next": following})
        return
    show.print_accuracy(result)
    _print_classes(result)
    if not output.quiet:
        show.out_console.print(f"\n{out}: best.ckpt, last.ckpt, metrics.csv, curves.png, confusion.png, report.json")
        show.out_console.print(f"\nNext:\n  {following[0]}", markup=False, soft_wrap=True)


def run_training(
    tiles: TileData,
    spec: ModelSpec,
    options: TrainingOptions,
    run: Path,
    output: OutputOptions,
    cluster: ClusterOptions | None = None,
    *,
    resume: bool = False,
) -> TrainResult:
    """Trains as the options say; the demo tiles quickly where they say nothing.

    Args:
        tiles: of `spec`.
        spec: the model.
        options: how to train.
        run: the run's folder.
        output: whether an earlier run is replaced, and progress shown.
        cluster: devices and machines; None for one device.
        resume: continue the run in `run`.
    """
    from histo_export.training.recipes import RECIPES, TrainConfig

    if tiles.synthetic and (options.recipe, options.epochs, options.batch, options.lr) == (None, None, None, None):
        options = replace(options, recipe=DEMO.recipe, epochs=DEMO.epochs, batch=DEMO.batch, lr=DEMO.lr)
    cluster = cluster or ClusterOptions()
    recipe = options.recipe or "strong"
    one_of("--recipe", recipe, tuple(RECIPES))
    one_of("--device", options.device, ("auto", "cpu", "cuda"))
    one_of("--autocast", options.autocast, ("auto", "fp32", "bf16", "fp16"))
    config = TrainConfig(
        recipe=recipe,
        epochs=options.epochs,
        batch_size=32 if options.batch is None else options.batch,
        lr=1e-3 if options.lr is None else options.lr,
        weights=options.weights,
        autocast=options.autocast,  # type: ignore[arg-type]  # checked above
        device=options.device,  # type: ignore[arg-type]  # checked above
        seed=options.seed,
        devices=cluster.devices,
        nodes=cluster.nodes,
        strategy=cluster.strategy,
    )
    from histo_export.training.run import train as train_run

    try:
        return train_run(tiles, spec, config, run, resume=resume, force=output.force, progress=not output.quiet)
    except KeyboardInterrupt:
        if (run / "last.ckpt").exists():
            again = show.command_line("histo", "train", "--resume", "--out", run)
            show.log.print(f"The last complete epoch is kept: {again} with the same options.", markup=False)
        raise


def _print_classes(result: TrainResult) -> None:
    """Precision, recall and F1 of each class on the test split."""
    table = show.table()
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "tiles"):
        table.add_column(heading, justify="right")
    test = result.test
    for name, *figures, tiles in zip(test.classes, test.precision, test.recall, test.f1, test.support, strict=True):
        table.add_row(escape(name), *(f"{figure:.1%}" for figure in figures), str(tiles))
    show.print_table(table)
