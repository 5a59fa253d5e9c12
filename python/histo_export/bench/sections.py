"""The tables of a report, each as text."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from histo_export.bench.contestants import ROUNDINGS
from histo_export.bench.report import Pair, RankedRow, Report, Table, rows_by
from histo_export.bench.rows import Conditions, Row
from histo_export.bench.stages import Limits, StageTable
from histo_export.runtimes import LayerTime, all_variants
from histo_export.spec import STAGES, percent
from histo_export.statistics import LEVEL, POWER, Ratio, compare


@dataclass(frozen=True)
class Section:
    """One table as text.

    Attributes:
        title, note: above and below it.
        columns: headings; one that begins with `<` is of text and aligned left, all others are of numbers.
        rows: cells.
        brief: also shown in the terminal.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    brief: bool = False


def speed(report: Report, table: Table, rows: Sequence[Row]) -> Section:
    """Runtimes by models, ranked over all models at once."""
    labels = _labels(report, rows)
    series = {runtime: _over_subjects(of_runtime, labels) for runtime, of_runtime in rows_by(rows, "runtime")}
    ranked = sorted(series, key=lambda runtime: statistics.median(series[runtime]))
    cell = {(s.runtime, s.subject): s for s in table.ranked}
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
        f"ms per tile, {table.conditions}",
        ["<runtime", *labels, "× fastest [95 %]", "tiles/s", "peak MB"],
        lines,
        brief=True,
    )


def conclusion(report: Report, table: Table, rows: Sequence[Row]) -> str:
    """Which runtime is the fastest of a table, over all models, and by how much."""
    labels = _labels(report, rows)
    series = {runtime: _over_subjects(of_runtime, labels) for runtime, of_runtime in rows_by(rows, "runtime")}
    first, *others = sorted(series, key=lambda runtime: statistics.median(series[runtime]))
    times = [each.ms_per_tile for each in table.ranked if each.runtime == first]
    text = f"{table.conditions}: {_name(report, first)} takes {statistics.median(times):.2f} ms per tile"
    if not others:
        return f"{text}."
    ratio = compare(series[others[0]], series[first])
    if ratio.verdict != "different":
        return f"{text}. {_name(report, others[0])} can't be told apart from it ({_ratio(ratio)} times as long)."
    return f"{text} and is the fastest. {_name(report, others[0])} takes {_ratio(ratio)} times as long."


def models(report: Report) -> list[Section]:
    """For each runtime the two models whose times differ most."""
    lines = []
    pairs = sorted(report.pairs, key=lambda pair: pair.conditions)
    for conditions, of_conditions in itertools.groupby(pairs, key=lambda pair: pair.conditions):
        of_runtime: dict[str, list[Pair]] = {}
        for pair in of_conditions:
            of_runtime.setdefault(pair.runtime, []).append(pair)
        for runtime, group in of_runtime.items():
            widest = max(group, key=lambda pair: abs(np.log(pair.ratio.ratio)))
            differing = sum(pair.ratio.verdict == "different" for pair in group)
            lines.append(
                [
                    *_setting(report, conditions),
                    _name(report, runtime),
                    f"{widest.a} / {widest.b}",
                    _fine(widest.ratio),
                    widest.ratio.verdict,
                    f"{percent(widest.ratio.visible)}",
                    f"{differing} of {len(group)}",
                ]
            )
    if not lines:
        return []
    note = (
        f"The furthest pair of each runtime, as a ratio of times with its {percent(LEVEL, 0)} interval. The verdict is "
        f"taken at {percent(LEVEL, 0)} for all {len(report.pairs)} pairs of the report at once; visible is the "
        f"smallest difference that this run would have found with a probability of {percent(POWER, 0)}."
    )
    columns = [*_settings(report), "<runtime", "<furthest pair", "ratio [95 %]", "<verdict", "visible", "differing"]
    return [Section("Does the model make a difference?", columns, lines, note, brief=True)]


def sweep(report: Report, over: Literal["batch", "threads"]) -> list[Section]:
    """Tiles per second of each runtime over batches or threads, everything else equal; rows are not ranked."""
    other = "threads" if over == "batch" else "batch"
    values = sorted({getattr(row, over) for row in report.rows})
    if len(values) < 2:
        return []
    lines = []
    for runtime, of_runtime in rows_by(report.rows, "runtime"):
        for fixed in sorted({getattr(row, other) for row in of_runtime}):
            cells = []
            for value in values:
                rates = [
                    _ranked(report, row).tiles_per_second
                    for row in of_runtime
                    if (getattr(row, over), getattr(row, other)) == (value, fixed)
                ]
                cells.append(f"{statistics.median(rates):.1f}" if rates else "")
            lines.append([_name(report, runtime), str(fixed), *cells])
    headings = [f"{over} {value}" if over == "batch" else f"{value} thread{'s' * (value > 1)}" for value in values]
    title = f"Tiles per second by {'batch' if over == 'batch' else 'number of threads'}"
    return [Section(title, ["<runtime", other, *headings], lines, "Median over the models.", brief=True)]


def start(report: Report) -> Section:
    """Import, load and first call beside the steady state; medians over the models."""
    lines = []
    batches, threads = (sorted({getattr(row, name) for row in report.rows}) for name in ("batch", "threads"))
    for runtime, of_runtime in rows_by([row for row in report.rows if row.threads == threads[-1]], "runtime"):
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
                f"{statistics.median(_ranked(report, row).seconds.median for row in smallest) * 1e3:.1f}",
                f"{middle(largest, 'memory_before_mb'):.0f}",
                f"{middle(largest, 'memory_peak_mb'):.0f}",
                f"{percent(min(share), 2)} – {percent(max(share), 2)}" if share else "no profile",
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


def executed(report: Report) -> Section:
    """What was executed, by runtime."""
    lines = []
    low = any(row.spread_error is not None for row in report.rows)
    for runtime, of_runtime in rows_by(report.rows, "runtime"):
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
                    f"{percent(max(row.idle_cpu for row in same), 2)}",
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


def accuracy(report: Report) -> list[Section]:
    known = [subject for subject in report.subjects if subject.accuracy]
    if not known:
        return []
    lines = []
    table = next((table for table in report.tables if table.conditions.precision == "fp32"), None)
    if table is None:  # a bundle has the accuracy of fp32 alone on this split
        return []
    for subject in known:
        assert subject.accuracy is not None
        best = next(ranked for ranked in table.ranked if ranked.subject == subject.label)
        accuracy, low, high = subject.accuracy
        shown = f"{percent(accuracy)} [{percent(low)}, {percent(high)}]"
        lines.append([subject.label, shown, f"{best.ms_per_tile:.2f}", _name(report, best.runtime)])
    note = f"Test accuracy as recorded in the bundle; speed in the fastest runtime at {table.conditions}."
    return [
        Section(
            "Accuracy and speed",
            ["<model", "accuracy [95 %]", "ms per tile", "<fastest runtime"],
            lines,
            note,
            brief=True,
        )
    ]


def comparison(report: Report) -> list[Section]:
    if report.comparison is None:
        return []
    lines = [
        [*_setting(report, c.conditions), _name(report, c.runtime), c.subject, _fine(c.ratio), c.ratio.verdict]
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


def every_row(report: Report, table: Table, rows: Sequence[Row]) -> Section:
    of = {(row.runtime, row.subject): row for row in rows}
    lines = []
    for ranked in table.ranked:
        row, s = of[ranked.runtime, ranked.subject], ranked.seconds
        lines.append(
            [
                row.subject,
                row.name,
                f"{s.median * 1e3:.2f} [{s.low * 1e3:.2f}, {s.high * 1e3:.2f}]",
                *(f"{value * 1e3:.2f}" for value in (s.p90, s.p99, s.mad)),
                f"{ranked.tiles_per_second:.1f}",
                _ratio(ranked.slower),
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
        f"Every row: ms per call, {table.conditions}",
        columns,
        lines,
        "p90, p99 and MAD (median absolute deviation) are of single calls.",
    )


def every_pair(report: Report) -> list[Section]:
    lines = [
        [
            *_setting(report, pair.conditions),
            _name(report, pair.runtime),
            f"{pair.a} / {pair.b}",
            _fine(pair.ratio),
            pair.ratio.verdict,
            f"{percent(pair.ratio.visible)}",
        ]
        for pair in report.pairs
    ]
    columns = [*_settings(report), "<runtime", "<pair", "ratio [95 %]", "<verdict", "visible"]
    return [Section("Every pair of models", columns, lines)] if lines else []


def layers(report: Report) -> list[Section]:
    """Stages and layers side by side for the first model; the JSON has them for all."""
    tables = []
    for conditions, rows in report.groups():
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
                seconds = [table[layer][1] if layer in table else None for table in times]
                lines.append([f"· {layer}", *("" if t is None else f"{t * 1e3:.3f}" for t in seconds)])
        note = (
            "Stages: ms and share; layers: ms, of one run under the runtime's profiler, which slows it. Activations "
            "and sums count to the convolution before them; in PyTorch's table they stand at the block. No profile: "
            + (", ".join(row.name for row in rows if row.subject == first and not row.layers) or "none")
            + "."
        )
        names = [row.name for row in profiled]
        tables.append(Section(f"Layers of {first}, {conditions}", ["<layer", *names], lines, note))
    return tables


def stages(tables: Sequence[StageTable]) -> list[Section]:
    """The native engine's stages beside what the machine can do at most, which is told once."""
    return [
        _stages(table, "" if following is not None and following.limits == table.limits else _described(table.limits))
        for table, following in itertools.zip_longest(tables, tables[1:])
    ]


def _stages(table: StageTable, note: str) -> Section:
    total = table.rows[-1].seconds
    lines = []
    for row in table.rows:
        flops = 2 * table.batch * row.executed_multiply_adds / row.seconds
        peak = row.least_arithmetic_s
        lines.append(
            [
                row.stage,
                f"{row.seconds / table.batch * 1e3:.3f}",
                percent(row.seconds / total, 0),
                f"{row.multiply_adds / 1e6:.1f}",
                f"{row.executed_multiply_adds / 1e6:.1f}",
                f"{flops / 1e9:.0f}",
                "" if peak is None else percent(peak / row.seconds, 0),
                f"{row.bytes / 1e6:.2f}",
                percent(row.least_memory_s / row.seconds, 0),
                row.bound,
            ]
        )
    threads = f"{table.threads} thread{'s' * (table.threads > 1)}"
    engine = f"native engine, {table.precision}, {table.isa}, {table.profile}"
    return Section(
        f"Stages of {table.subject}: {engine}, batch {table.batch}, {threads}",
        ["<stage", "ms per tile", "of time", "MMAC", "executed", "GFLOP/s", "of peak", "MB", "of reading", "<bound by"],
        lines,
        note,
        brief=True,
    )


def _described(limits: Limits) -> str:
    """The limits in words, and what the columns mean."""
    peaks = ", ".join(
        f"{kind} {2e-9 * peak:.0f} ({limits.instructions[kind]})" for kind, peak in limits.multiply_adds.items()
    )
    return (
        f"Peaks of this machine, measured in this run, GFLOP/s: {peaks}; reading from memory {limits.bytes / 1e9:.1f} "
        "GB/s. MMAC: per tile, by the definition; executed: after Winograd's reduction, without its transforms, as "
        "GFLOP/s and of peak count. MB: what the batch must read at least, packed weights and the stage's input once; "
        "of reading: the share of the time that memory alone would need, although caches may be faster. Bound by: "
        "which of the two limits is the nearer one."
    )


def _share(seconds: float, table: Mapping[str, tuple[str, float]]) -> str:
    return f"{seconds * 1e3:.3f} ({percent(seconds / sum(t for _, t in table.values()))})"


def head_share(layers: Sequence[LayerTime]) -> float:
    """The head's part of the time of all layers."""
    total = sum(seconds for _, _, seconds in layers)
    return sum(seconds for stage, _, seconds in layers if stage == "head") / total


def _name(report: Report, runtime: str) -> str:
    return next(row.name for row in report.rows if row.runtime == runtime)


def _ranked(report: Report, row: Row) -> RankedRow:
    table = next(table for table in report.tables if table.conditions == row.conditions)
    return next(s for s in table.ranked if (s.runtime, s.subject) == (row.runtime, row.subject))


def _settings(report: Report) -> list[str]:
    """The settings that differ between the tables of this report, and so need a column."""
    return [
        name
        for name in ("batch", "threads", "precision")
        if len({getattr(r.conditions, name) for r in report.rows}) > 1
    ]


def _setting(report: Report, conditions: Conditions) -> list[str]:
    return [str(getattr(conditions, name)) for name in _settings(report)]


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


def _version(report: Report, runtime: str) -> str:
    """The version of the package that computes; of a runtime that this version does not know, that of its own name."""
    package = {str(variant): variant.entry.package for variant in all_variants()}.get(runtime, runtime)
    return next(
        (f"{name} {report.versions[name]}" for name in (package, f"{package}-gpu") if name in report.versions),
        "not told",
    )
