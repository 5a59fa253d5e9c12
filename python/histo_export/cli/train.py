"""`histo train`, and the training that `histo export` does."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import OutputOptions, Pool, TileOptions, TrainingOptions, one_of
from histo_export.cli.tiles import check_model, open_tiles
from histo_export.errors import HistoError, UsageError, one_line
from histo_export.extras import needs
from histo_export.files import home_path
from histo_export.model.weight_source import weight_file
from histo_export.spec import percent

if TYPE_CHECKING:
    from histo_export.data import TileData
    from histo_export.spec import ModelSpec
    from histo_export.training.recipes import TrainConfig
    from histo_export.training.result import TrainResult
    from histo_export.training.run import Existing

DEMO = TrainingOptions(recipe="short", epochs=6, batch=16, lr=1e-3)
"""What trains on the demo tiles in one to two minutes on two cores: 138 steps."""


CHANGEABLE = (
    *("epochs", "steps", "device", "groups", "class_map", "allow_duplicates", "calibrate", "positive", "specificity"),
)
"""Options that may differ between a run and its resumption. Other groups of the tiles are other data, and are refused;
the same ones may be named in another way, such as by a table in another place."""


@dataclass(frozen=True)
class ClusterOptions:
    """On how many devices and machines a network is trained."""

    devices: Annotated[int, typer.Option(metavar="N", help="GPUs (or processes) on each machine.")] = 1
    nodes: Annotated[int, typer.Option(metavar="N", help="Machines; torchrun or Slurm starts the processes.")] = 1
    strategy: Annotated[str, typer.Option(metavar="S", help="[b]auto[/b] or [b]ddp[/b].")] = "auto"


@dataclass(frozen=True)
class RunOptions:
    """All that a training run is made with: what options.json in its folder holds.

    Attributes:
        data: the tiles as the user typed them; a path, here and in `tiles.groups`, is absolute in options.json.
        pool: of the model.
        tiles, training, cluster: the options of these groups.
    """

    data: str
    pool: int = 1
    tiles: TileOptions = field(default_factory=TileOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    @property
    def folder(self) -> Path | None:
        """The folder or file of the tiles; None where they are known by a name."""
        from histo_export.data import is_name

        return None if is_name(self.data) else home_path(self.data)

    @property
    def name(self) -> str:
        """What results are called where the user names no folder."""
        from histo_export.data import name_of

        return f"{name_of(self.data)}-pool{self.pool}"

    def resolved(self) -> RunOptions:
        """The same with values for options that have none; some sets have small tiles, and the demo trains quickly.

        The epochs may stay open: they are the recipe's, or those of the run to resume.
        """
        from histo_export.data import default_crop, is_name
        from histo_export.training.recipes import RECIPES

        training, tiles = self.training, self.tiles
        if is_name(self.data) and tiles.crop is None:
            tiles = replace(tiles, crop=default_crop(self.data))
        named = (training.recipe, training.epochs, training.steps, training.batch, training.lr)
        unset = all(value is None for value in named)
        if self.data == "demo" and unset:
            training = replace(training, recipe=DEMO.recipe, epochs=DEMO.epochs, batch=DEMO.batch, lr=DEMO.lr)
        recipe = training.recipe or "strong"
        one_of("--recipe", recipe, tuple(RECIPES))
        training = replace(
            training,
            recipe=recipe,
            batch=32 if training.batch is None else training.batch,
            lr=1e-3 if training.lr is None else training.lr,
        )
        return replace(self, tiles=tiles, training=training)

    def config(self) -> TrainConfig:
        """The settings of the run; UsageError where one is impossible."""
        from histo_export.measures import Positive
        from histo_export.training.recipes import CHOICES, TrainConfig

        options, cluster = self.resolved().training, self.cluster
        if options.positive is None and options.specificity != TrainingOptions.specificity:
            raise UsageError("--specificity", "says at which point --positive is judged", "Add --positive CLASS")
        one_of("--device", options.device, CHOICES["device"])
        one_of("--keep", options.keep, CHOICES["keep"])
        one_of("--autocast", options.autocast, CHOICES["autocast"])
        one_of("--strategy", cluster.strategy, CHOICES["strategy"])
        return TrainConfig(
            recipe=options.recipe or "strong",
            epochs=options.epochs,
            steps=options.steps,
            keep=options.keep,  # type: ignore[arg-type]  # checked above
            calibrate=options.calibrate,
            positive=None if options.positive is None else Positive(options.positive, options.specificity),
            batch_size=options.batch,  # type: ignore[arg-type]  # resolved
            lr=options.lr,  # type: ignore[arg-type]  # resolved
            weights=options.weights,
            autocast=options.autocast,  # type: ignore[arg-type]  # checked above
            device=options.device,  # type: ignore[arg-type]  # checked above
            seed=options.seed,
            devices=cluster.devices,
            nodes=cluster.nodes,
            strategy=cluster.strategy,
            balance=options.balance,
            allow_duplicates=self.tiles.allow_duplicates,
        )

    def record(self) -> dict[str, Any]:
        """Plain values from which `recorded` makes the same options."""
        from histo_export.data.groups import names_table

        data = self.data if self.folder is None else str(self.folder.absolute())
        resolved = self.resolved()
        tiles = resolved.tiles
        if tiles.groups is not None and names_table(tiles.groups):
            tiles = replace(tiles, groups=str(home_path(tiles.groups).absolute()))
        if tiles.class_map is not None:
            tiles = replace(tiles, class_map=str(home_path(tiles.class_map).absolute()))
        return dataclasses.asdict(replace(resolved, data=data, tiles=tiles))

    @classmethod
    def recorded(cls, run: Path) -> RunOptions | None:
        """The options of the run in a folder; None where they were not recorded.

        Raises:
            HistoError: the record is damaged.
        """
        from pydantic import TypeAdapter, ValidationError

        from histo_export.training.folder import RunFolder

        folder = RunFolder(run)
        values = folder.read_options()
        try:
            return None if values is None else TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            wrong = ".".join(map(str, error.errors()[0]["loc"]))
            raise HistoError(
                folder.options,
                f"does not hold the options of a run ({wrong or one_line(error)})",
                "Delete it and give the options of the run again",
            ) from error

    def changed_by(self, now: RunOptions, typed: set[str]) -> RunOptions:
        """These options with those that were typed now, as far as they change nothing of what was trained: other places
        of the tiles, a device, more epochs, and how the run is tested.

        Raises:
            UsageError: others have changed; all of them are named.
        """
        differences = []
        groups: dict[str, Any] = {}
        for group in ("tiles", "training", "cluster"):
            mine, theirs = getattr(self, group), getattr(now, group)
            values = {f.name: getattr(theirs, f.name) for f in dataclasses.fields(theirs) if f.name in typed}
            if length := {"epochs", "steps"} & values.keys():  # one replaces the other
                mine = replace(mine, **dict.fromkeys({"epochs", "steps"} - length))
            groups[group] = replace(mine, **values)
            differences += [
                _difference(name, value, getattr(mine, name))
                for name, value in values.items()
                if name not in CHANGEABLE and value != getattr(mine, name)
            ]
        if "pool" in typed and now.pool != self.pool:
            differences.append(_difference("pool", now.pool, self.pool))
        if differences:
            raise UsageError(
                "--resume",
                f"the run was made with other options: {'; '.join(differences)}",
                "Leave these options out, or start a new run with another --out",
            )
        return RunOptions(now.data if "data" in typed else self.data, self.pool, **groups)


def _difference(name: str, now: object, before: object) -> str:
    return f"--{name} {now}" + (" was not given" if before is None else f" was {before}")


def train(
    context: typer.Context,
    tiles: TileOptions,
    training: TrainingOptions,
    cluster: ClusterOptions,
    output: OutputOptions,
    source: Annotated[
        str | None,
        typer.Argument(metavar="[TILES|RUN]", help="The tiles, as for --data; with --resume, the folder of the run."),
    ] = None,
    pool: Pool = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="TILES",
            help="A folder of images, an archive, a table, .npy arrays, a public set ([b]histo data[/b]) or "
            "[b]demo[/b].",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder.  [dim]\\[default: runs/DATA-poolN][/dim]")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Continue a run after its last complete epoch; a larger --epochs extends it.",
        ),
    ] = False,
) -> None:
    """Train a classifier, keep its best epoch, and test it."""
    if resume and output.force:
        raise UsageError("--resume", "contradicts --force", "Leave one of them out")
    if resume and source is not None:
        source, out = _run_to_resume(source, out)
    if source is not None and data is not None:
        raise UsageError(f"--data {data}", f"names other tiles than {source}", "Leave one of them out")
    options = RunOptions(source or data or "", pool or 1, tiles, training, cluster)
    if not options.data and not (resume and out):
        raise UsageError(
            "The tiles",
            "are not given",
            "Use e.g. histo train DIR, or --data kather2016 or demo (histo data lists public sets)",
        )
    if resume:
        out = out or Path("runs") / options.name
        options = _resumed(options, out, _typed(context, source))
    existing: Existing = "resume" if resume else "replace" if output.force else "refuse"
    run = out or Path("runs") / options.name
    if not resume:  # a run that goes on has its weights in its checkpoint
        weight_file(training.weights)
    opened, spec, config = prepare(options, run, output.quiet)
    go_on = show.command_line("histo", "train", "--resume", run)
    result = run_training(opened, spec, config, run, options, output, existing, go_on)

    from histo_export.training.run import is_main_process

    if is_main_process():
        _print(result, run, output)


def _run_to_resume(source: str, out: Path | None) -> tuple[str | None, Path]:
    """The tiles, if `source` names them, and the folder of the run, which is `source` itself or --out.

    Raises:
        UsageError: both are runs.
    """
    from histo_export.training.folder import RunFolder

    run = Path(source)
    if run.name in ("last.ckpt", "best.ckpt") and run.is_file():  # a file of the run, as histo export takes it
        run = run.parent
    if out is None:
        return None, run
    if not RunFolder(run).last.is_file():
        return source, out
    if run.resolve() == out.resolve():
        return None, run
    anew = show.command_line("histo", "train", "TILES", "--weights", RunFolder(run).best, "--out", out)
    raise UsageError(
        f"--out {out}",
        f"contradicts --resume: a run goes on in its own folder, {run}",
        f"Leave --out out, or start a new run from its weights: {anew}",
    )


def _typed(context: typer.Context, tiles: str | None) -> set[str]:
    """The parameters that the user gave, whatever their values are; `tiles` may be named without an option."""
    given = {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"}
    return given | ({"data"} if tiles else set())


def _resumed(options: RunOptions, run: Path, typed: set[str]) -> RunOptions:
    """The options of the run in a folder, as far as none was typed now."""
    from histo_export.training.folder import RunFolder

    folder = RunFolder(run)
    if not folder.last.is_file():
        raise UsageError(run, f"holds no run to resume (no {folder.last.name})", "Check the path of the run's folder")
    recorded = RunOptions.recorded(run)
    if recorded is not None:
        return recorded.changed_by(options, typed)
    if not options.data:
        raise UsageError(
            run,
            f"does not record the options of its run (no {folder.options.name})",
            "Add --data and all other options that the run was started with",
        )
    return options


def prepare(options: RunOptions, run: Path, quiet: bool) -> tuple[TileData, ModelSpec, TrainConfig]:
    """Opens the tiles. What is wrong with an option, the machine or the place of the results is said before.

    Args:
        options: of the run.
        run: the run's folder.
        quiet: without a line of progress.
    """
    needs("histo train", "train")
    options = options.resolved()
    config = options.config()
    check_model(options.tiles, options.pool, options.training.dropout)
    from histo_export.training.folder import check_place

    check_place(run, options.folder)
    with show.status("starting torch", quiet):
        from histo_export.training.trainer import check_machine
    check_machine(config)
    spec, tiles = open_tiles(
        options.data, options.tiles, pool=options.pool, dropout=options.training.dropout, seed=config.seed
    )
    return tiles, spec, config


def run_training(
    tiles: TileData,
    spec: ModelSpec,
    config: TrainConfig,
    run: Path,
    options: RunOptions,
    output: OutputOptions,
    existing: Existing,
    go_on: str,
) -> TrainResult:
    """Trains as the options say.

    Args:
        tiles: of `spec`.
        spec: the model.
        config: the settings.
        run: the run's folder.
        options: recorded in the folder.
        output: whether progress is shown.
        existing: what becomes of an earlier run, see `training.run.train`.
        go_on: how the user continues after an interruption.
    """
    from histo_export.training.folder import RunFolder
    from histo_export.training.run import train as train_run

    try:
        return train_run(
            tiles,
            spec,
            config,
            run,
            existing=existing,
            options=options.record(),
            command=show.command_line(Path(sys.argv[0]).name, *sys.argv[1:]),
            progress=not output.quiet,
        )
    except KeyboardInterrupt:
        if RunFolder(run).last.exists():
            text = f"The last complete epoch is kept in {run}. Go on with: {go_on}"
            show.log.print(text, markup=False, highlight=False, soft_wrap=True)
        raise


def _print(result: TrainResult, run: Path, output: OutputOptions) -> None:
    """The accuracy, the files in the run's folder and the next step; or all of it as JSON."""
    from histo_export.training.folder import RunFolder

    following = show.command_line("histo", "export", run)
    if output.as_json:
        show.print_json({"run": str(run), **result.to_dict(), "next": [following]})
        return
    show.print_accuracy(result)
    _print_classes(result)
    show.print_measures(result.test.to_dict(), result.calibration, exported=False)
    if not output.quiet:
        files = ", ".join(RunFolder(run).contents())
        show.out_console.print(f"\n{escape(str(run))}: {files}", soft_wrap=True)
        show.out_console.print(f"\nNext:\n  {following}", markup=False, soft_wrap=True)


def _print_classes(result: TrainResult) -> None:
    """Precision, recall and F1 of each class on the test split."""
    table = show.table()
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "tiles"):
        table.add_column(heading, justify="right")
    test = result.test
    for name, *figures, tiles in zip(test.classes, test.precision, test.recall, test.f1, test.support, strict=True):
        table.add_row(escape(name), *(f"{percent(figure)}" for figure in figures), str(tiles))
    show.print_table(table)
