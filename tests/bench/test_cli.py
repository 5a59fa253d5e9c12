"""`histo bench` as its users meet it."""

from __future__ import annotations

import errno
import functools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from histo_export import files
from histo_export.bench import measure as measure_module
from histo_export.bench import run as run_module
from histo_export.bench.progress import ProgressEstimate
from histo_export.bench.report import Report
from histo_export.bench.subjects import Subject
from histo_export.statistics import MIN_ROUNDS

Histo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def histo(
    histo: Histo,
    monkeypatch: pytest.MonkeyPatch,
    subjects: list[Subject],
    fake: Callable[..., list[str]],
    tmp_path: Path,
) -> Histo:
    """Runs `histo bench ARGS…` with made models and the fake worker; returns exit code, stdout, stderr."""

    def call(*args: object, **options: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(run_module, "untrained_subjects", lambda *_, **__: subjects)
        monkeypatch.setattr(Subject, "rounding", lambda *_: 0.01)
        monkeypatch.setattr(run_module, "measure", functools.partial(measure_module.measure, command=fake(**options)))
        return histo("bench", *args)

    return call


QUICK = ("--runtimes", "onnxruntime,torch", "--batches", "1,4", "--rounds", 12, "--time", 0.1)


def test_a_run_prints_tables_and_writes_the_report(histo: Histo, tmp_path: Path) -> None:
    code, out, err = histo("--pools", "1,8", *QUICK, slower=0.1)
    assert code == 0
    assert "ms per tile, batch 1" in out
    assert "different" in out
    assert "Fake onnxruntime" in out
    assert "rounds done" in err or "checking" in err
    assert (tmp_path / "bench" / "report.html").is_file()
    assert "bench: accuracy.png, latency.png, report.html, report.json, report.md, throughput.png" in out


def test_json_is_the_report_and_nothing_else(histo: Histo, tmp_path: Path) -> None:
    code, out, err = histo("--json", "--quiet", "--out", "r", *QUICK)
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "r" / "report.json").read_text())
    assert json.loads(out)["command"].startswith("histo bench --json")


def test_an_old_report_is_set_beside(histo: Histo, tmp_path: Path) -> None:
    assert histo("--quiet", "--out", "old", *QUICK)[0] == 0
    code, out, _ = histo("--out", "new", "--compare", "old/report.json", *QUICK)
    assert code == 0
    assert "Beside the old run" in out
    changed = (tmp_path / "old" / "report.json").read_text().replace('"cpu": "', '"cpu": "Not ')
    (tmp_path / "old" / "report.json").write_text(changed)
    code, out, err = histo("--out", "third", "--compare", "old/report.json", *QUICK)
    assert code == 1
    assert "--compare: the old report is of another machine: cpu" in err
    assert not (tmp_path / "third").exists()


def test_a_precision_chooses_its_runtimes(histo: Histo, subjects: list[Subject], tmp_path: Path) -> None:
    for subject in subjects:
        (subject.folder / "model-int8.onnx").touch()
    quick = ("--batches", 1, "--rounds", 7, "--time", 0.05)
    code, out, err = histo("--precision", "int8", *quick, "--json", executed="cpu int8+bf16")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {row["runtime"] for row in rows} == {
        *("native-int8", "native-latency-int8"),
        *("onnxruntime-int8", "openvino-int8"),
    }
    assert {row["precision"] for row in rows} == {"int8"}
    code, out, _ = histo(
        *("--runtimes", "native,openvino-streams", "--precision", "bf16", *quick, "--out", "b"), executed="cpu bf16"
    )
    assert code == 0
    assert "ms per tile, batch 1, " in out
    assert ", bf16, cpu" in out
    assert {row["runtime"] for row in json.loads((tmp_path / "b/report.json").read_text())["rows"]} == {
        "native-bf16",
        "openvino-streams-bf16",
    }


def test_int8_needs_a_bundle_with_scales(histo: Histo, bundle: Path) -> None:
    code, out, err = histo(bundle, "--precision", "fp32,int8", "--runtimes", "native")
    assert (code, out) == (2, "")
    assert "bundle: has no scales for int8. Export it with --precision int8" in err


def test_a_runtime_that_computes_something_else_makes_no_report(histo: Histo, tmp_path: Path) -> None:
    code, out, err = histo(*QUICK, fault="wrong")
    assert (code, out) == (1, "")
    assert "onnxruntime, pool 1, batch 1: computes other logits than the checkpoint before timing" in err
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize("out", ["file/report", "/proc/self/report"])
def test_a_place_that_cannot_be_written_is_told_before_measuring(
    out: str, histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("histo_export.bench.run.run_bench", None)
    code, printed, err = histo("--out", out, *QUICK)
    assert (code, printed) == (1, "")
    assert f"{out}: could not be written" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]


@pytest.mark.parametrize("as_json", [True, False])
def test_figures_are_not_lost_where_the_disk_is_full(
    as_json: bool, histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("histo_export.bench.write._draw", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = histo("--quiet", "--json" if as_json else "--quiet", *QUICK)
    assert code == 1
    [kept] = tmp_path.glob("histo-bench-*/report.json")
    assert f"bench: could not be written (No space left on device). The figures are in {kept}. Free some space" in err
    assert Report.read(kept).rows
    assert json.loads(out) == json.loads(kept.read_text()) if as_json else "ms per tile, batch 1" in out
    assert not (tmp_path / "bench").exists()

    monkeypatch.setattr("histo_export.bench.write.write_atomic", full)
    code, out, err = histo("--quiet", *QUICK)
    assert code == 1
    assert "The figures are on the standard output alone. Free some space" in err
    assert "ms per tile, batch 1" in out
    assert list(tmp_path.glob("histo-bench-*")) == [kept.parent]


def test_two_runs_into_one_folder_are_refused(histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one, before it measures; an owner in this process counts as one."""
    monkeypatch.setattr(files, "LEASE_S", 0.5)
    monkeypatch.setattr(files, "HEARTBEAT_S", 0.1)
    with files.own_folder(tmp_path / "bench") as _, monkeypatch.context() as patch:
        patch.setattr("histo_export.bench.run.run_bench", None)
        code, out, err = histo(*QUICK)
    assert (code, out) == (2, "")
    assert re.search(r"bench: is in use by another run \(process \d+ on .*choose another --out", err)
    assert not (tmp_path / "bench").exists()
    code, _, err = histo("--quiet", *QUICK)
    assert (code, err) == (0, "")
    assert not list((tmp_path / "bench").glob(".*"))


def interrupt(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Ctrl-C as a step of the run begins, the name of which starts with `before`."""
    step = ProgressEstimate.step

    def stepped(self: ProgressEstimate, doing: str, **begun: object) -> None:
        step(self, doing, **begun)
        if doing.startswith(before):
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressEstimate, "step", stepped)


def test_ctrl_c_keeps_the_rounds_that_are_complete(
    histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, "round 9 of 12")
    code, out, err = histo(*QUICK)
    assert code == 130
    assert "The run was stopped after 8 of 12 rounds with" in out
    report = Report.read(tmp_path / "bench" / "report.json")
    assert {len(row.rounds) for row in report.rows} == {8}
    assert report.stopped.startswith("after 8 of 12 rounds")
    assert "stopped after 8 of 12 rounds" in (tmp_path / "bench" / "report.html").read_text()
    conclusion = out.index(" ms per tile")
    assert conclusion < out.index("Command: ")
    assert "the run was interrupted after 8 of 12 rounds" in err.splitlines()[-1]
    assert "no incomplete file" not in err


@pytest.mark.parametrize("before", ["starting", "warming up", "round 7 of 12", "checking"])
def test_ctrl_c_without_enough_rounds_leaves_nothing(
    before: str, histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, before)
    code, out, err = histo(*QUICK)
    assert (code, out) == (130, "")
    assert "interrupted; no incomplete file is left behind" in err
    assert not (tmp_path / "bench").exists()


def test_rows_of_other_threads_are_kept(histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, "never")
    block = measure_module._Measurement.block

    def stopped(self: object, threads: int) -> object:
        if threads == 2:
            raise KeyboardInterrupt
        return block(self, threads)

    monkeypatch.setattr(measure_module._Measurement, "block", stopped)
    code, out, _ = histo("--threads", "1,2", *QUICK)
    assert code == 130
    assert "stopped before the rows with 2 threads were complete" in out
    assert {row.threads for row in Report.read(tmp_path / "bench" / "report.json").rows} == {1}


def test_the_help_tells_the_least_rounds(histo: Histo) -> None:
    """As a number in its text, because the module that knows it imports numpy."""
    assert f"{MIN_ROUNDS} or more" in " ".join(histo("--help")[1].split())


def test_an_existing_report_is_kept_unless_forced(histo: Histo) -> None:
    assert histo("--quiet", *QUICK)[0] == 0
    code, _, err = histo(*QUICK)
    assert code == 2
    assert "bench: exists. Add --force" in err
    assert histo("--quiet", "--force", *QUICK)[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bundle", "--pools", "2"], "--pools: makes networks of its own"),
        (["nowhere", *QUICK], "nowhere: does not exist"),
        (["--pools", "0"], "--pools 0: is not a list of integers of 1 or more"),
        (["--pools", "1,1"], "names a number twice"),
        (["--batches", "one"], "--batches one"),
        (["--threads", "1,,2"], "--threads 1,,2"),
        (["--rounds", "3"], "--rounds 3: are too few for an interval"),
        (["--time", "0"], "--time 0: is not a positive number"),
        (["--runtimes", "onxruntime"], "Did you mean onnxruntime?"),
        (["--device", "tpu"], "--device tpu: is unknown"),
        (["--precision", "int4"], "Did you mean int8?"),
        (["--precision", "bf16x3", "--device", "cuda"], "--precision bf16x3: has no runtime on cuda"),
        (["--precision", "int8", "--runtimes", "libtorch"], "libtorch in int8: is unavailable. These can: "),
        (["--compare", "nowhere.json"], "nowhere.json: could not be read"),
    ],
)
def test_wrong_use_is_named(histo: Histo, args: list[str], message: str) -> None:
    code, out, err = histo(*args)
    assert (code, out) == (2, "")
    assert message in err
