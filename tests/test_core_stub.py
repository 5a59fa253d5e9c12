"""_core.pyi says what the compiled module offers, and nothing else."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType, WrapperDescriptorType
from typing import get_args

import pytest

import histo_export
from histo_export import _core, spec

# name -> signature: parameters with defaults for a function, else "class", "property" or "constant"
Surface = dict[str, str]

SPECIAL = {"__init__", "__call__", "__iter__", "__next__", "__enter__", "__exit__"}


def parameters(function: ast.FunctionDef) -> str:
    """Names, kinds and defaults; the annotations differ (pybind11 writes its own) and do not count."""
    arguments = function.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg]:
        if argument is not None:
            argument.annotation = None
    return ast.unparse(arguments)


def stub_surface(path: Path) -> Surface:
    surface: Surface = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                surface[prefix + node.name] = "class"
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                is_property = any(ast.unparse(d) == "property" for d in node.decorator_list)
                surface[prefix + node.name] = "property" if is_property else parameters(node)
            elif isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
                surface[prefix + ast.unparse(node.target)] = "constant"

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return surface


def module_surface(owner: ModuleType | type, prefix: str = "") -> Surface:
    surface: Surface = {}
    for name, value in vars(owner).items():
        # A class that Python cannot make inherits its __init__.
        if (name.startswith("_") and name not in SPECIAL) or isinstance(value, WrapperDescriptorType):
            continue
        if inspect.isclass(value):
            surface[prefix + name] = "class"
            surface |= module_surface(value, f"{prefix}{name}.")
        elif isinstance(value, property):
            surface[prefix + name] = "property"
        elif isinstance(value, tuple):
            surface[prefix + name] = "constant"
        else:
            # pybind11 writes the signature into the docstring's first line.
            value = value.__func__ if isinstance(value, staticmethod) else value
            definition = ast.parse(f"def {value.__doc__.splitlines()[0]}: ...").body[0]
            assert isinstance(definition, ast.FunctionDef)
            surface[prefix + name] = parameters(definition)
    return surface


def test_stub_and_module_agree() -> None:
    [package, *_] = [Path(p) for p in histo_export.__path__ if Path(p, "_core.pyi").exists()]
    assert stub_surface(package / "_core.pyi") == module_surface(_core)


def documented() -> list[tuple[str, object]]:
    owners = [("_core", _core), *((name, owner) for name, owner in vars(_core).items() if inspect.isclass(owner))]
    public = {f"{name}.{key}": value for name, owner in owners for key, value in vars(owner).items() if key[0] != "_"}
    return [*owners, *((name, value) for name, value in public.items() if not isinstance(value, tuple))]


@pytest.mark.parametrize(("name", "thing"), documented(), ids=[name for name, _ in documented()])
def test_every_public_name_is_documented(name: str, thing: object) -> None:
    lines = (inspect.getdoc(thing) or "").splitlines()
    signature = not isinstance(thing, property | ModuleType) and not inspect.isclass(thing)
    assert len(lines) > (1 if signature else 0), f"{name} has no docstring"


def test_the_names_are_documented_by_the_module() -> None:
    constants = [name for name, value in vars(_core).items() if isinstance(value, tuple)]
    assert len(constants) == 9
    for name in constants:
        assert f"``{name}``" in str(_core.__doc__)


def test_python_and_the_core_have_the_same_names() -> None:
    assert spec.PRECISIONS == get_args(spec.Precision) == _core.PRECISIONS
    assert spec.STAGES == _core.STAGES


def test_the_package_lists_what_it_offers() -> None:
    assert dir(histo_export) == sorted(histo_export.__all__), "nothing else, such as what it imports"
    assert {"load", "Engine", "Model", "BatchRunner", "FusedHead"} <= set(histo_export.__all__)


def test_an_error_of_the_core_has_its_remedy_apart() -> None:
    with pytest.raises(ValueError, match="unknown") as caught:
        _core.Engine("model.safetensors", precision="fp64")
    assert vars(caught.value) == {
        "message": 'precision "fp64" is unknown',
        "remedy": "choose from fp32, bf16x3, bf16, int8",
    }
    assert str(caught.value) == 'precision "fp64" is unknown; choose from fp32, bf16x3, bf16, int8'


def test_the_core_has_the_version_of_the_package() -> None:
    assert _core.build_config()["version"] == histo_export.__version__


def test_build_config_and_cpu_info_are_plain_dictionaries() -> None:
    config, cpu = _core.build_config(), _core.cpu_info()
    assert sorted(config) == ["baseline", "build_type", "compiler", "cxx_standard", "version"]
    assert all(isinstance(value, str) for value in config.values())
    assert {"avx512_vnni", "avx_vnni", "neon_dotprod", "neon_i8mm", "neon_bf16"} <= set(cpu)
    assert all(isinstance(value, bool) for value in cpu.values())
    assert _core.usable_cpus() >= 1
