"""TorchScript in C++ gives what TorchScript in Python gives, and says so in one line where it can't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import package_build
from histo_export.errors import HistoError
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.torchscript import torchscript_bytes
from histo_export.runtimes import libtorch, open_runtime, to_float
from histo_export.runtimes.base import TileSide
from histo_export.runtimes.libtorch import LibtorchRuntime
from histo_export.runtimes.torchscript import TorchScriptRuntime
from histo_export.spec import STAGES, InputKind

Advance = Callable[[Callable[[], object]], bool]
REPOSITORY = Path(__file__).parents[1]
COMPILER = (os.environ.get("CXX") or "c++").split()[0]

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no C++ compiler ({COMPILER})")
needs_headers = pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").is_file(), reason="Python's headers are not installed"
)


def compiled(test: Callable[..., None]) -> Callable[..., None]:
    """Compiles the runtime once per change, for half a minute; the cache is the user's."""
    return needs_compiler(needs_headers(test))


@pytest.fixture(scope="module")
def models(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[InputKind, Path]:
    folder = tmp_path_factory.mktemp("torchscript")
    kinds: tuple[InputKind, ...] = ("float", "uint8")
    for kind in kinds:
        (folder / f"{kind}.pt").write_bytes(torchscript_bytes(lower(checkpoint.net(), checkpoint.spec, kind)))
    return {kind: folder / f"{kind}.pt" for kind in kinds}


@pytest.fixture(scope="module")
def tiles(checkpoint: Checkpoint) -> np.ndarray:
    return np.concatenate([checkpoint.golden, np.zeros_like(checkpoint.golden[:1])])


def relative(output: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, in units of the largest reference value."""
    assert output.shape == reference.shape
    assert output.dtype == reference.dtype == np.float32
    return float(np.abs(output - reference).max() / np.abs(reference).max())


@compiled
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_logits_and_stages_are_those_of_torchscript_in_python(
    models: dict[InputKind, Path], tiles: np.ndarray, kind: InputKind
) -> None:
    ours, reference = (runtime(models[kind], threads=1) for runtime in (LibtorchRuntime, TorchScriptRuntime))
    for n in (1, 3, 6):  # twice each: libtorch's executor compiles in between
        for _ in range(2):
            assert relative(ours.run(tiles[:n]), reference.run(tiles[:n])) < 1e-6
    stages = ours.stages(tiles[:2])
    assert tuple(stages) == STAGES
    for name, expected in reference.stages(tiles[:2]).items():
        assert relative(stages[name], expected) < 1e-6
    assert ours.executed == "cpu fp32, frozen"
    assert (ours.runtime.classes, ours.runtime.crop, ours.runtime.tile_size) == (6, 64, 75)


@compiled
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_float_tiles_give_the_same_logits(models: dict[InputKind, Path], tiles: np.ndarray, kind: InputKind) -> None:
    runtime = LibtorchRuntime(models[kind], threads=1)
    runtime.warmup(len(tiles), 75)
    runtime.runtime.warmup()  # with tiles of the size that the file takes
    assert relative(runtime.runtime.run(to_float(tiles)), runtime.run(tiles)) < 1e-5


@compiled
def test_strided_tiles(models: dict[InputKind, Path], tiles: np.ndarray) -> None:
    runtime = LibtorchRuntime(models["float"], threads=1)
    assert np.array_equal(runtime.run(tiles[::-1, :, ::-1]), runtime.run(tiles[::-1, :, ::-1].copy()))


@compiled
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_files_of_older_versions(checkpoint: Checkpoint, tiles: np.ndarray, tmp_path: Path, kind: InputKind) -> None:
    """They branch, and cut the centre out of larger tiles."""
    from histo_export.model.torchscript import _without_deprecation_warnings

    lowered = lower(checkpoint.net(), checkpoint.spec, kind)
    del lowered.stem.tile_size
    with _without_deprecation_warnings():
        torch.jit.save(torch.jit.script(lowered), tmp_path / "old.pt")
    ours, reference = (runtime(tmp_path / "old.pt", threads=1) for runtime in (LibtorchRuntime, TorchScriptRuntime))
    assert ours.side == reference.side == TileSide(64, fixed=False)
    padded = np.pad(tiles, ((0, 0), (10, 10), (20, 20), (0, 0)))
    for runtime in (ours, reference):
        assert np.array_equal(runtime.run(padded), runtime.run(tiles))
    assert relative(ours.runtime.run(to_float(tiles)), reference.run(tiles)) < 1e-5
    with pytest.raises(ValueError, match=r"63 x 75 pixels; .* 64 x 64"):
        ours.runtime.run(np.zeros((1, 63, 75, 3), np.uint8))


@compiled
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 75, 75, 3), "batch is 0"),
        ((1, 0, 75, 3), "height is 0"),
        ((1, 63, 75, 3), r"63 x 75 pixels; .* 75 x 75"),
        ((1, 75, 76, 3), r"75 x 76 pixels; .* 75 x 75"),
        ((1, 75, 75, 4), r"\(1, 75, 75, 4\); \(batch, height, width, 3\) is needed"),
        ((75, 75, 3), r"\(75, 75, 3\)"),
    ],
)
def test_wrong_shapes(models: dict[InputKind, Path], shape: tuple[int, ...], message: str) -> None:
    runtime = LibtorchRuntime(models["float"], threads=1)
    for call in (runtime.runtime.run, runtime.runtime.stages):  # which C++ programs use, too
        with pytest.raises(ValueError, match=message):
            call(np.zeros(shape, np.uint8))


@compiled
def test_wrong_types(models: dict[InputKind, Path]) -> None:
    runtime = LibtorchRuntime(models["float"], threads=1)
    with pytest.raises(TypeError, match=r"dtype int64; uint8 .* or float32"):
        runtime.runtime.run(np.zeros((1, 75, 75, 3), np.int64))
    with pytest.raises(ValueError, match="C-contiguous"):  # nothing is copied unasked
        runtime.runtime.run(np.zeros((1, 75, 150, 3), np.uint8)[:, :, ::2])
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\) is needed"):
        runtime.runtime.run(np.zeros((1, 75, 75, 3), np.float32))


@compiled
def test_files_that_are_not_a_model(models: dict[InputKind, Path], tmp_path: Path) -> None:
    content = models["float"].read_bytes()
    for name, broken in {"empty": b"", "garbage": b"not a model" * 100, "truncated": content[:100_000]}.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(HistoError, match=f"{name}.*is not readable TorchScript") as caught:
            LibtorchRuntime(tmp_path / name, threads=1)
        assert "\n" not in str(caught.value)
    with pytest.raises(HistoError, match=r"missing.*cannot be opened"):
        LibtorchRuntime(tmp_path / "missing", threads=1)
    with pytest.raises(HistoError, match="is a folder"):
        LibtorchRuntime(tmp_path, threads=1)


@compiled
def test_torchscript_that_is_not_ours(tmp_path: Path) -> None:
    from histo_export.model.torchscript import _without_deprecation_warnings

    with _without_deprecation_warnings():
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2).eval()), tmp_path / "linear.pt")
    with pytest.raises(HistoError, match="is not a network that histo export wrote"):
        LibtorchRuntime(tmp_path / "linear.pt", threads=1)


@compiled
def test_devices_that_are_absent(models: dict[InputKind, Path]) -> None:
    extension = libtorch.load_extension()
    with pytest.raises(RuntimeError, match=r'"cuda:99" is not available: libtorch sees .* here'):
        extension.TorchRuntime(models["float"], 1, "cuda:99")
    with pytest.raises(ValueError, match='"abacus"'):
        extension.TorchRuntime(models["float"], 1, "abacus")
    if not torch.cuda.is_available():
        with pytest.raises(HistoError, match=r"--device cuda: torch .* finds no GPU"):
            open_runtime("libtorch", models["float"], threads=1, device="cuda")


@compiled
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_the_gpu_agrees(models: dict[InputKind, Path], tiles: np.ndarray, kind: InputKind) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    cpu, gpu = (LibtorchRuntime(models[kind], threads=1, device=device) for device in ("cpu", "cuda"))
    for _ in range(3):
        assert relative(gpu.run(tiles), cpu.run(tiles)) < 2e-5
        assert relative(gpu.runtime.run(to_float(tiles)), cpu.run(tiles)) < 2e-5
    for name, expected in cpu.stages(tiles).items():
        assert relative(gpu.stages(tiles)[name], expected) < 2e-5
    assert gpu.executed == "cuda:0 fp32, frozen"


@compiled
def test_other_python_threads_advance(
    models: dict[InputKind, Path], tiles: np.ndarray, other_threads_advance: Advance
) -> None:
    runtime = LibtorchRuntime(models["float"], threads=1)
    many = np.repeat(tiles, 40, axis=0)
    assert other_threads_advance(lambda: runtime.run(many)), "the GIL was held while libtorch worked"


@compiled
def test_several_threads_may_call_at_once(models: dict[InputKind, Path], tiles: np.ndarray) -> None:
    """From the first run on, while libtorch's executor still compiles."""
    runtime = LibtorchRuntime(models["uint8"], threads=1)
    expected = TorchScriptRuntime(models["uint8"], threads=1).run(tiles)
    differences: list[float] = []

    def infer() -> None:
        for _ in range(4):
            differences.append(relative(runtime.run(tiles), expected))
            differences.append(relative(runtime.stages(tiles)["head"], expected))

    threads = [threading.Thread(target=infer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(differences) == 32
    assert max(differences) < 1e-6


@compiled
def test_the_second_start_compiles_nothing(models: dict[InputKind, Path]) -> None:
    library = Path(libtorch.load_extension().__file__)
    before = library.stat().st_mtime_ns
    code = f"""if True:
        from pathlib import Path
        from histo_export.runtimes import libtorch
        libtorch._compile = None  # a call would fail
        assert libtorch.load_extension().__file__ == {str(library)!r}
        libtorch.LibtorchRuntime(Path({str(models["float"])!r}), threads=1)
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert library.stat().st_mtime_ns == before
    assert libtorch.describe() == f"compiled: {library}"


@compiled
def test_threads_are_those_asked_for(models: dict[InputKind, Path], tiles: np.ndarray) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            LibtorchRuntime(models["float"], threads=threads).run(tiles[:1])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@needs_compiler
@needs_headers
def test_all_that_is_compiled_counts_in_the_key_and_is_in_the_wheel() -> None:
    _, command = libtorch._plan()
    rules = subprocess.run([*command, "-MM"], capture_output=True, text=True, check=True).stdout
    files = {Path(word).resolve() for word in rules.replace("\\\n", " ").split() if not word.endswith(".o:")}
    assert files == {REPOSITORY / name for name in libtorch.INPUTS}
    block = (REPOSITORY / "CMakeLists.txt").read_text().partition("(its INPUTS)")[2].partition("cmake_path")[0]
    assert sorted(word for word in block.replace(")", " ").split() if "/" in word) == sorted(libtorch.INPUTS)


@pytest.fixture
def counting_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the compiler: takes a second, writes a line per call, and makes an empty library."""
    script = tmp_path / "counting compiler"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "counting 1.0"; exit; fi\n'
        f"echo called >> '{tmp_path}/calls'\n"
        "sleep 1\n"
        'while [ "$1" != -o ]; do shift; done\n'
        ': > "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{script}'")
    monkeypatch.setenv("HISTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "calls"


@needs_headers
def test_two_processes_compile_once(counting_compiler: Path) -> None:
    code = "from histo_export.runtimes import libtorch as l; library, command = l._plan(); l._compile(library, command)"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert counting_compiler.read_text(encoding="utf-8") == "called\n"
    library, _ = libtorch._plan()
    assert library.exists()
    assert sorted(file.name for file in library.parent.iterdir()) == sorted([library.name, "compile.log", "lock"])


@needs_headers
def test_a_library_that_does_not_load_is_named(counting_compiler: Path) -> None:
    with pytest.raises(HistoError, match=r"was compiled but does not load .* Remove .*libtorch"):
        libtorch.load_extension.__wrapped__()


@pytest.mark.parametrize(
    ("name", "value", "compiler"), [("CXX", "nothing-here -O1", "nothing-here"), ("PATH", "", r"c\+\+")]
)
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, name: str, value: str, compiler: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(HistoError, match=f"needs a C..20 compiler, and {compiler} is not on the PATH.*apt install g"):
        libtorch.load_extension.__wrapped__()
    assert libtorch.describe().startswith("not available: needs a C++20 compiler")


@needs_headers
def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    script = tmp_path / "old-compiler"
    script.write_text('#!/bin/sh\necho first line >&2; echo "x.cpp:1: error: what is C++20?" >&2; exit 3\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("HISTO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        HistoError, match=r"could not be compiled by .* \(x\.cpp:1: error: what is C\+\+20\?\)"
    ) as caught:
        libtorch.load_extension.__wrapped__()
    [log] = (tmp_path / "cache").glob("libtorch/*/compile.log")
    assert str(log) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "first line" in log.read_text()
    assert capfd.readouterr() == ("", "")
    assert libtorch.describe().startswith("ready")  # the next start tries again


@needs_compiler
@needs_headers
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HISTO_CACHE", str(tmp_path / "file"))
    with pytest.raises(HistoError, match=r"could not be written .* HISTO_CACHE"):
        libtorch.load_extension.__wrapped__()


def test_doctor_tells_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from histo_export.doctor import examine

    monkeypatch.setenv("HISTO_CACHE", str(tmp_path))
    assert examine()["libtorch"]["C++ runtime"].startswith(("ready", "not available"))
    assert not list(tmp_path.iterdir())


@needs_compiler
@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no CMake")
def test_the_cmake_target(models: dict[InputKind, Path]) -> None:
    """histo::torch in a program without Python, against the libtorch inside Python's torch."""
    build = REPOSITORY / "build/with-torch"  # kept, so that the next run compiles only what changed
    options = {
        "CMAKE_PREFIX_PATH": torch.utils.cmake_prefix_path,
        "HISTO_WITH_TORCH": "ON",
        "HISTO_BUILD_TESTS": "ON",
    }
    settings = [*(f"-D{key}={value}" for key, value in options.items()), *package_build.OPTIONS]
    for command in (
        ["cmake", "-S", str(REPOSITORY), "-B", str(build), "-G", "Ninja", *settings],
        ["cmake", "--build", str(build), "--target", "histo_torch_test", "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    tiles = (np.arange(2 * 75 * 75 * 3) * 31 % 251).astype(np.uint8).reshape(2, 75, 75, 3)
    for kind, model in models.items():
        done = subprocess.run(
            [build / "cpp/torch/histo_torch_test", model], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        logits = np.array(done.stdout.split(), np.float32).reshape(2, -1)
        assert relative(logits, TorchScriptRuntime(model, threads=1).run(tiles)) < 1e-6, kind
