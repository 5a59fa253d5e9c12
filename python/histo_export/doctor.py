"""What `histo doctor` reports: versions, instruction sets, threads, and which providers and devices really run.

Each ONNX Runtime provider is tried in a process of its own (`python -m histo_export.doctor PROVIDER`): being listed
does not mean that it runs, and a broken GPU library can end its process.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histo_export
from histo_export.bundle_files import NATIVE
from histo_export.errors import HistoError, UsageError
from histo_export.extras import EXTRAS, ONNXRUNTIMES, MissingExtraError, install, installed, lacking, onnxruntime_there
from histo_export.files import cache_folder
from histo_export.machine import Machine, package_versions, this_machine, why_no_cuda, why_no_driver
from histo_export.runtimes import all_variants, runtime_class
from histo_export.runtimes.registry import RUNTIMES
from histo_export.spec import AskedPrecision, ModelSpec, Precision
from histo_export.system import cpu_name, mapped_files

if TYPE_CHECKING:
    from histo_export.bench.stages import StageTable

OWN = ("filelock", "numpy", "pillow", "psutil", "pydantic", "rich", "safetensors", "typer")
"""The packages that histo-export always installs; psutil on other systems than Linux."""
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CXX", "TORCH_HOME")
"""Variables that matter besides those that begin with HISTO_; see docs/environment.md."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
OPENMP_RUNTIMES = ("libgomp", "libiomp5", "libomp")


def examine() -> dict[str, Any]:
    """All facts as plain values; `problems` lists what is wrong, each with what to do about it."""
    from histo_export import _core

    providers = _providers()  # before _openmp_runtimes: what it imports has its own
    facts: dict[str, Any] = {
        "versions": {"histo-export": histo_export.__version__, "python": platform.python_version()}
        | package_versions(OWN),
        "core": _core.build_config(),
        "cpu": {
            "model": cpu_name(),
            "isa": [name for name, usable in _core.cpu_info().items() if usable],
            "usable_cpus": _core.usable_cpus(),
        },
        "threads": _torch_threads() | {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "native_engine": _native_engine(),
        "native_precisions": _native_precisions(),
        "runtimes": _runtimes(),
        "extras": {extra: _extra(extra) for extra in EXTRAS},
        "extra_packages": _extra_packages(),
        "onnxruntime_providers": providers,
        "libtorch": {"C++ runtime": _libtorch()},
        "openmp_runtimes": _openmp_runtimes(),
        "gpu": _gpu(),
        "disk": _disk(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("HISTO_") or name in VARIABLES
        },
    }
    facts["problems"] = _problems(facts)
    return facts


@dataclass(frozen=True)
class Speed:
    """The native engine's speed on this machine.

    Attributes:
        version: of this package.
        machine: what it is.
        busy: a sentence where other programs use it; else "".
        tables: the stages, for single tiles and for batches.
        remark: on the bundle's precision; "" for none.
    """

    version: str
    machine: Machine
    busy: str
    tables: list[StageTable]
    remark: str

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        tables = [table.model_dump() for table in self.tables]
        others = {"version": self.version, "machine": self.machine.model_dump(), "busy": self.busy}
        return others | {"stages": tables, "precision_remark": self.remark}


SPEED_BATCHES = (1, 32)
MADE_SPEC = ModelSpec(2, ("a", "b", "c", "d", "e", "f", "g", "h"))
"""The network that is timed where no bundle is named: only its shape counts."""


def measure_speed(bundle: Path | None, precision: AskedPrecision | None = None, threads: int = 0) -> Speed:
    """Times the native engine, in about ten seconds.

    Args:
        bundle: None for a network with random weights.
        precision: None for the one that the bundle is made for, and fp32 without a bundle; "auto" needs a bundle.
        threads: 0 means all usable CPUs.

    Raises:
        UsageError: `bundle` is not a bundle, or the precision is unavailable here.
        HistoError: the bundle is damaged or has no file for the native engine.
    """
    from histo_export import _core
    from histo_export.bench.load import LoadMeter
    from histo_export.bench.made_model import made_model
    from histo_export.bench.stages import measure_limits, measure_stages
    from histo_export.export.bundle import open_bundle
    from histo_export.export.precision_choice import fastest, remark
    from histo_export.runtimes.native import NativeRuntime

    threads = threads or _core.usable_cpus()
    busy = LoadMeter().warning() or ""
    with tempfile.TemporaryDirectory(prefix="histo-doctor-") as folder:
        if bundle is None:
            if precision == "auto":
                raise UsageError("--precision auto", "is what a bundle allows, and none is named", "Name a bundle")
            file, label, told = Path(folder) / NATIVE, "a network with random weights, pool 2", ""
            file.write_bytes(made_model(MADE_SPEC))
            runs: Precision = precision or "fp32"
        else:
            opened = open_bundle(bundle)
            if NATIVE not in opened.models:
                raise HistoError(bundle, f"has no {NATIVE}, the native engine's file", "Export with --formats native")
            file, label = bundle / NATIVE, bundle.resolve().name
            wanted = precision or opened.config.histo.precision
            runs = fastest(opened.config).precision if wanted == "auto" else wanted
            told = remark(opened.config, precision, runs)
        runtime = NativeRuntime(file, threads=threads, precision=runs)
        tables = measure_stages(runtime, label, measure_limits(threads), SPEED_BATCHES)
        del runtime  # Windows removes no file that is open
    return Speed(histo_export.__version__, this_machine(), busy, tables, told)


def _providers() -> dict[str, str]:
    """ONNX Runtime's providers, each tried; none where it is not installed."""
    if not installed("onnxruntime"):
        return {}
    import onnxruntime

    return {name: _try_provider(name) for name in onnxruntime.get_available_providers()}


def _torch_threads() -> dict[str, Any]:
    if not installed("torch"):
        return {}
    import torch

    if installed("torchvision"):
        import torchvision  # noqa: F401 (loads its libraries, so that their OpenMP runtime shows)
    return {"torch": torch.get_num_threads()}


def _libtorch() -> str:
    if not installed("torch"):
        return f"not available: torch is not installed ({install('train')})"
    from histo_export.runtimes import libtorch

    return libtorch.describe()


def _openmp_runtimes() -> list[str]:
    """OpenMP libraries mapped into this process, which has imported torch, torchvision and ONNX Runtime, if any."""
    names = {Path(file).name for file in mapped_files()}
    return sorted(name for name in names if name.startswith(OPENMP_RUNTIMES))


def _native_engine() -> dict[str, Any]:
    from histo_export import _core

    try:
        return {"isa": _core.default_isa(), "usable": _core.usable_isas()}
    except (ValueError, RuntimeError) as error:  # $HISTO_ISA
        return {"isa": None, "why": str(error)}


def _native_precisions() -> dict[str, str]:
    """Precision → "runs", or why it is unavailable."""
    from histo_export import _core

    try:
        support = _core.precision_support()
    except (ValueError, RuntimeError) as error:  # $HISTO_ISA
        return dict.fromkeys(_core.PRECISIONS, str(error))
    return {precision: "runs" if found.isa else found.reason for precision, found in support.items()}


def _runtimes() -> dict[str, str]:
    """Runtime → the ids in which users name it, by precision and device, or why it is unavailable.

    Whether one really runs depends on the model too: `histo verify` tries that.
    """
    no_cuda = why_no_cuda()
    found = {}
    for name, entry in RUNTIMES.items():
        ids = ", ".join(str(variant) for variant in all_variants() if variant.runtime == name)
        try:
            runtime_class(name)
        except MissingExtraError as error:
            found[name] = f"{ids}: unavailable, {error.cause}"
            continue
        needs_gpu = no_cuda is not None and tuple(entry.timed_on) == ("cuda",)
        found[name] = f"{ids}: unavailable, {no_cuda}" if needs_gpu else ids
    return found


def _extra(extra: str) -> str:
    """Whether an extra is installed, or how to install it."""
    missing = lacking(extra)
    there = onnxruntime_there()
    if extra in ONNXRUNTIMES and there not in (None, extra):
        return f"not needed: {EXTRAS[there]['onnxruntime']} of {there} takes its place"
    if not missing:
        return "installed"
    return f"lacks {', '.join(missing)}: {install(extra)}"


def _extra_packages() -> dict[str, str]:
    """Package of an extra → its version, or why it does not work.

    Each is tried in a process of its own, but those of `train`, of which torch takes seconds: `_runtimes` imports them.
    """
    modules = {package: module for extra in EXTRAS.values() for module, package in extra.items()}
    found = package_versions(sorted(modules))
    tried = [package for package in found if modules[package] not in EXTRAS["train"]]
    with ThreadPoolExecutor() as pool:
        problems = pool.map(_import_problem, (modules[package] for package in tried))
        for package, problem in zip(tried, problems, strict=True):
            found[package] += f", does not load: {problem}" if problem else ""
    return found


def _import_problem(module: str) -> str:
    """Why a module cannot be imported; "" where it can."""
    if not installed(module):
        return f"there is no module {module}"
    return _last_words([sys.executable, "-c", f"import {module}"])


def _disk() -> dict[str, str]:
    """The folders that are written to without being named, and the space that is free there."""
    folders = {"here": Path.cwd()}
    if installed("torch"):
        import torch

        folders["torch's cache"] = Path(torch.hub.get_dir())
    try:
        folders["cache"] = cache_folder()
        unknown = {}
    except HistoError as error:  # a user without a home
        unknown = {"cache": str(error)}
    return {name: f"{folder}: {_space(folder)}" for name, folder in folders.items()} | unknown


def _space(folder: Path) -> str:
    """How much may be written to a folder that may not exist yet."""
    try:
        parent = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(parent).free / 1e9
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    writable = "" if os.access(parent, os.W_OK | os.X_OK) else ", but it cannot be written to"
    return f"{free:.1f} GB free{writable}"


def _gpu() -> dict[str, Any]:
    if reason := why_no_cuda():
        return {"usable": False, "why": reason}
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"usable": True, "devices": names, "cuda": torch.version.cuda}


def _try_provider(name: str) -> str:
    """ "runs", or why not."""
    if not installed("onnx"):
        return f"not tried: onnx is not installed ({install('onnx')})"
    if name in GPU_PROVIDERS and why_no_driver():
        return "not needed: no GPU here"
    problem = _last_words([sys.executable, "-m", "histo_export.doctor", name])
    return f"does not run: {problem}" if problem else "runs"


def _last_words(command: list[str]) -> str:
    """The last line that a process printed before it failed; "" where it succeeded."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]


def _run_provider(name: str) -> None:
    """Runs a one-node model on provider `name` and fails unless that provider executed it."""
    import numpy as np
    import onnx
    import onnxruntime

    def tensor(label: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(label, onnx.TensorProto.FLOAT, [4])

    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", [tensor("x")], [tensor("y")])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    if name != "CPUExecutionProvider":
        onnxruntime.preload_dlls()  # the CUDA libraries that came with PyTorch
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[name])
    if session.get_providers()[0] != name:
        sys.exit("its libraries or its device are missing; ONNX Runtime would fall back to the CPU")
    result = session.run(["y"], {"x": np.array([-1, 0, 1, 2], np.float32)})[0]
    if not np.array_equal(result, [0, 0, 1, 2]):
        sys.exit(f"it computes {result.tolist()} for ReLU([-1, 0, 1, 2])")


def _problems(facts: dict[str, Any]) -> list[str]:
    problems = []
    packages = facts["extra_packages"]
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install('onnx')}, or onnx-cpu without a GPU"
        )
    if facts["onnxruntime_providers"].get("CPUExecutionProvider", "").startswith("does not run"):
        problems.append("ONNX Runtime does not run on this CPU: reinstall it")
    if why := facts["native_engine"].get("why"):
        problems.append(f"the native engine cannot start: {why}")
    openmp = {name.split(".")[0].split("-")[0] for name in facts["openmp_runtimes"]}
    if len(openmp) > 1:
        problems.append(
            f"several OpenMP runtimes are loaded ({', '.join(sorted(openmp))}): thread pools may oversubscribe the "
            "CPUs; use one build of torch and NumPy"
        )
    if facts["threads"].get("torch", 0) > facts["cpu"]["usable_cpus"]:
        problems.append(
            f"torch uses {facts['threads']['torch']} threads where {facts['cpu']['usable_cpus']} CPUs may be used: "
            f"set OMP_NUM_THREADS={facts['cpu']['usable_cpus']}"
        )
    return problems


if __name__ == "__main__":
    _run_provider(sys.argv[1])
