"""`histo study`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import OutputOptions, TileOptions, counts, one_of, usable_cpus
from histo_export.cli.tiles import check_model, open_tiles
from histo_export.cli.train import DEMO
from histo_export.errors import UsageError
from histo_export.extras import needs
from histo_export.files import home_path, own_folder
from histo_export.model.weight_source import weight_file

if TYPE_CHECKING:
    from histo_export.bench.document import Document
    from histo_export.data import TileData
    from histo_export.spec import ModelSpec
    from histo_export.study.design import Design
    from histo_export.study.runs import Answer, Progress, Study
    from histo_export.training.recipes import TrainConfig

QUICK_ROUNDS, QUICK_SECONDS = 9, 1.0
"""Of the timing of inference in a quick study."""
QUICK_DEMO_EPOCHS = 4
"""Of a backbone on the demo tiles."""


@dataclass(frozen=True)
class DesignOptions:
    """What is compared, and when it is enough."""

    pools: Annotated[str, typer.Option(metavar="N,N,…", help="Pool sizes to compare.")] = "1,2,4,8"
    recipes: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…",
            help="Recipes to compare; the first one is shipped unless another one is better.  "
            "[dim]\\[default: strong][/dim]",
        ),
    ] = None
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            metavar="",
            help="Train one backbone for each seed, and only the heads of all pools on it: minutes.",
        ),
    ] = False
    seeds: Annotated[int, typer.Option(metavar="N", help="Trainings of each pool and recipe, at least.")] = 3
    max_seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="At most: seeds are added one at a time until the rule decides.  [dim]\\[default: 10; with --quick as "
            "--seeds][/dim]",
        ),
    ] = None
    margin: Annotated[
        float, typer.Option(metavar="PTS", help="Smallest difference of accuracy that matters, in percentage points.")
    ] = 1.0
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop when all trainings together have taken this long: 4h, 90m.")
    ] = None


@dataclass(frozen=True)
class RunOptions:
    """How each network is trained; as `histo train`."""

    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Passes over the training tiles.  [dim]\\[default: the recipe's][/dim]"),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Length in optimiser steps in place of epochs, rounded up to whole epochs."),
    ] = None
    weights: Annotated[
        str, typer.Option(metavar="W", help="Weights to start from: [b]none[/b], [b]imagenet[/b], or a file.")
    ] = "none"
    keep: Annotated[
        str,
        typer.Option(metavar="W", help="Weights to keep: [b]best[/b] epoch by validation, [b]last[/b] or [b]ema[/b]."),
    ] = "best"
    balance: Annotated[
        bool, typer.Option("--balance", metavar="", help="Draw each class equally often, however many tiles it has.")
    ] = False
    batch: Annotated[int | None, typer.Option(metavar="N", help="Tiles per step.  [dim]\\[default: 32][/dim]")] = None
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="R", help="Learning rate of Adam, at its peak.  [dim]\\[default: 0.001][/dim]"),
    ] = None
    device: Annotated[str, typer.Option(metavar="DEV", help="[b]auto[/b], [b]cpu[/b] or [b]cuda[/b].")] = "auto"


def study(
    *,
    source: Annotated[str | None, typer.Argument(metavar="[TILES]", help="The tiles, as for --data.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="TILES", help="A folder of images, .npy arrays, a public set ([b]histo data[/b]) or [b]demo[/b]."
        ),
    ] = None,
    comparison: DesignOptions,
    run: RunOptions,
    tiles: TileOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The study's folder.")] = Path("study"),
    output: OutputOptions,
) -> None:
    """Compare pool sizes (and recipes) in paired trainings, and say which one to ship and how sure that is.

    The rule: ship the smallest pool unless a larger one is better by more than --margin. The same command goes on after
    an interruption, and does what is missing.
    """
    if source is not None and data is not None:
        raise UsageError(f"--data {data}", f"names other tiles than {source}", "Leave one of them out")
    name = source or data
    if name is None:
        raise UsageError("The tiles", "are not given", "Use e.g. histo study DIR, or --data demo")
    needs("histo study", "train")
    budget_s = None if comparison.budget is None else seconds_of(comparison.budget)
    recipes, config = _config(name, comparison, run, tiles)
    weight_file(run.weights)
    _check_place(out, name)
    design, opened = _design(name, comparison, recipes, config, tiles, output.quiet)
    command = "The same command without --force" if output.force else "The same command"
    try:
        with own_folder(out):
            finished, answer, timings = _run(design, opened, out, budget_s, output)
            from histo_export.study.report import content, document, write_report

            with show.status("drawing", output.quiet):
                written = write_report(finished, answer, timings)
    except KeyboardInterrupt:
        show.log.print(f"{command} goes on with what is missing.", markup=False, highlight=False)
        raise
    if output.as_json:
        show.print_json(content(finished, answer))
        return
    _print(document(finished, answer, timings))
    if not output.quiet:
        show.out_console.print(f"\n{escape(str(out))}: {', '.join(path.name for path in written)}", soft_wrap=True)
        if not design.quick:
            following = show.command_line("histo", "export", "--study", out)
            show.out_console.print(f"\nNext:\n  {following}", markup=False, soft_wrap=True)


def seconds_of(text: str) -> float:
    """ "4h", "90m", "1h30m", "45s" → seconds; UsageError for other texts, and for no time."""
    parts = re.fullmatch(r"(?:(\d{1,5})h)?(?:(\d{1,7})m)?(?:(\d{1,8})s)?", text.strip())
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    if total := 3600 * hours + 60 * minutes + seconds:
        return float(total)
    raise UsageError(f"--budget {text}", "is not a time", "Use e.g. --budget 4h, 90m or 1h30m")


def _config(
    name: str, comparison: DesignOptions, run: RunOptions, tiles: TileOptions
) -> tuple[tuple[str, ...], TrainConfig]:
    """The recipes, and the settings of all runs; UsageError where one is impossible."""
    from histo_export.training.recipes import CHOICES, RECIPES, TrainConfig

    one_of("--keep", run.keep, CHOICES["keep"])
    one_of("--device", run.device, CHOICES["device"])
    recipes, epochs, batch, lr = comparison.recipes, run.epochs, run.batch, run.lr
    if name == "demo" and all(value is None for value in (recipes, epochs, run.steps, batch, lr)):
        recipes, batch, lr = DEMO.recipe, DEMO.batch, DEMO.lr
        epochs = QUICK_DEMO_EPOCHS if comparison.quick else DEMO.epochs
    names = tuple(each.strip() for each in (recipes or "strong").split(","))
    for each in names:
        one_of("--recipes", each, tuple(RECIPES))
    config = TrainConfig(
        recipe=names[0],
        epochs=epochs,
        steps=run.steps,
        keep=run.keep,  # type: ignore[arg-type]  # checked above
        batch_size=32 if batch is None else batch,
        lr=1e-3 if lr is None else lr,
        device=run.device,  # type: ignore[arg-type]  # checked above
        autocast="fp32",
        weights=run.weights,
        balance=run.balance,
        allow_duplicates=tiles.allow_duplicates,
    )
    return names, config


def _check_place(out: Path, name: str) -> None:
    """UsageError where `out` is not a place for a study."""
    from histo_export.data import is_name
    from histo_export.study.runs import StudyFolder
    from histo_export.training.folder import check_place

    check_place(out, None if is_name(name) else home_path(name))
    others = [path for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    if others and not StudyFolder(out).design.is_file():
        raise UsageError(out, f"exists and is not a study (it holds {others[0].name})", "Choose another --out")


def _design(
    name: str, comparison: DesignOptions, recipes: tuple[str, ...], config: TrainConfig, tiles: TileOptions, quiet: bool
) -> tuple[Design, TileData]:
    """The study, and its tiles, which are opened when all that could be wrong without them is known to be right."""
    from histo_export.data import default_crop, is_name
    from histo_export.study.design import Design

    if is_name(name) and tiles.crop is None:
        from dataclasses import replace

        tiles = replace(tiles, crop=default_crop(name))
    pools = counts("--pools", comparison.pools)
    for pool in pools:
        check_model(tiles, pool, 0.0)
    most = comparison.max_seeds
    if most is None:
        most = comparison.seeds if comparison.quick else max(10, comparison.seeds)

    def design(spec: ModelSpec, data: dict[str, object]) -> Design:
        margin = comparison.margin / 100
        return Design(spec, config, recipes, pools, comparison.seeds, most, margin, comparison.quick, data)

    from histo_export.spec import ModelSpec

    design(ModelSpec(pools[0], ("a", "b")), {})  # UsageError before any tile is read
    with show.status("starting torch", quiet):
        from histo_export.training.trainer import check_machine
    check_machine(config)
    spec, opened = open_tiles(name, tiles, pool=min(pools), dropout=0.0, seed=0)
    return design(spec, {"name": opened.name, "fingerprint": opened.fingerprint}), opened


def _run(
    design: Design, data: TileData, out: Path, budget_s: float | None, output: OutputOptions
) -> tuple[Study, Answer, dict[str, object]]:
    """Does what is missing in the folder `out`."""
    from histo_export.study.runs import Study, StudyFolder, check_disk, train_runner
    from histo_export.study.timings import estimated_seconds, timed

    folder = StudyFolder(out)
    if output.force:
        folder.remove()
    check_disk(design, folder)
    from histo_export.training.duplicates import judge_duplicates

    with _live(output.quiet) as (line, report):
        judge_duplicates(data, design.config.allow_duplicates, None, show.log)  # as each run would, before the first
        work = Study(design, data, folder, train_runner(design, data, folder), budget_s, report=report)
        folder.begin(design)
        short = {"rounds": QUICK_ROUNDS, "seconds": QUICK_SECONDS} if design.quick else {}
        timings = timed(
            design,
            data,
            usable_cpus(),
            folder.read_timings(),
            folder.write_timings,
            line,
            **short,  # type: ignore[arg-type]
        )
        work.estimate_s = estimated_seconds(design, data, timings["training"])
        if not design.quick:
            return work, work.run(), timings
        from histo_export.study.heads import head_runner

        with head_runner(design, data, folder) as runner:
            work.runner = runner
            return work, work.run(), timings


@contextmanager
def _live(quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[Progress], None]]]:
    """A live line on stderr; gives what changes its text, and what shows where the study stands."""
    from histo_export.study.runs import in_words
    from histo_export.study.verdicts import probability

    with show.status("measuring", quiet) as line:

        def report(progress: Progress) -> None:
            left = f"{progress.left} left" + ("" if progress.left_s is None else f", about {in_words(progress.left_s)}")
            parts = [progress.doing, f"{progress.done} runs done, {left}"]
            if progress.answer is not None:
                found = progress.answer.recommendation
                sure = "" if found.sure is None else f" ({probability(found.sure)} sure)"
                parts.append(f"so far: pool {found.arm.pool}{sure}")
            line(escape(" · ".join(parts)))

        yield lambda doing: line(escape(doing)), report


def _print(doc: Document) -> None:
    """The answer and the tables that are short enough for a terminal."""
    for number, conclusion in enumerate(doc.conclusions):
        text = escape(conclusion)
        show.out_console.print(f"[b]{text}[/b]" if number == 0 else text, soft_wrap=True)
    show.print_sections(doc.sections)
