"""`histo verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from histo_export.cli import show
from histo_export.cli.options import AsJson, BundleArgument, Quiet, one_of, usable_cpus


def verify(
    bundle: BundleArgument,
    device: Annotated[str, typer.Option(metavar="DEV", help="[b]cpu[/b] or [b]cuda[/b].")] = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every sha256 of a bundle, then run each file and compare it with the checkpoint's own logits.

    The model card (README.md) has no sha256: it may be edited.
    """
    one_of("--device", device, ("cpu", "cuda"))
    from histo_export.export.bundle import open_bundle
    from histo_export.machine import require_device

    require_device(device)
    opened = open_bundle(bundle)
    from histo_export.export.low_precision import raise_if_onnx_differs
    from histo_export.export.run import check_files, check_quantised, raise_if_diverged

    threads = usable_cpus()
    with show.status("checking", quiet) as report:
        checks = check_files(bundle, opened.models, threads, device, report)
        quantised = check_quantised(bundle, threads, report) if opened.config.histo.precision == "int8" else None
    if as_json:
        files = [show.file_facts(bundle, result) for result in checks.results]
        facts = {"bundle": str(bundle), "files": files, "unchecked": checks.unchecked}
        show.print_json(facts | ({"int8_onnx": quantised.model_dump()} if quantised else {}))
    else:
        title = f"{bundle}: every sha256 is right (the model card has none)"
        show.print_files(title, bundle, checks, opened.config.histo.training)
        if quantised is not None:
            show.print_int8_onnx(quantised)
    raise_if_diverged(checks.results)
    if quantised is not None:
        raise_if_onnx_differs(quantised)
    if not as_json:
        show.print_passed(len(checks.results) + (quantised is not None))
