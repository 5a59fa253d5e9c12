"""Which machine this is, as far as timings depend on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import histo_export
from histo_export import _core

PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "torch")


class Machine(BaseModel):
    """Machines with equal fields are taken for the same one; nothing in here names its owner.

    Attributes:
        cpu: model name.
        architecture: e.g. "x86_64".
        cpus: that this process may use, by affinity and cgroup.
        features: instruction sets that matter here.
        caches: e.g. "L2 1024K".
        memory_gb: installed, rounded.
        system: kernel's name and libc.
        gpu: model name and memory; None where none was used.
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
        """What differs, for a person to read."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return [f"{name} {mine} here, {theirs} there" for name, mine, theirs in pairs if mine != theirs]


def this_machine(device: str = "cpu") -> Machine:
    """The machine that this process runs on."""
    features = [name for name, usable in _core.cpu_info().items() if usable]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Machine(
        cpu=_cpu_name(),
        architecture=platform.machine(),
        cpus=_core.usable_cpus(),
        features=features,
        caches=list(_caches()),
        memory_gb=round(memory),
        system=f"{platform.system()}, {' '.join(platform.libc_ver())}",
        gpu=_gpu() if device == "cuda" else None,
    )


def versions() -> dict[str, str]:
    """Of Python and of every package that computes."""
    found = {"python": platform.python_version(), "histo-export": histo_export.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown CPU"


def _caches() -> Iterable[str]:
    """Level and size of the caches of the first CPU, where the kernel tells."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            yield f"L{level} {size}"


def _gpu() -> str:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
