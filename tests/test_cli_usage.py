"""What people type: help, first steps, examples, completion, and what is said of wrong use."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from histo_export.cli import app as program
from histo_export.cli import export_main, usage
from histo_export.cli.examples import EXAMPLES, FIRST_STEPS
from histo_export.cli.show import NARROW
from histo_export.cli.usage import COMMAND_SYNONYMS, OPTION_SYNONYMS
from histo_export.runtimes import all_variants

Histo = Callable[..., tuple[int, str, str]]

ROOT: Any = typer.main.get_command(program.app)
COMMANDS = [name for name, command in ROOT.commands.items() if not command.hidden]


ALL_RUNTIMES = f"histo doctor lists all {len(all_variants())}."


def names_of(command: Any) -> set[str]:
    """The options of a command."""
    with command.make_context("x", [], resilient_parsing=True) as ctx:
        return {name for param in command.get_params(ctx) for name in param.opts if name.startswith("-")}


@pytest.mark.parametrize("line", [*FIRST_STEPS, *(line for lines in EXAMPLES.values() for line in lines)])
def test_every_example_is_understood(line: str) -> None:
    assert len(line) <= 76, "an example must not be broken in the middle"
    histo, name, *arguments = shlex.split(line)
    assert (histo, name in COMMANDS) == ("histo", True)
    ROOT.commands[name].make_context(name, arguments)  # parses, and runs nothing


def test_every_command_has_examples_in_its_help(histo: Histo) -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    for name, lines in EXAMPLES.items():
        assert all(line.startswith(f"histo {name}") for line in lines)
        _, out, _ = histo(name, "--help")
        assert all(line in out for line in lines), name


def test_histo_alone_shows_first_steps(histo: Histo) -> None:
    code, out, err = histo()
    assert (code, err) == (0, "")
    assert all(line in out for line in (*FIRST_STEPS, *FIRST_STEPS.values()))
    assert all(f"  {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("typed", [("--help",), ("-h",), ("help",)], ids=" ".join)
def test_help_of_the_program(histo: Histo, typed: tuple[str, ...]) -> None:
    code, out, err = histo(*typed)
    assert (code, err) == (0, "")
    assert "Usage: histo [OPTIONS] COMMAND" in out
    assert "--install-completion" in out
    assert "<bool>" not in out


@pytest.mark.parametrize("typed", [("train", "--help"), ("train", "-h"), ("help", "train")], ids=" ".join)
def test_help_of_a_command(histo: Histo, typed: tuple[str, ...]) -> None:
    code, out, err = histo(*typed)
    assert (code, err) == (0, "")
    assert "Usage: histo train" in out
    panels = [line.split("─ ")[1].split(" ─")[0] for line in out.splitlines() if line.startswith("╭")]
    assert panels[0] == "Options" or panels[:2] == ["Arguments", "Options"]
    assert {"Training options", "Tile options", "Cluster options", "Output options"} <= set(panels)


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("predict", "histo predict [OPTIONS] BUNDLE INPUT…"),
        ("inspect", "histo inspect [OPTIONS] [BUNDLE|RUN|CKPT]"),
        ("bench", "histo bench [OPTIONS] [BUNDLE…]"),
    ],
)
def test_usage_is_what_to_type(histo: Histo, command: str, usage: str) -> None:
    assert f"Usage: {usage} " in histo(command, "-h")[1]


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(histo: Histo, option: str) -> None:
    assert histo(option)[1].startswith("histo-export ")


def test_python_m_is_histo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["__main__.py", "help", "doctor"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("histo_export", run_name="__main__")
    assert not stop.value.code
    assert "Usage: histo doctor" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [40, 50, NARROW - 1, 80])
def test_help_cuts_no_word(histo: Histo, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Every option and every word of its explanation is whole, and no line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in COMMANDS:
        command = ROOT.commands[name]
        _, out, _ = histo(name, "--help")
        assert max(map(len, out.splitlines())) <= columns, name
        words = set(re.split(r"[\s│]+", out))
        assert all(f"{word}…" not in words for word in ("ti", "re")), name
        shown = {word.rstrip(",") for word in words} | {part for word in words for part in word.split(",")}
        with command.make_context(name, [], resilient_parsing=True) as ctx:
            for param in command.get_params(ctx):
                missing = {option for option in param.opts if option.startswith("-")} - shown
                missing |= set(re.findall(r"[a-z]{4,}", re.sub(r"\[.*?\]", "", param.help or ""))) - {
                    part for word in words for part in re.findall(r"[a-z]+", word)
                }
                assert not missing, (name, param.name, missing)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loses_no_text_in_brackets(name: str) -> None:
    """Rich takes a word in brackets for a style, and prints nothing where it knows none of that name."""
    command = ROOT.commands[name]
    with command.make_context(name, [], resilient_parsing=True) as ctx:
        for param in command.get_params(ctx):
            styles = set(re.findall(r"(?<!\\)\[([a-z#/@].*?)\]", getattr(param, "help", None) or ""))
            assert styles <= {"b", "/b", "dim", "/dim", "/"}, (param.name, styles)


WRONG = {
    # commands
    "trainn": "trainn: is not a command. Did you mean histo train?",
    "infer x": "infer: is not a command. Did you mean histo predict?",
    "version": "version: is not a command. Did you mean histo --version?",
    "slide.svs": "slide.svs: is not a command. Use one of export, train, study, verify,",
    "help fit": "fit: is not a command. Did you mean histo train?",
    # options that the command does not have
    "export --batch-size 3": "--batch-size: is not an option of histo export. Did you mean --batch?",
    "export --learning-rate 3": "--learning-rate: is not an option of histo export. Did you mean --lr?",
    "export --n-classes 3": "--n-classes: is not an option of histo export. Did you mean --classes?",
    "export --gpu": "--gpu: is not an option of histo export. Did you mean --device cuda?",
    "export --output x": "--output: is not an option of histo export. Did you mean --out?",
    "export -o x": "-o: is not an option of histo export. Did you mean --out?",
    "export -epochs 3": "-epochs: is not an option of histo export. Did you mean --epochs?",
    "export --accept_drop": "--accept_drop: is not an option of histo export. Did you mean --accept-drop?",
    "export --pools=2": "--pools: is not an option of histo export. Did you mean --pool?",
    "train --formats onnx": "--formats: is not an option of histo train. histo export has it. See histo train --help.",
    "export --threads 2": "--threads: is not an option of histo export. histo bench, histo predict and "
    "histo serve have it.",
    "doctor --gpu": "--gpu: is not an option of histo doctor. histo export, histo train, histo study, histo verify, "
    "histo bench and histo predict have --device cuda. See histo doctor --help.",
    "doctor --xyzzy": "--xyzzy: is not an option of histo doctor. See histo doctor --help.",
    "--quiet train": "--quiet: is not an option of histo. histo export, histo train, histo study, histo verify,",
    "-v": "-v: is not an option of histo. Did you mean --version?",
    # values
    "export --epochs two": "--epochs two: is not an integer. See histo export --help.",
    "export --epochs=2.5": "--epochs 2.5: is not an integer. See histo export --help.",
    "export --mpp abc": "--mpp abc: is not a number. See histo export --help.",
    # which Python reads as 10, 1, 8, 10.5, 0.5 and 3
    "export --epochs 1_0": "--epochs 1_0: is not an integer. See histo export --help.",
    "train x --seed ' 1'": "--seed  1: is not an integer. See histo train --help.",
    "predict a b --batch=\u0668": "--batch \u0668: is not an integer. See histo predict --help.",
    "predict a b --mpp 1_0.5": "--mpp 1_0.5: is not a number. See histo predict --help.",
    "bench --time \uff10.5": "--time \uff10.5: is not a number. See histo bench --help.",
    "export --pool 1_0": "--pool 1_0: is not an integer",
    "bench --pools 1_0,2": "--pools 1_0,2: is not a list of integers of 1 or more.",
    "train demo --split 4_2,1,1": "--split 4_2,1,1: is not three numbers.",
    f"export --pool {'9' * 5000}": "is too large. See histo export --help.",
    f"bench --pools {'9' * 5000}": "is not a list of integers of 1 or more. Use e.g. --pools 1,8.",
    "predict a b --batch 0": "--batch 0: is below 1. See histo predict --help.",
    "inspect --pool 2 --classes 1000000000": "--classes 1000000000: is above 10000. See histo inspect --help.",
    f"predict a b --batch {'9' * 5000}": "is too large. See histo predict --help.",
    "export --epochs": "--epochs: needs a value. Use --epochs N. See histo export --help.",
    "export --epochs --lr 1": "--epochs: needs a value, and --lr follows. Use --epochs N. See histo export --help.",
    "export --out --force": "--out: needs a value, and --force follows. Use --out DIR. See histo export --help.",
    "export --json=1": "--json: takes no value. Use --json alone. See histo export --help.",
    "export --epochs 1 --epochs=2": "--epochs: is given twice (1 and 2). Give it once.",
    "export --classes A --classes B": "--classes: is given twice (A and B). Use --classes A,B.",
    # arguments
    "verify": "BUNDLE: is missing. For example: histo verify bundles/tiles-pool2. See histo verify --help.",
    "predict a": "INPUT…: is missing. For example: histo predict bundles/tiles-pool2 slides/ --out results. See",
    "verify a b": "b: is an argument too many; histo verify takes BUNDLE. See histo verify --help.",
    "inspect a b": "b: is an argument too many; histo inspect takes [BUNDLE|RUN|CKPT]. See histo inspect --help.",
    "verify ''": "an argument of histo verify: is empty. Give a value; a variable of the shell that is not set becomes",
    "export --data ''": "--data: is empty. Give a value; a variable of the shell that is not set becomes an empty one.",
    "export --data=": "--data: is empty. Give a value; a variable of the shell that is not set becomes an empty one.",
    "''": "the command: is empty.",
    "doctor x": "x: does not exist. Name a folder that histo export wrote.",
    "doctor x y": "y: is an argument too many; histo doctor takes [BUNDLE]. See histo doctor --help.",
    # values of a closed set
    "predict a b --runtime tensorrt": "is unknown. Did you mean onnxruntime-tensorrt? " + ALL_RUNTIMES,
    "predict a b --runtime xyzzy": "--runtime xyzzy: is unknown. " + ALL_RUNTIMES,
    "predict a b --runtime ONNXRuntime": "is unknown. Did you mean onnxruntime? " + ALL_RUNTIMES,
    "export --formats tflite": "--formats tflite: is unknown. Did you mean litert?",
    "export --formats xyzzy": "--formats xyzzy: is unknown. Use onnx or torchscript or native or ",
    "verify a --runtimes xyzzy": "--runtimes xyzzy: is unknown. Use onnxruntime or torchscript or ",
    "verify a --device gpu": "--device gpu: is unknown. Did you mean cuda?",
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line[:40])
def test_wrong_use_is_explained_in_one_line(histo: Histo, line: str) -> None:
    code, out, err = histo(*shlex.split(line))
    assert (code, out) == (2, "")
    assert WRONG[line] in err
    assert err.startswith("histo: ")
    assert err.count("\n") == 1


def test_a_runtime_that_the_bundle_has_no_file_for_is_not_offered(histo: Histo, tmp_path: Path) -> None:
    _, _, err = histo("predict", tmp_path, "tiles", "--runtime", "openvino-i")
    assert "Did you mean openvino-ir? " + ALL_RUNTIMES in err, "nothing is known of no bundle"
    (tmp_path / "model.onnx").touch()
    _, _, err = histo("predict", tmp_path, "tiles", "--runtime", "openvino-i")
    assert "Did you mean openvino? " + ALL_RUNTIMES in err


def test_histo_export_names_itself(histo: Histo) -> None:
    _, _, err = histo("--epochs", "two", entry=export_main)
    assert err == "histo-export: --epochs two: is not an integer. See histo-export --help.\n"
    _, _, err = histo("--runtimes", "native", entry=export_main)
    assert "--runtimes: is not an option of histo-export. See histo-export --help." in err


def test_an_option_twice_with_one_value_is_harmless(histo: Histo) -> None:
    assert histo("inspect", "--pool", "2", "--pool", "2")[0] == 0


def test_synonyms_lead_to_what_exists() -> None:
    options = {name for command in (ROOT, *ROOT.commands.values()) for name in names_of(command)}
    assert {wanted.split()[0] for wanted in OPTION_SYNONYMS.values()} <= options
    assert not set(OPTION_SYNONYMS) & options - {"-v"}, "a name that exists needs no other one"
    assert set(COMMAND_SYNONYMS.values()) <= {*COMMANDS, *options}
    assert not set(COMMAND_SYNONYMS) & set(COMMANDS)


def completed(program: str, words: str) -> Iterator[tuple[str, str]]:
    """What bash sets for `program` to complete the last of `words`."""
    yield f"_{program.upper().replace('-', '_')}_COMPLETE", "complete_bash"
    yield "COMP_WORDS", words.replace(" ", "\n")
    yield "COMP_CWORD", str(words.count(" "))


@pytest.mark.parametrize(
    ("words", "expected"),
    [("histo tr", "train"), ("histo export --ep", "--epochs"), ("histo-export --ep", "--epochs")],
)
def test_the_shell_completes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    name = words.split()[0]
    for variable, value in completed(name, words):
        monkeypatch.setenv(variable, value)
    entry = program.main if name == "histo" else program.export_main
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as stop:
        entry()
    assert not stop.value.code
    assert capsys.readouterr().out.split() == [expected]


def test_completion_can_be_installed_and_does_not_clutter_the_help(
    histo: Histo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: "bash")
    for entry, name in ((program.main, "histo"), (program.export_main, "histo-export")):
        assert "--show-completion" not in histo("--help", entry=entry)[1]
        code, out, _ = histo("--install-completion", entry=entry)
        assert code == 0, out
        assert name in (tmp_path / ".bash_completions" / f"{name}.sh").read_text(encoding="utf-8")


def test_completion_that_cannot_be_installed(histo: Histo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: "bash")
    code, out, err = histo("--install-completion")
    assert (code, out) == (1, "")
    assert "could not be written (" in err
    assert "Add what histo --show-completion prints to the files that your shell reads." in err
    assert err.count("\n") == 1


def test_an_unforeseen_message_of_typer_is_not_hidden() -> None:
    assert usage._cause(typer.BadParameter("Is not blue.")) == "is refused (Is not blue)"
