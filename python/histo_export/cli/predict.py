"""`histo predict`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn
from rich.progress import Progress as ProgressBar

from histo_export.cli import show
from histo_export.cli.options import BundleArgument, OutputOptions, one_of, usable_cpus
from histo_export.errors import UsageError
from histo_export.spec import PRECISIONS, percent

FAILURES_SHOWN = 10
"""Lines on the screen about what could not be used; failed.csv has all."""

if TYPE_CHECKING:
    from histo_export.predict.run import Done, Outcome, Progress
    from histo_export.predict.settings import PredictSettings, SlideSettings


@dataclass(frozen=True)
class RuntimeOptions:
    """What runs the model, and how."""

    runtime: Annotated[
        str,
        typer.Option(metavar="R", help="native, native-latency, onnxruntime, openvino, libtorch, torchscript, torch."),
    ] = "native"
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Tiles per call of the runtime.")] = 32
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Of the runtime; as many others read tiles.  [dim]\\[default: all usable CPUs][/dim]",
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="fp32, bf16x3, bf16 or int8, never another one; or [b]auto[/b]: the fastest that the bundle allows on "
            "this CPU.  [dim]\\[default: what the bundle is made for][/dim]",
        ),
    ] = None
    device: Annotated[
        str, typer.Option(metavar="DEV", help="[b]cpu[/b] or [b]cuda[/b]. An error if it is not usable.")
    ] = "cpu"
    resize: Annotated[
        bool, typer.Option("--resize", metavar="", help="Resample tiles of another size than the model's.")
    ] = False
    resample: Annotated[
        str,
        typer.Option(
            metavar="F",
            help="Filter for slides and --resize: [b]bilinear[/b] or [b]bicubic[/b]. Slides: also [b]dct[/b], which "
            "decodes JPEG smaller.",
        ),
    ] = "bilinear"


@dataclass(frozen=True)
class FurtherOptions:
    """What other programs get of a slide, and what labels of tiles mean."""

    features: Annotated[
        str | None,
        typer.Option(
            metavar="F",
            help="Write the feature vector of each tile, which the linear layer gets: [b]h5[/b] (as CLAM and TRIDENT "
            "read it) or [b]parquet[/b].",
        ),
    ] = None

    table: Annotated[
        str | None,
        typer.Option(
            metavar="F", help="A further table, for AnnData (squidpy, scanpy, LazySlide): [b]h5ad[/b] or [b]zarr[/b]."
        ),
    ] = None
    tiles_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each tile of a slide as a picture into DIR/<slide>/.")
    ] = None
    class_map: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Columns folder,class: the true class of tiles in each folder or with each label, for accuracy; an "
            "empty class: not judged.",
        ),
    ] = None
    tiles_format: Annotated[str, typer.Option(metavar="F", help="Of these: [b]png[/b] or [b]webp[/b] (lossless).")] = (
        "png"
    )


@dataclass(frozen=True)
class SlideOptions:
    """How a slide is cut into tiles, and where it has tissue."""

    mpp: Annotated[
        float | None, typer.Option(metavar="UM", help="µm per pixel of slides whose files lack it or are wrong.")
    ] = None
    grid: Annotated[
        str,
        typer.Option(
            metavar="UNIT",
            help="Squares of the grid: [b]seen[/b] by the network, or whole tiles as in WSInfer ([b]tile[/b]).",
        ),
    ] = "seen"
    overlap: Annotated[
        float, typer.Option(metavar="F", help="Of neighbouring squares, as a fraction of their side.")
    ] = 0
    stride: Annotated[
        float | None, typer.Option(metavar="UM", help="From square to square in µm, in place of --overlap.")
    ] = None
    smooth: Annotated[
        bool, typer.Option("--smooth", metavar="", help="Heat map of the mean of overlapping squares.")
    ] = False
    min_tissue: Annotated[float, typer.Option(metavar="F", help="Fraction of a square that must be tissue.")] = 0.1
    tissue_threshold: Annotated[
        int | None,
        typer.Option(metavar="S", help="On saturation, 0 to 255.  [dim]\\[default: Otsu's][/dim]"),
    ] = None
    closing: Annotated[float, typer.Option(metavar="UM", help="Gaps in tissue up to this width are closed.")] = 50
    min_area: Annotated[float, typer.Option(metavar="UM2", help="Smaller pieces of tissue are ignored.")] = 40_000
    everything: Annotated[
        bool, typer.Option("--everything", metavar="", help="Take every square of a slide, with tissue or without.")
    ] = False
    coords: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Tiles at these places: a patch file of CLAM or TRIDENT (.h5), a CSV (x,y), or a folder with one for "
            "each slide.",
        ),
    ] = None
    roi: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Look inside these areas only: a GeoJSON file of QuPath, or a folder with one for each slide.",
        ),
    ] = None
    mask: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The same by an image (PNG, TIFF; 0 is outside), or a folder of them."),
    ] = None
    geojson_origin: Annotated[
        str,
        typer.Option(
            metavar="O",
            help="(0, 0) of tiles.geojson and --roi: [b]bounds[/b] of the slide as in QuPath, or [b]level0[/b].",
        ),
    ] = "bounds"
    reader: Annotated[
        str,
        typer.Option(
            metavar="R",
            help="[b]direct[/b] is fast, [b]openslide[/b] reads more files; the pixels are the same. [b]auto[/b] takes "
            "direct where it can.",
        ),
    ] = "auto"


def predict(
    *,
    bundle: BundleArgument,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT…",
            help="Tiles, slides, folders of them, lists (.txt, .csv), archives and arrays of tiles (.zip, .npz …).",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets a folder for each slide and set of tiles.")] = Path(
        "predictions"
    ),
    runtime: RuntimeOptions,
    slide: SlideOptions,
    further: FurtherOptions,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Share the work on a Ray cluster: [b]local[/b] (this machine's own), [b]auto[/b], HOST:PORT.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", metavar="", help="Show the seconds of each stage, too.")
    ] = False,
    output: OutputOptions,
) -> None:
    """Run a bundle over tiles and whole slides.

    A slide gets tiles.csv, tiles.geojson (QuPath), probabilities.ome.tiff, heatmap.png, tissue.png and summary.json; a
    set of tiles tiles.csv and summary.json, and where its folders are named like the classes, accuracy and mistakes.
    With the extra report, a set of tiles gets tiles.parquet and pictures, too. Open index.html to look at all results
    in a browser. The areas and figures are printed. After an interruption the same command does what is missing. What
    can't be used is listed at the end and in failed.csv, and the exit code is 1.
    """
    settings = _settings(bundle, runtime, slide, further)
    from histo_export.predict.messages import collected_messages

    with collected_messages():  # of what is imported; `predict` keeps those of its own in run.json
        from histo_export.export.hub import local_bundle
        from histo_export.predict.run import predict as predict_all

        bundle = local_bundle(bundle)

        with _progress(output.quiet) as report:
            command = show.command_line("histo", *sys.argv[1:])
            outcome = predict_all(
                bundle, inputs, out, settings, ray=ray, force=output.force, command=command, report=report
            )
    if output.as_json:
        show.print_json(_facts(out, outcome))
    else:
        _print(out, outcome, verbose)
        if outcome.precision.remark and not output.quiet:
            show.log.print(f"note: {outcome.precision.remark}", markup=False, soft_wrap=True)
    if outcome.failures:
        raise typer.Exit(1)


def _settings(bundle: Path, options: RuntimeOptions, slide: SlideOptions, further: FurtherOptions) -> PredictSettings:
    from histo_export.predict.settings import PredictSettings
    from histo_export.runtimes import all_variants

    runnable = [str(variant) for variant in all_variants() if (bundle / variant.file).is_file()]
    one_of("--runtime", options.runtime, [str(variant) for variant in all_variants()], runnable)
    if options.precision is not None:
        one_of("--precision", options.precision, (*PRECISIONS, "auto"))
    one_of("--device", options.device, ("cpu", "cuda"))
    if options.resize and options.resample == "dct":
        raise UsageError("--resample dct", "contradicts --resize, because it is for slides alone", "Leave one out")
    class_map = None
    if further.class_map is not None:
        from histo_export.data.class_map import read_class_map

        class_map = dict(read_class_map(further.class_map).classes)
    return PredictSettings(
        class_map=class_map,
        runtime=options.runtime,
        precision=options.precision,  # type: ignore[arg-type]  # checked above
        device=options.device,
        resize=options.resample if options.resize else None,  # type: ignore[arg-type]  # checked by the class
        slide=_slide_settings(slide, options.resample),
        batch=options.batch,
        threads=options.threads or usable_cpus(),
        features=further.features,  # type: ignore[arg-type]  # checked by the class
        tiles_out=None if further.tiles_out is None else str(further.tiles_out.absolute()),
        tiles_format=further.tiles_format,  # type: ignore[arg-type]  # checked by the class
        reader=slide.reader,  # type: ignore[arg-type]  # checked by the class
        table=further.table,  # type: ignore[arg-type]  # checked by the class
    )


def _slide_settings(options: SlideOptions, resample: str) -> SlideSettings:
    from histo_export.predict.settings import SlideSettings, TissueSettings

    if options.stride is not None and options.overlap:
        raise UsageError("--stride", "contradicts --overlap", "Leave one of them out")
    return SlideSettings(
        mpp=options.mpp,
        grid=options.grid,  # type: ignore[arg-type]  # these three are checked by the class
        overlap=options.overlap,
        smooth=options.smooth,
        stride_um=options.stride,
        min_tissue=options.min_tissue,
        everything=options.everything,
        resample=resample,  # type: ignore[arg-type]
        coords=None if options.coords is None else str(options.coords.absolute()),
        roi=None if options.roi is None else str(options.roi.absolute()),
        mask=None if options.mask is None else str(options.mask.absolute()),
        geojson_origin=options.geojson_origin,  # type: ignore[arg-type]
        tissue=TissueSettings(
            threshold=options.tissue_threshold, closing_um=options.closing, min_area_um2=options.min_area
        ),
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A live line on stderr, if that is a terminal: the input, its tiles, and how fast they go."""
    if quiet or not show.log.is_terminal:
        yield lambda progress: None
        return
    columns = ("[progress.description]{task.description}", BarColumn(), "{task.fields[rate]}")
    with ProgressBar(*columns, console=show.log, transient=True) as bar:
        task = bar.add_task("starting", total=None, rate="")
        began: dict[int, float] = {}

        def update(progress: Progress) -> None:
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

        yield update


def _facts(out: Path, outcome: Outcome) -> dict[str, Any]:
    """The results as plain values."""
    from histo_export.predict.inputs import text_of

    return {
        "out": text_of(out),
        "inputs": [dataclasses.asdict(done) for done in outcome.done],
        "failures": [dataclasses.asdict(failure) for failure in outcome.failures],
        "skipped": [dataclasses.asdict(kind) for kind in outcome.skipped],
        "notes": outcome.notes,
        "earlier_failures": outcome.earlier_failures,
        "executed": outcome.executed,
        "precision": dataclasses.asdict(outcome.precision),
        "seconds": outcome.wall,
        "peak_memory_mb": round(outcome.peak_mb),
    }


def _print(out: Path, outcome: Outcome, verbose: bool) -> None:
    """The results on stdout; warnings and failures on stderr."""
    from histo_export.predict.inputs import text_of
    from histo_export.predict.record import FAILED
    from histo_export.predict.slide import NO_SCALE

    place, failed = escape(text_of(out)), escape(text_of(out / FAILED))
    for done in outcome.done:
        _print_result(done)
    if verbose and outcome.done:
        _print_seconds(outcome)
    if outcome.done:
        show.out_console.print(
            f"Look at the results: {place}/index.html. Tables, pictures and summary.json are in {place}/<input>/."
        )
    for done in outcome.done:
        for warning in done.summary.get("warnings", ()):
            show.log.print(f"[yellow]warning:[/] {escape(f'{done.name}: {warning}')}")
    for note in outcome.notes:
        show.log.print(f"note: {note}", markup=False)
    for kind in outcome.skipped:
        show.log.print(f"left out: {kind.count:,} {kind.kind}, e.g. {kind.example}", markup=False)
    if len(outcome.executed) > 1:
        show.log.print(
            f"[yellow]note:[/] machines differ ({escape('; '.join(outcome.executed))}), and so may the last bits; set "
            "HISTO_ISA to the lowest for identical results."
        )
    if outcome.failures:
        show.log.print(f"[red]{len(outcome.failures):,} could not be used[/] (all in {failed}):")
        for failure in outcome.failures[:FAILURES_SHOWN]:
            show.log.print(f"  {failure.path}: {failure.reason}.", markup=False)
    if any(NO_SCALE in failure.reason for failure in outcome.failures):
        again = show.command_line("histo", *sys.argv[1:], "--mpp", "0.25")
        text = f"With the µm per pixel of slides that do not state it, here 0.25 (name those alone): {again}"
        show.log.print(text, markup=False, soft_wrap=True)
    if outcome.earlier_failures:
        show.log.print(f"{failed} also lists {outcome.earlier_failures:,} of earlier runs over other inputs.")


def _print_result(done: Done) -> None:
    """What one input was found to be: a row for each class that occurs."""
    summary = done.summary
    before = "" if done.run else ", done before"
    if "tissue_mm2" in summary:
        tissue = summary["tissue_mm2"]
        table = show.table(f"{done.name}: {tissue:.3f} mm² of tissue, {done.tiles:,} tiles{before}")
        rows = [(name, figures["tiles"], figures["area_mm2"]) for name, figures in summary["classes"].items()]
        table.add_column("class")
        for heading in ("tiles", "mm²", "of tissue"):
            table.add_column(heading, justify="right")
        for name, tiles, area in rows:
            if tiles:
                table.add_row(escape(name), f"{tiles:,}", f"{area:.3f}", _share(area, tissue))
        if (unanalysed := summary.get("unanalysed_mm2")) is not None:
            table.add_row("[i]not analysed[/i]", "", f"{unanalysed:.3f}", _share(unanalysed, tissue))
    else:
        lost = f", {summary['failed']:,} could not be used" if summary.get("failed") else ""
        table = show.table(f"{done.name}: {done.tiles:,} tiles{lost}{before}")
        table.add_column("class")
        for heading in ("tiles", "of tiles"):
            table.add_column(heading, justify="right")
        for name, tiles in summary["classes"].items():
            if tiles:
                table.add_row(escape(name), f"{tiles:,}", _share(tiles, done.tiles))
    show.print_table(table)
    from histo_export.metrics import majority_share

    for split, report in _judged(summary).items():
        low, high = report["interval"]
        largest = majority_share(report["support"])
        show.out_console.print(
            f"{escape(split)}: accuracy [b]{percent(report['accuracy'])}[/b] "
            f"(95 % interval {percent(low)} to {percent(high)}, {report['tiles']:,} tiles; chance "
            f"{percent(1 / len(report['classes']))}, always the largest class {percent(largest)})",
            soft_wrap=True,
        )
    show.out_console.print()


def _judged(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The report of each split of a labelled set, by what to call its tiles."""
    return {f"{name} tiles": report for name, report in summary.get("splits", {}).items()}


def _share(part: float, whole: float) -> str:
    return f"{percent(part / whole)}" if whole else ""


def _print_seconds(outcome: Outcome) -> None:
    """What the stages of the loop took."""
    table = show.table()
    table.add_column("input")
    for heading in ("tiles", "tiles/s", "s", "prepare", "read", "wait", "infer", "write"):
        table.add_column(heading, justify="right")
    for done in outcome.done:
        spent = done.seconds
        figures = ["done before"] + [""] * 6
        if done.run:
            stages = (spent.wall, spent.prepare, spent.read, spent.wait, spent.infer, spent.write)
            figures = [f"{done.run / spent.wall:.0f}", *(f"{seconds:.1f}" for seconds in stages)]
        table.add_row(escape(done.name), f"{done.tiles:,}", *figures)
    show.print_table(table)
    run = sum(done.run for done in outcome.done)
    total = f"{run:,} tiles in {outcome.wall:.1f} s, {run / outcome.wall:.0f}/s. " if run else ""
    executed = f" Executed: {escape('; '.join(outcome.executed))}." if outcome.executed else ""
    show.out_console.print(
        "[dim]Seconds of each stage; they overlap, also between slides. read: all reader threads together; wait: the "
        "runtime had no tile.\n"
        f"{total}Peak memory {outcome.peak_mb:,.0f} MB.{executed}[/dim]\n"
    )
