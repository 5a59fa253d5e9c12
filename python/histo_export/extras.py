"""The packages that only some commands need, and the extras of histo-export that install them.

The package itself depends on what predicting tiles and verifying a bundle need, which is small; PyTorch alone is
gigabytes. Whoever needs more calls `needs` before any work, so that users get one line with the command to type. No
other module knows which extra brings a package.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import metadata
from importlib.util import find_spec

from histo_export.errors import UsageError

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "train": {
        "torch": "torch",
        "torchvision": "torchvision",
        "pytorch_lightning": "pytorch-lightning",
        "tensorboard": "tensorboard",
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "matplotlib": "matplotlib",
        "imagehash": "ImageHash",
        "sklearn": "scikit-learn",
        "scipy": "scipy",
    },
    "onnx": {"onnxruntime": "onnxruntime-gpu", "onnx": "onnx"},
    "onnx-cpu": {"onnxruntime": "onnxruntime", "onnx": "onnx"},
    "openvino": {"openvino": "openvino", "onnx": "onnx"},
    "slides": {
        "openslide": "openslide-python",
        "pydicom": "pydicom",
        "scipy": "scipy",
        "simplejpeg": "simplejpeg",
        "tifffile": "tifffile",
        "matplotlib": "matplotlib",
    },
    "features": {"h5py": "h5py"},
    "hub": {"huggingface_hub": "huggingface-hub"},
    "anndata": {"anndata": "anndata", "pandas": "pandas", "zarr": "zarr"},
    "ray": {"ray": "ray"},
    "serve": {
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "python_multipart": "python-multipart",
        "prometheus_client": "prometheus-client",
    },
    "ncnn": {"ncnn": "ncnn", "pnnx": "pnnx"},
    "litert": {"ai_edge_litert": "ai-edge-litert"},
    "coreml": {"coremltools": "coremltools"},
    "report": {"matplotlib": "matplotlib", "pyarrow": "pyarrow", "sklearn": "scikit-learn"},
}
"""Extra → module → the package that holds it. `pyproject.toml` has the same packages, with their versions."""
ONNXRUNTIMES = ("onnx", "onnx-cpu")
"""Extras whose packages of ONNX Runtime write the same files: only one may be installed."""


class MissingExtraError(UsageError):
    """Something needs packages that are not installed."""


def lacking(extra: str) -> list[str]:
    """The packages of an extra that are not installed. Nothing is imported."""
    return [package for module, package in EXTRAS[extra].items() if not installed(module)]


def installed(module: str) -> bool:
    """Whether a module of `EXTRAS` can be found; whether it also loads is told by `histo doctor`."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a finder that refuses it; a module without a specification
        return False


def install(*extras: str) -> str:
    """The command that installs extras; with the package of ONNX Runtime that is there already, if one is."""
    there = onnxruntime_there()
    names = [there if there and extra in ONNXRUNTIMES else extra for extra in extras]
    return f'pip install "histo-export[{",".join(names)}]"'


def onnxruntime_there() -> str | None:
    """Which of `ONNXRUNTIMES` has the package of ONNX Runtime that is installed; None where none is."""
    for extra in ONNXRUNTIMES:
        try:
            metadata.version(EXTRAS[extra]["onnxruntime"])
        except (metadata.PackageNotFoundError, KeyError):
            continue
        return extra
    return None


def needs(thing: object, *extras: str, modules: Collection[str] = ()) -> None:
    """Checks that what `thing` needs is installed.

    Args:
        thing: what needs it, as the user knows it.
        extras: keys of `EXTRAS`.
        modules: of these extras, the modules that are needed; default: all.

    Raises:
        MissingExtraError: something is missing; the next step is the command that installs it.
    """
    missing: dict[str, list[str]] = {}
    for extra in extras:
        wanted = [package for module, package in EXTRAS[extra].items() if module in (modules or EXTRAS[extra])]
        if names := [package for package in lacking(extra) if package in wanted]:
            missing[extra] = names
    if packages := list(dict.fromkeys(package for names in missing.values() for package in names)):
        verb = "is" if len(packages) == 1 else "are"
        step = f"Run {install(*missing)} first"
        if "onnxruntime-gpu" in packages:  # the small package has the module, too
            packages[packages.index("onnxruntime-gpu")] = "onnxruntime"
            small = install(*("onnx-cpu" if extra == "onnx" else extra for extra in missing))
            step += f" (without a GPU: {small})"
        raise MissingExtraError(thing, f"needs {', '.join(packages)}, which {verb} not installed", step)


def extra_with(module: str) -> str | None:
    """The first extra that has a module, for an import that nobody foresaw; None where none has."""
    return next((extra for extra, modules in EXTRAS.items() if module.partition(".")[0] in modules), None)
