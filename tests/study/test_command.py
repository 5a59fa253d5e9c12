"""`histo study` on tiny tiles, with real trainings; nothing is timed but where a test says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drawn_studies import drawn_outcome
from drawn_tiles import coloured_data
from histo_export.data import TileData
from histo_export.study import plots, report, runs, timings
from histo_export.study.design import Design
from histo_export.study.runs import Runner, StudyFolder

Histo = Callable[..., tuple[int, str, str]]
CALLS = [[0.010 + 0.0001 * i] for i in range(9)]
TIMINGS = {
    "machine": "a machine",
    "training": {"batch": 8, "rounds": {"1": CALLS, "2": CALLS}},
    "inference": {"threads": 2, "batches": {"1": {"rounds": {"1": CALLS, "2": CALLS}}}},
}
DESIGN = ["--pools", "1,2", "--recipes", "report", "--seeds", "2", "--max-seeds", "2"]
TINY = [*DESIGN, "--crop", "32", "--batch", "8", "--device", "cpu"]
SMALL = [*TINY, "--epochs", "1"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNG files, split by folders."""
    root = tmp_path_factory.mktemp("tiles")
    made = coloured_data(6, 3, 4)
    for split, part in (("train", made.train), ("val", made.val), ("test", made.test)):
        for i in range(len(part)):
            folder = root / split / made.classes[part.labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.tile(i)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(*args: Any, **options: Any) -> dict[str, Any]:
        return TIMINGS

    monkeypatch.setattr(timings, "timed", known)


@pytest.fixture(autouse=True)
def no_checkpoints_left(tmp_path: Path) -> Iterator[None]:
    """A checkpoint has 85 MB."""
    yield
    for path in tmp_path.rglob("*.ckpt"):
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pools", "1,2"], "The tiles: are not given. Use e.g. histo study DIR, or --data demo."),
        (["demo", "--pools", "2"], "--pools 2: leaves nothing to compare."),
        (["demo", "--pools", "2,0"], "--pools 2,0: is not a list of integers"),
        (["demo", "--recipes", "stron"], "--recipes stron: is unknown. Did you mean strong?"),
        (["demo", "--budget", "4"], "--budget 4: is not a time. Use e.g. --budget 4h, 90m or 1h30m."),
        (["demo", "--budget", "0h"], "--budget 0h: is not a time."),
        (["demo", "--margin", "0"], "--margin 0: is not a number of points"),
        (["demo", "--seeds", "1"], "--seeds 1: tells nothing about the spread"),
        (["demo", "--seeds", "4", "--max-seeds", "3"], "--max-seeds 3: is below --seeds 4."),
        (["demo", "--max-seeds", "0"], "--max-seeds 0: is below --seeds 3."),
        (["demo", "--epochs", "1", "--steps", "1"], "--steps 1: contradicts --epochs."),
        (["demo", "--data", "tiles"], "--data tiles: names other tiles than demo."),
        (["demo", "--keep", "worst"], "--keep worst: is unknown."),
    ],
)
def test_wrong_use_is_one_line(histo: Histo, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, out, err = histo("study", *arguments, "--out", tmp_path / "study")
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "study").exists()


def test_a_folder_of_something_else_is_not_used(histo: Histo, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    code, _, err = histo("study", "demo", "--out", tmp_path)
    assert code == 2
    assert "exists and is not a study (it holds notes.txt). Choose another --out." in err


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are drawn, and no pictures, which take seconds."""

    def runner(design: Design, data: TileData, folder: StudyFolder) -> Runner:
        return lambda arm, seed: drawn_outcome(data, arm, seed, 0.9)

    monkeypatch.setattr(runs, "train_runner", runner)
    monkeypatch.setattr(plots, "draw", lambda *rest: [])


@pytest.mark.usefixtures("untimed", "drawn")
def test_the_command_writes_the_answer_and_tells_what_is_next(histo: Histo, tmp_path: Path, tiles: Path) -> None:
    out = tmp_path / "study"
    code, stdout, err = histo("study", tiles, *SMALL, "--out", out)
    assert code == 0, err
    lines = stdout.splitlines()
    assert lines[0] == "Not decided. Ship pool 1 as long as nothing else is known."
    assert lines[1].startswith("How sure: with a probability of at least ")
    assert "Paired differences of test accuracy" in stdout
    assert f"histo export --study {out}" in stdout
    assert {"study.html", "study.md", "study.json", "design.json", "runs"} <= {path.name for path in out.iterdir()}
    first = (out / "study.json").read_bytes()
    code, stdout, err = histo("study", tiles, *SMALL, "--out", out, "--json")
    assert code == 0, err
    assert json.loads(stdout) == json.loads(first)
    code, _, err = histo("study", tiles, *SMALL, "--out", out, "--margin", "2")
    assert code == 2
    assert "holds a study of other options: margin 0.02 was 0.01." in err
    code, _, err = histo("study", tiles, *SMALL, "--out", out, "--margin", "2", "--force", "--quiet")
    assert code == 0, err
    code, _, err = histo("export", out / "runs" / "report-pool1-seed0", "--study", out)
    assert code == 2
    assert "names another model than" in err


@pytest.mark.parametrize(
    ("force", "told"), [([], "The same command goes on"), (["--force"], "The same command without --force goes on")]
)
def test_an_interruption_tells_how_to_go_on(
    histo: Histo, tmp_path: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch, force: list[str], told: str
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timings, "timed", interrupted)
    code, _, err = histo("study", tiles, *SMALL, "--out", tmp_path / "study", *force)
    assert code == 130
    assert f"{told} with what is missing." in err


def test_force_keeps_the_folder_of_another_program(histo: Histo, tmp_path: Path, tiles: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "design.json").write_text('{"tool": "another"}', encoding="utf-8")
    code, _, err = histo("study", tiles, *SMALL, "--out", tmp_path / "study", "--force")
    assert code == 1
    assert "design.json: is not the design of a study. Choose another --out." in err
    assert (tmp_path / "study" / "design.json").is_file()


def test_a_budget_below_one_backbone_is_refused(
    histo: Histo, tmp_path: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"rounds": {pool: [[10.0 + call[0]] for call in CALLS] for pool in ("1", "2")}}
    monkeypatch.setattr(timings, "timed", lambda *args, **options: TIMINGS | {"training": {"batch": 8, **slow}})
    code, _, err = histo("study", tiles, *SMALL, "--quick", "--budget", "1s", "--out", tmp_path / "study")
    assert code == 2
    assert "--budget 1 s: is too little for one run of pool 1" in err


@pytest.mark.parametrize("decided", [False, True])
def test_exporting_an_undecided_study_says_so(
    histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decided: bool
) -> None:
    monkeypatch.setattr(report, "recommended_checkpoint", lambda folder: (tmp_path / "best.ckpt", decided))
    code, _, err = histo("export", "--study", tmp_path)
    assert code != 0, "there is no checkpoint"
    assert ("The study had not decided; this is its pool so far." in err) != decided


@pytest.mark.slow  # 30 CPU-seconds: two trainings with their tests
@pytest.mark.usefixtures("untimed")
def test_a_quick_study(histo: Histo, tmp_path: Path, tiles: Path) -> None:
    """A backbone for each seed; the second command does nothing; its heads are not exported."""
    out = tmp_path / "study"
    code, stdout, err = histo("study", tiles, *SMALL, "--quick", "--out", out)
    assert code == 0, err
    assert "This is a quick study" in stdout
    assert sorted(path.name for path in (out / "runs").iterdir()) == [
        *("report-backbone-seed0", "report-backbone-seed1"),
        *("report-pool1-seed0", "report-pool1-seed1", "report-pool2-seed0", "report-pool2-seed1"),
    ]
    assert sorted(path.name for path in (out / "runs" / "report-backbone-seed0").iterdir()) == ["best.ckpt", "complete"]
    first = (out / "study.json").read_bytes()
    assert len(json.loads(first)["runs"][0]["history"]) == 30
    code, _, err = histo("study", tiles, *SMALL, "--quick", "--out", out)
    assert code == 0, err
    assert (out / "study.json").read_bytes() == first
    code, _, err = histo("export", "--study", out)
    assert code == 2
    assert "is a quick study, whose heads are not whole models. Train pool 1 with histo train" in err


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_two_studies_of_the_same_seeds_have_the_same_bytes(histo: Histo, tmp_path: Path, tiles: Path) -> None:
    answers = []
    for name in ("one", "two"):
        code, _, err = histo("study", tiles, *SMALL, "--out", tmp_path / name)
        assert code == 0, err
        answers.append((tmp_path / name / "study.json").read_bytes())
        run = tmp_path / name / "runs" / "report-pool2-seed1"
        assert sorted(path.name for path in run.iterdir()) == ["best.ckpt", "outcome.safetensors"]
    assert answers[0] == answers[1]
    code, _, err = histo("export", "--study", tmp_path / "one", "--formats", "native", "--out", tmp_path / "bundle")
    assert code == 0, err


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_bytes(tmp_path: Path, tiles: Path) -> None:
    """Killed in the first run, after it, and in the second seed; with all that is timed."""
    program = "import sys, torch; torch.set_num_threads(1); from histo_export.cli import main; main()"

    def command(out: Path) -> list[str]:
        rest = [*TINY, "--epochs", "3", "--quiet", "--out", str(out)]
        return [sys.executable, "-c", program, "study", str(tiles), *rest]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    made = tmp_path / "killed" / "runs"
    places = ("report-pool1-seed0/last.ckpt", "report-pool1-seed0/outcome.safetensors", "report-pool1-seed1/last.ckpt")
    for place in places:
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        end = time.monotonic() + 300
        while not (made / place).exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert (made / place).exists()
        assert not (tmp_path / "killed" / "study.json").exists()
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    whole, killed = (tmp_path / name / "study.json" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    content = json.loads((tmp_path / "killed" / "timings.json").read_text(encoding="utf-8"))
    assert set(content["training"]["rounds"]) == {"1", "2"}
    assert set(content["inference"]["batches"]) == {"1", "32"}
