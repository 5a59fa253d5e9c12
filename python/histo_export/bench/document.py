"""A report as tables of text, which terminal, Markdown and HTML share: made once, and only shown in different ways."""

from __future__ import annotations

from dataclasses import dataclass, field

from histo_export.bench import sections
from histo_export.bench.report import Report, rows_by
from histo_export.bench.sections import Section
from histo_export.spec import percent

BUSY_WHEN_IDLE = 0.01
"""Share of one CPU above which a note warns of a worker that has nothing to do."""


@dataclass
class Document:
    """A report as sections of text, ready for any medium.

    Attributes:
        title: one line.
        warnings: sentences about what makes all figures worse.
        conclusions: sentences, one for each table of speed.
        lead: when, where and how it was measured.
        sections: the tables.
        notes: sentences about single rows.
    """

    title: str
    warnings: list[str]
    conclusions: list[str]
    lead: list[str]
    sections: list[Section]
    notes: list[str] = field(default_factory=list)


def document(report: Report) -> Document:
    """The report as text, the most important tables first."""
    tables = [(table, rows) for table, (_, rows) in zip(report.tables, report.groups(), strict=True)]
    parts = [
        *(sections.speed(report, table, rows) for table, rows in tables),
        *sections.models(report),
        *sections.sweep(report, "batch"),
        *sections.sweep(report, "threads"),
        sections.start(report),
        sections.executed(report),
        *sections.accuracy(report),
        *sections.stages(report.stages),
        *sections.comparison(report),
        *(sections.every_row(report, table, rows) for table, rows in tables),
        *sections.every_pair(report),
        *sections.layers(report),
    ]
    labels = ", ".join(subject.label for subject in report.subjects)
    crop, side = report.rows[0].crop, report.rows[0].tile_size
    return Document(
        title=f"ResNet34 inference: {labels}",
        warnings=_warnings(report),
        conclusions=[sections.conclusion(report, table, rows) for table, rows in tables],
        lead=[
            f"{report.created.replace('T', ' ').removesuffix('+00:00')} UTC{f', {report.host}' * bool(report.host)}",
            str(report.machine),
            f"Command: {report.command}",
            f"uint8 tiles of {side}×{side} to logits, crop {crop}; {report.rounds} interleaved rounds, "
            f"at least {report.seconds:g} s of calls for each row",
            ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        ],
        sections=parts,
        notes=_notes(report),
    )


def _warnings(report: Report) -> list[str]:
    warnings = []
    if report.stopped:
        warnings.append(f"The run was stopped {report.stopped}: fewer rounds make wider intervals.")
    if report.load and (busy := report.load.warning()):
        warnings.append(busy)
    return warnings


def _notes(report: Report) -> list[str]:
    """What a reader must know to judge the figures."""
    notes = [f"Left out: {runtime}. {reason}" for runtime, reason in report.left_out.items()]
    for row in report.rows:
        if not row.stable:
            which = f"{row.name}, {row.subject}, {row.conditions}"
            notes.append(f"{which}: still got faster after {row.warm_s:.0f} s of warm-up.")
    for name, rows in rows_by(report.rows, "name"):
        if (busiest := max(row.idle_cpu for row in rows)) > BUSY_WHEN_IDLE:
            notes.append(f"{name} used {percent(busiest)} of a CPU while it had nothing to do: it disturbs the others.")
    if len(report.tables) > 1:
        notes.append("Tables differ in their settings; rows of different tables have no rank among each other.")
    return notes
