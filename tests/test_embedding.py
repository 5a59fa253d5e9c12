"""What an embedder gets: an installed library that works on its own, exports nothing else, and runs everywhere."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

import histo_export
import package_build
from histo_export._core import usable_isas
from histo_export.data.demo import CLASSES

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "cpp/examples/embed"
TEMPLATES = {".html", ".css", ".js"}
"""Suffixes of what pages of results are made of."""

needs_pkg_config = pytest.mark.skipif(shutil.which("pkg-config") is None, reason="pkg-config is not installed")


COMPILER_CACHE = {name: value for name, value in os.environ.items() if name.startswith(("CCACHE_", "CMAKE_"))}


def call(*command: object, code: int = 0, stdin: bytes = b"", **env: str) -> str:
    """stdout, or where `code` is not 0, stderr. The environment holds what is passed, PATH and a compiler cache's."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        capture_output=True,
        env={"PATH": os.environ["PATH"], **COMPILER_CACHE, **env},
        check=False,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    return (done.stdout if code == 0 else done.stderr).decode()


@pytest.fixture(scope="session")
def release() -> Path:
    """The build folder of a Release build, kept so that the next run compiles only what changed."""
    build = ROOT / "build/release"
    call("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *package_build.OPTIONS)
    call("cmake", "--build", build, "-j2")
    return build


@pytest.fixture(scope="session")
def prefix(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation that was moved, as an unpacked archive is."""
    parent = tmp_path_factory.mktemp("prefix")
    call("cmake", "--install", release, "--prefix", parent / "installed")
    return (parent / "installed").rename(parent / "moved")


def library(prefix: Path, name: str) -> Path:
    """`lib` or `lib64`, as the system has it."""
    [path] = prefix.glob(f"lib*/{name}")
    return path


# --- that all of it is there, and nothing points elsewhere --------------------------------------------------


def test_the_installation_is_whole(prefix: Path) -> None:
    headers = {path.name for path in (ROOT / "cpp/include/histo").glob("*.h")}
    assert {path.name for path in (prefix / "include/histo").iterdir()} == headers
    for name in ("libhisto.a", "libhisto.so", "pkgconfig/histo.pc", "cmake/histo/histoConfigVersion.cmake"):
        assert library(prefix, name).is_file()
    assert library(prefix, "libhisto.so").is_symlink()
    assert call(prefix / "bin/histo-run", "--version") == f"histo-run {histo_export.__version__}\n"


def test_nothing_in_it_points_to_where_it_was_made(prefix: Path, release: Path) -> None:
    # Error messages may name a source file by design one day; then this fails, and shows paths that leak.
    elsewhere = [os.fsencode(path) for path in (ROOT / "cpp", release, prefix.parent / "installed")]
    for path in prefix.rglob("*"):
        if path.is_file():
            contents = path.read_bytes()
            assert not [place for place in elsewhere if place in contents], path


@pytest.mark.parametrize("header", sorted(path.name for path in (ROOT / "cpp/include/histo").glob("*.h")))
def test_every_header_stands_alone(header: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f"#include <histo/{header}>\n#include <histo/{header}>\n")
    call("c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT}/cpp/include", source)


# --- symbols ------------------------------------------------------------------------------------------------

HISTO_NAME = re.compile(r"(histo_\w+|(typeinfo for |typeinfo name for |vtable for )?histo::.+)")


def symbols(*command: object) -> list[tuple[str, str, str]]:
    """(object file, kind, demangled name) of every symbol that `nm` lists."""
    found, owner = [], ""
    for line in call("nm", "-C", "--defined-only", "--without-symbol-versions", *command).splitlines():
        if match := re.fullmatch(r"[0-9a-f]+ (\S) (.+)", line):
            found.append((owner, match[1], match[2]))
        elif line.endswith(":"):
            owner = line[:-1]
    assert found
    return found


def test_the_shared_library_exports_histo_and_nothing_else(prefix: Path) -> None:
    # A: the version that all names have.
    names = {name for _, kind, name in symbols("-D", library(prefix, "libhisto.so")) if kind != "A"}
    assert [name for name in names if not HISTO_NAME.fullmatch(name)] == []
    header = (ROOT / "cpp/include/histo/c_api.h").read_text()
    declared = set(re.findall(r"\b(histo_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))
    assert declared == {name for name in names if name.startswith("histo_")}
    assert "typeinfo for histo::Error" in names
    for name in ("Model::open", "Engine::Engine", "FusedHead::run", "BatchRunner::run", "self_test", "usable_cpus"):
        assert [full for full in names if full.startswith(f"histo::{name}(")], name


def test_the_shared_library_exports_what_is_listed(prefix: Path) -> None:
    """A name that goes breaks programs that use it; one that comes must be meant."""
    listed = (ROOT / "tests/exported_symbols.txt").read_text().splitlines()
    # Without inline functions and templates (W, V), of which compilers keep what they like. HISTO_0.1 is the version.
    names = {name for _, kind, name in symbols("-D", library(prefix, "libhisto.so")) if kind not in "WVA"}
    assert sorted(names) == listed, "adapt tests/exported_symbols.txt, and the version if names have gone"


def test_versions_of_the_shared_library_that_cannot_replace_each_other_have_different_names(prefix: Path) -> None:
    major, minor = histo_export.__version__.split(".")[:2]
    interface = f"0.{minor}" if major == "0" else major
    path = library(prefix, "libhisto.so")
    assert f"soname: [libhisto.so.{interface}]" in call("readelf", "-d", path)
    exported = [line.split()[-1] for line in call("nm", "-D", "--defined-only", path).splitlines()]
    assert "histo_version@@" + f"HISTO_{interface}" in exported
    assert [name for name in exported if not name.endswith(f"HISTO_{interface}")] == []


def test_a_plugin_does_not_offer_the_static_library_to_others(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(plugin LANGUAGES CXX)\nfind_package(histo REQUIRED)\n"
        "add_library(plugin SHARED plugin.cpp)\ntarget_link_libraries(plugin PRIVATE histo::static)\n"
    )
    (tmp_path / "plugin.cpp").write_text(
        "#include <histo/c_api.h>\n#include <histo/engine.h>\n#include <histo/error.h>\n"
        'extern "C" int plugin_run(const char* path) {\n'
        "  try { return int(histo::Engine(histo::Model::open(path)).classes()) + int(histo_usable_cpus()); }\n"
        "  catch (const histo::Error& error) { return int(error.code()); }\n}\n"
    )
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", tmp_path / "build")
    # W, V: inline functions of the headers that the plugin itself compiled, with the visibility that it asks for.
    names = {name for _, kind, name in symbols("-D", tmp_path / "build/libplugin.so") if kind not in "WVu"}
    assert "plugin_run" in names
    assert [name for name in names if "histo" in name] == []


def test_the_shared_library_needs_the_compilers_runtime_and_nothing_else(prefix: Path) -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", call("readelf", "-d", library(prefix, "libhisto.so")))
    allowed = re.compile(r"(libstdc\+\+|libc|libm|libpthread|libgcc_s|ld-linux.*)\.so\.\d+")
    assert needed
    assert [name for name in needed if not allowed.fullmatch(name)] == []


def test_the_static_library_defines_no_name_but_histos(prefix: Path) -> None:
    # Weak symbols (W, V, u) are inline functions and templates of the standard library, as in every C++ object.
    names = {name for _, kind, name in symbols("-g", library(prefix, "libhisto.a")) if kind not in "WVu"}
    assert [name for name in names if not HISTO_NAME.fullmatch(name)] == []


def test_kernels_for_newer_machines_share_no_code_with_the_rest(release: Path) -> None:
    """An inline function in such an object is compiled for that machine, and the linker may take it for everyone's."""
    newer = "neon*.cpp" if platform.machine() in ("aarch64", "arm64") else "a*.cpp"
    sources = sorted((ROOT / "cpp/src/cpu/kernels").glob(newer))
    objects = {
        source: list((release / "CMakeFiles/histo_kernel_objects.dir").rglob(f"{source.name}.o")) for source in sources
    }
    assert sources
    assert [source.name for source, found in objects.items() if len(found) != 1] == []
    for [path] in objects.values():
        assert [name for _, kind, name in symbols(path) if kind in "WVu"] == [], path.name


# --- programs that embed it ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tile(bundle: Path) -> npt.NDArray[np.uint8]:
    """A tile that is neither flat nor square."""
    tiles: npt.NDArray[np.uint8] = load_file(bundle / "golden.safetensors")["tiles"]
    return np.ascontiguousarray(tiles[0, :70])


@pytest.fixture(scope="session")
def tile_file(tile: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tile") / "tile.rgb"
    path.write_bytes(tile.tobytes())
    return path


@pytest.fixture(scope="session")
def logits(prefix: Path, bundle: Path, tile_file: Path) -> tuple[str, ...]:
    """What every other program must print, to the last digit: what histo-run does."""
    line = call(prefix / "bin/histo-run", "--raw", "70x75", bundle / "model.safetensors", tile_file)
    name, *values, top = line.removesuffix("\n").split("\t")
    assert name == str(tile_file)
    assert top == CLASSES[int(np.argmax([float(value) for value in values]))]
    return tuple(values)


def example_prints(program: Path, bundle: Path, tile_file: Path, **env: str) -> tuple[str, ...]:
    model = bundle / "model.safetensors"
    rows = [line.split("\t") for line in call(program, model, tile_file, 70, 75, **env).splitlines()]
    assert tuple(name for name, _ in rows) == CLASSES
    # An exception of the library arrives as what it is.
    assert "(error 2)" in call(program, model, tile_file, 71, 75, code=1, **env)
    assert "(error 4)" in call(program, "/nowhere", tile_file, 70, 75, code=1, **env)
    return tuple(value for _, value in rows)


def build_example(prefix: Path, build: Path, *options: str) -> Path:
    call("cmake", "-S", EXAMPLE, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", *options)
    call("cmake", "--build", build)
    return build / "embed"


def test_the_python_engine_prints_the_same(bundle: Path, tile: npt.NDArray[np.uint8], logits: tuple[str, ...]) -> None:
    engine = histo_export.Engine(bundle / "model.safetensors")
    assert tuple(f"{value:.9g}" for value in engine.run(tile[None])[0]) == logits


@pytest.mark.parametrize(
    ("target", "options", "shared"),
    [
        ("histo::histo", (), False),
        ("histo::histo", ("-DBUILD_SHARED_LIBS=ON",), True),
        ("histo::shared", (), True),
    ],
)
def test_find_package(
    prefix: Path,
    bundle: Path,
    tile_file: Path,
    logits: tuple[str, ...],
    tmp_path: Path,
    target: str,
    options: tuple[str, ...],
    shared: bool,
) -> None:
    program = build_example(prefix, tmp_path / "build", f"-DHISTO_LIBRARY={target}", *options)
    assert ("libhisto" in call("readelf", "-d", program)) == shared
    assert example_prints(program, bundle, tile_file) == logits


def test_find_package_refuses_another_version(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(other LANGUAGES CXX)\nfind_package(histo 99 REQUIRED)\n"
    )
    error = call("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}", code=1)
    assert f"version: {histo_export.__version__}" in error


@needs_pkg_config
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_pkg_config(
    prefix: Path, bundle: Path, tile_file: Path, logits: tuple[str, ...], tmp_path: Path, kind: str
) -> None:
    path = str(library(prefix, "pkgconfig/histo.pc").parent)

    def pkg_config(*options: str) -> list[str]:
        return call("pkg-config", *options, "histo", PKG_CONFIG_PATH=path).split()

    assert pkg_config("--modversion") == [histo_export.__version__]
    libdir = pkg_config("--variable=libdir")[0]
    link = pkg_config("--libs") if kind == "shared" else [*pkg_config("--variable=static_library"), "-pthread"]
    program = tmp_path / "embed"
    call("c++", "-std=c++20", *pkg_config("--cflags"), EXAMPLE / "main.cpp", "-o", program, *link)
    assert ("libhisto" in call("readelf", "-d", program)) == (kind == "shared")
    env = {"LD_LIBRARY_PATH": libdir} if kind == "shared" else {}
    assert example_prints(program, bundle, tile_file, **env) == logits


C_PROGRAM = r"""
#include <histo/HEADER>
#include <stdio.h>

int main(int argc, char** argv) {
  static unsigned char tile[70 * 75 * 3];
  float logits[6];
  histo_model* model = NULL;
  histo_engine* engine = NULL;
  FILE* file = argc == 3 ? fopen(argv[2], "rb") : NULL;
  int k;
  if (file == NULL || fread(tile, 1, sizeof tile, file) != sizeof tile ||
      histo_model_open(argv[1], &model) != HISTO_OK || histo_engine_create(model, NULL, &engine) != HISTO_OK ||
      histo_engine_run_u8(engine, tile, sizeof tile, 1, 70, 75, logits, 6) != HISTO_OK) {
    fprintf(stderr, "%s\n", histo_last_error());
    return 1;
  }
  for (k = 0; k < 6; ++k) printf("%.9g\n", logits[k]);
  fclose(file);
  histo_engine_free(engine);
  histo_model_free(model);
  return 0;
}
"""


@pytest.mark.parametrize(
    ("target", "header"),
    [("histo::histo", "c_api.h"), ("histo::shared", "histo.h")],  # the second is the old name
)
def test_a_project_in_c(
    prefix: Path, bundle: Path, tile_file: Path, logits: tuple[str, ...], tmp_path: Path, target: str, header: str
) -> None:
    (tmp_path / "main.c").write_text(C_PROGRAM.replace("HEADER", header))
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(c LANGUAGES C)\nset(CMAKE_C_STANDARD 99)\n"
        "find_package(histo REQUIRED)\nadd_executable(c main.c)\n"
        f"target_link_libraries(c PRIVATE {target}{' stdc++ m' if target == 'histo::histo' else ''})\n"
    )
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", tmp_path / "build")
    printed = call(tmp_path / "build/c", bundle / "model.safetensors", tile_file)
    assert tuple(printed.split()) == logits


def test_the_viewer_classifies_regions_of_its_image_in_cpp_and_in_c(prefix: Path, bundle: Path, tmp_path: Path) -> None:
    side, rows, columns = 75, 2, 3  # pixels of the bundle's tiles, and an image that holds a little more
    height, width = rows * side + 7, columns * side + 11
    image = np.random.default_rng(1).integers(0, 256, (height, width, 4), np.uint8)
    (tmp_path / "image").write_bytes(image.tobytes())
    engine = histo_export.Engine(bundle / "model.safetensors")
    corners = np.array([[x * side, y * side] for y in range(rows) for x in range(columns)], np.int64)
    found = engine.outputs_of_regions(image, corners, side, ("contributions",), top=1, format="bgra_premultiplied")
    expected = []
    for (x, y), [top], [probability], all_shares in zip(
        corners, found["top_classes"], found["top_probabilities"], found["contributions"], strict=True
    ):
        shares = all_shares[top]
        row, column = np.unravel_index(shares.argmax(), shares.shape)
        expected.append(
            (str(x), str(y), CLASSES[top], f"{probability:.9g}", str(row), str(column), f"{shares.max():.9g}")
        )

    build = tmp_path / "build"
    call("cmake", "-S", ROOT / "cpp/examples/viewer", "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", build)
    for name in ("viewer_cpp", "viewer_c"):
        program, model = build / name, bundle / "model.safetensors"
        assert [
            tuple(line.split("\t")) for line in call(program, model, tmp_path / "image", height, width).splitlines()
        ] == expected
        assert "(error 2)" in call(program, model, tmp_path / "image", height + 1, width, code=1)


def rows_of_tiles(printed: str) -> list[tuple[str, ...]]:
    return sorted(tuple(line.split("\t")) for line in printed.splitlines())


@pytest.mark.parametrize(("folder", "prefix_of_error"), [("queue", "queue"), ("queue_c", "queue_c")])
def test_programs_that_submit_tiles_to_a_queue(
    prefix: Path,
    bundle: Path,
    tile_file: Path,
    logits: tuple[str, ...],
    tmp_path: Path,
    folder: str,
    prefix_of_error: str,
) -> None:
    source, build = ROOT / "cpp/examples" / folder, tmp_path / "build"
    call("cmake", "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", build)
    model, tiles = bundle / "model.safetensors", [tile_file, tmp_path / "other.rgb"]
    shutil.copy(tile_file, tiles[1])
    printed = call(build / folder, model, 70, 75, *tiles)
    assert rows_of_tiles(printed) == sorted((str(tile), *logits) for tile in tiles)
    assert f"{prefix_of_error}: " in call(build / folder, model, 71, 75, *tiles, code=1)
    assert "(error 4)" in call(build / folder, "/nowhere", 70, 75, *tiles, code=1)


def test_python_without_a_compiled_module_submits_tiles(
    prefix: Path, bundle: Path, tile_file: Path, logits: tuple[str, ...]
) -> None:
    program, shared = ROOT / "cpp/examples/ctypes/queue_tiles.py", library(prefix, "libhisto.so")
    model = bundle / "model.safetensors"
    printed = call(sys.executable, "-I", "-S", program, shared, model, 70, 75, tile_file, tile_file)
    assert rows_of_tiles(printed) == [(str(tile_file), *logits)] * 2
    assert "(error 2)" in call(sys.executable, "-I", "-S", program, shared, model, 71, 75, tile_file, code=1)


@pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")
def test_a_program_in_rust(
    prefix: Path, bundle: Path, tile_file: Path, logits: tuple[str, ...], tmp_path: Path
) -> None:
    folder, program = library(prefix, "libhisto.so").parent, tmp_path / "classify"
    source = ROOT / "cpp/examples/rust/main.rs"
    # HOME: where rustup, which may stand behind rustc, finds the compiler.
    call("rustc", "--edition=2021", "-Dwarnings", "-L", folder, "-o", program, source, HOME=str(Path.home()))
    env = {"LD_LIBRARY_PATH": str(folder)}
    printed = [
        line.split("\t") for line in call(program, bundle / "model.safetensors", tile_file, 70, 75, **env).splitlines()
    ]
    assert tuple(name for name, _ in printed) == CLASSES
    assert [np.float32(value) for _, value in printed] == [np.float32(value) for value in logits]
    assert "(error 2)" in call(program, bundle / "model.safetensors", tile_file, 71, 75, code=1, **env)


@pytest.mark.slow
def test_the_benchmark_of_the_queue_compares_logits(prefix: Path, bundle: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import queue_table
    finally:
        sys.path.pop(0)
    program = queue_table.compiled(prefix, tmp_path)
    ways = queue_table.seconds(program, bundle / "model.safetensors", batch=3, threads=2, rounds=2, calls=2)
    assert [len(way) for way in ways] == [2, 2, 2]
    assert all(value > 0 for way in ways for value in way)


def test_the_cmake_package_has_components(prefix: Path, tmp_path: Path) -> None:
    project = (
        "cmake_minimum_required(VERSION 3.24)\nproject(parts LANGUAGES CXX)\n"
        "find_package(histo REQUIRED COMPONENTS static shared run OPTIONAL_COMPONENTS gpu)\n"
        'message(STATUS "gpu: ${histo_gpu_FOUND}; run: $<TARGET_EXISTS:histo::histo_run>")\n'
    )
    (tmp_path / "CMakeLists.txt").write_text(project)
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    (tmp_path / "CMakeLists.txt").write_text(project.replace("OPTIONAL_COMPONENTS gpu", "gpu"))
    error = call("cmake", "-S", tmp_path, "-B", tmp_path / "build", code=1)
    assert "no component gpu" in re.sub(r"\s+", " ", error)


def test_what_programs_need_to_run_can_be_installed_alone(release: Path, tmp_path: Path) -> None:
    def installed(component: str) -> set[str]:
        call("cmake", "--install", release, "--component", component, "--prefix", tmp_path / component)
        files = (path for path in (tmp_path / component).rglob("*") if not path.is_dir())
        return {re.sub(r"^lib\w*/", "lib/", str(path.relative_to(tmp_path / component))) for path in files}

    runtime, development = installed("histo_runtime"), installed("histo_development")
    major, minor = histo_export.__version__.split(".")[:2]
    assert runtime == {
        "bin/histo-run",
        f"lib/libhisto.so.{histo_export.__version__}",
        f"lib/libhisto.so.{major}.{minor}",
    }
    assert {"lib/libhisto.so", "lib/libhisto.a", "lib/pkgconfig/histo.pc", "include/histo/c_api.h"} <= development
    assert not runtime & development


PARENT = """
cmake_minimum_required(VERSION 3.24)
project(parent LANGUAGES CXX)
add_subdirectory({root} histo)
add_library(viewer STATIC viewer.cpp)
target_link_libraries(viewer PUBLIC histo::histo)
install(TARGETS viewer EXPORT viewer)
install(EXPORT viewer DESTINATION lib/cmake/viewer)
foreach(target histo_static histo_shared histo_run histo_tests)
  if(TARGET ${{target}})
    message(STATUS "has ${{target}}")
  endif()
endforeach()
"""


@pytest.mark.parametrize("shared", ["OFF", "ON"])
def test_a_parent_build_chooses_the_kind_and_gets_optimised_kernels(tmp_path: Path, shared: str) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PARENT.format(root=ROOT))
    (tmp_path / "viewer.cpp").write_text("#include <histo/engine.h>\n")
    configured = call(
        *("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DBUILD_SHARED_LIBS={shared}"),
        *("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"),  # and no CMAKE_BUILD_TYPE
    )
    assert re.findall("has (.+)", configured) == ["histo_shared" if shared == "ON" else "histo_static"]
    commands = json.loads((tmp_path / "build/compile_commands.json").read_text())
    ours = {entry["file"]: entry["command"] for entry in commands if "viewer" not in entry["file"]}
    sources = {str(path) for path in (ROOT / "cpp/src").rglob("*.cpp")}
    assert ours
    assert ours.keys() <= sources  # none is joined with others, whose instruction sets differ
    assert [file for file, command in ours.items() if " -O3" not in command] == []
    # Sanitizers of the parent, which leave names undefined, may be set for its targets alone.
    assert "--no-undefined" not in (tmp_path / "build/build.ninja").read_text()
    other = call("cmake", f"-DBUILD_SHARED_LIBS={'ON' if shared == 'OFF' else 'OFF'}", tmp_path / "build")
    assert re.findall("has (.+)", other) == ["histo_static" if shared == "ON" else "histo_shared"]


def test_histo_run_of_an_installation_without_the_static_library_finds_the_shared_one(tmp_path: Path) -> None:
    call("cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DHISTO_BUILD_STATIC=OFF", "-DCMAKE_INSTALL_LIBDIR=lib")
    script = (tmp_path / "cmake_install.cmake").read_text()
    assert re.search(r'bin/histo-run"\s+OLD_RPATH "[^"]*"\s+NEW_RPATH ["\\[]+\$ORIGIN/\.\./lib["\]]', script), script


@pytest.mark.parametrize("option", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_options_that_break_arithmetic_are_refused(tmp_path: Path, option: str) -> None:
    command = ("c++", "-std=c++20", option, f"-I{ROOT}/cpp/include", f"-I{ROOT}/cpp/src", "-fsyntax-only")
    for source in ("cpu/packing.cpp", "model/model.cpp", "api/fused_head.cpp", "api/preprocess.cpp"):
        assert "histo cannot be compiled with -ffast-math" in call(*command, ROOT / "cpp/src" / source, code=1)


@pytest.mark.parametrize("where", ["set(CMAKE_CXX_FLAGS -{})", "add_compile_options(-{})"])
@pytest.mark.parametrize("option", ["fassociative-math", "funsafe-math-optimizations"])
def test_options_that_break_arithmetic_without_a_macro_of_clang_are_refused(
    tmp_path: Path, where: str, option: str
) -> None:
    parent = PARENT.format(root=ROOT).replace("add_sub", where.format(option) + "\nadd_sub")
    (tmp_path / "CMakeLists.txt").write_text(parent)
    error = call("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", code=1)
    assert f"histo cannot be compiled with -{option}" in re.sub(r"\s+", " ", error)


@pytest.mark.parametrize("language", ["c", "c++"])
def test_structures_are_initialised_without_a_warning(tmp_path: Path, language: str) -> None:
    header = (ROOT / "cpp/include/histo/c_api.h").read_text()
    structures = re.findall(r"typedef struct (\w+) \{\s+size_t\s+struct_size;", header)
    assert len(structures) == 12
    lines = (f"{name} {name}_ = {name.upper()}_INIT; (void){name}_;" for name in structures)
    source = tmp_path / "initialised"
    source.write_text("#include <histo/c_api.h>\nint main(void) {" + "\n".join(lines) + "return 0;}\n")
    standard = "-std=c99" if language == "c" else "-std=c++20"
    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
    call("cc", "-x", language, standard, *warnings, f"-I{ROOT}/cpp/include", "-fsyntax-only", source)


# --- histo-run ----------------------------------------------------------------------------------------------


def ppm(tile: npt.NDArray[np.uint8], header: str = "P6\n{width} {height}\n255\n") -> bytes:
    return header.format(width=tile.shape[1], height=tile.shape[0]).encode() + tile.tobytes()


def rows(printed: str) -> list[tuple[str, ...]]:
    return [tuple(line.split("\t")) for line in printed.splitlines()]


def test_histo_run_reads_pnm_and_standard_input(
    prefix: Path, bundle: Path, tile: npt.NDArray[np.uint8], logits: tuple[str, ...], tmp_path: Path
) -> None:
    run, model = prefix / "bin/histo-run", bundle / "model.safetensors"
    commented = ppm(tile, "P6 # written by hand\n#\n{width}\t#\n\n{height}\r\n255\n")
    wide = np.zeros((64, 100, 3), np.uint8)
    (tmp_path / "two.ppm").write_bytes(ppm(tile) + commented)
    (tmp_path / "mixed.ppm").write_bytes(ppm(wide) + ppm(tile))
    printed = rows(call(run, bundle, tmp_path / "two.ppm", "--threads=2", tmp_path / "mixed.ppm", "-", stdin=commented))
    names = [str(tmp_path / name) for name in ("two.ppm", "two.ppm#1", "mixed.ppm", "mixed.ppm#1")]
    assert [row[0] for row in printed] == [*names, "-"]
    assert [row[1:7] for row in printed if row[0] != names[2]] == [logits] * 4

    raw = [call(run, "--raw=70x75", "--batch", n, model, "-", stdin=tile.tobytes() * 3) for n in (1, 2, 32)]
    assert raw[0] == raw[1] == raw[2]
    assert [row[:7] for row in rows(raw[0])] == [(name, *logits) for name in ("-", "-#1", "-#2")]


def test_histo_run_reads_pnm_whose_lines_end_by_cr_lf(
    prefix: Path, bundle: Path, tile: npt.NDArray[np.uint8], logits: tuple[str, ...]
) -> None:
    headers = ("P6\r\n{width} {height}\r\n255\r\n", "P6\r\n# by hand\r\n{width} {height} 255\r\n")
    images = b"".join(ppm(tile, header) for header in (*headers, "P6 {width} {height} 255\r"))
    begins_with_lf = tile.copy()
    begins_with_lf[0, 0, 0] = ord("\n")  # outside of the crop; a pixel, because no line of this header ends by CR LF
    images += ppm(begins_with_lf, "P6 {width} {height} 255\r")
    printed = rows(call(prefix / "bin/histo-run", bundle, "-", stdin=images))
    assert [row[1:7] for row in printed] == [logits] * 4


def test_histo_run_escapes_names(prefix: Path, bundle: Path, tile: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    contents = (bundle / "model.safetensors").read_bytes()
    size = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + size])
    spec = json.loads(header["__metadata__"]["histo.spec"])
    spec["classes"] = [f"{index}\ta\nb\x1b[31m\\n\x9b\x7fé" for index in range(len(spec["classes"]))]
    header["__metadata__"]["histo.spec"] = json.dumps(spec)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    model = tmp_path / "model.safetensors"
    model.write_bytes(len(text).to_bytes(8, "little") + text + contents[8 + size :])
    (tmp_path / "a\tb\x1b.ppm").write_bytes(ppm(tile))
    printed = call(prefix / "bin/histo-run", model, tmp_path / "a\tb\x1b.ppm")
    name, *_, top = printed.removesuffix("\n").split("\t")
    assert name == str(tmp_path) + r"/a\tb\x1b.ppm"
    assert top[1:] == r"\ta\nb\x1b[31m\\n\xc2\x9b\x7fé"
    assert call(prefix / "bin/histo-run", model, tmp_path / "no\x1b", code=1).startswith(
        f"histo-run: {tmp_path}" + r"/no\x1b: "
    )


def test_histo_run_prints_probabilities(prefix: Path, bundle: Path, tile_file: Path, logits: tuple[str, ...]) -> None:
    printed = call(prefix / "bin/histo-run", "--probabilities", "--raw", "70x75", bundle, tile_file)
    values = np.array([float(value) for value in logits])
    expected = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
    np.testing.assert_allclose([float(value) for value in rows(printed)[0][1:7]], expected, rtol=1e-6)


def test_histo_run_replays_the_golden_tiles(prefix: Path, bundle: Path, tmp_path: Path) -> None:
    run = prefix / "bin/histo-run"
    assert call(run, "--self-test", bundle).endswith(": passed\n")
    golden = shutil.copy(bundle / "golden.safetensors", tmp_path / "other.safetensors")
    assert call(run, bundle / "model.safetensors", "--self-test", golden).startswith(str(golden))
    assert str(tmp_path / "none") in call(run, bundle, "--self-test", tmp_path / "none", code=1)


def test_every_instruction_set_passes_the_self_test(prefix: Path, bundle: Path) -> None:
    run = prefix / "bin/histo-run"
    assert usable_isas()[0] == "portable"
    for isa in usable_isas():
        assert call(run, "--isa", isa, "--self-test", bundle).endswith(": passed\n"), isa


WRONG_FILES = {
    "empty": b"",
    "no PNM": b"\x89PNG\r\n",
    "another kind of PNM": b"P5\n70 75\n255\n" + bytes(70 * 75),
    "no size": b"P6",
    "no white space": b"P670 75 255\n" + bytes(70 * 75 * 3),
    "a size of zero": b"P6\n0 75\n255\n",
    "a negative size": b"P6\n-70 75\n255\n",
    "a size that overflows": b"P6\n18446744073709551617 75\n255\n" + bytes(75 * 3),
    "more pixels than bytes": b"P6\n32768 32768\n255\n" + bytes(1000),
    "one byte short": b"P6\n70 75\n255\n" + bytes(70 * 75 * 3 - 1),
    "16 bits": b"P6\n70 75\n65535\n" + bytes(70 * 75 * 6),
    "a comment without end": b"P6\n#" + b"x" * 1_000_000,
    "a comment without line end": b"P6\n#",
    "rubbish after a tile": b"P6\n70 75\n255\n" + bytes(70 * 75 * 3) + b"rest",
    "fewer pixels than the crop": b"P6\n63 75\n255\n" + bytes(63 * 75 * 3),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_histo_run_refuses_a_bad_file_after_the_good_ones(
    prefix: Path, bundle: Path, tile: npt.NDArray[np.uint8], tmp_path: Path, what: str
) -> None:
    (tmp_path / "good.ppm").write_bytes(ppm(tile))
    (tmp_path / "bad.ppm").write_bytes(WRONG_FILES[what])
    command = [prefix / "bin/histo-run", bundle, tmp_path / "good.ppm", tmp_path / "bad.ppm", tmp_path / "good.ppm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"histo-run: \S+bad\.ppm(#1)?: .+\. .+\n", done.stderr), done.stderr
    printed = [row[0] for row in rows(done.stdout)]
    assert printed == [str(tmp_path / name) for name in ("good.ppm", "bad.ppm")[: 1 + what.startswith("rubbish")]]


WRONG_USE: list[tuple[Sequence[str], str]] = [
    ([], "MODEL: is missing"),
    (["model"], "TILE: is missing"),
    (["--frobnicate", "model", "-"], "--frobnicate: is unknown"),
    (["model", "-", "--raw"], "--raw: its value is missing"),
    (["--raw", "0x70", "model", "-"], "--raw 0x70: is not a height and width"),
    (["--raw", "70", "model", "-"], "--raw 70: is not a height and width"),
    (["--raw", "99999999999999999999x70", "model", "-"], "--raw 9999"),
    (["--threads", "0", "model", "-"], "--threads 0: is not an integer from 1 to"),
    (["--threads=two", "model", "-"], "--threads two: is not an integer"),
    (["--batch", "-1", "model", "-"], "--batch -1: is not an integer"),
    (["--isa", "avx3", "model", "-"], '--isa "avx3" is unknown. Choose from portable, avx2, avx512, amx, neon'),
    (["--precision=fp64", "model", "-"], '--precision "fp64" is unknown. Choose from fp32, bf16x3, bf16, int8'),
    (["--probabilities=yes", "model", "-"], "--probabilities: takes no value"),
    (["--self-test", "model", "golden", "tile"], "tile: --self-test takes no tiles"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USE)
def test_histo_run_explains_wrong_use(prefix: Path, arguments: Sequence[str], message: str) -> None:
    error = call(prefix / "bin/histo-run", *arguments, code=2)
    assert error.startswith(f"histo-run: {message}")
    assert error.count("\n") == 1


def test_histo_run_explains_what_is_missing(prefix: Path, bundle: Path, tmp_path: Path) -> None:
    run = prefix / "bin/histo-run"
    assert call(run, "--help").startswith("Usage: histo-run")
    assert "/nowhere" in call(run, "/nowhere", "-", code=1)
    assert "cannot be opened (No such file" in call(run, bundle, tmp_path / "none.ppm", code=1)
    assert "cannot be read (Is a directory" in call(run, bundle, tmp_path, code=1)
    with open("/dev/full", "wb") as full:  # noqa: PTH123 (a device)
        done = subprocess.run([run, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "standard output: cannot be written" in done.stderr


# --- the Python package carries it --------------------------------------------------------------------------


def test_cmake_prefix_of_this_installation(
    bundle: Path, tile_file: Path, logits: tuple[str, ...], tmp_path: Path
) -> None:
    program = build_example(histo_export.cmake_prefix(), tmp_path / "build")
    assert example_prints(program, bundle, tile_file) == logits


def test_the_wheel_carries_the_library(bundle: Path, tile_file: Path, logits: tuple[str, ...], tmp_path: Path) -> None:
    # Without isolation, which would need a network.
    call(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        "--disable-pip-version-check",
        # In the build folder of the editable install.
        *("-C", f"cmake.define.{package_build.DEVELOPER}", "-w", tmp_path, ROOT),
        HOME=str(tmp_path),
        CMAKE_BUILD_PARALLEL_LEVEL="2",
    )
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 8e6

    # As pip unpacks it: no links, and executable what the archive says is.
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        for entry in archive.infolist():
            if entry.external_attr >> 16 & 0o111:
                (site / entry.filename).chmod(0o755)
    pages = Path("predict/pages")
    sources = {path.name for path in (ROOT / "python/histo_export" / pages).iterdir() if path.suffix in TEMPLATES}
    assert {path.name for path in (site / "histo_export" / pages).iterdir()} >= sources
    assert {Path(name).suffix for name in sources} == TEMPLATES
    code = "import histo_export; print(histo_export.cmake_prefix())"
    sdk = Path(call(sys.executable, "-S", "-c", code, PYTHONPATH=str(site)).strip())  # -S: not what is installed
    assert sdk == site / "histo_export/sdk"
    assert sorted(path.name for path in (sdk / "lib").glob("libhisto*")) == ["libhisto.a", "libhisto.so"]

    for target in ("histo::histo", "histo::shared"):
        program = build_example(sdk, tmp_path / target.replace(":", ""), f"-DHISTO_LIBRARY={target}")
        assert example_prints(program, bundle, tile_file) == logits
    line = call(sdk / "bin/histo-run", "--raw", "70x75", bundle, tile_file)
    assert rows(line)[0][1:7] == logits
