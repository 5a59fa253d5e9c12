"""`report.json`: what a run measured, and what was concluded from that.

The JSON holds every timed call, so that other questions can be answered from the same run later, and the conclusions,
so that no program but a JSON reader is needed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from histo_export.bench.load import Load
from histo_export.bench.rows import Conditions, Row
from histo_export.bench.stages import StageTable
from histo_export.errors import HistoError, UsageError
from histo_export.machine import Machine
from histo_export.statistics import Ratio, Summary, compare, compare_unpaired, summarise

SCHEMA_VERSION = 1


class _Part(BaseModel):
    # Files of this schema have `conditions` under the key "like" and `ranked` under "standings".
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class SubjectFacts(_Part):
    """A model that was measured; `accuracy` is the test set's, with its 95 % interval."""

    label: str
    pool: int
    accuracy: tuple[float, float, float] | None


class RankedRow(_Part):
    """A row in its table; `slower` is its time over that of the fastest runtime for the same model."""

    subject: str
    runtime: str
    seconds: Summary
    ms_per_tile: float
    tiles_per_second: float
    slower: Ratio


class Table(_Part):
    """Rows of equal conditions, fastest first for each model."""

    conditions: Conditions = Field(validation_alias=AliasChoices("like", "conditions"), serialization_alias="like")
    ranked: list[RankedRow] = Field(
        validation_alias=AliasChoices("standings", "ranked"), serialization_alias="standings"
    )


class Pair(_Part):
    """Two models in one runtime: how many times as long `a` takes as `b`, and whether that is a difference."""

    conditions: Conditions = Field(validation_alias=AliasChoices("like", "conditions"), serialization_alias="like")
    runtime: str
    a: str
    b: str
    ratio: Ratio


class Change(_Part):
    """A row beside the same row of an older run: new time over old."""

    conditions: Conditions = Field(validation_alias=AliasChoices("like", "conditions"), serialization_alias="like")
    subject: str
    runtime: str
    ratio: Ratio


class Comparison(_Part):
    """This run beside an older one of the same machine.

    Attributes:
        created: of the old run.
        changes: rows that both have.
        missing: rows that only one of them has.
        versions: package → versions then and now, where they differ.
    """

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
        machine, versions: where, and of which packages.
        rounds, seconds, seed: of `Settings`.
        subjects: the models.
        rows: everything measured.
        left_out: runtime → why it is not here.
        host: name of the machine; "" in reports of older versions.
        load: how busy other programs kept the machine; None in reports of older versions.
        stopped: when Ctrl-C ended the run, else "".
        tables, pairs: conclusions from the rows.
        comparison: with an older run, where one was named.
        stages: of the native engine, where they were asked for; none in reports of older versions.
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
    host: str = ""
    load: Load | None = None
    stopped: str = ""
    tables: list[Table] = []
    pairs: list[Pair] = []
    comparison: Comparison | None = None
    stages: list[StageTable] = []

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads a `report.json`.

        Raises:
            UsageError: the file can't be read.
            HistoError: it is damaged or has another schema.
        """
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise UsageError(path, f"could not be read ({error.strerror})", "Name a report.json") from error
        except ValueError as error:
            raise HistoError(path, f"is not JSON ({error})", "Name a report.json that histo bench wrote") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise HistoError(
                path, f"has schema version {version!r}, this version reads {SCHEMA_VERSION}", "Run histo bench again"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise HistoError(path, f"is damaged ({where}: {first['msg']})", "Run histo bench again") from error

    def conclude(self) -> None:
        """Fills `tables` and `pairs` from `rows`."""
        self.tables = [_table(conditions, rows) for conditions, rows in self.groups()]
        labels = [subject.label for subject in self.subjects]
        pairs = []
        for conditions, rows in self.groups():
            for runtime, of_runtime in rows_by(rows, "runtime"):
                row_of = {row.subject: row for row in of_runtime}
                present = [label for label in labels if label in row_of]
                pairs += [(conditions, runtime, row_of[a], row_of[b]) for b, a in itertools.combinations(present, 2)]
        self.pairs = [
            Pair(
                conditions=conditions,
                runtime=runtime,
                a=a.subject,
                b=b.subject,
                ratio=compare(a.medians.tolist(), b.medians.tolist(), comparisons=len(pairs)),
            )
            for conditions, runtime, a, b in pairs
        ]

    def groups(self) -> list[tuple[Conditions, list[Row]]]:
        """Rows of equal conditions."""
        ordered = sorted(self.rows, key=_conditions)
        return [(conditions, list(rows)) for conditions, rows in itertools.groupby(ordered, key=_conditions)]

    def compare_with(self, old: Report) -> None:
        """Sets `comparison`; HistoError where the runs can't be compared."""
        check_same_machine(old, self.machine)
        mine, theirs = ({(row.conditions, row.subject, row.runtime): row for row in r.rows} for r in (self, old))
        common = [key for key in mine if key in theirs]
        if not common:
            raise HistoError("--compare", "has no row of the same settings as this run", "Use the options of that run")
        changes = []
        for key in common:
            new, before = mine[key], theirs[key]
            ratio = compare_unpaired(new.medians.tolist(), before.medians.tolist(), comparisons=len(common))
            changes.append(Change(conditions=new.conditions, subject=new.subject, runtime=new.runtime, ratio=ratio))
        unmatched = [row for key, row in (mine | theirs).items() if (key in mine) != (key in theirs)]
        packages = sorted(self.versions.keys() | old.versions.keys())
        pairs = {name: (old.versions.get(name, "none"), self.versions.get(name, "none")) for name in packages}
        self.comparison = Comparison(
            created=old.created,
            changes=changes,
            missing=[f"{row.runtime}, {row.subject}: {row.conditions}" for row in unmatched],
            versions={name: (then, now) for name, (then, now) in pairs.items() if then != now},
        )


def check_same_machine(old: Report, machine: Machine) -> None:
    """Raises HistoError unless `old` was measured on `machine`."""
    if differences := machine.differences(old.machine):
        listed = "; ".join(differences)
        raise HistoError("--compare", f"the old report is of another machine: {listed}", "Measure both on one machine")


def schema() -> dict[str, Any]:
    """JSON Schema of `report.json`."""
    return Report.model_json_schema()


def rows_by(rows: Iterable[Row], attribute: str) -> list[tuple[str, list[Row]]]:
    """Rows by an attribute, in the order in which its values first come."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, attribute), []).append(row)
    return list(groups.items())


def _conditions(row: Row) -> Conditions:
    return row.conditions


def _table(conditions: Conditions, rows: Sequence[Row]) -> Table:
    ranked_rows = []
    for _, of_subject in rows_by(rows, "subject"):
        summaries = [(summarise(row.rounds), row) for row in of_subject]
        ranked = sorted(summaries, key=lambda pair: pair[0].median)
        fastest = ranked[0][1].medians.tolist()
        for seconds, row in ranked:
            ranked_rows.append(
                RankedRow(
                    subject=row.subject,
                    runtime=row.runtime,
                    seconds=seconds,
                    ms_per_tile=seconds.median / row.batch * 1e3,
                    tiles_per_second=row.batch / seconds.median,
                    slower=compare(row.medians.tolist(), fastest),
                )
            )
    return Table(conditions=conditions, ranked=ranked_rows)
