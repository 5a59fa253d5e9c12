"""The public headers for those who do not compile them with CMake: plain C, documentation, packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import histo_export

ROOT = Path(__file__).parents[1]
INCLUDE = ROOT / "cpp/include"
HOSTS = ROOT / "docs/cpp-hosts.md"


def call(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("standard", ["c89", "c11"])
@pytest.mark.parametrize("source", ["", "cpp/tests/c_api_hosts_test.c", "cpp/examples/queue_c/main.c"])
def test_the_c_header_is_plain_c89_but_for_stdint(tmp_path: Path, standard: str, source: str) -> None:
    path = ROOT / source
    if not source:
        path = tmp_path / "header.c"
        path.write_text("#include <histo/c_api.h>\nint main(void) { return 0; }\n")
    warnings = ("-pedantic", "-Wall", "-Wextra", "-Werror")
    call("cc", f"-std={standard}", *warnings, f"-I{INCLUDE}", "-fsyntax-only", path)


# What the code on the page has around it: each block is a function of its own.
AROUND = """
#include <histo/build_config.h>
#include <histo/cancel_flag.h>
#include <histo/cpu.h>
#include <histo/engine.h>
#include <histo/error.h>
#include <histo/estimate.h>
#include <histo/log.h>
#include <histo/model_info.h>
#include <histo/thread_team.h>
#include <histo/tile_queue.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <vector>

struct Pool {
  void run_on(std::size_t, const std::function<void()>&);
};
void save(std::uint64_t id, std::span<const float> logits);
"""
GIVEN = {
    "engine": "const histo::Engine& engine",
    "model": "const histo::Model& model",
    "rgb_bytes": "std::span<const std::uint8_t> rgb_bytes",
    "queue": "histo::TileQueue& queue",
    "tile": "histo::Submission& tile",
    "logits": "std::span<float> logits",
    "pool": "Pool& pool",
}


def defined(block: str) -> set[str]:
    return {name for name in GIVEN if re.search(rf"^[\w:<> &]+ {name}(\(| =)", block, re.MULTILINE)}


def test_the_code_for_hosts_compiles(tmp_path: Path) -> None:
    blocks = re.findall(r"^```cpp\n(.*?)^```", HOSTS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    functions = [
        f"void block_{i}({', '.join(GIVEN[name] for name in GIVEN if name not in defined(block))}) {{\n{block}}}\n"
        for i, block in enumerate(blocks)
    ]
    source = tmp_path / "blocks.cpp"
    source.write_text(AROUND + "\n".join(functions), encoding="utf-8")
    warnings = ("-Wall", "-Werror", "-Wno-unused-variable", "-Wno-unused-but-set-variable")
    call("c++", "-std=c++20", *warnings, f"-I{INCLUDE}", "-fsyntax-only", source)


@pytest.mark.skipif(shutil.which("doxygen") is None, reason="Doxygen is not installed")
def test_the_reference_is_written_without_a_warning(tmp_path: Path) -> None:
    settings = (ROOT / "docs/Doxyfile").read_text(encoding="utf-8").replace("build/docs-cpp", str(tmp_path))
    (tmp_path / "Doxyfile").write_text(settings, encoding="utf-8")
    call("doxygen", tmp_path / "Doxyfile")
    assert (tmp_path / "html/index.html").is_file()


def test_the_headers_state_the_version() -> None:
    header = (INCLUDE / "histo/version.h").read_text(encoding="utf-8")
    numbers = [
        re.findall(rf"HISTO_VERSION_{part} (\d+)$", header, re.MULTILINE) for part in ("MAJOR", "MINOR", "PATCH")
    ]
    assert ".".join(number for [number] in numbers) == histo_export.__version__


# --- packages -----------------------------------------------------------------------------------------------

# What the functions of vcpkg that the port calls do here: they print their arguments.
VCPKG = """
cmake_minimum_required(VERSION 3.24)
set(VCPKG_LIBRARY_LINKAGE {linkage})
set(FEATURES {features})
set(CURRENT_PACKAGES_DIR {packages})
foreach(name IN ITEMS vcpkg_cmake_configure vcpkg_cmake_install vcpkg_cmake_config_fixup vcpkg_fixup_pkgconfig
    vcpkg_copy_tools vcpkg_install_copyright)
  cmake_language(EVAL CODE "function(${{name}})\\n message(NOTICE \\"${{name}} \\${{ARGN}}\\")\\n endfunction()")
endforeach()
function(vcpkg_check_features)
  list(FIND FEATURES tools found)
  set(FEATURE_OPTIONS -DHISTO_BUILD_TOOLS=$<NOT:$<EQUAL:${{found}},-1>> PARENT_SCOPE)
endfunction()
include({port})
"""


@pytest.mark.skipif(shutil.which("cmake") is None, reason="CMake is not installed")
@pytest.mark.parametrize(("linkage", "features"), [("static", ""), ("dynamic", "tools")])
def test_the_vcpkg_port_calls_what_it_means(tmp_path: Path, linkage: str, features: str) -> None:
    """vcpkg itself cannot be had from a package index, so its functions are replaced."""
    port = ROOT / "packaging/vcpkg/histo/portfile.cmake"
    script = tmp_path / "port.cmake"
    script.write_text(VCPKG.format(linkage=linkage, features=features, packages=tmp_path, port=port))
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    static = "1" if linkage == "static" else "0"
    assert f"SOURCE_PATH;{ROOT};OPTIONS;-DHISTO_BUILD_STATIC={static};" in done.stderr
    assert ("vcpkg_copy_tools TOOL_NAMES;histo-run" in done.stderr) == (features == "tools")
    options = re.findall(r"-D(HISTO_\w+)", done.stderr)
    project = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert [option for option in options if option not in project] == []


def test_the_packages_name_options_and_files_that_exist() -> None:
    port = json.loads((ROOT / "packaging/vcpkg/histo/vcpkg.json").read_text(encoding="utf-8"))
    assert port["version"] == histo_export.__version__
    assert port["license"] == "Apache-2.0"
    recipe = (ROOT / "packaging/conan/conanfile.py").read_text(encoding="utf-8")
    project = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    options = re.findall(r'"(HISTO_\w+)"', recipe)
    assert options
    assert [name for name in options if name not in project and name != "HISTO_STATIC"] == []
    compile(recipe, "conanfile.py", "exec")
