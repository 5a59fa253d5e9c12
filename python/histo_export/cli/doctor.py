"""`histo doctor`."""

from __future__ import annotations

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import AsJson


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
            rows = value.items() if isinstance(value, dict) else [("", ", ".join(value) or "none")]
            for i, (key, item) in enumerate(rows):
                text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
                table.add_row(f"[b]{section.replace('_', ' ')}[/b]" if i == 0 else "", key, escape(text))
        show.print_table(table)
        for problem in facts["problems"]:
            show.log.print(f"[red]problem:[/] {escape(problem)}")
        if not facts["problems"]:
            show.out_console.print("\nNo problem found.")
    if facts["problems"]:
        raise typer.Exit(1)
