"""Which machine this is and what is installed on it, as far as timings and results depend on it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
from collections.abc import Iterable
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

import histo_export
from histo_export import _core
from histo_export.errors import UsageError
from histo_export.extras import install, installed
from histo_export.system import NVIDIA_DRIVER, cpu_caches, cpu_name, installed_memory

PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "torch")
"""Those that compute when a model runs."""


class Machine(BaseModel):
    """Machines with equal fields are taken for the same one; no field names the owner.

    Attributes:
        cpu: model name.
        architecture: e.g. "x86_64".
        cpus: that this process may use, by affinity and cgroup.
        features: instruction sets that matter here.
        caches: e.g. "L2 1024K".
        memory_gb: installed, in 10⁹ bytes, rounded.
        system: kernel's name and libc.
        gpu: model name, memory and CUDA version; None where no GPU was used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    cpu: str
    architecture: str
    cpus: int
    features: list[str]
    caches: list[str]
    memory_gb: int
    system: str
    gpu: str | None = None

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.cpus} CPUs usable, {self.memory_gb} GB{gpu}"

    def differences(self, other: Machine) -> list[str]:
        """The fields that differ, for a person to read."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return [f"{name} {mine} here, {theirs} there" for name, mine, theirs in pairs if mine != theirs]


def this_machine(device: str = "cpu") -> Machine:
    """The machine that this process runs on; `gpu` is filled in where `device` is "cuda".

    Raises:
        UsageError: there is no such device.
    """
    require_device(device)
    features = [name for name, usable in _core.cpu_info().items() if usable]
    return Machine(
        cpu=cpu_name(),
        architecture=platform.machine(),
        cpus=_core.usable_cpus(),
        features=features,
        caches=list(cpu_caches()),
        memory_gb=round(installed_memory() / 1e9),
        system=f"{platform.system()}, {' '.join(platform.libc_ver())}",
        gpu=_gpu() if device == "cuda" else None,
    )


def versions() -> dict[str, str]:
    """Package → version of Python, of this package and of `PACKAGES`."""
    own = {"python": platform.python_version(), "histo-export": histo_export.__version__}
    return own | package_versions(PACKAGES)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Package → version, in the order of `names`; those that are not installed are left out."""
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def why_no_cuda() -> str | None:
    """Why PyTorch, and with it libtorch, can use no GPU here; None where it can."""
    if not installed("torch"):
        return f"torch is not installed ({install('train')})"
    import torch

    if torch.cuda.is_available():
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    return f"torch {torch.__version__} ({built}) finds no GPU"


def why_no_driver() -> str | None:
    """Why no program can use an NVIDIA GPU here, asked of the driver alone; None where one can."""
    try:
        driver = ctypes.CDLL(NVIDIA_DRIVER)
    except OSError:
        return f"this machine has no NVIDIA driver ({NVIDIA_DRIVER})"
    status = driver.cuInit(0)
    return f"the NVIDIA driver finds no GPU (cuInit: error {status})" if status else None


def require_device(device: str) -> None:
    """UsageError if `device` is "cuda" and there is none."""
    if device == "cuda" and (reason := why_no_cuda()):
        raise UsageError("--device cuda", reason, "Use --device cpu; histo doctor tells more")


def _gpu() -> str:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
