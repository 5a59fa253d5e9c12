"""The command line as its users meet it: messages, exit codes, and what goes where."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import histo_export.extras
from histo_export import cli, doctor
from histo_export._core import usable_precisions
from histo_export.cli import show
from histo_export.cli.export import _checkpoint_file, _formats, _next_steps
from histo_export.cli.inspect import _print_facts
from histo_export.cli.options import TrainingOptions
from histo_export.cli.train import RunOptions
from histo_export.errors import UsageError
from histo_export.export.checks import Checks
from histo_export.export.formats import FORMATS, OWN_FORMATS
from histo_export.extras import EXTRAS
from histo_export.metrics import report_of
from histo_export.model.checkpoint import Checkpoint, write_checkpoint
from histo_export.runtimes.registry import RUNTIMES
from histo_export.spec import ModelSpec
from histo_export.training.calibration import calibrate
from histo_export.training.folder import RunFolder

Outcome = tuple[int, str, str]
Histo = Callable[..., Outcome]


COMMANDS = ("export", "train", "verify", "bench", "predict", "inspect", "doctor")
SLOW_TO_IMPORT = (
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "pyarrow",
    "pytorch_lightning",
    "PIL",
)


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)], ids=("histo", *COMMANDS))
def test_help_is_immediate_and_imports_no_torch(arguments: list[str]) -> None:
    """Immediate, because none of the packages is imported that take longer than Typer itself."""
    code = (
        f"import sys; sys.argv = ['histo', *{arguments}, '--help']; from histo_export.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"print(sorted(sys.modules.keys() & set({SLOW_TO_IMPORT})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage: histo" in done.stdout


LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
}


@pytest.mark.parametrize("variables", LOCALES.values(), ids=LOCALES)
def test_help_and_tables_in_any_locale(variables: dict[str, str]) -> None:
    """µ and × become question marks where the locale lacks them."""
    code = (
        "import sys; from histo_export.cli import main\n"
        "helps = [['--help'], *([command, '--help'] for command in sys.argv[1:])]\n"
        "for arguments in [*helps, [], ['inspect', '--pool', '2']]:\n"
        "    sys.argv = ['histo', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, arguments\n"
    )
    command = [sys.executable, "-c", code, *COMMANDS]
    done = subprocess.run(command, capture_output=True, env=os.environ | variables, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"Usage: histo") == 1 + len(COMMANDS)
    times = "×".encode("latin-1" if variables.get("PYTHONIOENCODING") == "latin-1" else "ascii", errors="replace")
    assert b"64" + times + b"64" in done.stdout


def test_ctrl_c_while_the_commands_are_imported_is_quiet() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from histo_export.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_tables_are_not_cut_in_a_file() -> None:
    """Whatever COLUMNS says, each line is the one of a wide terminal."""
    shown = []
    for columns in ("20", "200"):
        command = [sys.executable, "-c", "from histo_export.cli import main; main()", "inspect", "--pool", "2"]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", env=os.environ | {"COLUMNS": columns}, check=False
        )
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    assert shown[0] == shown[1]
    assert "…" not in shown[0]
    assert max(map(len, shown[0].splitlines())) > 50


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            40,
            "a heading: xxxxxxxxxx\nb: 123,456\n\na heading: y\nb: 7\nc: a cell of more than forty columns in all\n\n",
        ),
        (50, None),  # these two as a table, whose lines are wider than the second terminal
        (200, None),
    ],
)
def test_tables_are_not_cut_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, expected: str | None
) -> None:
    console = Console(width=width, force_terminal=True, highlight=False, color_system=None)
    monkeypatch.setattr(show, "out_console", console)
    table = show.table()
    for heading in ("a heading", "b", "c"):
        table.add_column(heading, no_wrap=True)
    last = "a cell of more than forty columns in all" if width < 50 else "short"
    table.add_row("[b]" + "x" * 10 + "[/b]", "123,456", "")
    table.add_row("y", "7", last)
    show.print_table(table)
    out = capsys.readouterr().out
    assert not any(line.endswith(" ") for line in out.splitlines())
    if expected:
        assert out == expected
    else:
        assert [line.split() for line in out.splitlines()] == [
            ["a", "heading", "b", "c"],
            ["x" * 10, "123,456"],
            ["y", "7", "short"],
        ]


def test_pairs_are_lines_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "out_console", Console(width=20, force_terminal=True, color_system=None))
    table = show.table(show_header=False)
    table.add_row("[b]versions[/b]", "histo-export", "0.1.0")
    table.add_row("", "a name of two dozen letters", "1")
    show.print_table(table)
    assert capsys.readouterr().out == "versions: histo-export: 0.1.0\na name of two dozen letters: 1\n"


def test_all_formats_beside_some_are_all() -> None:
    assert _formats("onnx, all") == _formats("all") == list(OWN_FORMATS)
    assert _formats("all,ncnn") == [*OWN_FORMATS, "ncnn"]
    assert _formats("all,timm") == [name for name in FORMATS if name in {*OWN_FORMATS, "timm"}]
    assert set(FORMATS) - set(OWN_FORMATS) == {"timm", "openvino", "ncnn", "litert", "coreml", "tensorrt"}
    assert _formats("native,onnx") == ["onnx", "native"]


def test_paragraphs_of_help_are_filled(histo: Histo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = histo("export", "--help")
    assert "Usage: histo export [OPTIONS] [RUN]" in out
    assert "demonstration." not in [line.strip() for line in out.splitlines()], "a line of one word"
    assert "histo export --weights w.pth --classes A,B" in out


def test_next_steps_can_be_pasted(tmp_path: Path) -> None:
    out = tmp_path / "my model's $HOME"
    steps = [shlex.split(line) for line in _next_steps(out, list(FORMATS))]
    assert [words[:2] for words in steps[:4]] == [["histo", n] for n in ("verify", "predict", "inspect", "bench")]
    assert all(words[2] == str(out) for words in steps[:4])
    assert steps[1][3] == "slides/"
    assert shlex.split(_next_steps(out, list(FORMATS), slides=False)[1])[3] == "tiles/"
    assert ["tritonserver", "--model-repository", str(out / "triton")] in steps
    code = next(words for words in steps if words[0] == "python")[2]
    assert "'" not in code.replace(str(out), "")  # they would be escaped within the shell's
    assert str(out / "model.onnx") in {
        node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)
    }


WRONG_USE = [
    (["exprt"], "Did you mean histo export?"),
    (["export", "--pol", "2"], "--pool"),
    (["export", "--pool", "0"], "--pool 0: is not an integer"),
    (["export", "--pool", "two"], "--pool two: is not an integer"),
    (["export", "--pool", "-1"], "--pool -1: is not an integer"),
    (["export", "--formats", "onnnx"], "Did you mean onnx?"),
    (["export", "--formats", ","], "names no format"),
    (["export", "--input", "bytes"], "float or uint8"),
    (["export", "--precision", "int4"], "Did you mean int8?"),
    (["export", "--precision", "int8", "--formats", "onnx"], "Add native to --formats"),
    (["export", "--precision", "int8", "--max-drop", "-1"], "--max-drop -1: is not a number of points"),
    (["export", "--precision", "int8", "--max-drop", "nan"], "--max-drop nan: is not a number of points"),
    (["export", "--max-drop", "1"], "--max-drop: is for precisions below fp32"),
    (["export", "--accept-drop"], "--accept-drop: is for precisions below fp32"),
    (["export", "--checkpoint", "x.ckpt", "--precision", "bf16"], "Add --data"),
    (["export", "--checkpoint", "x.ckpt", "--precision", "bf16", "--data", "demo", "--seed", "1"], "--seed: says how"),
    (["export", "--data", "dmo"], "Did you mean demo?"),
    (["export", "--data", "demo", "--recipe", "storng"], "Did you mean strong?"),
    (["export", "--data", "demo", "--crop", "16"], "crop 16"),
    (["export", "--data", "demo", "--mpp", "0"], "mpp 0"),
    (["export", "--data", "demo", "--split", "1,2"], "is not three numbers"),
    (["export", "--data", "demo", "--classes", "TUMOUR,STROMA"], "Did you mean TUMOR"),
    (["export", "--checkpoint", "nowhere.ckpt"], "does not exist"),
    (["export", "--checkpoint", "x.ckpt", "--data", "demo"], "x.ckpt: does not exist"),
    (["export", "--checkpoint", "x.ckpt", "--device", "cuda"], "--device: says how to train"),
    (["export", "--checkpoint", "x.ckpt", "--autocast", "bf16"], "--autocast: says how to train"),
    (["export", "--checkpoint", "x.ckpt", "--split", "1,1,1"], "--split: says how to train"),
    (["bench", "--precision", "auto"], "--precision auto: is what a bundle allows, and none is named. Name a bundle"),
    (["bench", "--stages", "--runtimes", "torch"], "--stages: is about the native engine, which is not among"),
    (["doctor", "--speed", "--precision", "auto"], "--precision auto: is what a bundle allows, and none is named"),
    (["doctor", "--speed", "--precision", "int4"], "Did you mean int8?"),
    (["doctor", "--precision", "int8"], "--precision int8: is for the timing. Add --speed"),
    (["doctor", "--speed", "nowhere"], "nowhere: does not exist"),
    (["predict", "b", "t", "--precision", "atuo"], "Did you mean auto?"),
    (["train", "--data", "demo", "--epochs", "0"], "--epochs 0"),
    (["train", "--data", "demo", "--device", "gpu"], "--device gpu: is unknown"),
    (["train", "--data", "demo", "--resume", "--force"], "contradicts --force"),
    (["train"], "The tiles: are not given. Use e.g. histo train DIR"),
    (["verify", "nowhere"], "nowhere: does not exist"),
    (["inspect", "."], "is neither a bundle (no config.json) nor a training run (no best.ckpt)"),
    (["verify"], "BUNDLE"),
    (["inspect"], "needs a bundle or checkpoint, or --pool N"),
    (["inspect", "--pool", "2", "--precision", "bf16"], "--precision bf16: is for the engine's plan. Add --plan"),
]


@pytest.mark.parametrize(("args", "message"), WRONG_USE, ids=[" ".join(a) for a, _ in WRONG_USE])
def test_wrong_use_is_one_line_and_exit_2(
    histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = histo(*args)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith(("note:", "Training on"))]
    assert len(lines) == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_cuda_is_never_replaced(histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    code, _, err = histo("train", "--data", "demo", "--device", "cuda")
    assert code == 2
    assert "finds no GPU" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [("--pool", 2), ("--crop", 128), ("--classes", "A,B")])
def test_contradicting_the_checkpoint_is_an_error(
    histo: Histo, checkpoint_file: Path, tmp_path: Path, option: tuple[str, object]
) -> None:
    code, _, err = histo("export", "--checkpoint", checkpoint_file, *option, "--out", tmp_path / "b")
    assert code == 2
    assert f"{option[0]}: contradicts the checkpoint, which has" in err
    assert not (tmp_path / "b").exists()


def test_a_foreign_checkpoint_is_refused(histo: Histo, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    code, _, err = histo("export", "--checkpoint", tmp_path / "foreign.ckpt", "--out", tmp_path / "b")
    assert code == 1
    assert "is not a checkpoint of histo train" in err
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04")
    code, _, err = histo("export", "--checkpoint", tmp_path / "broken.ckpt", "--out", tmp_path / "b")
    assert code == 1
    assert "broken.ckpt" in err


def test_export_from_a_checkpoint_prints_json_and_nothing_else(
    histo: Histo, checkpoint_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    args = ["--checkpoint", checkpoint_file, "--formats", "native", "--mpp", "0.25", "--out", out, "--json"]
    code, stdout, _ = histo(*args, entry=cli.export_main)
    assert code == 0
    result = json.loads(stdout)
    assert result["bundle"] == str(out)
    assert result["synthetic"] is True
    assert [(f["file"], f["runtime_id"]) for f in result["files"]] == [
        ("model.safetensors", "native"),
        ("model.safetensors", "torch"),
    ]
    assert all(f["passed"] is True for f in result["files"])
    assert result["unchecked"] == {}
    assert json.loads((out / "config.json").read_text())["spacing_um_px"] == 0.25
    code, _, err = histo("export", "--checkpoint", checkpoint_file, "--formats", "native", "--out", out)
    assert code == 2
    assert "--force" in err


def _tested_run(checkpoint: Checkpoint, run: Path, *, calibrated: bool) -> Path:
    """The folder of a run with a record of its test, which was begun with --calibrate."""
    classes = checkpoint.spec.classes
    labels = np.arange(24) % len(classes)
    logits = np.eye(len(classes), dtype=np.float32)[labels]
    colour = {"accuracy": 0.4, "interval": [0.3, 0.5], "ahead": 0.6, "ahead_interval": [0.5, 0.7]}
    record = {
        "test": report_of(classes, logits, labels).to_dict(),
        "floors": {"chance": 0.2, "majority": 0.3, "colour": colour},
        "calibration": calibrate(2 * logits, labels, logits, labels).to_dict() if calibrated else None,
    }
    made = replace(checkpoint, training=checkpoint.training | record)
    run.mkdir()
    write_checkpoint(run / "best.ckpt", {"state_dict": made.state_dict, "histo": made.block()})
    options = RunOptions("demo", training=TrainingOptions(calibrate=True))
    RunFolder(run).write_options(options.record())
    return run


@pytest.mark.parametrize("calibrated", [True, False])
def test_an_export_tells_measures_and_calibration(
    calibrated: bool, histo: Histo, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _tested_run(checkpoint, tmp_path / "run", calibrated=calibrated)
    monkeypatch.setattr("histo_export.cli.export._export", lambda *args: Checks())
    code, stdout, stderr = histo("export", run, "--out", tmp_path / "b")
    assert code == 0
    assert "expected calibration error" in stdout
    assert ("Calibrated: logits divided by " in stdout) == calibrated
    assert ("the run was made with --calibrate, but best.ckpt has no temperature" in stderr) != calibrated
    if not calibrated:
        assert f"Complete the run with histo train --resume {run}, then histo export {run} --force" in stderr
    code, stdout, _ = histo("export", run, "--out", tmp_path / "b", "--json")
    result = json.loads(stdout)
    assert result["floors"]["majority"] == 0.3
    assert (result["calibration"] is not None) == calibrated
    code, stdout, _ = histo("inspect", run)
    assert ("logits will be divided by " in stdout) == calibrated


def test_options_of_another_program_beside_a_checkpoint_are_left_alone(
    histo: Histo, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _tested_run(checkpoint, tmp_path / "run", calibrated=False)
    (run / "options.json").write_text("[]")
    monkeypatch.setattr("histo_export.cli.export._export", lambda *args: Checks())
    code, _, stderr = histo("export", run / "best.ckpt", "--out", tmp_path / "b")
    assert code == 0
    assert "--calibrate" not in stderr


def test_from_tiles_to_a_bundle_in_one_command(histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole thread on the demo tiles, at a crop that is quick to train."""
    monkeypatch.chdir(tmp_path)
    args = ["--pool", 2, "--data", "demo", "--crop", 32, "--epochs", 1, "--formats", "triton", "--weights", "none"]
    code, stdout, err = histo(*args, entry=cli.export_main)
    assert code == 0, err
    assert "bundles/demo-pool2: ResNet34, pool 2, 6 classes, trained on synthetic tiles" in stdout
    assert "test accuracy" in stdout
    assert "the network sees the centre 32 pixels, 18 % of the area; --crop 75 uses all" in err
    assert "histo verify bundles/demo-pool2" in stdout
    assert "tritonserver --model-repository bundles/demo-pool2/triton" in stdout
    assert "Traceback" not in err
    run = tmp_path / "bundles" / "demo-pool2-run"
    for name in ("best.ckpt", "last.ckpt", "metrics.csv", "curves.png", "confusion.png", "report.json"):
        assert (run / name).stat().st_size > 0
    config = json.loads((tmp_path / "bundles" / "demo-pool2" / "config.json").read_text())
    assert set(config["histo"]["files"]) == {
        *("golden.safetensors", "trained_on.safetensors"),
        "model.onnx",  # the model repository needs the ONNX file and brings it
        *(f"triton/demo-pool2/{name}" for name in ("config.pbtxt", "labels.txt", "1/model.onnx")),
    }
    assert config["histo"]["training"]["data"]["synthetic"] is True
    assert 0 <= config["histo"]["training"]["test"]["interval"][0] <= config["histo"]["training"]["test"]["accuracy"]
    code, _, err = histo("export", "--pool", 2)
    assert code == 2, "what is there is not trained over"
    assert "--force" in err


def _images(root: Path, side: int = 40, classes: tuple[str, ...] = ("A", "B")) -> Path:
    for name in classes:
        for split in ("train", "val", "test"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                tile = np.random.default_rng([i, len(split)]).integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(tile).save(root / split / name / f"{i}.png")
    return root


def _bad_data(kind: str, root: Path) -> tuple[Path, str]:
    """A bad data set, and the message about it up to its next step."""
    if kind == "empty":
        root.mkdir()
        return root, f"{root}: is empty. Give a folder <class>/*"
    if kind == "one class":
        return _images(
            root, classes=("A",)
        ), "the folder: holds one class only (A). Add tiles of at least one more class"
    if kind == "small":
        return _images(
            root, side=31
        ), "31x31 pixels (widthxheight), smaller than the crop of 32 (and 11 more of 12 tiles)"
    if kind == "truncated":
        file = _images(root) / "train" / "A" / "0.png"
        file.write_bytes(file.read_bytes()[:200])
        return root, f"{file}: is truncated. Repair or delete it"
    if kind == "no test":
        for file in (_images(root, classes=("A", "B", "C")) / "test" / "C").iterdir():
            file.unlink()
        return root, "class C: has images in train, val but none in test. Add tiles to test/C"
    root.mkdir()
    file = root / "tiles.npy"
    array = np.array([{}], object) if kind == "pickled" else np.zeros((4, 40, 40), np.uint8)
    np.save(file, array, allow_pickle=True)
    cause = "holds pickled Python objects" if kind == "pickled" else "has shape (4, 40, 40), not (n, height, width, 3)"
    return file, f"{file}: {cause}"


@pytest.mark.parametrize("kind", ["empty", "one class", "small", "truncated", "no test", "pickled", "wrong shape"])
def test_bad_data_is_one_message_and_leaves_nothing(
    histo: Histo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data, message = _bad_data(kind, tmp_path / "data")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    code, out, err = histo("export", "--pool", 2, "--data", data, "--crop", 32)
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("histo: ")
    assert "Traceback" not in err
    assert not list(here.iterdir())


def test_verify_gives_no_verdict_where_nothing_was_checked(
    histo: Histo, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for `--runtimes torchscript` of a bundle without a TorchScript file."""
    monkeypatch.setattr("histo_export.export.checks.check_files", lambda *_: Checks())
    code, stdout, stderr = histo("verify", bundle, "--runtimes", "torchscript")
    assert (code, stdout) == (2, "")
    assert stderr == f"histo: --runtimes torchscript: run no file of {bundle}. Leave it out, or name others.\n"


def test_verify_passes_and_fails(
    histo: Histo, bundle: Path, copy_bundle: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    code, stdout, _ = histo("verify", bundle)
    assert code == 0
    assert "Δlogit" not in stdout  # what is judged is beside its limit
    assert stdout.splitlines()[-1] == f"All {sum('5.0e-05' in line for line in stdout.splitlines())} checks passed."
    rows = {
        (line.split()[0], line.split(maxsplit=8)[8].strip())
        for line in stdout.splitlines()
        if "e-0" in line and "%" in line
    }
    assert rows >= {
        ("model.onnx", "ONNX Runtime"),
        ("torchscript_model.pt", "TorchScript"),
        ("model.safetensors", "native (C++)"),
        ("model.safetensors", "PyTorch eager"),
        ("model.pt2", "torch.export"),
    }
    assert ("torchscript_model.pt", "libtorch (C++)") in rows or "Not checked in libtorch: " in stdout
    copy = copy_bundle(bundle, tmp_path / "copy")
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").write_bytes(b"x" * (bundle / "model.onnx").stat().st_size)
    code, stdout, err = histo("verify", copy)
    assert (code, stdout) == (1, "")
    assert "model.onnx: differs from its sha256" in err


def test_inspect_counts_pool_8_as_trained_and_as_exported(histo: Histo) -> None:
    code, stdout, _ = histo("inspect", "--pool", 8, "--json")
    facts = json.loads(stdout)
    assert code == 0
    assert facts["trained"]["head_parameters"] == 196_614
    assert facts["exported"]["head_parameters"] == 49_158
    assert facts["feature_map"] == [512, 4, 4]
    code, stdout, _ = histo("inspect", "--pool", 8)
    assert "196,614" in stdout
    assert "49,158" in stdout


def test_inspect_shows_the_engines_plan(histo: Histo, bundle: Path) -> None:
    code, stdout, _ = histo("inspect", bundle, "--plan", "latency", "--batch", 1, "--json")
    assert code == 0
    facts = json.loads(stdout)
    assert (facts["engine"]["profile"], facts["batch"]) == ("latency", 1)
    convolutions = {layer["name"]: layer["convolution"] for layer in facts["layers"]}
    assert len(convolutions) == 37
    assert [convolutions[f"layer{n}.1.conv1"] for n in (1, 2, 3, 4)] == [
        "winograd4",
        "winograd4",
        "winograd2",
        "direct",
    ]
    assert all(layer["seconds"] > 0 for layer in facts["layers"])
    code, stdout, _ = histo("inspect", bundle, "--plan", "throughput", "--batch", 1)
    assert code == 0
    assert "layer4.2.conv2" in stdout
    for arguments, message in (
        ([bundle, "--plan", "speed"], "--plan speed"),
        ([bundle, "--plan", "latency", "--precision", "int4"], "--precision int4"),
        (["--plan", "latency"], "needs a bundle"),
    ):
        code, _, stderr = histo("inspect", *arguments)
        assert code == 2
        assert message in stderr


def test_a_plan_in_another_precision(histo: Histo, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ("inspect", bundle, "--plan", "latency", "--batch", 1, "--precision", "bf16")
    if "bf16" in usable_precisions():
        facts = json.loads(histo(*plan, "--json")[1])
        assert facts["engine"]["precision"] == "bf16"
        assert {layer["precision"] for layer in facts["layers"]} == {"bf16", "fp32"}, "the head is fp32"
    monkeypatch.setenv("HISTO_ISA", "portable")
    code, stdout, err = histo(*plan)
    assert (code, stdout) == (2, "")
    assert "precision bf16 needs AVX-512 with BF16, or AMX, and " in err
    assert "Use fp32" in err


def test_inspect_reads_bundles_and_checkpoints(histo: Histo, bundle: Path, checkpoint_file: Path) -> None:
    of_bundle, of_checkpoint = (json.loads(histo("inspect", f, "--json")[1]) for f in (bundle, checkpoint_file))
    assert {key: of_bundle[key] for key in of_checkpoint} == of_checkpoint
    assert json.loads(histo("inspect", checkpoint_file.parent, "--json")[1]) == of_checkpoint, "a run is its best.ckpt"
    assert of_bundle.keys() - of_checkpoint.keys() == {
        "precision",
        "precision_remark",
        "input",
        "files",
        "versions",
    }
    assert of_bundle["files"]["model.onnx"]["bytes"] == (bundle / "model.onnx").stat().st_size
    from histo_export.model.native_file import read_native

    lowered, _ = read_native(bundle / "model.safetensors")
    assert of_bundle["exported"]["parameters"] == sum(p.numel() for p in lowered.parameters())


def test_inspect_tells_what_a_bundle_is(histo: Histo, bundle: Path) -> None:
    code, out, _ = histo("inspect", bundle)
    assert code == 0
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))["histo"]
    for words in (
        "TUMOR, STROMA",
        "75 px, of which the network sees the centre 64 px (73 %)",
        "0.495 µm per pixel",
        "made; synthetic tiles, for demonstration only",
        "recipe none",
        "unknown, because no test is recorded",
        "fp32, float input",
        config["files"]["model.onnx"]["sha256"][:16],
        "as exported",
    ):
        assert words in out
    assert "layer4.2.conv2" not in out
    assert "layer4.2.conv2" in histo("inspect", bundle, "--layers")[1]


TESTED = {"accuracy": 0.442, "interval": [0.35, 0.525], "tiles": 120}
TRAININGS = {
    "complete": (
        {"data": {"name": "tiles", "synthetic": False}, "recipe": "strong", "epochs": 30, "test": TESTED},
        [
            "tiles",
            "recipe strong, epochs 30",
            "44.2 % (95 % bootstrap interval 35.0 % to 52.5 %, 120 tiles of the test",
        ],
    ),
    "elsewhere": ({"trained_elsewhere": True}, ["unknown, because the network was trained elsewhere"]),
    "elsewhere, in a file": (
        {"trained_elsewhere": True, "weights": "a.pth", "weights_sha256": "0123456789abcdef" * 4},
        ["trained on unknown (trained elsewhere; weights a.pth, sha256 0123456789abcdef)"],
    ),
    "of an old version": ({}, ["trained on unknown", "training unknown", "unknown, because no test is recorded"]),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_inspect_tells_what_is_recorded_and_no_more(capsys: pytest.CaptureFixture[str], name: str) -> None:
    training, expected = TRAININGS[name]
    _print_facts("model", ModelSpec(2, ("A", "[b]")), {"training": training})
    out = " ".join(capsys.readouterr().out.split())
    assert "classes A, [b]" in out
    assert all(words in out for words in expected)
    assert "synthetic" not in out


def test_doctor_tries_what_it_lists(histo: Histo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HISTO_CACHE", str(tmp_path / "cache"))
    code, stdout, _ = histo("doctor", "--json")
    facts = json.loads(stdout)
    assert facts["onnxruntime_providers"]["CPUExecutionProvider"] == "runs"
    assert facts["cpu"]["usable_cpus"] >= 1
    assert facts["native_engine"]["isa"] in facts["native_engine"]["usable"]
    assert code == (1 if facts["problems"] else 0)
    assert facts["native_precisions"].keys() == {"fp32", "bf16x3", "bf16", "int8"}
    assert facts["native_precisions"]["fp32"] == "runs"
    assert facts["runtimes"].keys() == RUNTIMES.keys()
    assert facts["extras"].keys() == EXTRAS.keys()
    assert facts["extra_packages"]["torch"] == importlib.metadata.version("torch")
    assert facts["variables"]["HISTO_CACHE"] == facts["disk"]["cache"].partition(": ")[0]


def test_doctor_tells_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = {
        "train": {},
        "works": {"rich": "rich"},
        "broken": {"no_such_module": "typer"},
        "slides": {"rich": "rich", "no_such_module": "no-such-package"},
    }
    for module in (doctor, histo_export.extras):
        monkeypatch.setattr(module, "EXTRAS", extras)
    found = doctor._extra_packages()
    assert found.keys() == {"rich", "typer"}
    assert found["rich"] == importlib.metadata.version("rich")
    assert found["typer"].endswith("does not load: there is no module no_such_module")
    assert doctor._extra("works") == "installed"
    assert doctor._extra("slides") == 'lacks no-such-package: pip install "histo-export[slides]"'


def test_doctor_works_for_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTO_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert doctor._disk()["cache"] == "The cache folder: is unknown: this user has no home folder. Set HISTO_CACHE."


def test_doctor_tells_the_space_of_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    assert doctor._space(tmp_path / "a" / "b").endswith("GB free")
    assert doctor._space(Path("/proc/self/a")).endswith("but it cannot be written to")


def test_doctor_tells_why_a_precision_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from histo_export.doctor import _native_precisions

    assert {name for name, found in _native_precisions().items() if found == "runs"} == set(usable_precisions())
    monkeypatch.setenv("HISTO_ISA", "portable")
    found = _native_precisions()
    assert found["fp32"] == "runs"
    for precision, needed in (
        ("bf16x3", "AVX-512 with BF16"),
        ("bf16", "AVX-512 with BF16"),
        ("int8", "AVX2 with VNNI, AVX-512 with VNNI"),
    ):
        assert found[precision].startswith(f"precision {precision} needs {needed}, or AMX, and ")
    monkeypatch.setenv("HISTO_ISA", "sse9")
    assert set(_native_precisions().values()) == {
        'HISTO_ISA "sse9" is unknown; choose from portable, avx2, avx512, amx, neon'
    }


def test_doctor_finds_problems() -> None:
    from histo_export.doctor import _problems

    facts = {
        "extra_packages": {"onnxruntime": "1", "onnxruntime-gpu": "1"},
        "onnxruntime_providers": {"CPUExecutionProvider": "runs"},
        "native_engine": {"isa": None, "why": "HISTO_ISA is sse9"},
        "openmp_runtimes": ["libgomp.so.1", "libiomp5.so"],
        "threads": {"torch": 8},
        "cpu": {"usable_cpus": 2},
    }
    first, engine, second, third = _problems(facts)
    assert "overwrite each other" in first
    assert engine == "the native engine cannot start: HISTO_ISA is sse9"
    assert "libgomp, libiomp5" in second
    assert "OMP_NUM_THREADS=2" in third


def test_a_run_without_its_best_epoch_names_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(
        UsageError, match=r"has last\.ckpt but no best\.ckpt. Export its last epoch: histo export .*last"
    ):
        _checkpoint_file(tmp_path, None)


def test_a_run_is_resumed_by_its_checkpoint_too(histo: Histo, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    code, _, err = histo("train", "--resume", tmp_path / "last.ckpt")
    assert code == 2
    assert f"{tmp_path}: does not record the options of its run" in err
