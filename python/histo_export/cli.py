"""The command line: `histo` and its subcommands, and `histo-export`, which is `histo export`.

Only the result goes to stdout; progress and messages go to stderr. Exit codes: 0 fine, 1 a failed check, 2 wrong use,
130 interrupted. torch and Lightning are imported by the commands that need them, so that help is immediate.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from histo_export import __version__
from histo_export.errors import HistoError, UsageError
from histo_export.spec import PRECISIONS

if TYPE_CHECKING:
    from histo_export.bench.progress import Progress
    from histo_export.data import TileData
    from histo_export.export.bundle import LowPrecision, OnnxCheck
    from histo_export.export.run import Checks
    from histo_export.model.checkpoint import Checkpoint
    from histo_export.model.layers import LayerInfo
    from histo_export.parity import FileParity
    from histo_export.predict.run import Outcome
    from histo_export.predict.run import Progress as TileProgress
    from histo_export.spec import ModelSpec, Precision
    from histo_export.training.result import TrainResult

DEMO: tuple[str, int, int, float] = ("report", 3, 16, 3e-4)
"""Recipe, epochs, batch size and peak rate that train on the demo tiles within about a minute on two cores.

In so few steps small batches and a lower rate learn more, and augmentation only slows the start.
"""

DEFAULT_FORMATS = "onnx,torchscript,native"

app = typer.Typer(
    name="histo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train ResNet34 tile classifiers with any pool size, export them with proven parity, measure every runtime.",
)
export_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

log = Console(stderr=True, highlight=False)
out_console = Console(highlight=False)


# Options that several commands share.
def _pool(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise UsageError(f"--pool {text}", "is not a whole number of 1 or more", "Use --pool 1, 2, 3, …")
    return int(text)


Pool = Annotated[
    int | None,
    typer.Option("--pool", parser=_pool, metavar="N", help="n of the n×n adaptive average pool; any n ≥ 1."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="TILES", help="A folder of images, .npy arrays, [b]kather2016[/b] or [b]demo[/b] (synthetic)."
    ),
]
Classes = Annotated[str | None, typer.Option(metavar="A,B,…", help="Use these classes only, in this order.")]
Split = Annotated[
    str | None,
    typer.Option(metavar="T,V,T", help="Train, val and test of one folder: fractions, or tiles per class."),
]
Crop = Annotated[int | None, typer.Option(metavar="PX", help="Side of the centre crop.  [dim]\\[default: 128][/dim]")]
Mpp = Annotated[float | None, typer.Option(metavar="UM", help="µm per pixel of the tiles, where they don't say.")]
Recipe = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="[b]strong[/b] (default), or [b]report[/b]: the report's, no augmentation."),
]
Batch = Annotated[int | None, typer.Option(metavar="N", help="Tiles a step and device.  [dim]\\[default: 32][/dim]")]
Epochs = Annotated[
    int | None, typer.Option(metavar="N", help="Length of the run.  [dim]\\[default: the recipe's][/dim]")
]
Weights = Annotated[
    str, typer.Option(metavar="W", help="[b]none[/b], [b]imagenet[/b], or a .pth or .safetensors file.")
]
Dropout = Annotated[float, typer.Option(metavar="P", help="Before the linear layer, while training.")]
LearningRate = Annotated[
    float | None, typer.Option("--lr", metavar="R", help="Adam's, at its peak.  [dim]\\[default: 0.001][/dim]")
]
Device = Annotated[
    str, typer.Option(metavar="DEV", help="[b]auto[/b], [b]cpu[/b] or [b]cuda[/b]; never replaced silently.")
]
Autocast = Annotated[str, typer.Option(metavar="T", help="Training: [b]auto[/b] (measured), fp32, bf16 or fp16.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of weights, order, augmentation and splits.")]
Force = Annotated[bool, typer.Option("--force", metavar="", help="Replace what an earlier run left at the same place.")]
AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="Print the result as JSON; nothing else goes to stdout.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="No progress, only the result.")]


def _export(
    pool: Pool = None,
    data: Data = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="Export what [b]histo train[/b] wrote instead of training.")
    ] = None,
    weights: Weights = "none",
    recipe: Recipe = None,
    epochs: Epochs = None,
    classes: Classes = None,
    split: Split = None,
    crop: Crop = None,
    mpp: Mpp = None,
    dropout: Dropout = 0.0,
    batch: Batch = None,
    lr: LearningRate = None,
    formats: Annotated[
        str, typer.Option(metavar="F,F,…", help="Of onnx, torchscript, native, pt2, triton; or [b]all[/b].")
    ] = DEFAULT_FORMATS,
    input_kind: Annotated[
        str, typer.Option("--input", metavar="KIND", help="[b]float[/b]: NCHW in [0, 1]; [b]uint8[/b]: NHWC bytes.")
    ] = "float",
    precision: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="That the bundle is made for: fp32, bf16x3, bf16 or int8. Below fp32 the loss is measured; with "
            "--checkpoint, --data must name its tiles.",
        ),
    ] = "fp32",
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="PTS", help="Points of accuracy that --precision may lose.  [dim]\\[default: 0.5][/dim]"),
    ] = None,
    accept_drop: Annotated[
        bool, typer.Option("--accept-drop", metavar="", help="Export even where more than that is lost.")
    ] = False,
    autocast: Autocast = "auto",
    device: Device = "auto",
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bundle.  [dim]\\[default: bundles/DATA-poolN][/dim]")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train if need be, export to every format, and prove that each file is the same model.

    Without --data or --checkpoint it trains on made, synthetic tiles for about a minute, to show the way.
    """
    chosen_formats = _formats(formats)
    _one_of("--input", input_kind, ("float", "uint8"))
    _one_of("--precision", precision, PRECISIONS)
    low = precision != "fp32"
    if not low and (max_drop is not None or accept_drop):
        raise UsageError(
            "--max-drop" if max_drop is not None else "--accept-drop",
            "is for precisions below fp32",
            "Add --precision int8, or leave it out",
        )
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop {max_drop:g}", "is not a number of points from 0 to 100", "Use e.g. --max-drop 1")
    if low and "native" not in chosen_formats:
        raise UsageError(f"--precision {precision}", "is for the native engine's file", "Add native to --formats")
    if checkpoint is not None:
        if low and data is None:
            raise UsageError(
                f"--precision {precision}",
                "is measured on tiles, and a checkpoint has none",
                "Add --data, and --split if there was one, as the checkpoint was trained",
            )
        trained: dict[str, Any] = {"--epochs": epochs, "--dropout": dropout or None}
        trained |= {} if low else {"--data": data, "--split": split}
        trained |= {"--weights": None if weights == "none" else weights, "--recipe": recipe, "--batch": batch}
        trained |= {"--lr": lr, "--device": None if device == "auto" else device, "--seed": seed or None}
        if clash := [option for option, value in trained.items() if value is not None]:
            raise UsageError(
                clash[0], "says how to train, and --checkpoint is trained already", "Leave one of them out"
            )

    from histo_export.export.bundle import check_destination

    result = tiles = None
    with log.status("starting torch") if not quiet else nullcontext():
        from histo_export.export.low_precision import MAX_DROP
        from histo_export.export.run import ExportSettings, export_bundle
        from histo_export.model.checkpoint import read_checkpoint

    if checkpoint is None:
        spec, tiles = _open(data or "demo", pool or 1, classes, split, crop, mpp, dropout, seed)
        out = out or Path("bundles") / f"{tiles.name}-pool{spec.pool}"
        check_destination(out, force)
        run = out.with_name(f"{out.name}-run")
        result = _train(tiles, spec, recipe, epochs, batch, lr, weights, autocast, device, seed, run, force, quiet)
        checkpoint = result.checkpoint
    loaded = read_checkpoint(checkpoint)
    _agree(loaded.spec, pool, crop, classes)
    if mpp is not None:
        loaded = dataclasses.replace(loaded, spec=dataclasses.replace(loaded.spec, mpp=mpp))
    if tiles is None and data is not None:
        tiles = _tiles_of(loaded, data, split)
    if out is None:
        name = loaded.training.get("data", {}).get("name", "model")
        out = Path("bundles") / f"{name}-pool{loaded.spec.pool}"

    with log.status("exporting") if not quiet else nullcontext() as status:
        settings = ExportSettings(
            chosen_formats,
            kind=input_kind,  # type: ignore[arg-type]  # checked above
            precision=precision,  # type: ignore[arg-type]  # checked above
            max_drop=MAX_DROP if max_drop is None else max_drop,
            accept_drop=accept_drop,
            force=force,
            threads=_threads(),
        )
        report = status.update if status else lambda step: None
        checks = export_bundle(loaded, out, settings, data=tiles, report=report)
    following = _next_steps(out, chosen_formats)
    if as_json:
        _print_json(
            {
                "bundle": str(out),
                "checkpoint": str(checkpoint),
                "synthetic": bool(loaded.training.get("data", {}).get("synthetic")),
                "test": loaded.training.get("test"),
                "files": [_file_facts(out, r) for r in checks.results],
                "unchecked": checks.unchecked,
                "precision": precision,
                "low_precision": checks.low_precision and checks.low_precision.model_dump(),
                "next": following,
            }
        )
        return
    if result is not None:
        _print_accuracy(result)
    synthetic = ", trained on synthetic tiles" if loaded.training.get("data", {}).get("synthetic") else ""
    title = f"{out}: ResNet34, pool {loaded.spec.pool}, {len(loaded.spec.classes)} classes{synthetic}"
    _print_files(title, out, checks)
    if checks.low_precision is not None:
        out_console.print()
        _print_low_precision(precision, checks.low_precision)
    if loaded.spec.mpp is None and not synthetic:
        log.print("[yellow]µm per pixel unknown:[/] config.json says 0.5; state the true one with --mpp.")
    if not quiet:
        out_console.print("\nNext:")
        for line in following:
            out_console.print(f"  {line}", markup=False, soft_wrap=True)


app.command("export")(_export)
export_app.command()(_export)


@app.command()
def train(
    data: Annotated[
        str, typer.Option(metavar="TILES", help="A folder of images, .npy arrays, [b]kather2016[/b] or [b]demo[/b].")
    ],
    pool: Pool = None,
    weights: Weights = "none",
    recipe: Recipe = None,
    epochs: Epochs = None,
    classes: Classes = None,
    split: Split = None,
    crop: Crop = None,
    mpp: Mpp = None,
    dropout: Dropout = 0.0,
    batch: Batch = None,
    lr: LearningRate = None,
    autocast: Autocast = "auto",
    device: Device = "auto",
    devices: Annotated[int, typer.Option(metavar="N", help="GPUs (or processes) on each machine.")] = 1,
    nodes: Annotated[int, typer.Option(metavar="N", help="Machines.")] = 1,
    strategy: Annotated[str, typer.Option(metavar="S", help="Lightning's: auto, ddp, …")] = "auto",
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder.  [dim]\\[default: runs/DATA-poolN][/dim]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Continue after a kill from the last whole epoch.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier, keep its best epoch, and test it."""
    if resume and force:
        raise UsageError("--resume", "contradicts --force", "Leave one of them out")
    spec, tiles = _open(data, pool or 1, classes, split, crop, mpp, dropout, seed)
    out = out or Path("runs") / f"{tiles.name}-pool{spec.pool}"
    several = {"devices": devices, "nodes": nodes, "strategy": strategy}
    result = _train(
        tiles, spec, recipe, epochs, batch, lr, weights, autocast, device, seed, out, force, quiet, resume, **several
    )

    from histo_export.training.run import is_main_process

    if not is_main_process():
        return
    following = [f"histo export --checkpoint {result.checkpoint}"]
    if as_json:
        _print_json({"run": str(out), **result.to_dict(), "next": following})
        return
    _print_accuracy(result)
    table = _table()
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "tiles"):
        table.add_column(heading, justify="right")
    test = result.test
    for name, *figures, tiles_of in zip(test.classes, test.precision, test.recall, test.f1, test.support, strict=True):
        table.add_row(escape(name), *(f"{figure:.1%}" for figure in figures), str(tiles_of))
    out_console.print(table)
    if not quiet:
        out_console.print(f"\n{out}: best.ckpt, last.ckpt, metrics.csv, curves.png, confusion.png, report.json")
        out_console.print(f"\nNext:\n  {following[0]}", markup=False, soft_wrap=True)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that [b]histo export[/b] wrote.")],
    device: Annotated[str, typer.Option(metavar="DEV", help="[b]cpu[/b] or [b]cuda[/b].")] = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every sha256 of a bundle, then run each file and compare it with the checkpoint's own logits."""
    _one_of("--device", device, ("cpu", "cuda"))
    from histo_export.export.bundle import open_bundle

    opened = open_bundle(bundle)
    from histo_export.export.low_precision import raise_if_onnx_differs
    from histo_export.export.run import check_files, check_quantised, raise_if_diverged

    with log.status("checking") if not quiet else nullcontext() as status:
        report = status.update if status else lambda step: None
        checks = check_files(bundle, opened.models, _threads(), device, report)
        quantised = check_quantised(bundle, _threads(), report) if opened.config.histo.precision == "int8" else None
    if as_json:
        files = [_file_facts(bundle, r) for r in checks.results]
        facts = {"bundle": str(bundle), "files": files, "unchecked": checks.unchecked}
        _print_json(facts | ({"int8_onnx": quantised.model_dump()} if quantised else {}))
    else:
        _print_files(f"{bundle}: every sha256 is right", bundle, checks)
        if quantised is not None:
            _print_int8_onnx(quantised)
    raise_if_diverged(checks.results)
    if quantised is not None:
        raise_if_onnx_differs(quantised)


@app.command()
def bench(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE…]", help="Folders that [b]histo export[/b] wrote.")
    ] = None,
    pools: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Untrained networks instead of bundles.  [dim]\\[default: 1,2,4,8][/dim]"),
    ] = None,
    runtimes: Annotated[
        str | None, typer.Option(metavar="R,R,…", help="Which to time.  [dim]\\[default: all that run here][/dim]")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P,P,…",
            help="Of fp32, bf16x3, bf16 and int8, each in tables of its own.  [dim]\\[default: fp32][/dim]",
        ),
    ] = None,
    batches: Annotated[str, typer.Option(metavar="N,N,…", help="Tiles per call.")] = "1,8,32",
    threads: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Of each runtime.  [dim]\\[default: all usable CPUs][/dim]")
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEV", help="[b]cpu[/b] or [b]cuda[/b]; never replaced.")] = "cpu",
    rounds: Annotated[int, typer.Option(metavar="N", help="Every row is timed once in each.")] = 15,
    time: Annotated[float, typer.Option(metavar="S", help="Timed seconds of each row in all, at least.")] = 3.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order within rounds.")] = 0,
    compare: Annotated[
        Path | None, typer.Option(metavar="OLD.json", help="A report.json of this machine to set beside this run.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets report.json, .md, .html and plots.")] = Path("bench"),
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time every runtime on the same tiles, interleaved, and say which differences are real.

    Without bundles it makes untrained networks that share all but their heads: --pools 1,2,4,8.
    """
    if bundles and pools:
        raise UsageError("--pools", "makes networks of its own, and bundles are named", "Leave one of them out")
    _one_of("--device", device, ("cpu", "cuda"))
    from histo_export.bench.document import document
    from histo_export.bench.report import Report
    from histo_export.bench.write import check_destination, write_report

    check_destination(out, force)
    old = Report.read(compare) if compare else None
    from histo_export.bench.run import run_bench
    from histo_export.bench.settings import Settings
    from histo_export.runtimes import all_variants, default_variants, variants

    precisions = _precisions(precision or "fp32")
    chosen = default_variants(device, precisions)
    if runtimes:
        names = [name.strip() for name in runtimes.split(",")]
        for name in names:
            _one_of("--runtimes", name, [str(variant) for variant in all_variants()])
        chosen = variants(*names)
        if precision is not None:
            chosen = tuple(variant.in_precision(wanted) for wanted in precisions for variant in chosen)
    if not chosen:
        raise UsageError(f"--precision {precision}", f"has no runtime on {device}", "Use another, or --device cpu")
    settings = Settings(
        runtimes=tuple(dict.fromkeys(chosen)),
        batches=_counts("--batches", batches),
        threads=_counts("--threads", threads or str(_threads())),
        rounds=rounds,
        seconds=time,
        device=device,
        seed=seed,
        may_lack=runtimes is None,
    )
    with _progress(quiet) as progress:
        report = run_bench(
            bundles or [],
            _counts("--pools", pools or "1,2,4,8"),
            settings,
            command=" ".join(["histo", *sys.argv[1:]]),
            old=old,
            progress=progress,
        )
    written = write_report(report, out, force)
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
        return
    doc = document(report)
    for line in doc.lead:
        out_console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    for section in doc.sections:
        if section.brief:
            out_console.print()
            table = _table(section.title)
            for column in section.columns:
                justify: Any = "left" if column.startswith("<") else "right"
                table.add_column(escape(column.removeprefix("<")), justify=justify, no_wrap=True)
            for row in section.rows:
                table.add_row(*map(escape, row))
            out_console.print(table)
            if section.note:
                out_console.print(f"[dim]{escape(section.note)}[/]")
    for note in doc.notes:
        out_console.print(f"[yellow]note:[/] {escape(note)}")
    if not quiet:
        out_console.print(f"\n{out}: {', '.join(path.name for path in written)}", soft_wrap=True)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that [b]histo export[/b] wrote.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT…", help="Tiles, slides, folders of them, lists (.txt, .csv) and .npy arrays."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets a folder for each slide and set of tiles.")] = Path(
        "predictions"
    ),
    runtime: Annotated[
        str,
        typer.Option(metavar="R", help="native, native-latency, onnxruntime, openvino, libtorch, torchscript, torch."),
    ] = "native",
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Tiles per call of the runtime.")] = 32,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of the runtime; as many read.  [dim]\\[default: all usable CPUs][/dim]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="fp32, bf16x3, bf16 or int8; never replaced.  [dim]\\[default: what the bundle is made for][/dim]",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEV", help="[b]cpu[/b] or [b]cuda[/b]; never replaced.")] = "cpu",
    resize: Annotated[
        bool, typer.Option("--resize", metavar="", help="Resample tiles of another size than the model's.")
    ] = False,
    mpp: Annotated[
        float | None, typer.Option(metavar="UM", help="µm per pixel of slides that don't tell, or tell it wrong.")
    ] = None,
    overlap: Annotated[
        float, typer.Option(metavar="F", help="Of neighbouring tiles, as a fraction of their side.")
    ] = 0,
    stride: Annotated[
        float | None, typer.Option(metavar="UM", help="From tile to tile in µm, in place of --overlap.")
    ] = None,
    min_tissue: Annotated[float, typer.Option(metavar="F", help="Fraction of a tile that must be tissue.")] = 0.1,
    tissue_threshold: Annotated[
        int | None,
        typer.Option(metavar="S", help="On saturation, 0 to 255.  [dim]\\[default: Otsu's][/dim]"),
    ] = None,
    closing: Annotated[float, typer.Option(metavar="UM", help="Gaps in tissue up to this width are closed.")] = 50,
    min_area: Annotated[float, typer.Option(metavar="UM2", help="Smaller pieces of tissue don't count.")] = 40_000,
    everything: Annotated[
        bool, typer.Option("--everything", metavar="", help="Look for no tissue; take all of a slide.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Share the work on a Ray cluster: [b]local[/b] (this machine's own), [b]auto[/b], HOST:PORT.",
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a bundle over tiles and whole slides.

    A slide gets tiles.csv, tiles.geojson (QuPath), heatmap.png, tissue.png and summary.json; a set of tiles tiles.csv,
    tiles.parquet and summary.json, and where its folders are named like the classes, accuracy and mistakes. After an
    interruption the same command does what is missing. What can't be used is listed at the end, and the exit code is 1.
    """
    from histo_export.runtimes import all_variants

    _one_of("--runtime", runtime, [str(variant) for variant in all_variants()])
    if precision is not None:
        _one_of("--precision", precision, PRECISIONS)
    _one_of("--device", device, ("cpu", "cuda"))
    if stride is not None and overlap:
        raise UsageError("--stride", "contradicts --overlap", "Leave one of them out")
    from histo_export.predict.run import predict as predict_all
    from histo_export.predict.work import PredictSettings

    tissue = {"threshold": tissue_threshold, "closing_um": closing, "min_area_um2": min_area}
    slide = {"mpp": mpp, "overlap": overlap, "stride_um": stride, "min_tissue": min_tissue}
    settings = PredictSettings(
        runtime=runtime,
        precision=precision,  # type: ignore[arg-type]  # checked above
        device=device,
        resize=resize,
        slide=slide | {"everything": everything, "tissue": tissue},
        batch=batch,
        threads=threads or _threads(),
    )
    with _tile_progress(quiet) as report:
        command = " ".join(["histo", *sys.argv[1:]])
        outcome = predict_all(bundle, inputs, out, settings, ray=ray, force=force, command=command, report=report)
    if as_json:
        _print_json(
            {
                "out": str(out),
                "inputs": [dataclasses.asdict(done) for done in outcome.done],
                "failures": [dataclasses.asdict(failure) for failure in outcome.failures],
                "executed": outcome.executed,
                "seconds": outcome.wall,
                "peak_memory_mb": round(outcome.peak_mb),
            }
        )
    else:
        _print_outcome(out, outcome)
    if outcome.failures:
        raise typer.Exit(1)


@contextmanager
def _tile_progress(quiet: bool) -> Iterator[Callable[[TileProgress], None]]:
    """A live line on stderr: the input, its tiles, and how fast they go."""
    if quiet:
        yield lambda progress: None
        return
    columns = ("[progress.description]{task.description}", BarColumn(), "{task.fields[rate]}")
    with ProgressBar(*columns, console=log, transient=True) as bar:
        task = bar.add_task("starting", total=None, rate="")
        began: dict[int, float] = {}

        def show(progress: TileProgress) -> None:
            rate = ""
            start = began.setdefault(progress.number, monotonic())
            if progress.done and (passed := monotonic() - start) > 0:
                per_second = progress.done / passed
                minutes, seconds = divmod(round((progress.tiles - progress.done) / per_second), 60)
                rate = f"{progress.done:,} of {progress.tiles:,} tiles, {per_second:.0f}/s, {minutes}:{seconds:02} left"
                rate += f"; {progress.all_done:,} in all"
            bar.update(
                task,
                description=f"{escape(progress.name)} ({progress.number} of {progress.inputs})",
                total=progress.tiles or None,
                completed=progress.done,
                rate=rate,
            )

        yield show


def _print_outcome(out: Path, outcome: Outcome) -> None:
    table = _table(str(out))
    table.add_column("input", overflow="fold")
    for heading in ("tiles", "tiles/s", "s", "read", "wait", "infer", "write"):
        table.add_column(heading, justify="right")
    for done in outcome.done:
        spent = done.seconds
        figures = ["done before"] + [""] * 5
        if done.run:
            stages = (spent.wall, spent.read, spent.wait, spent.infer, spent.write)
            figures = [f"{done.run / spent.wall:.0f}", *(f"{seconds:.1f}" for seconds in stages)]
        table.add_row(escape(done.name), f"{done.tiles:,}", *figures)
    out_console.print(table)
    run = sum(done.run for done in outcome.done)
    whole = f"{run:,} tiles in {outcome.wall:.1f} s, {run / outcome.wall:.0f}/s. " if run else ""
    out_console.print(
        "[dim]Seconds of each stage; they overlap. read: all reader threads together; wait: the runtime had no tile.\n"
        f"{whole}Peak memory {outcome.peak_mb:,.0f} MB."
        + (f" Executed: {escape('; '.join(outcome.executed))}.[/]" if outcome.executed else "[/]")
    )
    if len(outcome.executed) > 1:
        kinds = "; ".join(outcome.executed)
        log.print(f"[yellow]note:[/] machines differ ({escape(kinds)}), and so may the last bits; HISTO_ISA mends it.")
    if outcome.failures:
        log.print(f"[red]{len(outcome.failures):,} could not be used[/] (all in {out / 'failed.csv'}):")
        for failure in outcome.failures[:10]:
            log.print(f"  {failure.path}: {failure.reason}.", markup=False, soft_wrap=True)


@app.command()
def inspect(
    source: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE|CKPT]", help="A bundle or a checkpoint; or give --pool.")
    ] = None,
    pool: Pool = None,
    classes: Annotated[int, typer.Option(metavar="K", help="With --pool: number of classes.")] = 6,
    crop: Crop = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", help="The native engine's plan for a bundle, timed: throughput or latency."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="With --plan: fp32, bf16x3, bf16 or int8.  [dim]\\[default: what the bundle is made for][/dim]",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="With --plan: tiles to time.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Show layers, parameters, multiply-accumulates and head, as trained and as exported; or the engine's plan."""
    if plan is not None:
        _inspect_plan(source, plan, precision, batch, as_json)
        return
    if precision is not None:
        raise UsageError(f"--precision {precision}", "is for the engine's plan", "Add --plan throughput")
    if (source is None) == (pool is None):
        raise UsageError("histo inspect", "needs a bundle or checkpoint, or --pool N", "Give exactly one of them")
    from histo_export.model.layers import layer_table
    from histo_export.model.lowering import head_pool
    from histo_export.spec import CHANNELS, ModelSpec

    block = None
    if source is None:
        spec = ModelSpec(pool or 1, tuple(f"class{i}" for i in range(classes)), crop=crop or 128, tile_size=crop or 150)
    elif source.is_dir():
        from histo_export.export.bundle import open_bundle
        from histo_export.export.run import spec_of

        spec, block = spec_of(source), open_bundle(source).config.histo
    else:
        from histo_export.model.checkpoint import read_checkpoint

        spec = read_checkpoint(source).spec
    table = layer_table(spec)
    side, kept = spec.map_size, head_pool(spec.pool, spec.map_size)
    norms = sum(layer.parameters for layer in table if layer.kind == "BatchNorm2d")
    channels = sum(layer.output[0] for layer in table if layer.kind == "BatchNorm2d")
    as_trained = sum(layer.parameters for layer in table)
    head = table[-1].parameters
    folded_head = (CHANNELS * kept**2 + 1) * len(spec.classes)
    as_exported = as_trained - norms + channels - head + folded_head
    head_macs = CHANNELS * kept**2 * len(spec.classes)
    facts = {
        "spec": spec.to_dict(),
        "feature_map": [CHANNELS, side, side],
        "trained": {"parameters": as_trained, "macs": sum(layer.macs for layer in table), "head_parameters": head},
        "exported": {
            "parameters": as_exported,
            "macs": sum(layer.macs for layer in table[:-1]) + head_macs,
            "head_parameters": folded_head,
            "head_pool": kept,
        },
    }
    if block is not None and block.low_precision is not None:
        facts |= {"precision": block.precision, "low_precision": block.low_precision.model_dump()}
    if as_json:
        _print_json(facts | {"layers": [dataclasses.asdict(layer) for layer in table]})
        return
    _print_layers(spec, table)
    pooled = f"{CHANNELS}×{spec.pool}×{spec.pool}"
    how = "folded into the linear layer" if kept != spec.pool else "average pool" if kept < side else "no pooling left"
    summary = _table()
    for heading in ("", "as trained", "as exported"):
        summary.add_column(heading, justify="right" if heading else "left")
    summary.add_row("parameters", f"{as_trained:,}", f"{as_exported:,}")
    summary.add_row("of these in the head", f"{head:,}", f"{folded_head:,}")
    trained_macs, exported_macs = facts["trained"]["macs"], facts["exported"]["macs"]  # type: ignore[index]
    summary.add_row("GMAC per tile", f"{trained_macs / 1e9:.4f}", f"{exported_macs / 1e9:.4f}")
    summary.add_row("head reads", f"{CHANNELS}×{side}×{side} → {pooled}", f"{CHANNELS}×{side}×{side}, {how}")
    out_console.print(summary)
    if block is not None and block.low_precision is not None:
        out_console.print()
        _print_low_precision(block.precision, block.low_precision, layers=True)


def _inspect_plan(bundle: Path | None, profile: str, precision: str | None, batch: int, as_json: bool) -> None:
    """The layers as the native engine runs them, with the median time of each over nine runs."""
    if bundle is None or not bundle.is_dir():
        raise UsageError("--plan", "needs a bundle", "histo inspect BUNDLE --plan throughput")
    _one_of("--plan", profile, ("throughput", "latency"))
    if precision is not None:
        _one_of("--precision", precision, PRECISIONS)
    import numpy as np

    from histo_export.export.bundle import open_bundle
    from histo_export.runtimes.native import median_layer_times, open_engine

    opened = open_bundle(bundle)
    if "model.safetensors" not in opened.models:
        raise HistoError(bundle, "has no model.safetensors, the native engine's file", "Export with --formats native")
    chosen: Any = precision or opened.config.histo.precision
    engine = open_engine(bundle / "model.safetensors", threads=_threads(), precision=chosen, profile=profile)
    side = engine.info()["crop"]
    tiles = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    engine.warmup(batch)
    layers = median_layer_times(engine, tiles)
    facts = {"engine": engine.info(), "batch": batch, "layers": layers}
    if as_json:
        _print_json(facts)
        return
    info = engine.info()
    table = _table(f"Native engine: {info['isa']}, {info['precision']}, {profile}, {info['threads']} threads")
    table.add_column("layer")
    table.add_column("convolution")
    table.add_column("precision")
    for heading in ("output", "MMAC", "executed", "ms", "GFLOP/s"):
        table.add_column(heading, justify="right")
    total = {"multiply_adds": 0, "executed_multiply_adds": 0, "seconds": 0.0}
    for layer in layers:
        for key in total:
            total[key] += layer[key]
    last = {"name": "all", "convolution": "", "precision": "", "output": (), **total}
    for layer in [*layers, last]:
        table.add_row(
            layer["name"],
            layer["convolution"],
            layer["precision"],
            "×".join(map(str, layer["output"])),
            f"{layer['multiply_adds'] / 1e6:.3f}",
            f"{layer['executed_multiply_adds'] / 1e6:.3f}",
            f"{layer['seconds'] * 1e3 / batch:.3f}",
            f"{2e-9 * layer['executed_multiply_adds'] * batch / layer['seconds']:.0f}",
        )
    out_console.print(table)
    out_console.print(
        f"MMAC and ms per tile, at batch {batch}; executed: after Winograd's reduction, its transforms apart.\n"
        f"Packed weights {info['weight_bytes'] / 1e6:.0f} MB, workspace {info['workspace_bytes'] / 1e6:.0f} MB."
    )


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, instruction sets, threads, and which runtimes and devices really run here."""
    with log.status("trying what is installed"):
        from histo_export.doctor import examine

        facts = examine()
    if as_json:
        _print_json(facts)
    else:
        table = _table(show_header=False)
        for section, value in facts.items():
            if section == "problems":
                continue
            rows = value.items() if isinstance(value, dict) else [("", ", ".join(value) or "none")]
            for i, (key, item) in enumerate(rows):
                text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
                table.add_row(f"[b]{section.replace('_', ' ')}[/b]" if i == 0 else "", key, escape(text))
        out_console.print(table)
        for problem in facts["problems"]:
            log.print(f"[red]problem:[/] {escape(problem)}")
        if not facts["problems"]:
            out_console.print("\nNo problem found.")
    if facts["problems"]:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", metavar="", help="Show the version and exit.")] = False,
) -> None:
    if version:
        out_console.print(f"histo-export {__version__}")
        raise typer.Exit


def _formats(text: str) -> list[str]:
    from histo_export.export.formats import FORMATS

    known = tuple(FORMATS)
    names = known if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        _one_of("--formats", name, known)
    if not names:
        raise UsageError("--formats", "names no format", f"Use some of {', '.join(known)}")
    return [name for name in known if name in names]


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Use {' or '.join(known)}"
        raise UsageError(f"{option} {value}", "is not known", hint)


def _numbers(option: str, text: str | None) -> Any:
    """ "425,100,100" → ints; "0.7,0.15,0.15" → floats; None stays None."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) if "." in part else int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise UsageError(f"{option} {text}", "is not three numbers", f"Use e.g. {option} 425,100,100")
    return numbers


def _precisions(text: str) -> tuple[Precision, ...]:
    """ "fp32,int8" → different precisions."""
    names = dict.fromkeys(part.strip() for part in text.split(","))
    for name in names:
        _one_of("--precision", name, PRECISIONS)
    return tuple(name for name in PRECISIONS if name in names)


def _counts(option: str, text: str) -> tuple[int, ...]:
    """ "1,8,32" → different whole numbers of 1 or more."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise UsageError(f"{option} {text}", "is not a list of whole numbers of 1 or more", f"Use e.g. {option} 1,8")
    if len(set(parts)) < len(parts):
        raise UsageError(f"{option} {text}", "names a number twice", "Name each once")
    return tuple(map(int, parts))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A live line on stderr with what is done and how long it will take."""
    bar = ProgressBar("[progress.description]{task.description}", BarColumn(), "{task.fields[left]}", console=log)
    if quiet:
        yield lambda progress: None
        return
    with bar:
        task = bar.add_task("starting", total=1, left="")

        def show(progress: Progress) -> None:
            minutes, seconds = divmod(0 if math.isnan(progress.left_s) else round(progress.left_s), 60)
            left = "" if math.isnan(progress.left_s) else f"about {minutes}:{seconds:02} left"
            bar.update(task, description=progress.doing, completed=progress.done, left=left)

        yield show


def _open(
    data: str,
    pool: int,
    classes: str | None,
    split: str | None,
    crop: int | None,
    mpp: float | None,
    dropout: float,
    seed: int,
) -> tuple[ModelSpec, TileData]:
    """The tiles, checked, and the model that will be trained on them."""
    from histo_export.data import open_data

    names = [name.strip() for name in classes.split(",")] if classes else None
    tiles = open_data(data, classes=names, crop=crop or 128, split=_numbers("--split", split), seed=seed)
    for note in tiles.notes:
        log.print(f"[yellow]note:[/] {escape(note)}")
    from histo_export.spec import ModelSpec

    spec = ModelSpec(
        pool=pool,
        classes=tiles.classes,
        crop=crop or 128,
        tile_size=tiles.tile_size,
        mpp=mpp if mpp is not None else tiles.mpp,
        dropout=dropout,
    )
    return spec, tiles


def _train(
    tiles: TileData,
    spec: ModelSpec,
    recipe: str | None,
    epochs: int | None,
    batch: int | None,
    lr: float | None,
    weights: str,
    autocast: str,
    device: str,
    seed: int,
    run: Path,
    force: bool,
    quiet: bool,
    resume: bool = False,
    **extra: Any,
) -> TrainResult:
    from histo_export.training.recipes import RECIPES, TrainConfig

    if tiles.synthetic and (recipe, epochs, batch, lr) == (None, None, None, None):
        recipe, epochs, batch, lr = DEMO
    recipe = recipe or "strong"
    _one_of("--recipe", recipe, tuple(RECIPES))
    _one_of("--device", device, ("auto", "cpu", "cuda"))
    _one_of("--autocast", autocast, ("auto", "fp32", "bf16", "fp16"))
    config = TrainConfig(
        recipe=recipe,
        epochs=epochs,
        batch_size=32 if batch is None else batch,
        lr=1e-3 if lr is None else lr,
        weights=weights,
        autocast=autocast,  # type: ignore[arg-type]  # checked above
        device=device,  # type: ignore[arg-type]  # checked above
        seed=seed,
        **extra,
    )
    from histo_export.training.run import train as train_run

    try:
        return train_run(tiles, spec, config, run, resume=resume, force=force, progress=not quiet)
    except KeyboardInterrupt:
        if (run / "last.ckpt").exists():
            log.print(f"The last whole epoch is kept: histo train --resume --out {run} with the same options.")
        raise


def _agree(spec: ModelSpec, pool: int | None, crop: int | None, classes: str | None) -> None:
    """What is said on the command line may not contradict the checkpoint."""
    given = {
        "--pool": (pool, spec.pool),
        "--crop": (crop, spec.crop),
        "--classes": (classes and [name.strip() for name in classes.split(",")], list(spec.classes)),
    }
    for option, (said, true) in given.items():
        if said is not None and said != true:
            shown = ",".join(true) if isinstance(true, list) else true
            raise UsageError(option, f"contradicts the checkpoint, which has {shown}", f"Leave {option} out")


def _tiles_of(checkpoint: Checkpoint, data: str, split: str | None) -> TileData:
    """The tiles that a checkpoint was trained on, split as they were then; UsageError where they are others."""
    from histo_export.data import open_data

    spec, training = checkpoint.spec, checkpoint.training
    seed = training.get("seed", 0)
    tiles = open_data(data, classes=spec.classes, crop=spec.crop, split=_numbers("--split", split), seed=seed)
    for note in tiles.notes:
        log.print(f"[yellow]note:[/] {escape(note)}")
    trained_on = training.get("data", {})
    if trained_on.get("fingerprint") not in (None, tiles.fingerprint):
        raise UsageError(
            f"--data {data}",
            f"is not what the checkpoint was trained on ({trained_on.get('name')}, fingerprint "
            f"{trained_on['fingerprint'][:12]}…; here {tiles.fingerprint[:12]}…)",
            "Give the same tiles, and the same --split if there was one",
        )
    return tiles


def _threads() -> int:
    from histo_export import _core

    return _core.usable_cpus()


def _file_facts(folder: Path, result: FileParity) -> dict[str, Any]:
    return dataclasses.asdict(result) | {"bytes": (folder / result.file).stat().st_size, "passed": result.passed}


def _next_steps(out: Path, formats: Sequence[str]) -> list[str]:
    steps = [f"histo verify {out}", f"histo inspect {out}"]
    if "triton" in formats:
        steps.append(f"tritonserver --model-repository {out / 'triton'}")
    if "onnx" in formats:
        path = repr(str(out / "model.onnx"))
        steps.append(f'python -c "import onnxruntime as o; print(o.InferenceSession({path}).get_inputs()[0])"')
    return steps


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def _table(title: str | None = None, show_header: bool = True) -> Table:
    """An empty table; its title is printed at once, since rich would wrap it to the table's width."""
    if title:
        out_console.print(f"[b]{escape(title)}[/b]", soft_wrap=True)
    return Table(show_header=show_header, box=None, pad_edge=False, padding=(0, 1))


def _print_accuracy(result: TrainResult) -> None:
    test = result.test
    low, high = test.interval
    out_console.print(
        f"Epoch {result.best_epoch} of {result.epochs}: validation accuracy {result.val_accuracy:.1%}, "
        f"test accuracy [b]{test.accuracy:.1%}[/b]\n"
        f"(95 % bootstrap interval {low:.1%} to {high:.1%}, {test.tiles:,} tiles)\n"
    )


def _print_files(title: str, folder: Path, checks: Checks) -> None:
    results = checks.results
    table = _table(title)
    table.add_column("file", no_wrap=True)
    for heading in ("MB", "|Δlogit|", "top-1", "ms at 1", "at 32"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("run by", no_wrap=True)
    for r in results:
        table.add_row(
            r.file if r.passed else f"[red]{r.file}[/]",
            f"{(folder / r.file).stat().st_size / 1e6:.1f}",
            f"{r.max_abs:.1e}",
            f"{r.agreement:.1%}",
            f"{r.ms_per_tile[1]:.1f}",
            f"{r.ms_per_tile[32]:.1f}",
            r.runtime,
        )
    out_console.print(table)
    executed: dict[str, list[str]] = {}
    for r in results:
        executed.setdefault(r.executed, []).append(r.runtime)
    out_console.print(
        "[dim]|Δlogit|: largest difference from the checkpoint in float64 on real tiles; with noise tiles\n"
        f"{max(r.max_relative for r in results):.0e} of a tile's largest logit (allowed {results[0].tolerance:.0e}). "
        f"ms per tile at batch 1 and 32, {_threads()} threads:\n"
        + "\n".join(f"{', '.join(runtimes)}: {how}" for how, runtimes in executed.items())
        + "[/]",
        soft_wrap=True,
    )
    for runtime_id, reason in checks.unchecked.items():
        out_console.print(f"[yellow]Not checked in {runtime_id}:[/] {escape(reason)}", soft_wrap=True)


def _print_low_precision(precision: str, low: LowPrecision, layers: bool = False) -> None:
    """What a precision costs, and for int8 how its scales were found."""
    table = _table(f"For {precision}: accuracy on the {low.tiles:,} validation tiles")
    table.add_column("precision")
    for heading in ("accuracy", "95 % interval", "as fp32", "points lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("measured with", no_wrap=True)
    for measured, found in low.precisions.items():
        interval = f"{found.interval[0]:.1%} to {found.interval[1]:.1%}"
        figures = (f"{found.accuracy:.1%}", interval, f"{found.agreement:.1%}", f"{found.drop:.2f}")
        table.add_row(f"[b]{measured}[/b]" if measured == precision else measured, *figures, found.measured_with)
    out_console.print(table)
    accepted = ", more was accepted" if low.drop_accepted else ""
    out_console.print(
        f"[dim]as fp32: tiles with the same top class. Allowed to lose: {low.max_drop:g} points{accepted}.[/]"
    )
    for reason in dict.fromkeys(low.not_native.values()):
        names = ", ".join(name for name, why in low.not_native.items() if why == reason)
        out_console.print(f"[yellow]{names} not measured with the native engine:[/] {escape(reason)}", soft_wrap=True)
    if (calibration := low.calibration) is not None:
        kept = f"{len(calibration.kept)} of {len(calibration.layers)} convolutions kept in bf16"
        kept += f" ({calibration.kept_multiply_adds:.1%} of multiply-adds)" if calibration.kept else ""
        out_console.print(
            f"[dim]Calibrated on {calibration.tiles} training tiles: {calibration.chosen}; {kept}. Error of the logits "
            f"on {calibration.held_out} others {calibration.error:.1%} of their spread (bf16 "
            f"{calibration.bf16_error:.1%}).[/]",
            soft_wrap=True,
        )
        if layers:
            _print_quantised_layers(low)
    if low.onnx is not None:
        _print_int8_onnx(low.onnx)


def _print_quantised_layers(low: LowPrecision) -> None:
    assert low.calibration is not None
    table = _table()
    for heading in ("calibration", "logits' error"):
        table.add_column(heading)
    for pair, error in low.calibration.errors.items():
        table.add_row(pair, f"{error:.1%}")
    out_console.print(table)
    table = _table()
    table.add_column("convolution")
    table.add_column("precision")
    for heading in ("SQNR dB", "logits' error", "multiply-adds"):
        table.add_column(heading, justify="right")
    for layer in low.calibration.layers:
        figures = (f"{layer.sqnr_db:.1f}", f"{layer.logit_error:.2%}", f"{layer.multiply_adds:.1%}")
        table.add_row(layer.layer, layer.precision, *figures)
    out_console.print(table)
    out_console.print("[dim]SQNR and error of the logits with only this convolution, or its input, in int8.[/]")


def _print_int8_onnx(check: OnnxCheck) -> None:
    out_console.print(
        f"[dim]model-int8.onnx in {check.runtime}: {check.error:.1%} from the same arithmetic in torch "
        f"(allowed {check.allowed:.1%}), {check.agreement:.1%} of top classes the same.[/]",
        soft_wrap=True,
    )


def _print_layers(spec: ModelSpec, layers: Sequence[LayerInfo]) -> None:
    table = _table(f"ResNet34, pool {spec.pool}, {len(spec.classes)} classes, crop {spec.crop}")
    table.add_column("layer")
    table.add_column("kind")
    for heading in ("output", "parameters", "MMAC"):
        table.add_column(heading, justify="right")
    for layer in layers:
        if layer.kind != "BatchNorm2d":  # counted below; folded away in every exported file
            output = "×".join(map(str, layer.output))
            macs = f"{layer.macs / 1e6:.3f}" if layer.macs else ""
            table.add_row(layer.name, layer.kind, output, f"{layer.parameters:,}" if layer.parameters else "", macs)
    norms = [layer for layer in layers if layer.kind == "BatchNorm2d"]
    table.add_row(f"{len(norms)} batch norms", "BatchNorm2d", "", f"{sum(n.parameters for n in norms):,}", "")
    out_console.print(table)


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(command: typer.Typer, name: str) -> NoReturn:
    """Runs a command; every foreseen problem ends in one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)  # so that `kill` cleans up as Ctrl-C does
    try:
        code = command(prog_name=name, standalone_mode=False)
        if code == 130:
            log.print(f"{name}: interrupted; nothing half-written stays.", markup=False)
    except HistoError as error:
        code = error.exit_code
        log.print(f"{name}: {error}", markup=False, soft_wrap=True)
    except typer.exceptions.TyperException as error:
        code = error.exit_code
        message = error.format_message().strip()
        log.print(f"{name}: {message} See {name} --help.", markup=False, soft_wrap=True)
    except BrokenPipeError:  # `histo … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)


def main() -> NoReturn:
    """`histo`."""
    _run(app, "histo")


def export_main() -> NoReturn:
    """`histo-export`: `histo export` by itself."""
    _run(export_app, "histo-export")
