"""Runs of `histo predict` that meet something bad: what stays, what is told, and with which exit code.

Nearly all of them have a stub in the place of the model, because none is about the model.
"""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from histo_export.cli import predict as command
from histo_export.data.containers import base
from histo_export.errors import HistoError, UsageError
from histo_export.export.again import command_again
from histo_export.export.formats import LOWEST_OPSET
from histo_export.predict import parquet, work
from histo_export.predict import run as run_module
from histo_export.predict.inputs import Found, SlideInput, TileSetInput
from histo_export.predict.run import Done, Progress, predict
from histo_export.predict.settings import PredictSettings, SlideSettings
from histo_export.spec import percent
from stub_model import SPEC, stub_model, write_tiles

Histo = Callable[..., tuple[int, str, str]]
SETTINGS = PredictSettings(threads=1, batch=4)
STUB = str(Path(__file__).parents[1] / "stub_model.py")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    with stub_model(tmp_path / "bundle") as folder:
        yield folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_tiles(tmp_path / "good")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    folder = write_tiles(tmp_path / "bad")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def rows(out: Path) -> list[tuple[str, str]]:
    """Input and path of the rows of failed.csv."""
    if not (out / "failed.csv").exists():
        return []
    with (out / "failed.csv").open(encoding="utf-8", newline="") as file:
        return [(row["input"], row["path"]) for row in csv.DictReader(file)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_failed_before_is_still_listed(histo: Histo, bundle: Path, bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(3):
        code, _, err = histo("predict", bundle, bad, "--out", out)
        assert code == 1
        assert "1 could not be used" in err
        assert "broken.png: is not a JPEG, PNG or TIFF image" in err
        assert rows(out) == [(str(bad), "broken.png")]
    outcome = predict(bundle, [bad], out, SETTINGS)
    assert [done.run for done in outcome.done] == [0]
    assert [failure.path for failure in outcome.failures] == ["broken.png"]


def test_a_run_with_other_inputs_leaves_failures_and_records(
    histo: Histo, bundle: Path, bad: Path, good: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    absent = tmp_path / "absent"
    assert len(predict(bundle, [bad, absent], out, SETTINGS, command="first").failures) == 2
    code, _, err = histo("predict", bundle, good, "--out", out)
    assert code == 0, "its own inputs have no failure"
    assert "failed.csv also lists 2 of earlier runs" in err
    assert rows(out) == [(str(absent), str(absent)), (str(bad), "broken.png")]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("run*.json"))]
    assert sorted(record["command"] == "first" for record in records) == [False, True]

    write_tiles(absent)
    (bad / "broken.png").unlink()
    assert predict(bundle, [absent], out, SETTINGS).earlier_failures == 1
    assert rows(out) == [(str(bad), "broken.png")]
    predict(bundle, [tmp_path / "bad"], out, SETTINGS, force=True)
    assert not (out / "failed.csv").exists()
    assert len(list(out.glob("run*.json"))) == 4


def test_what_lies_below_a_folder_is_judged_with_it(bundle: Path, tmp_path: Path) -> None:
    """A file that failed and was deleted is not listed for ever."""
    folder = write_tiles(tmp_path / "in")
    np.save(folder / "floats.npy", np.zeros((2, 3)))
    out = tmp_path / "out"
    predict(bundle, [folder / "floats.npy"], out, SETTINGS)
    assert rows(out) == [(str(folder / "floats.npy"), str(folder / "floats.npy"))]
    (folder / "floats.npy").unlink()
    assert predict(bundle, [folder], out, SETTINGS).earlier_failures == 0
    assert rows(out) == []


@pytest.mark.parametrize("place", ["bundle", "bundle/deeper/results", "good/0.png", "good/0.png/results"])
def test_places_that_are_not_for_results(histo: Histo, bundle: Path, good: Path, tmp_path: Path, place: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = histo("predict", bundle, good, "--out", tmp_path / place)
    assert (code, out) == (2, "")
    assert "Choose another --out" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_results_may_lie_beside_their_inputs(bundle: Path, good: Path) -> None:
    assert not predict(bundle, [good], good / "results", SETTINGS).failures


def slides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "find_inputs", lambda *_: Found([SlideInput(Path("a.svs"))], [], [], []))


def test_a_model_without_scale_is_not_an_inputs_failure(
    histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides(monkeypatch)
    folder = tmp_path / "my bundle"
    with stub_model(folder, replace(SPEC, mpp=None)) as bundle:
        code, out, err = histo("predict", bundle, "a.svs", "--out", tmp_path / "out")
        folder.with_name("my bundle-run").mkdir()
        _, _, beside = histo("predict", bundle, "a.svs", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "my bundle: does not state its µm per pixel, which slides need. Export it again with that of its" in err
    options = f"--mpp 0.5 --out '{folder}' --force"
    assert re.search(rf"here 0\.5: histo export RUN (--formats \S+ )?{options}, where RUN is", err)
    assert re.search(rf"here 0\.5: histo export '{folder}-run' (--formats \S+ )?{options}\.$", beside)
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_made_again_with_the_options_that_it_records(tmp_path: Path) -> None:
    low = SimpleNamespace(max_drop=1.5, drop_accepted=True)
    block = SimpleNamespace(
        files={"model.safetensors": None, "model.onnx": None},
        training={},
        input="uint8",
        precision="int8",
        opset=17,
        batch_size=1,
        low_precision=low,
    )
    bundle: Any = SimpleNamespace(path=tmp_path / "b", config=SimpleNamespace(histo=block))
    again = command_again(bundle, "--mpp", "0.5")
    options = "--input uint8 --opset 17 --precision int8 --data TILES --max-drop 1.5 --accept-drop --mpp 0.5"
    assert f" {options} --out " in again
    low.drop_accepted = False
    block.opset = LOWEST_OPSET
    assert "--accept-drop" not in command_again(bundle)
    assert "--opset" not in command_again(bundle)
    assert "--groups" not in command_again(bundle)
    facts = {"name": "tiles.csv", "groups": {"train": 6, "val": 2, "test": 2}}
    block.training = {"data": {**facts, "split": "by 10 groups (slides.csv): 6 in train"}}
    assert " --data TILES --groups GROUPS " in command_again(bundle)
    block.training = {"data": {**facts, "split": "by 10 groups (tiles.csv): 6 in train"}}
    assert "--groups" not in command_again(bundle), "the table of the tiles has them"


def test_slides_without_scale_get_the_command(histo: Histo, tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    slide = write_tiff(tmp_path / "a slide.tif", np.full((600, 1200, 3), 200, np.uint8), mpp=None)
    with stub_model(tmp_path / "bundle") as bundle:
        code, _, err = histo("predict", bundle, slide, "--out", tmp_path / "out")
    assert code == 1
    assert f"(name those alone): histo predict {bundle} '{slide}' --out {tmp_path / 'out'} --mpp 0.25\n" in err


@pytest.mark.parametrize("package", ["openslide", "scipy"])
def test_a_missing_package_is_not_an_inputs_failure(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    slides(monkeypatch)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r'pip install "histo-export\[slides\]"'):
        predict(bundle, [Path("a.svs")], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_runtime_that_does_not_open_is_not_an_inputs_failure(
    bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: Any) -> None:
        raise HistoError("--device cuda", "finds no GPU", "Use --device cpu")

    monkeypatch.setattr(work, "open_model", unavailable)
    with pytest.raises(UsageError, match="finds no GPU"):
        predict(bundle, [good], tmp_path / "deep/out", SETTINGS)
    assert names(tmp_path) == {"bundle", "good"}


@pytest.mark.parametrize("error", [TypeError("no such thing"), MemoryError(), RecursionError("too deep")], ids=repr)
@pytest.mark.parametrize("place", ["predict_tiles", "write_tile_set"])
def test_an_unforeseen_error_ends_one_input(
    histo: Histo,
    bundle: Path,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    place: str,
) -> None:
    odd = write_tiles(tmp_path / "odd")
    module = work if place == "predict_tiles" else run_module
    real = getattr(module, place)

    def fail(tiles: Any, *arguments: Any, **options: Any) -> Any:
        if tiles.source == odd:
            raise error
        return real(tiles, *arguments, **options)

    monkeypatch.setattr(module, place, fail)
    out = tmp_path / "out"
    code, _, err = histo("predict", bundle, odd, good, "--out", out)
    assert code == 1
    assert f"{odd}: " in err
    assert f"{type(error).__name__}{f': {error}' if str(error) else ''}, predict/" in err
    assert "Traceback" not in err
    assert rows(out) == [(str(odd), str(odd))]
    assert (out / "good/done.json").is_file()
    monkeypatch.setattr(module, place, real)
    assert not predict(bundle, [odd, good], out, SETTINGS).failures, "it is tried again"
    assert names(out) == {"odd", "good", "index.html"} | {path.name for path in out.glob("run*.json")}


def test_an_interruption_leaves_no_empty_folder(
    bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "predict_tiles", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(bundle, [good], tmp_path / "deep/er/out", SETTINGS)
    assert names(tmp_path) == {"bundle", "good"}


def test_a_full_disk_under_a_shard(bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "savez", full)
    (failure,) = predict(bundle, [good], tmp_path / "out", SETTINGS).failures
    assert failure.reason.startswith("could not be written (No space left on device). Free some space")
    assert names(tmp_path / "out") == {"run.json", "index.html", "failed.csv"}


def test_a_full_disk_under_a_result(bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet.ParquetTable, "_flush", full)
    (failure,) = predict(bundle, [good], tmp_path / "out", SETTINGS).failures
    assert "No space left on device" in failure.reason
    (shards,) = {*names(tmp_path / "out")} - {"run.json", "index.html", "failed.csv"}
    assert shards.startswith(".good.shards-"), "what was computed stays for the next run"
    monkeypatch.undo()
    with stub_model(bundle):
        (done,) = predict(bundle, [good], tmp_path / "out", SETTINGS).done
    assert (done.tiles, done.run) == (3, 0)


def test_a_full_disk_under_the_record(
    histo: Histo, bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histo_export.predict import record

    monkeypatch.setattr(record, "write_atomic", full)
    code, out, err = histo("predict", bundle, good, "--out", tmp_path / "out", "--quiet")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert names(tmp_path / "out") == {"good"}


def test_long_names(bundle: Path, tmp_path: Path) -> None:
    """The hidden names beside a result are not longer than file systems allow."""
    folder = write_tiles(tmp_path / ("ä" * 125))
    outcome = predict(bundle, [folder], tmp_path / "out", SETTINGS)
    assert not outcome.failures
    assert (tmp_path / "out" / outcome.done[0].name / "done.json").is_file()


def test_a_name_that_is_too_long_is_told(histo: Histo, bundle: Path, good: Path, tmp_path: Path) -> None:
    code, _, err = histo("predict", bundle, good, "--out", tmp_path / ("n" * 300))
    assert code != 0
    assert "File name too long). Use shorter names or choose another --out" in err
    assert "Free some space" not in err


def test_messages_of_libraries_are_kept_off_the_screen(
    histo: Histo, bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = base.decode_image

    def decode(data: bytes) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # the suite turns warnings into errors
            warnings.warn("Truncated File Read", UserWarning, stacklevel=1)
        logging.getLogger("tifffile").warning("odd %s", "tag")
        return real(data)

    monkeypatch.setattr(base, "decode_image", decode)
    code, _, err = histo("predict", bundle, good, "--out", tmp_path / "out", "--quiet")
    assert (code, err) == (0, "")
    messages = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))["messages"]
    assert "tifffile: odd tag" in messages
    assert sum("Truncated File Read" in message for message in messages) == 1


def test_results_of_a_set_are_printed(histo: Histo, bundle: Path, bad: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled"
    write_tiles(labelled / "dark", 5)
    write_tiles(labelled / "bright", 1)
    code, shown, _ = histo("predict", bundle, bad, labelled, "--out", tmp_path / "out")
    assert code == 1
    assert "bad: 3 tiles, 1 could not be used\n" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["dark", "2", "66.7", "%"] in lines or ["dark", "1", "33.3", "%"] in lines
    summary = json.loads((tmp_path / "out/labelled/summary.json").read_text(encoding="utf-8"))
    low, high = summary["splits"]["labelled"]["interval"]
    accuracy = summary["splits"]["labelled"]["accuracy"]
    interval = f"{percent(low)} to {percent(high)}"
    floors = "chance 50.0 %, always the largest class 83.3 %"
    assert f"labelled tiles: accuracy {percent(accuracy)} (95 % interval {interval}, 6 tiles; {floors})" in shown
    assert str(tmp_path / "out") in shown
    assert "infer" not in shown
    code, shown, _ = histo("predict", bundle, bad, labelled, "--out", tmp_path / "out", "--json")
    result = json.loads(shown)
    assert [each["summary"]["tiles"] for each in result["inputs"]] == [3, 6]
    assert result["inputs"][1]["summary"]["splits"]["labelled"]["interval"] == [low, high]
    verbose = histo("predict", bundle, labelled, "--out", tmp_path / "out", "--verbose")[1]
    assert ["input", "tiles", "tiles/s", "s", "prepare", "read", "wait", "infer", "write"] in [
        line.split() for line in verbose.splitlines()
    ]


def test_results_of_a_slide_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    classes = {"TUMOR": {"tiles": 30, "area_mm2": 0.75}, "STROMA": {"tiles": 0, "area_mm2": 0.0}}
    summary = {"tissue_mm2": 1.0, "unanalysed_mm2": 0.25, "classes": classes}
    command._print_result(Done("a", "a.svs", 30, 30, summary=summary))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a:", "1.000", "mm²", "of", "tissue,", "30", "tiles"] in lines
    assert ["TUMOR", "30", "0.750", "75.0", "%"] in lines
    assert ["not", "analysed", "0.250", "25.0", "%"] in lines
    assert not any("STROMA" in line for line in lines), "it does not occur"


def test_warnings_of_a_result_are_printed(
    histo: Histo, bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.write_tile_set

    def warn(*arguments: Any, **options: Any) -> Any:
        lost = real(*arguments, **options)
        file = arguments[3] / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8")) | {"warnings": ["enlarged [2] times"]}
        file.write_text(json.dumps(summary), encoding="utf-8")
        return lost

    monkeypatch.setattr(run_module, "write_tile_set", warn)
    for _ in range(2):
        assert "warning: good: enlarged [2] times" in histo("predict", bundle, good, "--out", tmp_path / "out")[2]


def stub_command(*arguments: object) -> list[str]:
    return [sys.executable, STUB, *map(str, arguments)]


def environment(**values: str) -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "COLUMNS"))
    } | values


LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ASCII streams": {"PYTHONIOENCODING": "ascii"},
}


@pytest.mark.parametrize("variables", LOCALES.values(), ids=LOCALES)
def test_in_any_locale(tmp_path: Path, variables: dict[str, str]) -> None:
    folder = tmp_path / "größe腿"
    write_tiles(folder / "dark")
    (folder / "ähm.png").write_bytes(b"no image")
    arguments = stub_command(tmp_path / "bundle", "predict", "bundle", folder, "--out", tmp_path / "oüt")
    done = subprocess.run(arguments, capture_output=True, env=environment(**variables), check=False)
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"3 tiles, 1 could not be used" in done.stdout
    assert rows(tmp_path / "oüt") == [(str(folder), "ähm.png")]
    result = json.loads((tmp_path / "oüt/größe腿/summary.json").read_text(encoding="utf-8"))
    assert result["tiles"] == 3
    done = subprocess.run([*arguments, "--json"], capture_output=True, env=environment(**variables), check=False)
    assert json.loads(done.stdout)["inputs"][0]["name"] == folder.name, "JSON keeps every character"


def test_columns_and_pipes(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path / ("a very long name of a folder with tiles, " * 3 + "and more"))
    arguments = stub_command(tmp_path / "bundle", "predict", "bundle", folder, "--out", tmp_path / "out", "--verbose")
    done = subprocess.run(arguments, capture_output=True, encoding="utf-8", env=environment(COLUMNS="50"), check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"{folder.name}: 3 tiles" in lines
    assert any(line.startswith(folder.name) and len(line.split()) > 16 for line in lines), "a row is one line"


def test_closed_streams(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path / "tiles")
    arguments = stub_command(tmp_path / "bundle", "predict", "bundle", folder, "--out", tmp_path / "out")
    shell = '"$@" >&-; echo $? >&2'
    done = subprocess.run(["bash", "-c", shell, "bash", *arguments], capture_output=True, check=False)
    assert done.stderr.decode() == "0\n"
    assert (tmp_path / "out/tiles/tiles.csv").read_text(encoding="utf-8").startswith("path,class,")
    shell = '"$@" 2>&1 >/dev/full | cat; "$@" --json | head -1 >&2; echo ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", shell, "bash", *arguments], capture_output=True, check=False)
    told, code = done.stdout.decode().splitlines()
    assert told.startswith("histo: standard output: could not be written (No space left on device)")
    assert code in ("0", "1"), "the pipe may have taken all before it closed"
    assert done.stderr.decode() == "{\n"


def test_a_home_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Matplotlib wants to tell that it makes a temporary cache, when it is imported."""
    (tmp_path / "file").touch()
    code = "from histo_export.cli import main; main()"
    arguments = [sys.executable, "-c", code, "predict", "nowhere", "tiles", "--out", str(tmp_path / "out")]
    variables = environment(HOME=str(tmp_path / "file/home"), TMPDIR=str(tmp_path))
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        variables.pop(name, None)
    done = subprocess.run(arguments, capture_output=True, encoding="utf-8", env=variables, check=False)
    assert done.returncode == 2
    assert done.stderr == ("histo: nowhere: does not exist. Name a folder that histo export wrote.\n")


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def may_make_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_make_namespaces(), reason="needs the right to make PID namespaces")
def test_two_runs_in_two_pid_namespaces(tmp_path: Path) -> None:
    """As in two containers: each sees a process 1 of its own, and none of the other's."""
    source = tmp_path / "many"
    source.mkdir()
    np.save(source / "many.npy", np.zeros((40_000, 32, 32, 3), np.uint8))
    other = write_tiles(tmp_path / "other")
    out = tmp_path / "out"
    arguments = stub_command(tmp_path / "bundle", "predict", "bundle", source / "many.npy", "--out", out, "--batch", 1)
    first = subprocess.Popen([*NAMESPACE, *arguments, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob(".many.shards-*/*.npz")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = set(out.glob(".many.shards-*/*"))
    second = subprocess.run(
        [*NAMESPACE, *stub_command(tmp_path / "bundle", "predict", "bundle", other, "--out", out, "--quiet")],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if first.poll() is None or "in use" in second.stderr:
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr.startswith(f"histo: {out}: is in use by another run (process 1 on ")
        assert second.stderr.endswith("Wait until it has ended, or choose another --out.\n")
        assert second.stderr.count("\n") == 1
    assert before, "the first run was at work"
    stdout, stderr = first.communicate()
    assert (first.returncode, stderr) == (0, b""), stdout
    assert names(out) == {"many", "run.json", "index.html"}
    assert json.loads((out / "many/done.json").read_text(encoding="utf-8"))["tiles"] == 40_000


def test_a_folder_that_was_taken_over_is_left_alone(
    bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process slept, and another run has begun meanwhile."""
    from histo_export import files

    monkeypatch.setattr(files, "HEARTBEAT_S", 0.02)
    out = tmp_path / "out"

    def take_over(progress: Progress) -> None:
        if progress.done == 0:
            (out / files.OWNER).unlink()
            (out / files.OWNER).write_text("another's", encoding="utf-8")
            (out / ".x.partial-00000000-1-00000000").touch()
            time.sleep(0.5)

    with pytest.raises(HistoError, match="has been taken over by another run"):
        predict(bundle, [good], out, SETTINGS, report=take_over)
    assert {files.OWNER, ".x.partial-00000000-1-00000000"} <= names(out)
    assert not {"run.json", "good"} & names(out)


def test_a_hint_is_one_line_that_quiet_and_json_do_not_print(
    histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(run_module, "remark", lambda _, precision, runs: asked.append(precision) or "bf16 is faster")
    tiles, out = write_tiles(tmp_path / "tiles"), tmp_path / "out"
    with stub_model(tmp_path / "bundle") as bundle:
        command = ("predict", bundle, tiles, "--out", out)
        shown = histo(*command)
        quiet = histo(*command, "--quiet")
        code, facts, err = histo(*command, "--json")
        named = histo(*command, "--precision", "fp32", "--runtime", "native-latency")
    assert shown[2].count("note: bf16 is faster") == 1
    assert "bf16 is faster" not in shown[1] + quiet[1] + quiet[2] + err
    precision = {"asked": None, "ran": "fp32", "remark": "bf16 is faster"}
    assert (code, json.loads(facts)["precision"]) == (0, precision)
    assert json.loads(next(out.glob("run-*.json")).read_text())["precision"] == precision
    assert (named[0], asked) == (0, [None, None, None, "fp32"])


def test_keys_are_those_of_the_version_before_regions_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results must not count as those of other settings after an update. The keys are those of the older code."""
    monkeypatch.chdir(tmp_path)
    Path("t").mkdir()
    for name in ("a.svs", "t/0.png", "t/1.png"):
        Path(name).write_bytes(b"12345")
        os.utime(name, ns=(10**18, 10**18))
    slide, tiles = SlideInput(Path("a.svs")), TileSetInput(Path("t"), [Path("t/0.png"), Path("t/1.png")])
    chosen = SlideSettings(mpp=0.25, overlap=0.5, smooth=True)
    keys = [
        run_module._key(slide, "model", PredictSettings()),
        run_module._key(slide, "model", PredictSettings(slide=chosen, features="h5", tiles_out="d")),
        run_module._key(tiles, "model", PredictSettings()),
        run_module._key(tiles, "model", PredictSettings(resize="bilinear", runtime="native-int8")),
    ]
    assert keys == [
        "d5fe18fff85884418219e5a1afd112372baaada27b223987c5caaf0cfbd44e4b",
        "c18bfbd23415194c45a0bb45570513d42dcb163c7717a2d73b0fa469652eb80a",
        "4f5107cf01bd20ff636064e7e6bbbcfdb911b774e7af3cb1e744adadb1bea545",
        "2d78b5d46c2fb048d64a60c584a1e2e3f2532295c853f7768372305a5cdc1f69",
    ]
    assert run_module._key(slide, "model", PredictSettings(slide=SlideSettings(roi="r.geojson"))) not in keys
