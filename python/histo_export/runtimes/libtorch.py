"""TorchScript in C++: `histo::TorchRuntime`, compiled at first use against the torch that is installed.

It can't be part of the wheel: libtorch's C++ interface changes with every release, so a binary fits one release only.
The compiler is called directly and not through `torch.utils.cpp_extension`, which needs ninja at every start and writes
to stdout and stderr; to start, a compiled runtime only asks the compiler for its `--version`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

import histo_export
from histo_export.errors import HistoError, not_written
from histo_export.files import atomic_file, cache_folder
from histo_export.machine import why_no_cuda
from histo_export.runtimes.base import Names, Runtime, Tiles, TileSide
from histo_export.runtimes.torch_base import torch_isa
from histo_export.spec import Precision

MODULE = "_histo_torch"
UNITS = ("cpp/torch/torch_runtime.cpp", "cpp/bindings/torch.cpp")
INCLUDES = ("cpp/torch/include", "cpp/include", "cpp/src")
INPUTS = (
    *UNITS,
    *(f"cpp/bindings/{name}.h" for name in ("arguments", "arrays", "errors", "gil", "initialised")),
    "cpp/torch/include/histo/torch_runtime.h",
    *(f"cpp/include/histo/{name}.h" for name in ("api", "cpu", "engine", "error", "image_view", "model", "names")),
    "cpp/src/checks.h",
)
"""All that the compiler reads of ours; CMakeLists.txt puts the same files into the wheel."""

THING = "The libtorch runtime"


class LibtorchRuntime(Runtime):
    """A frozen TorchScript module run by libtorch, without the GIL."""

    names: ClassVar[Names] = {"fp32": "libtorch (C++)"}

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        extension = load_extension()
        try:
            self.runtime: Any = extension.TorchRuntime(file, threads, device)
        except (RuntimeError, ValueError, OSError) as error:
            raise HistoError(file, f"could not be loaded by libtorch ({error})", "Export again") from error

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        if device == "cuda" and (reason := why_no_cuda()):
            return reason
        try:
            compiled_library()
        except HistoError as error:
            return f"{error.cause}. {error.next_step}"
        return None

    @property
    def side(self) -> TileSide:
        fixed = self.runtime.tile_size  # 0 in files of older versions
        return TileSide(fixed, fixed=True) if fixed else TileSide(self.runtime.crop, fixed=False)

    @property
    def executed(self) -> str:
        return str(self.runtime.executed)

    @property
    def isa(self) -> str:
        return torch_isa()

    def warmup(self, batch: int, side: int) -> None:
        self.runtime.warmup(batch, side)  # several runs: libtorch's executor compiles in the first ones

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self.runtime.run(np.ascontiguousarray(tiles))
        return logits

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        stages: dict[str, npt.NDArray[np.float32]] = self.runtime.stages(np.ascontiguousarray(tiles))
        return stages


def describe() -> str:
    """For histo doctor: whether the runtime is compiled, can be compiled, or why not. Compiles nothing."""
    try:
        library, _ = _plan()
    except HistoError as error:
        return f"not available: {error.cause}"
    if library.exists():
        return f"compiled: {library}"
    return f"ready: {' '.join(_compiler())} will compile it at first use, for about half a minute"


def compiled_library() -> Path:
    """The module's file, from the cache or compiled now.

    Raises:
        HistoError: no compiler was found, or it failed; the message names the file with its output.
    """
    library, command = _plan()
    if not library.exists():
        _compile(library, command)
    return library


@functools.cache
def load_extension() -> Any:
    """The compiled module; HistoError as in `compiled_library`, or where the module can't be loaded."""
    library = compiled_library()
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(library))
    spec = importlib.util.spec_from_file_location(MODULE, library, loader=loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise HistoError(THING, f"was compiled but does not load ({error})", f"Remove {library.parent}") from error
    return module


def _source_root() -> Path:
    """The folder that `UNITS` are relative to: the repository, or else what the wheel brought.

    The repository comes first because an editable install has both, and its copy ages.
    """
    packages = [Path(path) for path in histo_export.__path__]
    for root in (*(path.parents[1] for path in packages), *(path / "torch_runtime_src" for path in packages)):
        if (root / UNITS[0]).is_file():
            return root
    raise HistoError(THING, "is not part of this installation: its C++ sources are missing", "Install the wheel again")


def _compiler() -> list[str]:
    """`$CXX`, or c++, and whatever arguments the variable holds."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(command[0]) is None:
        raise HistoError(
            THING,
            f"needs a C++20 compiler, and {command[0]} is not on the PATH",
            "Install one (Debian, Ubuntu: apt install g++) or name it in CXX",
        )
    return command


def _plan() -> tuple[Path, list[str]]:
    """The path of the module, by a digest of all that it depends on, and the command that compiles it (less `-o`)."""
    compiler = _compiler()
    python_headers = Path(sysconfig.get_path("include"))
    if not (python_headers / "Python.h").is_file():
        raise HistoError(
            THING,
            f"needs Python's headers, and {python_headers / 'Python.h'} is missing",
            "Install them (Debian, Ubuntu: apt install python3-dev)",
        )
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    root, torch_root = _source_root(), Path(torch.__file__).parent
    command = [*compiler, "-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    command.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    command += [f"-I{root / path}" for path in INCLUDES]
    command += [f"-isystem{path}" for path in (torch_root / "include", python_headers)]
    command += [str(root / unit) for unit in UNITS]
    # For the compiler. When the module is loaded, `import torch` has loaded these libraries already.
    command += [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]

    digest = hashlib.sha256()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for part in (torch.__version__, suffix, version.stdout, *command):
        digest.update(f"{part}\0".encode())
    for path in INPUTS:
        digest.update((root / path).read_bytes() + b"\0")
    return cache_folder() / "libtorch" / digest.hexdigest()[:16] / f"{MODULE}{suffix}", command


def _compile(library: Path, command: list[str]) -> None:
    """Compiles once however many processes ask; the library appears complete or not at all."""
    log = library.with_name("compile.log")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_name("lock")):  # the system releases it if this process is killed
            if library.exists():
                return
            with atomic_file(library) as partial, log.open("w", encoding="utf-8") as output:
                output.write(shlex.join([*command, "-o", str(partial)]) + "\n")
                output.flush()
                subprocess.run(
                    [*command, "-o", str(partial)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"LC_ALL": "C"},
                    check=True,
                )
                return
    except subprocess.CalledProcessError as error:
        status = error.returncode
    except OSError as error:
        raise not_written(library, error, "choose another folder: HISTO_CACHE") from error
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    reason = next((line for line in lines[1:] if "error" in line.lower()), f"exit status {status}")
    raise HistoError(
        THING,
        f"could not be compiled by {command[0]} ({reason.strip()[:200]}); its output is in {log}",
        "It needs a compiler that knows C++20, such as GCC 12 or Clang 16; name another in CXX",
    )
