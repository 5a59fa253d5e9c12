"""`histo doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import AsJson, one_of
from histo_export.errors import UsageError
from histo_export.spec import PRECISIONS, AskedPrecision

LABELS = {
    "gpu": "GPU",
    "cpu": "CPU",
    "openmp_runtimes": "OpenMP runtimes",
    "onnxruntime_providers": "ONNX Runtime's providers",
    "isa": "instruction sets",
    "usable_cpus": "usable CPUs",
    "cxx_standard": "C++ standard (__cplusplus)",
    "build_type": "build type",
    "cuda": "CUDA",
}
"""Names in the JSON → in the table, where they are not the same."""


Speed = Annotated[
    bool,
    typer.Option(
        "--speed",
        metavar="",
        help="In about ten seconds: where the native engine's time goes, and its share of what this machine can do at "
        "most.",
    ),
]
SpeedPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="With --speed: fp32, bf16x3, bf16, int8 or auto.  [dim]\\[default: what the bundle is made for][/dim]",
    ),
]
DoctorBundle = Annotated[
    Path | None,
    typer.Argument(metavar="[BUNDLE]", help="Which precision to run it in here; with --speed it is what is timed."),
]


def doctor(
    bundle: DoctorBundle = None, speed: Speed = False, precision: SpeedPrecision = None, as_json: AsJson = False
) -> None:
    """Show versions, instruction sets, threads, and which runtimes and devices really run here."""
    if precision is not None:
        one_of("--precision", precision, (*PRECISIONS, "auto"))
        if not speed:
            raise UsageError(f"--precision {precision}", "is for the timing", "Add --speed")
    if speed:
        _print_speed(bundle, precision, as_json)  # type: ignore[arg-type]  # checked above
        return
    opened = None
    if bundle is not None:
        from histo_export.export.bundle import open_bundle

        opened = open_bundle(bundle)
    with show.log.status("trying what is installed"):
        from histo_export.doctor import examine

        facts = examine()
    if opened is not None:
        from histo_export.export.precision_choice import remark

        told = remark(opened.config, "auto", opened.config.histo.precision)
        facts["bundle"] = {"made for": opened.config.histo.precision, "precision": told}
    if as_json:
        show.print_json(facts)
    else:
        _print_facts(facts)
    if facts["problems"]:
        raise typer.Exit(1)


def _print_facts(facts: Mapping[str, Any]) -> None:
    table = show.table(show_header=False)
    for section, value in facts.items():
        if section == "problems":
            continue
        rows = value.items() if isinstance(value, dict) else [("loaded", value)]
        for i, (key, item) in enumerate(rows):
            label = "" if section == "runtimes" else LABELS.get(key, key)  # the ids begin with the name
            title = "" if i else f"[b]{LABELS.get(section, section.replace('_', ' '))}[/b]"
            table.add_row(title, escape(str(label)), escape(_text(item)))
    show.print_table(table)
    for problem in facts["problems"]:
        show.log.print(f"[red]problem:[/] {escape(problem)}")
    if not facts["problems"]:
        show.out_console.print("\nNo problem found.")


def _print_speed(bundle: Path | None, precision: AskedPrecision | None, as_json: bool) -> None:
    """The engine's stages on this machine, for single tiles and for batches."""
    with show.log.status("measuring for about ten seconds"):
        from histo_export.doctor import measure_speed

        speed = measure_speed(bundle, precision)
    if as_json:
        show.print_json(speed.facts())
        return
    show.out_console.print(f"{speed.machine}; histo-export {speed.version}", markup=False, soft_wrap=True)
    if speed.busy:
        show.log.print(f"[yellow]note:[/] {escape(speed.busy)}", soft_wrap=True)
    from histo_export.bench import sections

    show.print_sections(sections.stages(speed.tables))
    if speed.remark:
        show.log.print(f"note: {speed.remark}", markup=False, soft_wrap=True)


def _text(value: object) -> str:
    """A fact as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
