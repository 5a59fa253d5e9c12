"""The report: its schema, what it concludes, and when it refuses to compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from histo_export.bench.document import document
from histo_export.bench.plots import draw, front
from histo_export.bench.report import Report, schema
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import Subject
from histo_export.bench.write import check_destination, write_report
from histo_export.errors import HistoError, UsageError
from histo_export.runtimes import variants

MakeReport = Callable[..., Report]


@pytest.fixture
def report(make_report: MakeReport, settings: Settings) -> Report:
    """The second model takes 10 % longer in every runtime."""
    return make_report(settings, slower=0.1)


def texts(report: Report, title: str) -> list[list[str]]:
    (section,) = [section for section in document(report).sections if section.title.startswith(title)]
    return [list(row) for row in section.rows]


def test_the_json_fits_its_schema_and_comes_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.model_dump_json())
    Draft202012Validator(schema()).validate(json.loads(path.read_text()))
    assert Report.read(path) == report


OLD = Path(__file__).with_name("report-0.1.0.json")
"""A report of version 0.1.0, with runtimes in lower precisions, made with its fake worker."""


def test_a_report_of_version_0_1_0_loads_and_means_the_same() -> None:
    old = Report.read(OLD)
    unknown = {"host": "", "load": None, "stopped": "", "stages": []}
    assert json.loads(old.model_dump_json()) == json.loads(OLD.read_text(encoding="utf-8")) | unknown
    assert {(row.runtime, row.precision) for row in old.rows} >= {("native", "fp32"), ("native-int8", "int8")}
    concluded = old.model_copy(deep=True)
    concluded.conclude()
    assert concluded == old
    ran = {row[0]: row for row in texts(old, "What ran")}
    assert ran["Fake native-int8"][3] == "histo-export 0.1.0"
    assert ran["Fake onnxruntime-tool-int8"][3] == "onnxruntime 1.31.1"


def test_a_model_with_dollar_signs_in_its_name_is_drawn(tmp_path: Path) -> None:
    """Two of them would enclose a formula; this one is an error."""
    report = Report.model_validate_json(OLD.read_text(encoding="utf-8").replace("pool 8", "m$^^$8"))
    pictures = [path.name for path in draw(report, tmp_path)]
    assert "latency.png" in pictures
    assert {path.name for path in tmp_path.iterdir()} == set(pictures)


def test_a_report_of_version_0_1_0_is_compared_with(make_report: MakeReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are found again under the ids of then."""
    monkeypatch.setattr(Subject, "rounding", lambda *_: 0.01)
    old = Report.read(OLD)
    settings = Settings(variants("native-int8", "onnxruntime-tool-int8"), (1,), (1,), rounds=7, seconds=0.05)
    new = make_report(settings, executed="cpu int8")
    new.machine = old.machine
    new.compare_with(old)
    assert new.comparison is not None
    assert {(change.runtime, change.subject) for change in new.comparison.changes} == {
        (runtime, subject) for runtime in ("native-int8", "onnxruntime-tool-int8") for subject in ("pool 1", "pool 8")
    }
    missing = {line.split(",")[0] for line in new.comparison.missing}
    assert missing == {"native", "onnxruntime", "native-latency-bf16x3"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema version None"),
        ('{"schema_version": 2}', "has schema version 2, this version reads 1"),
        ('{"schema_version": 1}', "is damaged"),
    ],
)
def test_what_is_not_a_report_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(HistoError, match=message):
        Report.read(path)
    with pytest.raises(UsageError, match="could not be read"):
        Report.read(tmp_path / "nowhere.json")


def test_a_slower_model_is_found_and_an_equal_one_is_not(make_report: MakeReport, settings: Settings) -> None:
    slower = make_report(settings, slower=0.1)
    assert len(slower.pairs) == 4  # two runtimes, two batches
    for pair in slower.pairs:
        assert (pair.a, pair.b, pair.ratio.verdict) == ("pool 8", "pool 1", "different")
        assert pair.ratio.low < 1.1 < pair.ratio.high
        assert pair.ratio.visible < 0.05
    equal = make_report(settings)
    assert {pair.ratio.verdict for pair in equal.pairs} == {"not distinguishable"}


@pytest.fixture
def mixed(make_report: MakeReport, monkeypatch: pytest.MonkeyPatch) -> Report:
    """fp32 and bf16, two batches, two numbers of threads."""
    monkeypatch.setattr(Subject, "rounding", lambda *_: 0.01)
    settings = Settings(variants("onnxruntime", "torch"), (1, 4), (1, 2), rounds=7, seconds=0.1)
    fp32 = make_report(settings)
    low = Settings(variants("openvino-bf16", "native-bf16"), (1, 4), (1, 2), rounds=7, seconds=0.1)
    bf16 = make_report(low, executed="cpu bf16")
    fp32.rows += bf16.rows
    fp32.conclude()
    return fp32


def test_rows_of_unlike_settings_are_never_in_one_table(mixed: Report) -> None:
    assert len(mixed.tables) == 8  # two batches, two numbers of threads, two precisions
    precision_of = {(row.runtime, row.conditions): row.precision for row in mixed.rows}
    for table in mixed.tables:
        assert {precision_of[s.runtime, table.conditions] for s in table.ranked} == {table.conditions.precision}
    assert any("no rank among each other" in note for note in document(mixed).notes)


def test_what_is_allowed_below_fp32_is_told(mixed: Report) -> None:
    rows = {row[0]: row for row in texts(mixed, "What ran")}
    assert rows["Fake openvino bf16"][6].endswith("(3.0e-02)")
    assert rows["Fake torch"][6] == ""
    (section,) = [section for section in document(mixed).sections if section.title == "What ran"]
    assert "3 times what the precision has by its definition" in section.note


def test_accuracy_as_the_bundle_tells_it_stands_beside_fp32_alone(mixed: Report, tmp_path: Path) -> None:
    (section,) = [section for section in document(mixed).sections if section.title == "Accuracy and speed"]
    assert {row[3] for row in section.rows} <= {"Fake torch", "Fake onnxruntime"}
    mixed.rows = [row for row in mixed.rows if row.precision == "bf16"]
    mixed.conclude()
    assert not [section for section in document(mixed).sections if section.title == "Accuracy and speed"]
    assert "accuracy.png" not in {path.name for path in write_report(mixed, tmp_path / "r", force=False)}


def test_the_fastest_stands_first_and_has_ratio_one(report: Report) -> None:
    for table in report.tables:
        for subject in ("pool 1", "pool 8"):
            standings = [s for s in table.ranked if s.subject == subject]
            assert standings[0].slower.ratio == 1
            medians = [s.seconds.median for s in standings]
            assert medians == sorted(medians)
    brief = texts(report, "ms per tile, batch 4, 1 thread, fp32, cpu")
    assert brief[0][3] == "1"
    assert re.fullmatch(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", brief[1][3])


def test_what_was_executed_stands_in_every_row(report: Report) -> None:
    for batch in (1, 4):
        rows = texts(report, f"Every row: ms per call, batch {batch},")
        assert len(rows) == 4
        for row in rows:
            assert row[10:13] == ["cpu fp32", "avx2", "1"]
            assert row[13].split()[0] in ("onnxruntime-gpu", "onnxruntime", "torch")


def test_head_share_and_layers_are_told(report: Report) -> None:
    assert [row[-1] for row in texts(report, "Start, memory")] == ["10.00 % – 10.00 %"] * 2
    layers = texts(report, "Layers of pool 1, batch 1,")
    assert ["· head.linear", "1.000", "1.000"] in layers
    assert ["head", "1.000 (10.0 %)", "1.000 (10.0 %)"] in layers


def test_a_reader_is_warned(make_report: MakeReport, settings: Settings) -> None:
    notes = "\n".join(document(make_report(settings, fault="restless")).notes)
    assert "still got faster after" in notes
    notes = "\n".join(document(make_report(settings, fault="spin")).notes)
    assert "used 50.0 % of a CPU while it had nothing to do" in notes


class Page(HTMLParser):
    """Collects what a page would fetch, and checks that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag in ("table", "details", "div", "ul", "h1", "h2", "summary"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag == self.open[-1]:
            self.open.pop()


def test_the_folder_is_complete_and_opens_offline(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "reports" / "bench"
    names = [path.name for path in write_report(report, out, force=False)]
    assert names == ["accuracy.png", "latency.png", "report.html", "report.json", "report.md", "throughput.png"]
    page = Page()
    page.feed((out / "report.html").read_text())
    assert page.open == []
    assert len(page.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    markdown = (out / "report.md").read_text()
    for name in names:
        if name.endswith(".png"):
            assert f"]({name})" in markdown
            with Image.open(out / name) as image:
                assert min(image.size) > 400
                assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20  # something is drawn
    tables = re.findall(r"^\|.*\|$", markdown, re.MULTILINE)
    assert len(tables) > 30


def test_the_page_escapes_what_bundles_are_called(report: Report, tmp_path: Path) -> None:
    text = report.model_dump_json().replace("pool 8", "<script>alert(1)</script>")
    named = Report.model_validate_json(text)
    write_report(named, tmp_path / "out", force=False)
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()


def test_nothing_but_an_old_report_is_replaced(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    write_report(report, out, force=False)
    with pytest.raises(UsageError, match="Add --force"):
        check_destination(out, force=False)
    (out / "extra").mkdir()
    (out / "threads.png").touch()
    write_report(report, out, force=True)
    assert (out / "extra").is_dir()
    assert not (out / "threads.png").exists(), "it was of another report"
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not a report"):
        write_report(report, other, force=True)
    assert not list(tmp_path.rglob(".*"))


def test_two_runs_are_compared_row_by_row(make_report: MakeReport, settings: Settings) -> None:
    old, new = make_report(settings), make_report(settings, slower=1.0)
    old.versions["torch"] = "1.0"
    new.compare_with(old)
    assert new.comparison is not None
    assert len(new.comparison.changes) == 8
    for change in new.comparison.changes:
        slow = change.subject == "pool 8"
        assert change.ratio.ratio == pytest.approx(2 if slow else 1, rel=0.4)
        assert (change.ratio.verdict == "different") or not slow
    assert new.comparison.versions == {"torch": ("1.0", new.versions["torch"])}
    assert len(texts(new, "Beside the old run")) == 8


def test_rows_that_only_one_run_has_are_named(make_report: MakeReport, settings: Settings) -> None:
    old, new = make_report(settings), make_report(settings)
    old.rows = [row for row in old.rows if (row.runtime, row.batch) != ("torch", 4)]
    new.compare_with(old)
    assert new.comparison is not None
    assert sorted(new.comparison.missing) == [
        "torch, pool 1: batch 4, 1 thread, fp32, cpu",
        "torch, pool 8: batch 4, 1 thread, fp32, cpu",
    ]


def test_runs_of_other_machines_or_settings_are_not_compared(make_report: MakeReport, settings: Settings) -> None:
    old, new = make_report(settings), make_report(settings)
    elsewhere = old.model_copy(update={"machine": old.machine.model_copy(update={"cpu": "Z80", "cpus": 1024})})
    with pytest.raises(HistoError, match=r"of another machine: cpu .* here, Z80 there; cpus \d+ here, 1024 there"):
        new.compare_with(elsewhere)
    other = old.model_copy(update={"rows": [row.model_copy(update={"threads": 64}) for row in old.rows]})
    with pytest.raises(HistoError, match="has no row of the same settings"):
        new.compare_with(other)
    assert new.comparison is None


def test_a_bundle_of_any_name_is_drawn(report: Report, tmp_path: Path) -> None:
    """A name with a formula in it ended a benchmark after its last round."""
    text = report.model_dump_json()
    for subject in report.subjects:
        text = text.replace(json.dumps(subject.label), json.dumps(f"{subject.label} cost$5^^6$ 腫瘍"))
    assert len(draw(Report.model_validate_json(text), tmp_path)) == 3


def test_the_front_has_what_nothing_beats_in_both() -> None:
    points = [(5.0, 0.9), (2.0, 0.8), (3.0, 0.8), (2.0, 0.7), (6.0, 0.85), (4.0, 0.85)]
    assert front(points) == [(2.0, 0.8), (4.0, 0.85), (5.0, 0.9)]
