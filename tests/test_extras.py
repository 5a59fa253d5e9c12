"""The light install: what works without the packages of extras, and what the other commands say."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from histo_export import doctor, extras
from histo_export.bundle_files import INT8_ONNX
from histo_export.cli import app
from histo_export.cli.verify import _check_quantised
from histo_export.errors import HistoError
from histo_export.export.checks import Checks, raise_if_unproven
from histo_export.extras import EXTRAS, MissingExtraError, extra_with, installed, lacking, needs
from histo_export.predict.tile_set import files_left_out
from histo_export.runtimes import RUNTIMES
from light_commands import REFUSED, WORK

ROOT = Path(__file__).parents[1]
Histo = Callable[..., tuple[int, str, str]]
CONVERTERS = ("ncnn", "litert", "coreml")
"""Extras that are not part of `all`, and not installed for tests."""
BROUGHT_BY_OTHERS = {"h11": "serve", "lightning_fabric": "train", "lightning_utilities": "train"}
"""Modules of packages that packages of the extra require."""


@pytest.fixture(scope="module")
def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    found = {re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements}
    return {match[0] for match in found if match}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_of_extras_is_that_of_pyproject(project: Any, extra: str) -> None:
    libraries = {"slides": {"openslide-bin"}, "onnx": {"onnxruntime"}}  # without a module; where there is no GPU build
    listed = names(project["optional-dependencies"][extra])
    assert set(EXTRAS[extra].values()) | libraries.get(extra, set()) == listed


def test_all_is_every_extra_but_the_second_onnxruntime_and_converters(project: Any) -> None:
    (everything,) = project["optional-dependencies"]["all"]
    assert set(re.findall(r"[a-z-]+", everything.partition("[")[2])) == EXTRAS.keys() - {"onnx-cpu", *CONVERTERS}
    assert names(project["optional-dependencies"]["onnx-cpu"]) == {"onnx", "onnxruntime"}
    assert "onnxruntime" not in names(project["dependencies"])


def test_a_module_belongs_to_its_package() -> None:
    distributions = importlib.metadata.packages_distributions()
    for module, package in {pair for modules in EXTRAS.values() for pair in modules.items()}:
        if module != "onnxruntime" and module in distributions:  # of two packages; or of no test's environment
            assert package in {name.replace("_", "-") for name in distributions[module]}


def test_every_import_is_of_the_light_install_or_of_an_extra(project: Any) -> None:
    distributions = importlib.metadata.packages_distributions()
    light = {module for module, found in distributions.items() if names(project["dependencies"]) & {*found}}
    light |= {"PIL", "histo_export", "_typeshed", *sys.stdlib_module_names}
    imported: dict[str, Path] = {}
    for file in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0]: file for name in found}
    known = light | {module for modules in EXTRAS.values() for module in modules} | BROUGHT_BY_OTHERS.keys()
    assert not {module: file for module, file in imported.items() if module not in known}


def test_runtimes_need_modules_of_extras() -> None:
    for name, entry in RUNTIMES.items():
        assert (entry.needs is None) == name.startswith("native")
        if entry.needs is not None:
            extra, modules = entry.needs
            assert set(modules) <= EXTRAS[extra].keys()


@pytest.fixture(scope="module")
def light(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What light_commands.py gave without the packages of extras, in a process of its own."""
    folder = tmp_path_factory.mktemp("light")
    script = [sys.executable, ROOT / "tests/light_commands.py", bundle, folder / "run"]
    done = subprocess.run([*map(str, script)], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout) | {"folder": folder / "run"}
    return results


@pytest.mark.parametrize(("arguments", "code", "words"), WORK)
def test_what_works_without_extras(light: Mapping[str, Any], arguments: str, code: int, words: str) -> None:
    found, out, err = light[arguments]
    assert (found, words in out) == (code, True), out + err


@pytest.mark.parametrize(("arguments", "needed"), REFUSED)
def test_a_missing_extra_is_told_in_one_line(light: Mapping[str, Any], arguments: str, needed: str) -> None:
    code, out, err = light[arguments]
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f'pip install "histo-export[{needed}]"' in err
    assert light["written"] == ["latency", "tiles"]


@pytest.mark.parametrize(("call", "extra"), [("load(runtime=...)", "onnx"), ("predict_slide()", "slides")])
def test_python_names_the_extra_too(light: Mapping[str, Any], call: str, extra: str) -> None:
    assert f'pip install "histo-export[{extra}]"' in light[call]


def test_nothing_of_an_extra_is_imported(light: Mapping[str, Any]) -> None:
    assert light["imported"] == []


def test_files_that_need_an_extra_are_named_where_they_are_missing(light: Mapping[str, Any]) -> None:
    *_, err = light["predict {bundle} {tiles} --out {out}/tiles"]
    assert "note: not written: tiles.parquet and the pictures of labelled tiles" in err
    assert 'run pip install "histo-export[report]", then the same command with --force' in err
    assert files_left_out() == []


def test_without_extras_predictions_are_the_same_bytes(
    histo: Histo, bundle: Path, light: Mapping[str, Any], tmp_path: Path
) -> None:
    assert histo("predict", bundle, light["folder"] / "tiles", "--out", tmp_path / "out")[0] == 0
    ours, theirs = tmp_path / "out/tiles", light["folder"] / "out/tiles/tiles"
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()} | {"tiles.parquet"}
    for file in ("tiles.csv", "summary.json"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()


def test_needs_names_all_that_is_missing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"a": {"rich": "rich", "no_such": "no-such"}, "b": {"neither": "neither"}, "c": {"rich": "rich"}}
    monkeypatch.setattr(extras, "EXTRAS", table)
    with pytest.raises(MissingExtraError) as refused:
        needs("This", "a", "b", "c")
    step = 'Run pip install "histo-export[a,b]" first.'
    assert str(refused.value) == f"This: needs no-such, neither, which are not installed. {step}"
    assert refused.value.exit_code == 2
    needs("This", "a", modules=["rich"])
    needs("This", "c")
    assert lacking("a") == ["no-such"]
    assert (extra_with("neither.part"), extra_with("typer")) == ("b", None)


@pytest.mark.parametrize(
    ("packages", "missing", "words"),
    [
        (
            [],
            ["onnxruntime", "onnx"],
            'needs torch, onnxruntime, onnx, which are not installed. Run pip install "histo-export[train,onnx]" first '
            '(without a GPU: pip install "histo-export[train,onnx-cpu]")',
        ),
        (["onnxruntime"], ["onnx"], 'Run pip install "histo-export[train,onnx-cpu]" first'),
        (["onnxruntime-gpu"], ["onnx"], 'Run pip install "histo-export[train,onnx]" first'),
    ],
)
def test_two_packages_of_onnx_runtime_are_never_advised(
    monkeypatch: pytest.MonkeyPatch, packages: list[str], missing: list[str], words: str
) -> None:
    def version(package: str) -> str:
        if package not in packages:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.31"

    table = {"train": {"torch": "torch"}, "onnx": EXTRAS["onnx"], "onnx-cpu": EXTRAS["onnx-cpu"]}
    monkeypatch.setattr(extras, "EXTRAS", table)
    monkeypatch.setattr(extras, "installed", lambda module: module not in ("torch", *missing))
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingExtraError) as refused:
        needs("This", "train", "onnx")
    assert str(refused.value).endswith(f"{words}.")
    if packages:
        there = "onnx" if packages == ["onnxruntime-gpu"] else "onnx-cpu"
        other = "onnx-cpu" if there == "onnx" else "onnx"
        assert doctor._extra(there) == f'lacks onnx: pip install "histo-export[{there}]"'
        assert doctor._extra(other) == f"not needed: {packages[0]} of {there} takes its place"


@pytest.mark.parametrize("name", ["openslide", "scipy"])
def test_a_module_that_python_was_told_not_to_find_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    assert not installed(name)


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (ModuleNotFoundError("No module named 'torch._x'", name="torch._x"), 'Run pip install "histo-export[train]".'),
        (ImportError("libx.so: cannot open"), "See histo doctor."),
    ],
)
def test_an_import_that_nobody_foresaw_ends_in_one_line(
    histo: Histo, monkeypatch: pytest.MonkeyPatch, error: ImportError, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "_print_first_steps", fail)
    code, out, err = histo()
    assert (code, out, err) == (2, "", f"histo: An import: failed ({error}). {step}\n")


def test_the_int8_onnx_file_counts_as_not_run_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    block = SimpleNamespace(precision="int8", files={INT8_ONNX: None})
    bundle: Any = SimpleNamespace(path=Path("b"), config=SimpleNamespace(histo=block))
    monkeypatch.setitem(sys.modules, "torch", None)  # type: ignore[arg-type]
    for only, unproven in ((["native"], []), (None, [INT8_ONNX])):
        checks = Checks()
        assert _check_quantised(bundle, checks, print, only) is None
        assert checks.unproven == unproven
    assert checks.unchecked["onnxruntime-int8"].startswith("needs torch, which is not installed. Run pip install")


def test_a_file_that_nothing_could_run_is_not_shipped() -> None:
    raise_if_unproven(Checks())
    with pytest.raises(HistoError, match=r"model\.onnx: cannot be checked here.*onnxruntime: is away"):
        raise_if_unproven(Checks(unchecked={"onnxruntime": "is away"}, unproven=["model.onnx"]))
