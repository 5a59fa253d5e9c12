"""What a run found: `report.json`, and the tables that terminal, Markdown and HTML share.

The JSON holds every timed call, so that another question can be asked of the same run later, and what was concluded
from them, so that nobody needs this package to read it. The tables are made once, as text, and only dressed
differently for each medium.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from histo_export.bench.layers import head_share
from histo_export.bench.measure import ROUNDINGS, Like, Row
from histo_export.errors import HistoError, UsageError
from histo_export.files import atomic_folder
from histo_export.machine import Machine
from histo_export.spec import STAGES
from histo_export.statistics import LEVEL, POWER, Ratio, Summary, compare, compare_unpaired, summarise

SCHEMA_VERSION = 1
RESTLESS = 0.01
"""Share of one CPU above which an idle worker is called restless."""


class SubjectFacts(BaseModel):
    """A model that was measured; `accuracy` is the test set's, with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    pool: int
    accuracy: tuple[float, float, float] | None


class Standing(BaseModel):
    """A row's place in its table; `slower` is its time over that of the fastest runtime for the same model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    subject: str
    runtime: str
    seconds: Summary
    ms_per_tile: float
    tiles_per_second: float
    slower: Ratio


class Table(BaseModel):
    """Rows that are alike, fastest first for each model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    like: Like
    standings: list[Standing]


class Pair(BaseModel):
    """Two models in one runtime: how many times as long `a` takes as `b`, and whether that is a difference."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    like: Like
    runtime: str
    a: str
    b: str
    ratio: Ratio


class Change(BaseModel):
    """A row beside the same row of an older run: new time over old."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    like: Like
    subject: str
    runtime: str
    ratio: Ratio


class Comparison(BaseModel):
    """This run beside an older one of the same machine.

    Attributes:
        changes: rows that both have.
        missing: rows that only one of them has.
        versions: package → versions then and now, where they differ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    created: str
    changes: list[Change]
    missing: list[str]
    versions: dict[str, tuple[str, str]]


class Report(BaseModel):
    """`report.json`.

    Attributes:
        schema_version: raised whenever a field changes its meaning.
        created: UTC, ISO 8601.
        command: that was run.
        rounds, seconds, seed: of `Settings`.
        rows: everything measured.
        left_out: runtime → why it is not here.
        tables, pairs: conclusions from the rows.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    created: str
    command: str
    machine: Machine
    versions: dict[str, str]
    rounds: int
    seconds: float
    seed: int
    subjects: list[SubjectFacts]
    rows: list[Row]
    left_out: dict[str, str]
    tables: list[Table] = []
    pairs: list[Pair] = []
    comparison: Comparison | None = None

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads a `report.json`; UsageError where there is none, HistoError where it is not one of this schema."""
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise UsageError(path, f"could not be read ({error.strerror})", "Name a report.json") from error
        except ValueError as error:
            raise HistoError(path, f"is not JSON ({error})", "Name a report.json that histo bench wrote") from error
        found = content.get("schema_version") if isinstance(content, dict) else None
        if found != SCHEMA_VERSION:
            raise HistoError(
                path, f"has schema version {found!r}, this version reads {SCHEMA_VERSION}", "Run histo bench again"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise HistoError(path, f"is damaged ({where}: {first['msg']})", "Run histo bench again") from error

    def conclude(self) -> None:
        """Fills `tables` and `pairs` from `rows`."""
        self.tables = [_table(like, rows) for like, rows in self.groups()]
        labels = [subject.label for subject in self.subjects]
        found = []
        for like, rows in self.groups():
            for runtime, of_runtime in _by(rows, "runtime"):
                row_of = {row.subject: row for row in of_runtime}
                present = [label for label in labels if label in row_of]
                found += [(like, runtime, row_of[a], row_of[b]) for b, a in itertools.combinations(present, 2)]
        self.pairs = [
            Pair(
                like=like,
                runtime=runtime,
                a=a.subject,
                b=b.subject,
                ratio=compare(a.medians.tolist(), b.medians.tolist(), comparisons=len(found)),
            )
            for like, runtime, a, b in found
        ]

    def groups(self) -> list[tuple[Like, list[Row]]]:
        """Rows that are alike."""
        return [(like, list(rows)) for like, rows in itertools.groupby(sorted(self.rows, key=_like), key=_like)]

    def compare_with(self, old: Report) -> None:
        """Sets `comparison`; HistoError where the runs can't be compared."""
        check_same_machine(old, self.machine)
        mine, theirs = ({(row.like, row.subject, row.runtime): row for row in r.rows} for r in (self, old))
        common = [key for key in mine if key in theirs]
        if not common:
            raise HistoError("--compare", "has no row of the same settings as this run", "Use the options of that run")
        changes = []
        for key in common:
            new, before = mine[key], theirs[key]
            ratio = compare_unpaired(new.medians.tolist(), before.medians.tolist(), comparisons=len(common))
            changes.append(Change(like=new.like, subject=new.subject, runtime=new.runtime, ratio=ratio))
        lonely = [row for key, row in (mine | theirs).items() if (key in mine) != (key in theirs)]
        packages = sorted(self.versions.keys() | old.versions.keys())
        pairs = {name: (old.versions.get(name, "none"), self.versions.get(name, "none")) for name in packages}
        self.comparison = Comparison(
            created=old.created,
            changes=changes,
            missing=[f"{row.runtime}, {row.subject}: {row.like}" for row in lonely],
            versions={name: (then, now) for name, (then, now) in pairs.items() if then != now},
        )


def check_same_machine(old: Report, machine: Machine) -> None:
    """Raises HistoError unless `old` was measured on `machine`."""
    if differences := machine.differences(old.machine):
        listed = "; ".join(differences)
        raise HistoError("--compare", f"the old report is of another machine: {listed}", "Measure both on one machine")


def _like(row: Row) -> Like:
    return row.like


def _by(rows: Iterable[Row], attribute: str) -> list[tuple[str, list[Row]]]:
    """Rows by an attribute, in the order in which its values first come."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, attribute), []).append(row)
    return list(groups.items())


def _table(like: Like, rows: Sequence[Row]) -> Table:
    standings = []
    for _, of_subject in _by(rows, "subject"):
        summaries = [(summarise(row.rounds), row) for row in of_subject]
        ranked = sorted(summaries, key=lambda pair: pair[0].median)
        fastest = ranked[0][1].medians.tolist()
        for seconds, row in ranked:
            standings.append(
                Standing(
                    subject=row.subject,
                    runtime=row.runtime,
                    seconds=seconds,
                    ms_per_tile=seconds.median / row.batch * 1e3,
                    tiles_per_second=row.batch / seconds.median,
                    slower=compare(row.medians.tolist(), fastest),
                )
            )
    return Table(like=like, standings=standings)


@dataclass(frozen=True)
class Section:
    """One table as text.

    Attributes:
        title, note: above and below it.
        columns: headings; a first letter `<` aligns the column left, all others are numbers.
        rows: cells.
        brief: also shown in the terminal.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    brief: bool = False


@dataclass
class Document:
    """A report as sections of text, ready for any medium."""

    title: str
    lead: list[str]
    sections: list[Section]
    notes: list[str] = field(default_factory=list)


def document(report: Report) -> Document:
    """The whole report, most wanted things first."""
    tables = [(table, rows) for table, (_, rows) in zip(report.tables, report.groups(), strict=True)]
    sections = [_speed(report, table, rows) for table, rows in tables]
    sections += [*_pools(report), *_sweep(report, "batch"), *_sweep(report, "threads"), _start(report), _ran(report)]
    sections += [*_accuracy(report), *_comparison(report)]
    sections += [_every_row(report, table, rows) for table, rows in tables]
    sections += [*_every_pair(report), *_layers(report)]
    labels = ", ".join(subject.label for subject in report.subjects)
    crop, side = report.rows[0].crop, report.rows[0].tile_size
    return Document(
        title=f"ResNet34 inference: {labels}",
        lead=[
            str(report.machine),
            f"uint8 tiles of {side}×{side} to logits, crop {crop}; {report.rounds} interleaved rounds, "
            f"at least {report.seconds:g} s of calls for each row",
            ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        ],
        sections=sections,
        notes=_notes(report),
    )


def _name(report: Report, runtime: str) -> str:
    return next(row.name for row in report.rows if row.runtime == runtime)


def _standing(report: Report, row: Row) -> Standing:
    table = next(table for table in report.tables if table.like == row.like)
    return next(s for s in table.standings if (s.runtime, s.subject) == (row.runtime, row.subject))


def _settings(report: Report) -> list[str]:
    """Which settings differ between the tables of this report and must be told in a row."""
    return [name for name in ("batch", "threads", "precision") if len({getattr(r.like, name) for r in report.rows}) > 1]


def _setting(report: Report, like: Like) -> list[str]:
    return [str(getattr(like, name)) for name in _settings(report)]


def _labels(report: Report, rows: Sequence[Row]) -> list[str]:
    present = {row.subject for row in rows}
    return [subject.label for subject in report.subjects if subject.label in present]


def _ratio(ratio: Ratio) -> str:
    if ratio.low == ratio.high:
        return "1"
    return f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _fine(ratio: Ratio) -> str:
    return f"{ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"


def _over_subjects(rows: Sequence[Row], labels: Sequence[str]) -> list[float]:
    """The geometric mean over the models, for each round."""
    medians = np.log([next(row.medians for row in rows if row.subject == label) for label in labels])
    return [float(seconds) for seconds in np.exp(medians.mean(axis=0))]


def _speed(report: Report, table: Table, rows: Sequence[Row]) -> Section:
    """Runtimes by models, ranked over all models at once."""
    labels = _labels(report, rows)
    series = {runtime: _over_subjects(of_runtime, labels) for runtime, of_runtime in _by(rows, "runtime")}
    ranked = sorted(series, key=lambda runtime: statistics.median(series[runtime]))
    cell = {(s.runtime, s.subject): s for s in table.standings}
    lines = []
    for runtime in ranked:
        per_tile = [cell[runtime, label].ms_per_tile for label in labels]
        peak = max(row.memory_peak_mb for row in rows if row.runtime == runtime)
        lines.append(
            [
                _name(report, runtime),
                *(f"{ms:.2f}" for ms in per_tile),
                _ratio(compare(series[runtime], series[ranked[0]])),
                f"{1e3 / statistics.median(per_tile):.1f}",
                f"{peak:.0f}",
            ]
        )
    return Section(
        f"ms per tile, {table.like}",
        ["<runtime", *labels, "× fastest [95 %]", "tiles/s", "peak MB"],
        lines,
        brief=True,
    )


def _pools(report: Report) -> list[Section]:
    """For each runtime the pair of models that is furthest apart."""
    lines = []
    pairs = sorted(report.pairs, key=lambda pair: pair.like)
    for like, of_like in itertools.groupby(pairs, key=lambda pair: pair.like):
        of_runtime: dict[str, list[Pair]] = {}
        for pair in of_like:
            of_runtime.setdefault(pair.runtime, []).append(pair)
        for runtime, group in of_runtime.items():
            widest = max(group, key=lambda pair: abs(np.log(pair.ratio.ratio)))
            differing = sum(pair.ratio.verdict == "different" for pair in group)
            lines.append(
                [
                    *_setting(report, like),
                    _name(report, runtime),
                    f"{widest.a} / {widest.b}",
                    _fine(widest.ratio),
                    widest.ratio.verdict,
                    f"{widest.ratio.visible:.1%}",
                    f"{differing} of {len(group)}",
                ]
            )
    if not lines:
        return []
    note = (
        f"The furthest pair of each runtime, as a ratio of times with its {LEVEL:.0%} interval. The verdict is taken "
        f"at {LEVEL:.0%} for all {len(report.pairs)} pairs of the report at once; visible is the smallest difference "
        f"that this run would have found with a chance of {POWER:.0%}."
    )
    columns = [*_settings(report), "<runtime", "<furthest pair", "ratio [95 %]", "<verdict", "visible", "differing"]
    return [Section("Does the model make a difference?", columns, lines, note, brief=True)]


def _sweep(report: Report, over: Literal["batch", "threads"]) -> list[Section]:
    """Tiles per second of each runtime over batches or threads, all else equal; rows are not ranked."""
    other = "threads" if over == "batch" else "batch"
    values = sorted({getattr(row, over) for row in report.rows})
    if len(values) < 2:
        return []
    lines = []
    for runtime, of_runtime in _by(report.rows, "runtime"):
        for fixed in sorted({getattr(row, other) for row in of_runtime}):
            cells = []
            for value in values:
                rates = [
                    _standing(report, row).tiles_per_second
                    for row in of_runtime
                    if (getattr(row, over), getattr(row, other)) == (value, fixed)
                ]
                cells.append(f"{statistics.median(rates):.1f}" if rates else "")
            lines.append([_name(report, runtime), str(fixed), *cells])
    headings = [f"{over} {value}" if over == "batch" else f"{value} thread{'s' * (value > 1)}" for value in values]
    title = f"Tiles per second by {'batch' if over == 'batch' else 'number of threads'}"
    return [Section(title, ["<runtime", other, *headings], lines, "Median over the models.", brief=True)]


def _start(report: Report) -> Section:
    """Import, load and first call beside the steady state; medians over the models."""
    lines = []
    batches, threads = (sorted({getattr(row, name) for row in report.rows}) for name in ("batch", "threads"))
    for runtime, of_runtime in _by([row for row in report.rows if row.threads == threads[-1]], "runtime"):
        smallest = [row for row in of_runtime if row.batch == batches[0]]
        largest = [row for row in of_runtime if row.batch == batches[-1]]

        def middle(rows: Sequence[Row], attribute: str) -> float:
            return float(statistics.median(getattr(row, attribute) for row in rows))

        share = [head_share(row.layers) for row in largest if row.layers]
        lines.append(
            [
                _name(report, runtime),
                f"{middle(smallest, 'import_s'):.2f}",
                f"{middle(smallest, 'load_s'):.2f}",
                f"{middle(smallest, 'first_s') * 1e3:.0f}",
                f"{statistics.median(_standing(report, row).seconds.median for row in smallest) * 1e3:.1f}",
                f"{middle(largest, 'memory_before_mb'):.0f}",
                f"{middle(largest, 'memory_peak_mb'):.0f}",
                f"{min(share):.2%} – {max(share):.2%}" if share else "no profile",
            ]
        )
    return Section(
        "Start, memory, and the head's share",
        ["<runtime", "import s", "load s", "first ms", "steady ms", "MB before", "MB peak", "head's share"],
        lines,
        f"First and steady call at batch {batches[0]}; memory and the head's share of the time at batch "
        f"{batches[-1]}, the share from the runtime's own profiler, smallest and largest over the models. The files "
        "were in the page cache.",
        brief=True,
    )


def _ran(report: Report) -> Section:
    """What was executed, by runtime."""
    lines = []
    low = any(row.spread_error is not None for row in report.rows)
    for runtime, of_runtime in _by(report.rows, "runtime"):
        for executed in dict.fromkeys((row.executed, row.isa, ", ".join(row.devices)) for row in of_runtime):
            same = [row for row in of_runtime if (row.executed, row.isa, ", ".join(row.devices)) == executed]
            lines.append(
                [
                    _name(report, runtime),
                    executed[0],
                    executed[1] or "not told",
                    _version(report, runtime),
                    ", ".join(map(str, sorted({row.threads for row in same}))),
                    f"{max(row.max_relative for row in same):.0e}",
                    *([_spread_error(same)] if low else []),
                    f"{max(row.idle_cpu for row in same):.2%}",
                ]
            )
    note = (
        "Read back after a real run. |Δlogit|: largest difference from float64, in units of a tile's largest logit, "
        "before and after timing. Idle CPU: what a worker used of one CPU while others were timed."
    )
    if low:
        note += (
            f" RMS: the error below fp32, of the spread of real tiles' logits; allowed is {ROUNDINGS:g} times what the "
            "precision has by its definition on the same model."
        )
    columns = ["<runtime", "<executed", "<kernels for", "<version", "threads", "|Δlogit|"]
    return Section("What ran", [*columns, *(["RMS (allowed)"] if low else []), "idle CPU"], lines, note, brief=True)


def _spread_error(rows: Sequence[Row]) -> str:
    """The largest error and the least that was allowed; "" in fp32."""
    errors = [row.spread_error for row in rows if row.spread_error is not None]
    return f"{max(errors):.1e} ({min(row.tolerance for row in rows):.1e})" if errors else ""


def _accuracy(report: Report) -> list[Section]:
    known = [subject for subject in report.subjects if subject.accuracy]
    if not known:
        return []
    lines = []
    table = next((table for table in report.tables if table.like.precision == "fp32"), None)
    if table is None:  # the bundle tells the accuracy of fp32, and of the others on another split
        return []
    for subject in known:
        assert subject.accuracy is not None
        best = next(standing for standing in table.standings if standing.subject == subject.label)
        accuracy, low, high = subject.accuracy
        shown = f"{accuracy:.1%} [{low:.1%}, {high:.1%}]"
        lines.append([subject.label, shown, f"{best.ms_per_tile:.2f}", _name(report, best.runtime)])
    note = f"Test accuracy as the bundle tells it; speed in the fastest runtime at {table.like}."
    return [Section("Accuracy and speed", ["<model", "accuracy [95 %]", "ms per tile", "<in"], lines, note, brief=True)]


def _comparison(report: Report) -> list[Section]:
    if report.comparison is None:
        return []
    lines = [
        [*_setting(report, c.like), _name(report, c.runtime), c.subject, _fine(c.ratio), c.ratio.verdict]
        for c in report.comparison.changes
    ]
    versions = "; ".join(f"{name} {then} → {now}" for name, (then, now) in report.comparison.versions.items())
    note = (
        f"Old run: {report.comparison.created}. Versions: {versions or 'the same'}. The rounds of two runs are not "
        "interleaved, so what changed on the machine between them is in no interval: measure both again before a small "
        "difference is believed."
    )
    if report.comparison.missing:
        note += f" Only in one of the runs: {'; '.join(report.comparison.missing)}."
    columns = [*_settings(report), "<runtime", "<model", "new / old [95 %]", "<verdict"]
    return [Section("Beside the old run", columns, lines, note, brief=True)]


def _every_row(report: Report, table: Table, rows: Sequence[Row]) -> Section:
    of = {(row.runtime, row.subject): row for row in rows}
    lines = []
    for standing in table.standings:
        row, s = of[standing.runtime, standing.subject], standing.seconds
        lines.append(
            [
                row.subject,
                row.name,
                f"{s.median * 1e3:.2f} [{s.low * 1e3:.2f}, {s.high * 1e3:.2f}]",
                *(f"{value * 1e3:.2f}" for value in (s.p90, s.p99, s.mad)),
                f"{standing.tiles_per_second:.1f}",
                _ratio(standing.slower),
                f"{row.memory_peak_mb:.0f}",
                f"{s.calls} in {s.rounds}",
                row.executed,
                row.isa or "not told",
                str(row.threads),
                _version(report, row.runtime),
            ]
        )
    columns = ["<model", "<runtime", "median [95 %]", "p90", "p99", "MAD", "tiles/s", "× fastest [95 %]"]
    columns += ["peak MB", "calls in rounds", "<executed", "<kernels for", "threads", "<version"]
    return Section(
        f"Every row: ms per call, {table.like}",
        columns,
        lines,
        "p90, p99 and MAD (median absolute deviation) are of single calls.",
    )


def _version(report: Report, runtime: str) -> str:
    """The version of the package that computes."""
    base = runtime.partition("-")[0]
    packages = ("histo-export",) if base == "native" else (base, f"{base}-gpu", "torch")
    return next((f"{name} {report.versions[name]}" for name in packages if name in report.versions), "not told")


def _every_pair(report: Report) -> list[Section]:
    lines = [
        [
            *_setting(report, pair.like),
            _name(report, pair.runtime),
            f"{pair.a} / {pair.b}",
            _fine(pair.ratio),
            pair.ratio.verdict,
            f"{pair.ratio.visible:.1%}",
        ]
        for pair in report.pairs
    ]
    columns = [*_settings(report), "<runtime", "<pair", "ratio [95 %]", "<verdict", "visible"]
    return [Section("Every pair of models", columns, lines)] if lines else []


def _layers(report: Report) -> list[Section]:
    """Stages and layers side by side for the first model; the JSON has them for all."""
    sections = []
    for like, rows in report.groups():
        first = _labels(report, rows)[0]
        profiled = [row for row in rows if row.subject == first and row.layers]
        if not profiled:
            continue
        times = [{layer: (stage, seconds) for stage, layer, seconds in row.layers or ()} for row in profiled]
        lines = []
        for stage in STAGES:
            totals = [sum(seconds for s, seconds in table.values() if s == stage) for table in times]
            lines.append([stage, *(_share(t, table) for t, table in zip(totals, times, strict=True))])
            for layer in dict.fromkeys(layer for table in times for layer, (s, _) in table.items() if s == stage):
                found = [table[layer][1] if layer in table else None for table in times]
                lines.append([f"· {layer}", *("" if t is None else f"{t * 1e3:.3f}" for t in found)])
        note = (
            "Stages: ms and share; layers: ms, of one run under the runtime's profiler, which slows it. Activations "
            "and sums count to the convolution before them; in PyTorch's table they stand at the block. No profile: "
            + (", ".join(row.name for row in rows if row.subject == first and not row.layers) or "none")
            + "."
        )
        names = [row.name for row in profiled]
        sections.append(Section(f"Layers of {first}, {like}", ["<layer", *names], lines, note))
    return sections


def _share(seconds: float, table: Mapping[str, tuple[str, float]]) -> str:
    return f"{seconds * 1e3:.3f} ({seconds / sum(t for _, t in table.values()):.1%})"


def _notes(report: Report) -> list[str]:
    """What a reader must know before believing the figures."""
    notes = [f"Left out: {runtime}. {reason}" for runtime, reason in report.left_out.items()]
    for row in report.rows:
        if not row.stable:
            which = f"{row.name}, {row.subject}, {row.like}"
            notes.append(f"{which}: still got faster after {row.warm_s:.0f} s of warm-up.")
    for name, rows in _by(report.rows, "name"):
        if (busiest := max(row.idle_cpu for row in rows)) > RESTLESS:
            notes.append(f"{name} used {busiest:.1%} of a CPU while it had nothing to do: it disturbs the others.")
    if len(report.tables) > 1:
        notes.append("Tables differ in their settings; rows of different tables have no rank among each other.")
    return notes


def to_markdown(doc: Document, plots: Sequence[Path]) -> str:
    """`report.md`; plots are linked by their file names."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    parts = [f"# {doc.title}", "", *(f"{lead}  " for lead in doc.lead), ""]
    parts += [f"- {note}" for note in doc.notes] + [""]
    parts += [f"![{plot.stem}]({plot.name})\n" for plot in plots]
    for section in doc.sections:
        parts += [f"## {section.title}", "", line(column.removeprefix("<") for column in section.columns)]
        parts.append(line(":--" if column.startswith("<") else "--:" for column in section.columns))
        parts += [line(row) for row in section.rows]
        parts += ["", section.note, ""] if section.note else [""]
    return "\n".join(parts)


STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
div { overflow-x: auto }
th, td { padding: .15rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884 }
th { border-bottom: 2px solid #888 } .left { text-align: left }
p { max-width: 60rem } .note { color: #888 }
img { max-width: min(100%, 52rem); display: block; background: #fff; margin: 1rem 0 }
summary { cursor: pointer }
"""


def to_html(doc: Document, plots: Sequence[Path]) -> str:
    """`report.html`: one file with everything in it; long tables are folded."""

    def cells(tag: str, values: Iterable[str], columns: Sequence[str]) -> str:
        left = [' class="left"' if column.startswith("<") else "" for column in columns]
        return "".join(f"<{tag}{c}>{html.escape(v)}</{tag}>" for v, c in zip(values, left, strict=True))

    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(doc.title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(doc.title)}</h1>",
        *(f"<p class=note>{html.escape(lead)}</p>" for lead in doc.lead),
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in doc.notes) + "</ul>" if doc.notes else "",
    ]
    for plot in plots:
        data = base64.b64encode(plot.read_bytes()).decode()
        parts.append(f'<img alt="{html.escape(plot.stem)}" src="data:image/png;base64,{data}">')
    for section in doc.sections:
        heads = cells("th", (column.removeprefix("<") for column in section.columns), section.columns)
        body = "".join(f"<tr>{cells('td', row, section.columns)}</tr>" for row in section.rows)
        note = f"<p class=note>{html.escape(section.note)}</p>" if section.note else ""
        table = f"<div><table><tr>{heads}</tr>{body}</table></div>{note}"
        title = html.escape(section.title)
        parts.append(
            f"<h2>{title}</h2>{table}"
            if section.brief
            else f"<details><summary><b>{title}</b></summary>{table}</details>"
        )
    return "\n".join(parts) + "\n"


def write_report(report: Report, out: Path, force: bool) -> list[Path]:
    """Writes report.json, report.md, report.html and the plots into `out`, all or none.

    Raises:
        UsageError: `out` is there and is not an old report, or is one and `force` isn't given.
        HistoError: it can't be written.
    """
    from histo_export.bench.plots import draw

    check_destination(out, force)
    try:
        with atomic_folder(out) as folder:
            plots = draw(report, folder)
            doc = document(report)
            (folder / "report.json").write_text(report.model_dump_json(indent=1) + "\n")
            (folder / "report.md").write_text(to_markdown(doc, plots))
            (folder / "report.html").write_text(to_html(doc, plots))
    except OSError as error:
        raise HistoError(
            error.filename or out, f"could not be written ({error.strerror})", "Free some space or choose another --out"
        ) from error
    return sorted(out.iterdir())


def check_destination(out: Path, force: bool) -> None:
    """Fails where `write_report` would, so that nobody measures for ten minutes first."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "report.json").is_file()):
        raise UsageError(out, "exists and is not a report", "Choose another --out")
    if (out / "report.json").is_file() and not force:
        raise UsageError(out, "exists", "Add --force to replace the report, or choose another --out")


def schema() -> dict[str, Any]:
    """JSON Schema of `report.json`."""
    return Report.model_json_schema()
