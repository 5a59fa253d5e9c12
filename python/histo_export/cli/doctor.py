"""`histo doctor`."""

from __future__ import annotations

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import AsJson

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


def doctor(as_json: AsJson = False) -> None:
    """Show versions, instruction sets, threads, and which runtimes and devices really run here."""
    with show.log.status("trying what is installed"):
        from histo_export.doctor import examine

        facts = examine()
    if as_json:
        show.print_json(facts)
    else:
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
    if facts["problems"]:
        raise typer.Exit(1)


def _text(value: object) -> str:
    """A fact as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
