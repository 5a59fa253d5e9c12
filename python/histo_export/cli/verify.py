"""`histo verify`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from histo_export.bundle_files import INT8_ONNX
from histo_export.cli import show
from histo_export.cli.options import AsJson, BundleArgument, Quiet, one_of, usable_cpus
from histo_export.errors import UsageError
from histo_export.extras import MissingExtraError, needs

if TYPE_CHECKING:
    from histo_export.export.bundle import Bundle, OnnxCheck
    from histo_export.export.checks import Checks

UNPROVEN = 3
"""The exit code where nothing is wrong, but a file could not be run here."""


def verify(
    bundle: BundleArgument,
    device: Annotated[str, typer.Option(metavar="DEV", help="[b]cpu[/b] or [b]cuda[/b].")] = "cpu",
    runtimes: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…",
            help="Run the files of these runtimes only, e.g. native.  [dim]\\[default: every file in each of its "
            "runtimes][/dim]",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every sha256 of a bundle, then run each file and compare it with the checkpoint's own logits.

    The exit code is 0 if every file was run and is right, 1 if one is wrong, and 3 if nothing is wrong but a file could
    not be run, because no runtime for it is installed here. The model card (README.md) has no sha256: it may be edited.
    """
    one_of("--device", device, ("cpu", "cuda"))
    only = None if runtimes is None else _names(runtimes)
    from histo_export.machine import require_device

    require_device(device)
    from histo_export.export.bundle import open_bundle
    from histo_export.export.checks import check_files, raise_if_diverged
    from histo_export.export.hub import local_bundle

    bundle = local_bundle(bundle)
    opened = open_bundle(bundle)
    with show.status("checking", quiet) as report:
        checks = check_files(bundle, opened.models, usable_cpus(), device, report, only)
        quantised = _check_quantised(opened, checks, report, only)
    if not (checks.results or checks.unproven or quantised):
        raise UsageError(f"--runtimes {runtimes}", f"run no file of {bundle}", "Leave it out, or name others")
    if as_json:
        files = [show.file_facts(bundle, result) for result in checks.results]
        facts = {"bundle": str(bundle), "files": files, "unchecked": checks.unchecked, "unproven": checks.unproven}
        show.print_json(facts | ({"int8_onnx": quantised.model_dump()} if quantised else {}))
    else:
        title = f"{bundle}: every sha256 is right (the model card has none)"
        show.print_files(title, bundle, checks, opened.config.histo.training)
        if quantised is not None:
            show.print_int8_onnx(quantised)
    raise_if_diverged(checks.results)
    if quantised is not None:
        from histo_export.export.low_precision import raise_if_onnx_differs

        raise_if_onnx_differs(quantised)
    if not as_json:
        show.print_passed(len(checks.results) + (quantised is not None), checks.unproven)
    if checks.unproven:
        raise typer.Exit(UNPROVEN)


def _names(text: str) -> list[str]:
    """Ids of runtimes that check files, as in "native,onnxruntime"; MissingExtraError where one is not installed."""
    from histo_export.export.formats import FORMATS
    from histo_export.runtimes import check_installed

    known = [runtime for entry in FORMATS.values() for runtime in entry.checked_by]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        one_of("--runtimes", name, known)
        check_installed(name)
    return names


def _check_quantised(
    bundle: Bundle, checks: Checks, report: Callable[[str], None], only: list[str] | None
) -> OnnxCheck | None:
    """The check of `model-int8.onnx`; None where there is none, or it is not wanted or can't be run here."""
    if bundle.config.histo.precision != "int8" or INT8_ONNX not in bundle.config.histo.files:
        return None
    if only is not None and "onnxruntime" not in only:
        return None
    try:
        needs(INT8_ONNX, "train", "onnx", modules=("torch", "torchvision", "onnxruntime"))
    except MissingExtraError as error:
        checks.unchecked["onnxruntime-int8"] = f"{error.cause}. {error.next_step}"
        checks.unproven.append(INT8_ONNX)
        return None
    from histo_export.export.run import check_quantised

    return check_quantised(bundle.path, usable_cpus(), report)
