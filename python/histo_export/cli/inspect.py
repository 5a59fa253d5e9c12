"""`histo inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import AsJson, Crop, Pool, one_of, usable_cpus
from histo_export.errors import HistoError, UsageError
from histo_export.extras import needs
from histo_export.spec import CHANNELS, PRECISIONS, ModelSpec, Precision, head_pool, percent

if TYPE_CHECKING:
    from histo_export.export.bundle import BundleConfig
    from histo_export.model.layers import LayerInfo, Size


@dataclass(frozen=True)
class PlanOptions:
    """How the native engine would run a bundle."""

    plan: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", help="The native engine's plan for a bundle, timed: throughput or latency."),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="With --plan: fp32, bf16x3, bf16 or int8.  [dim]\\[default: what the bundle is made for][/dim]",
        ),
    ] = None
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="With --plan: tiles to time.")] = 32


def inspect(
    *,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BUNDLE|RUN|CKPT]", help="A bundle, a run of histo train, a checkpoint; or give --pool."
        ),
    ] = None,
    pool: Pool = None,
    classes: Annotated[int, typer.Option(metavar="K", min=2, max=10_000, help="With --pool: number of classes.")] = 6,
    crop: Crop = None,
    layers: Annotated[
        bool, typer.Option("--layers", metavar="", help="Also a table of all layers; with --pool it is always shown.")
    ] = False,
    as_json: AsJson = False,
    plan: PlanOptions,
) -> None:
    """Show what a bundle or a checkpoint is: classes, tiles, accuracy, files, size; or the engine's plan.

    With --pool instead, what a network of that pool size would cost.
    """
    if plan.plan is not None:
        _inspect_plan(source, plan.plan, plan.precision, plan.batch, as_json)
        return
    if plan.precision is not None:
        raise UsageError(f"--precision {plan.precision}", "is for the engine's plan", "Add --plan throughput")
    if (source is None) == (pool is None):
        raise UsageError("histo inspect", "needs a bundle or checkpoint, or --pool N", "Give exactly one of them")
    config: BundleConfig | None = None
    facts: dict[str, Any] = {}
    if source is None:
        names = tuple(f"class{i}" for i in range(classes))
        spec = ModelSpec(pool or 1, names, crop=crop or 128, tile_size=crop or 150)
    else:
        spec, config, facts = _read(source)

    from histo_export.model.layers import layer_table, size_as_exported, size_as_trained

    rows = layer_table(spec)
    trained, exported = size_as_trained(rows), size_as_exported(spec, rows)
    kept = head_pool(spec.pool, spec.map_size)
    if as_json:
        facts |= {} if config is None else _precision_facts(config)
        show.print_json(facts | _size_facts(spec, trained, exported, kept) | {"layers": list(map(asdict, rows))})
        return
    if facts:
        _print_facts(str(source), spec, facts)
    if layers or not facts:
        _print_layers(spec, rows)
        show.out_console.print()
    _print_sizes(spec, trained, exported, kept)
    if config is not None:
        _print_precisions(config, layers)


def _precision_facts(config: BundleConfig) -> dict[str, Any]:
    """What a bundle says of its precisions, as far as it does, and which one is proposed here."""
    from histo_export.export.precision_choice import remark

    low, costs = config.histo.low_precision, config.histo_precision_costs
    facts = {} if low is None else {"low_precision": low.model_dump()}
    facts |= {} if costs is None else {"precision_costs": costs.model_dump()}
    return facts | {"precision_remark": remark(config, None, config.histo.precision)}


def _print_precisions(config: BundleConfig, layers: bool) -> None:
    from histo_export.export.precision_choice import remark

    low, costs = config.histo.low_precision, config.histo_precision_costs
    if low is not None:
        show.out_console.print()
        show.print_low_precision(config.histo.precision, low, layers=layers)
    if costs is not None:
        show.out_console.print()
        show.print_precision_costs(costs)
    if told := remark(config, None, config.histo.precision):
        show.log.print(f"note: {told}", markup=False, soft_wrap=True)


def _read(source: Path) -> tuple[ModelSpec, BundleConfig | None, dict[str, Any]]:
    """The model of a bundle, a run or a checkpoint, the bundle's config.json, and the other facts as plain values."""
    from histo_export.export.hub import local_bundle
    from histo_export.training.folder import RunFolder

    source = local_bundle(source)
    best = RunFolder(source).best
    if best.exists():
        source = best
    if source.is_dir():
        from histo_export.bundle_files import CONFIG
        from histo_export.export.bundle import open_bundle, spec_of

        if not (source / CONFIG).is_file():
            cause = f"is neither a bundle (no {CONFIG}) nor a training run (no {best.name})"
            raise UsageError(source, cause, "Name a folder that histo export or histo train wrote, or a checkpoint")
        opened = open_bundle(source)
        block = opened.config.histo
        facts = {
            "precision": block.precision,
            "input": block.input,
            "training": block.training,
            "files": {name: entry.model_dump() for name, entry in block.files.items()},
            "versions": block.versions,
        }
        return spec_of(opened), opened.config, facts
    if not source.exists():
        raise UsageError(source, "does not exist", "Name a bundle, the folder of a training run, or a checkpoint")
    needs("Reading a checkpoint", "train", modules=["torch", "torchvision"])
    from histo_export.model.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(source)
    return checkpoint.spec, None, {"training": checkpoint.training}


def _print_facts(source: str, spec: ModelSpec, facts: dict[str, Any]) -> None:
    """What a user wants to know of a model before using it."""
    from histo_export.export.card import (
        describe_calibration,
        describe_floors,
        describe_test,
        described_settings,
        epoch_note,
    )
    from histo_export.model.provenance import kept_weights

    training = facts["training"]
    data = training.get("data", {})
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    made = {True: "; synthetic tiles, for demonstration only", False: ""}.get(data.get("synthetic"), "")
    name = data.get("name")
    resized = f" (in training resized from {spec.resized_from} px)" if spec.resized_from else ""
    seen = f"of which the network sees the centre {spec.crop} px ({spec.seen_share})"
    about = {
        "classes": ", ".join(spec.classes),
        "tiles": f"{spec.tile_size} px{resized}, {seen}",
        "scale": f"{spec.mpp:g} µm per pixel" if spec.mpp else "µm per pixel unknown",
        "normalisation": f"inside the files: mean {mean}, std {std} of values in [0, 1]",
        "trained on": _elsewhere(training) or (f"{name}{made}" if name else "unknown"),
        "licence of the data": data.get("licence", ""),
        "cite": data.get("citation", ""),
        "split": data.get("split", ""),
        "training": ", ".join(f"{key} {value}" for key, value in described_settings(training).items()) or "unknown",
        "epoch": epoch_note(training),
        "kept": kept_weights(training),
        "validation accuracy": percent(accuracy) if (accuracy := training.get("val_accuracy")) is not None else "",
        "test accuracy": describe_test(training),
        "floors": describe_floors(floors).replace("**", "") if (floors := training.get("floors")) else "",
        "calibrated": describe_calibration(calibration, exported="files" in facts)
        if (calibration := training.get("calibration"))
        else "",
        "trained": str(training.get("date", "")),
        "made for": f"{facts['precision']}, {facts['input']} input" if "precision" in facts else "",
        "versions": ", ".join(f"{package} {version}" for package, version in facts.get("versions", {}).items()),
    }
    table = show.table(f"{source}: ResNet34, pool {spec.pool}, {len(spec.classes)} classes", show_header=False)
    for label, value in about.items():
        if value:
            table.add_row(f"[b]{label}[/b]", escape(value))
    show.print_table(table)
    show.out_console.print()
    files = show.table()
    files.add_column("file")
    files.add_column("bytes", justify="right")
    files.add_column("sha256")
    for file, entry in facts.get("files", {}).items():
        files.add_row(escape(file), f"{entry['bytes']:,}", f"{entry['sha256'][:16]}…")
    if files.row_count:
        show.print_table(files)
        show.out_console.print()


def _elsewhere(training: dict[str, Any]) -> str:
    """Which weights another tool trained; "" for those of histo train."""
    if not training.get("trained_elsewhere"):
        return ""
    weights, digest = training.get("weights"), training.get("weights_sha256")
    facts = ["trained elsewhere", f"weights {weights}, sha256 {digest[:16]}" if weights and digest else ""]
    return f"unknown ({'; '.join(filter(None, facts))})"


def _size_facts(spec: ModelSpec, trained: Size, exported: Size, kept: int) -> dict[str, Any]:
    """The model and its size as plain values; `kept` is the pool of the exported head."""
    return {
        "spec": spec.to_dict(),
        "feature_map": [CHANNELS, spec.map_size, spec.map_size],
        "trained": asdict(trained),
        "exported": asdict(exported) | {"head_pool": kept},
    }


def _print_layers(spec: ModelSpec, layers: Sequence[LayerInfo]) -> None:
    table = show.table(f"ResNet34, pool {spec.pool}, {len(spec.classes)} classes, crop {spec.crop}")
    table.add_column("layer")
    table.add_column("kind")
    for heading in ("output", "parameters", "MMAC"):
        table.add_column(heading, justify="right")
    for layer in layers:
        if layer.kind != "BatchNorm2d":  # one row for all of them below; exported files have none
            output = "×".join(map(str, layer.output))
            macs = f"{layer.macs / 1e6:.3f}" if layer.macs else ""
            table.add_row(layer.name, layer.kind, output, f"{layer.parameters:,}" if layer.parameters else "", macs)
    norms = [layer for layer in layers if layer.kind == "BatchNorm2d"]
    table.add_row(f"{len(norms)} batch norms", "BatchNorm2d", "", f"{sum(n.parameters for n in norms):,}", "")
    show.print_table(table)


def _print_sizes(spec: ModelSpec, trained: Size, exported: Size, kept: int) -> None:
    """The sizes side by side; `kept` is the pool of the exported head."""
    side = spec.map_size
    pooled = f"{CHANNELS}×{spec.pool}×{spec.pool}"
    how = "folded into the linear layer" if kept != spec.pool else "average pool" if kept < side else "no pooling left"
    table = show.table()
    for heading in ("", "as trained", "as exported"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("parameters", f"{trained.parameters:,}", f"{exported.parameters:,}")
    table.add_row("of these in the head", f"{trained.head_parameters:,}", f"{exported.head_parameters:,}")
    table.add_row("GMAC per tile", f"{trained.macs / 1e9:.4f}", f"{exported.macs / 1e9:.4f}")
    table.add_row("head reads", f"{CHANNELS}×{side}×{side} → {pooled}", f"{CHANNELS}×{side}×{side}, {how}")
    show.print_table(table)
    reason = "the batch norms are folded into the convolutions"
    if kept != spec.pool:
        reason += ", and the pooling into the linear layer"
    show.out_console.print(f"[dim]Exported files have other numbers of parameters: {reason}.[/]")


def _inspect_plan(bundle: Path | None, profile: str, precision: str | None, batch: int, as_json: bool) -> None:
    """The layers as the native engine runs them, with the median time of each over nine runs."""
    if bundle is None:
        raise UsageError("--plan", "needs a bundle", "Use histo inspect BUNDLE --plan throughput")
    import numpy as np

    from histo_export import _core
    from histo_export.bundle_files import NATIVE
    from histo_export.export.bundle import open_bundle
    from histo_export.export.hub import local_bundle
    from histo_export.runtimes.native import median_layer_times, open_engine

    one_of("--plan", profile, _core.PROFILES)
    if precision is not None:
        one_of("--precision", precision, PRECISIONS)
    bundle = local_bundle(bundle)
    opened = open_bundle(bundle)
    if NATIVE not in opened.models:
        raise HistoError(bundle, f"has no {NATIVE}, the native engine's file", "Export with --formats native")
    chosen: Precision = precision or opened.config.histo.precision  # type: ignore[assignment]  # checked above
    engine = open_engine(bundle / NATIVE, threads=usable_cpus(), precision=chosen, profile=profile)
    info = engine.info()
    side = info["crop"]
    tiles = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    engine.warmup(batch)
    layers = median_layer_times(engine, tiles)
    info = engine.info()  # again: the workspace is allocated by now
    if as_json:
        show.print_json({"engine": info, "batch": batch, "layers": layers})
    else:
        _print_plan(info, profile, layers, batch)


def _print_plan(info: dict[str, Any], profile: str, layers: Sequence[dict[str, Any]], batch: int) -> None:
    table = show.table(f"Native engine: {info['isa']}, {info['precision']}, {profile}, {info['threads']} threads")
    table.add_column("layer")
    table.add_column("convolution")
    table.add_column("precision")
    for heading in ("output", "MMAC", "executed", "ms", "GFLOP/s"):
        table.add_column(heading, justify="right")
    total = {key: sum(layer[key] for layer in layers) for key in ("multiply_adds", "executed_multiply_adds", "seconds")}
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
    show.print_table(table)
    show.out_console.print(
        f"MMAC and ms per tile, at batch {batch}; executed: after Winograd's reduction, its transforms apart.\n"
        f"Packed weights {info['weight_bytes'] / 1e6:.0f} MB, workspace {info['workspace_bytes'] / 1e6:.0f} MB."
    )
