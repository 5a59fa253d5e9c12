"""The files of a bundle in tools of other people, each where it is installed; benchmarks/foreign_tools.py has them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _foreign_tools() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "foreign_tools.py"
    spec = importlib.util.spec_from_file_location("foreign_tools", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["foreign_tools"] = module  # a dataclass asks for its module
    spec.loader.exec_module(module)
    return module


foreign_tools = _foreign_tools()


@pytest.mark.foreign
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("onnx2tf", "onnx-reference", "tvm") else ())
        for name in foreign_tools.TOOLS
    ],
)
@pytest.mark.filterwarnings("ignore")  # of theirs
def test_it_computes_what_the_checkpoint_computes(bundle: Path, name: str) -> None:
    tool = foreign_tools.TOOLS[name]
    if missing := tool.missing():
        pytest.skip(f"{missing} is not installed; see docs/interop.md")
    tiles, expected = foreign_tools.golden(bundle, 2)
    try:
        logits = tool.run(bundle, tiles)
    except NotImplementedError as error:
        pytest.skip(str(error))
    assert foreign_tools.relative_error(logits, expected) < foreign_tools.ALLOWED


def test_a_table_is_made_whatever_a_tool_does(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path, tiles: object) -> None:
        raise AssertionError

    tools = {
        "silent": foreign_tools.Tool("none", ("onnx",), "model.onnx", "x", fails),
        "absent": foreign_tools.Tool("none", ("no_such_module",), "model.onnx", "x", fails),
    }
    monkeypatch.setattr(foreign_tools, "TOOLS", tools)
    monkeypatch.setattr(sys, "argv", ["foreign_tools.py", str(bundle)])
    foreign_tools.main()
    *_, silent, absent = capsys.readouterr().out.splitlines()
    assert silent == "| silent |  | model.onnx | x | AssertionError |"
    assert absent == "| absent |  | model.onnx | x | not installed here (no_such_module) |"
    monkeypatch.setattr(sys, "argv", ["foreign_tools.py", str(bundle), "--tools", "mnm"])
    with pytest.raises(SystemExit):
        foreign_tools.main()
    assert "--tools mnm is unknown; use some of silent, absent" in capsys.readouterr().err
