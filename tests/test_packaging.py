"""What packages and releases are made of: versions, workflows, and the lower bounds of requirements."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import histo_export

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SYSTEM_PACKAGES = re.compile(r"sudo apt-get update && sudo apt-get install --yes [\w+ -]+")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job.get("steps", ())]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_each_command_of_a_workflow_is_a_target_of_make(workflow: Path) -> None:
    for command in (step["run"] for step in steps(workflow) if "run" in step):
        if SYSTEM_PACKAGES.fullmatch(command):
            continue
        make, target, *variables = command.split()
        assert make == "make"
        assert target in targets(), command
        assert all(re.fullmatch(r'[A-Z]+="\$\w+"', variable) for variable in variables), command


def test_there_are_workflows() -> None:
    assert {path.stem for path in WORKFLOWS} == {"docs", "release", "test", "wheels"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_name_a_release_and_publishing_alone_may_write(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        allowed = {"id-token": "write"} if (workflow.stem, name) == ("release", "publish") else None
        assert job.get("permissions") == allowed, name
    for action in (step["uses"] for step in steps(workflow) if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", action), action


def test_workflows_try_the_pythons_that_the_package_names() -> None:
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["newest"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"
    built = PROJECT["tool"]["cibuildwheel"]["build"].split()
    assert built == [f"cp{version.replace('.', '')}-*" for version in named]


def bounds(requirements: list[str]) -> dict[str, str]:
    """Package → lower bound; extras of our own are left out."""
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?([^;]*)", text) for text in requirements)
    return {m[1]: m[2].strip() for m in found if m and m[1] != "histo-export"}


def test_a_package_has_one_lower_bound() -> None:
    project = PROJECT["project"]
    extras = {name: bounds(texts) for name, texts in project["optional-dependencies"].items() if name != "dev"}
    known: dict[str, str] = {}
    for extra, packages in {"": bounds(project["dependencies"]), **extras}.items():
        for package, bound in packages.items():
            assert re.fullmatch(r">=\d[\d.]*", bound), f"{package} of {extra}: {bound!r}"
            assert known.setdefault(package, bound) == bound, f"{package} of {extra}"


def test_the_conda_recipe_requires_what_the_package_requires() -> None:
    recipe = (ROOT / "packaging/conda/recipe.yaml").read_text(encoding="utf-8")
    run = recipe.partition("\n  run:\n")[2].partition("\n\n")[0]
    required = dict(re.findall(r"(?:- |then: )([\w-]+) (\S+)", run))
    assert required == bounds(PROJECT["project"]["dependencies"])


def test_releases_notice_a_version_that_was_forgotten(tmp_path: Path) -> None:
    script = ROOT / "packaging/release_check.py"
    places = runpy.run_path(str(script))
    stated = {path: places["stated"](path) for path in places["PLACES"]}
    assert {path for path, version in stated.items() if version != histo_export.__version__} <= {"CHANGELOG.md"}
    done = subprocess.run([sys.executable, script, "v0.0.1"], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert done.stderr.count("and the tag 0.0.1") == len(stated)


def test_a_wheel_for_older_systems_gives_glibc_2_28_what_libstdcxx_asks_for() -> None:
    toolchain = (ROOT / "packaging/manylinux.cmake").read_text(encoding="utf-8")
    tag = runpy.run_path(str(ROOT / "packaging/wheels.py"))["GLIBC"]
    assert f"-target ${{histo_triple}}.{tag.replace('_', '.')} " in toolchain
    assert (ROOT / f"packaging/glibc_{tag}.c").is_file()
    images = {PROJECT["tool"]["cibuildwheel"][f"manylinux-{cpu}-image"] for cpu in ("x86_64", "aarch64")}
    assert images == {f"manylinux_{tag}"}


def test_without_a_tag_all_files_but_the_changelog_state_the_version() -> None:
    """Its section is "Unreleased" until the release."""
    script = ROOT / "packaging/release_check.py"
    done = subprocess.run([sys.executable, script], capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"state version {histo_export.__version__}" in done.stdout
