"""Builds wheels for Linux that run where glibc is 2.28 or newer, for x86-64 and for Arm, on one x86-64 machine.

No container is needed: packaging/manylinux.cmake compiles with Debian's GCC and links with Zig. The wheels
are built from the sdist, so that it is known to be complete. `auditwheel` then proves the tag and writes it into the
wheel's name.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GLIBC = "2_28"
ARCHITECTURES = ("x86_64", "aarch64")


def zig() -> Path:
    """The program in the package ziglang."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        sys.exit("ziglang is not installed. Install it: pip install ziglang")
    return Path(spec.origin).parent / "zig"


def version(python: str) -> str:
    """ "311" of CPython 3.11."""
    code = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    name, major, minor = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    if name != "cpython":
        sys.exit(f"{python} is {name}, and wheels are built for CPython. Name another one: --python")
    return major + minor


def unpacked_sdist(out: Path) -> Path:
    """Writes the sdist into `out`; returns a folder with its contents, always the same for the compiler's cache."""
    subprocess.run(["uv", "build", "--quiet", "--sdist", "--out-dir", str(out), str(ROOT)], check=True)
    [sdist] = out.glob("*.tar.gz")
    folder = ROOT / "build/sdist"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [tree] = folder.iterdir()
    return tree


def build(tree: Path, python: str, architecture: str, out: Path) -> Path:
    """A wheel in `out` with the tag linux_ARCHITECTURE, of the sources in `tree`."""
    compiler, package = f"{architecture}-linux-gnu-g++", f"g++-{architecture.replace('_', '-')}-linux-gnu"
    if shutil.which(compiler) is None:
        sys.exit(f"{compiler} is not installed. Debian and Ubuntu: apt install {package}")
    # The headers are those of the interpreter here. CPython's are the same for both CPUs: 64 bits, little-endian.
    environment = {
        "CMAKE_TOOLCHAIN_FILE": str(tree / "packaging/manylinux.cmake"),
        "HISTO_WHEEL_ARCH": architecture,
        "HISTO_ZIG": str(zig()),
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version(python)}-{architecture}-linux-gnu.so",
        "_PYTHON_HOST_PLATFORM": f"linux-{architecture}",
    }
    command = ["uv", "build", "--wheel", "--python", python, "--out-dir", str(out), str(tree)]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    [wheel] = out.glob(f"*-cp{version(python)}-*-linux_{architecture}.whl")
    return wheel


def repair(wheel: Path, architecture: str, out: Path) -> Path:
    """The wheel in `out`, with the tag that auditwheel has proved. Nothing may have been copied into it."""
    command = ["auditwheel", "repair", "--plat", "auto", "--only-plat", "-w", str(out), str(wheel)]
    subprocess.run(command, check=True)
    stem = "-".join(wheel.name.split("-")[:4])
    [repaired] = out.glob(f"{stem}-manylinux*_{architecture}.whl")
    if int(repaired.name.split("_")[3]) > int(GLIBC.split("_")[1]):
        sys.exit(f"{repaired.name} needs a newer glibc than {GLIBC.replace('_', '.')}")
    with zipfile.ZipFile(repaired) as archive:
        copied = [name for name in archive.namelist() if ".libs/" in name]
    if copied:
        sys.exit(f"{repaired.name} has copies of libraries of this system: {', '.join(copied)}")
    return repaired


def main() -> None:
    """Writes the wheels into a folder and prints their names."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--python", action="append", help="an interpreter; may be given several times (default: this)")
    options.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: both")
    options.add_argument("--out", type=Path, default=ROOT / "dist")
    chosen = options.parse_args()
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit("These wheels are cross-built on Linux x86-64. Elsewhere: make wheels-here")
    chosen.out.mkdir(parents=True, exist_ok=True)
    for old in chosen.out.glob("*.tar.gz"):
        old.unlink()
    tree = unpacked_sdist(chosen.out)
    for architecture in chosen.arch or ARCHITECTURES:
        for python in chosen.python or [sys.executable]:
            with tempfile.TemporaryDirectory() as folder:
                print(repair(build(tree, python, architecture, Path(folder)), architecture, chosen.out))


if __name__ == "__main__":
    main()
