"""The bundle's README.md: a model card for people who did not make the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from histo_export.bundle_files import INT8_ONNX, NATIVE
from histo_export.export.bundle import BundleConfig, HistoBlock, LowPrecision, PrecisionCosts
from histo_export.export.formats import FORMATS
from histo_export.metrics import against_colour
from histo_export.model.provenance import best_row, kept_weights
from histo_export.spec import ModelSpec, describe_input, percent

HUB_METADATA = (
    "---",
    "library_name: histo-export",
    "pipeline_tag: image-classification",
    "license: unknown",
    "tags: [histology, pathology, resnet34, onnx]",
    "---",
    "",
)
"""The metadata that Hugging Face reads from a model card."""


def model_card(config: BundleConfig, spec: ModelSpec) -> str:
    """Markdown: what the model is, what it was trained on, how exact the files are, how to run them."""
    block, training = config.histo, config.histo.training
    data = training.get("data", {})
    shape, values = describe_input(block.input, spec.tile_size)
    lines = [*HUB_METADATA, f"# ResNet34 tile classifier, pool {spec.pool}", ""]
    if data.get("synthetic"):
        lines += ["**Trained on synthetic tiles, for demonstration. It knows nothing about tissue.**", ""]
    lines += [
        f"Exported on {datetime.now(UTC):%Y-%m-%d}. Classes: {', '.join(map(_plain, spec.classes))}.",
        "",
        f"Input: {shape}, {values}, tiles of {spec.tile_size} px; centre crop to {spec.crop} px and normalisation are "
        "inside the files. Output: logits; apply softmax for probabilities.",
        *_crop_lines(spec),
        "",
        f"Spacing: {spec.mpp} µm/px."
        if spec.mpp
        else f"Spacing: unknown. config.json says {config.spacing_um_px} because WSInfer wants a number; "
        "export with `--mpp` to state the true one.",
        "",
        *_use_lines(spec, training),
        "## Training",
        "",
        f"- Data: {data.get('description') or data.get('name', 'not recorded')}",
        *([f"- Licence of the data: {_plain(data['licence'])}"] if data.get("licence") else []),
        *([f"- Cite the data: {_plain(data['citation'])}"] if data.get("citation") else []),
        f"- Data fingerprint: `{data.get('fingerprint', 'not recorded')}`",
        *([f"- Split: {data['split']}"] if data.get("split") else []),
        *(
            f"- {key}: {value}"
            for key, value in described_settings(training).items()
            if key not in ("batch_size", "lr")
        ),
        *_accuracy_lines(training),
        "",
        *_class_lines(training),
        *_measure_lines(training),
        *(_precision_lines(block.precision, block.low_precision) if block.low_precision else ()),
        *(_cost_lines(config.histo_precision_costs) if config.histo_precision_costs else ()),
        *_file_lines(block),
        "",
        "## How to load",
        "",
    ]
    if NATIVE in block.files:
        inputs = "slides/" if spec.mpp else "tiles/"  # slides need the µm per pixel
        lines += [
            f'With histo-export: `histo predict FOLDER {inputs}`, or `histo_export.load("FOLDER")` in Python.',
            "",
        ]
    for entry in FORMATS.values():
        if any(map(entry.makes, block.files)):
            lines += entry.writer.usage(spec, block.input, block.files)
    return "\n".join(lines)


def _crop_lines(spec: ModelSpec) -> list[str]:
    """How tiles were resized for training, and how much of a tile counts, where that is not all of it."""
    lines = []
    if spec.resized_from is not None:
        lines += [
            "",
            f"It was trained on tiles of {spec.resized_from} px that were resized to {spec.tile_size} px (bilinear, "
            "antialiased). `histo predict` does this with tiles of that size; whatever else runs the files must give "
            f"tiles of {spec.tile_size} px.",
        ]
    if spec.crop != spec.tile_size:
        seen = f"the centre {spec.crop} of {spec.tile_size} pixels, {spec.seen_share} of a tile's area"
        lines += ["", f"The network sees {seen}. Training with `--crop {spec.tile_size}` uses all."]
    return lines


def _file_lines(block: HistoBlock) -> list[str]:
    """How exact each file is in each runtime."""
    tiles = golden_tiles_are(block.training)
    lines = [
        "## Files",
        "",
        f"Each file was run in each runtime below, in a process of its own, at batches 1, 2, 3, 7 and 33, on {tiles} "
        f"tiles and on noise, and compared with {reference_is(block.training)} in float64. The error is the largest "
        "difference of a logit, in units of the tile's largest logit. `histo verify` repeats the check.",
        "",
        "| file | run in | error | allowed | top-1 agreement |",
        "|---|---|---|---|---|",
    ]
    for name, by_runtime in block.parity.items():
        for result in by_runtime.values():
            lines.append(
                f"| {name} | {result['runtime']} ({result['executed']}) "
                f"| {result['max_relative']:.1e} | {result['tolerance']:.1e} | {percent(result['agreement'])} |"
            )
    for runtime_id, reason in block.unchecked.items():
        lines += ["", f"Not checked in {runtime_id}: {reason}"]
    return lines


def _use_lines(spec: ModelSpec, training: Mapping[str, Any]) -> list[str]:
    """What the model is for, and what its maker has to add."""
    data = training.get("data", {})
    scale = f"{spec.mpp} µm per pixel" if spec.mpp else "the µm per pixel of its training tiles, which are unknown"
    trained_on = "tiles of one data set (below)"
    if data.get("synthetic"):
        trained_on = "synthetic tiles"
    elif training.get("trained_elsewhere") or not data:
        trained_on = "tiles that are not recorded here"
    return [
        "## Intended use and limits",
        "",
        f"- It sorts histology tiles into the classes above, at {scale}. It always answers one of them, also for tiles "
        "that show something else.",
        f"- It was trained on {trained_on}. Other scanners, stains, laboratories and tissues can "
        "lower the accuracy: test it on tiles of your own before you rely on it.",
        "- It is not a medical device and must not be used to diagnose or treat.",
        "- Licence of the weights: not stated. Whoever publishes this model writes it here and in the first lines of "
        "this file; the licence of the training data may limit the choice.",
        "",
    ]


def described_settings(training: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a training as far as they are recorded, in words; `epochs` with how the run was extended."""
    names = ("recipe", "keep", "epochs", "batch_size", "lr", "seed", "weights")
    settings = {name: str(training[name]) for name in names if training.get(name) is not None}
    if described := training.get("described_recipe"):
        settings["recipe"] = described
    if training.get("balance"):
        settings["balance"] = "each class drawn equally often"
    if "epochs" in settings and (extended := training.get("extended")):
        first = extended[0].get("from", "?")
        steps = ", ".join(f"after epoch {step.get('after_epoch', '?')} to {step.get('to', '?')}" for step in extended)
        settings["epochs"] += f" (first {first}; extended {steps})"
    return settings


def epoch_note(training: Mapping[str, Any]) -> str:
    """What to say of weights that are not those of the best epoch that their record knows; "" for those that are."""
    history = [row for row in training.get("history", []) if {"epoch", "val_accuracy", "val_loss"} <= row.keys()]
    epoch = training.get("epoch")
    if not history or epoch is None or training.get("keep") == "last" or training.get("averaged"):
        return ""
    if training.get("keep") == "ema":
        return f"these are the weights of epoch {epoch}; their moving average, which the run keeps, is in best.ckpt"
    best = best_row(history)
    if best["epoch"] == epoch:
        return ""
    mine = percent(training["val_accuracy"]) if training.get("val_accuracy") is not None else "unknown"
    return (
        f"these are the weights of epoch {epoch} (validation accuracy {mine}), and epoch {best['epoch']} was better "
        f"({percent(best['val_accuracy'])}); that is in best.ckpt"
    )


def describe_test(training: Mapping[str, Any]) -> str:
    """The accuracy on the test split with its interval, or why it is unknown."""
    test = training.get("test")
    if isinstance(test, Mapping) and "accuracy" in test and "interval" in test:
        low, high = test["interval"]
        tiles = f", {test['tiles']:,} tiles of the test split" if "tiles" in test else ""
        return f"{percent(test['accuracy'])} (95 % bootstrap interval {percent(low)} to {percent(high)}{tiles})"
    if training.get("trained_elsewhere"):
        return "unknown, because the network was trained elsewhere"
    return "unknown, because no test is recorded"


def reference_is(training: Mapping[str, Any]) -> str:
    """What the files are compared with: the checkpoint, or the weights that another tool trained."""
    return (
        f"the weights in {training.get('weights', 'another file')}"
        if training.get("trained_elsewhere")
        else "the checkpoint"
    )


def golden_tiles_are(training: Mapping[str, Any]) -> str:
    """What the tiles are, besides noise, on which files are compared with the checkpoint.

    "real" or "synthetic"; "kept" (with the checkpoint) where no record tells which.
    """
    made = True if training.get("trained_elsewhere") else training.get("data", {}).get("synthetic")
    return {True: "synthetic", False: "real"}.get(made, "kept")


def _accuracy_lines(training: Mapping[str, Any]) -> list[str]:
    """Validation and test accuracy, as far as they are recorded."""
    lines = []
    if isinstance(value := training.get("val_accuracy"), float):
        kept = kept_weights(training)
        lines.append(f"- Validation accuracy: {percent(value)}" + (f" ({kept})" if kept else ""))
    if note := epoch_note(training):
        lines.append(f"- Epoch: {note}")
    lines.append(f"- Test accuracy: {describe_test(training)}")
    if floors := training.get("floors"):
        lines.append(f"- Floors on the same tiles: {describe_floors(floors)}")
    if calibration := training.get("calibration"):
        lines.append(f"- Calibrated: {describe_calibration(calibration)}")
    return lines


def describe_floors(floors: Mapping[str, Any]) -> str:
    """What other ways reach on the test tiles, and how far the network is from the best of them."""
    colour = floors["colour"]
    low, high = colour["ahead_interval"]
    interval = "" if colour.get("groups") == 1 else f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    judgement = against_colour(colour)
    return (
        f"chance {percent(floors['chance'])}, always the largest class {percent(floors['majority'])}, colour alone "
        f"{percent(colour['accuracy'])}{' balanced accuracy' if colour.get('balanced') else ''} (the network is "
        f"{100 * colour['ahead']:+.1f} points from it{interval}{f'; **{judgement}**' if judgement else ''})"
    )


def describe_calibration(calibration: Mapping[str, Any], *, exported: bool = True) -> str:
    """The temperature, and the calibration error before and after; a checkpoint's weights are not divided yet."""
    before, after = (percent(calibration[f"test_{when}"]["calibration_error"]) for when in ("before", "after"))
    fitted = [percent(calibration[f"val_{when}"]["calibration_error"]) for when in ("before", "after")]
    divided = f"divided by {calibration['temperature']:.4g}"
    return (
        f"logits {divided if exported else f'will be {divided} at export'}, fitted on {calibration['tiles']:,} "
        f"validation tiles; calibration error {fitted[0]} → {fitted[1]} on these, {before} → {after} on test"
    )


def _measure_lines(training: Mapping[str, Any]) -> list[str]:
    """The figures of the probabilities on the test split, with their intervals."""
    test = training.get("test")
    rows = measure_rows(test) if isinstance(test, Mapping) else []
    if not rows:
        return []
    lines = ["| measure on the test tiles | value | 95 % interval |", "|---|---|---|"]
    return [*lines, *(f"| {' | '.join((_plain(name), *cells))} |" for name, *cells in rows), ""]


def measure_rows(test: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and interval of each of `measures.Measures`, given `AccuracyReport.to_dict()`; none of old files."""
    measures = test.get("measures")
    if not measures:
        return []

    def row(name: str, measure: Mapping[str, Any], show: Callable[[float], str]) -> tuple[str, str, str]:
        if measure["value"] is None:
            return name, "undefined", ""
        if measure["interval"] is None:
            return name, show(measure["value"]), "unknown"
        low, high = map(show, measure["interval"])
        return name, show(measure["value"]), f"{low} to {high}"

    plain: Callable[[float], str] = "{:.3f}".format
    rows = [
        row("balanced accuracy", measures["balanced_accuracy"], percent),
        row("macro F1", measures["macro_f1"], percent),
        row("log loss (nats)", measures["log_loss"], plain),
        row("Brier score (0 to 2)", measures["brier"], plain),
        row("expected calibration error", measures["calibration_error"], percent),
    ]
    for key, name in (("roc_auc", "ROC AUC"), ("average_precision", "average precision")):
        rows += [row(f"{name}, {c}", m, plain) for c, m in zip(test["classes"], measures[key], strict=True)]
    if point := measures.get("operating_point"):
        name = f"sensitivity for {point['positive']} at specificity {percent(point['specificity'])}"
        threshold = point["threshold"]
        reached = "no threshold reaches it" if threshold is None else f"probability ≥ {threshold:.3f}"
        rows.append(row(f"{name} ({reached})", point["sensitivity"], percent))
    return rows


def _class_lines(training: Mapping[str, Any]) -> list[str]:
    """The figures of each class on the test split."""
    test = training.get("test")
    columns = ("classes", "precision", "recall", "f1", "support")
    if not isinstance(test, Mapping) or not all(column in test for column in columns):
        return []
    lines = ["| class | precision | recall | F1 | test tiles |", "|---|---|---|---|---|"]
    for name, *figures, tiles in zip(*(test[column] for column in columns), strict=True):
        lines.append(f"| {_plain(name)} | {' | '.join(f'{percent(figure)}' for figure in figures)} | {tiles:,} |")
    return [*lines, ""]


def _plain(name: str) -> str:
    """A class name that breaks no table of Markdown."""
    return " ".join(name.split()).replace("|", "\\|")


def _cost_lines(costs: PrecisionCosts) -> list[str]:
    """What the precisions below fp32 cost, for those who want to run the bundle in one."""
    lines = [
        "## Lower precisions",
        "",
        f"Beside fp32, on {costs.tiles:,} of the {costs.of_tiles:,} tiles of the validation split. Points are "
        "percentage points of accuracy. `histo predict --precision auto` takes the fastest one that loses at most "
        f"{costs.max_drop:g} points and has instructions on the CPU.",
        "",
        "| precision | points lost | 95 % interval | another top class | measured with |",
        "|---|---|---|---|---|",
    ]
    for name, cost in costs.measured.items():
        low, high = cost.interval
        lines.append(
            f"| {name} | {cost.lost:.2f} | {low:.2f} to {high:.2f} | {cost.changed:,} of {costs.tiles:,} tiles "
            f"| {cost.measured_with} |"
        )
    return [*lines, ""]


def _precision_lines(precision: str, low: LowPrecision) -> list[str]:
    """What the bundle's precision costs, for the native engine and for the quantised ONNX file."""
    lines = [
        "## Precision",
        "",
        f"Made for {precision}: ask the native engine for it by name. The weights in the files are float32 all the "
        f"same. Measured on the {low.tiles:,} tiles of the validation split, by which the run chose its best epoch; "
        f"{low.max_drop:g} points may be lost"
        + (", and a larger loss was accepted at export." if low.drop_accepted else "."),
        "",
        "| precision | accuracy | 95 % interval | top-1 as fp32 | points lost | measured with |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in low.precisions.items():
        lines.append(
            f"| {name} | {percent(figures.accuracy)} "
            f"| {percent(figures.interval[0])} to {percent(figures.interval[1])} "
            f"| {percent(figures.agreement)} | {figures.drop:.2f} | {figures.measured_with} |"
        )
    if (calibration := low.calibration) is not None:
        kept = ", ".join(calibration.kept) or "none"
        lines += [
            "",
            f"int8 scales: {calibration.chosen}, from {calibration.tiles} tiles of the training split. "
            f"Convolutions kept in bf16 besides the stem: {kept}.",
        ]
    if low.onnx is not None:
        lines += [
            "",
            f"`{INT8_ONNX}` is the quantised model with QuantizeLinear and DequantizeLinear, its stem in fp32. In "
            f"{low.onnx.runtime} its logits differ from the same arithmetic in torch by {percent(low.onnx.error)} of "
            f"their spread, with {percent(low.onnx.agreement)} of top classes the same.",
        ]
    return [*lines, ""]
