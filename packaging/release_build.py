"""Builds sdist and wheel twice, and checks that they have the same bytes and the licences of all that is in them.

python packaging/release_build.py OUT    # of `make release-check`; OUT gets what was built first

The second build is in another folder, with another number of jobs and without the compiler's cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTICES = ROOT / "THIRD_PARTY.txt"
SYSTEM_LIBRARIES = (
    "ld-linux",
    "libc.so",
    "libm.so",
    "libpthread.so",
    "libdl.so",
    "libgcc_s.so",
    "libstdc++.so",
    "libhisto",
)
"""Beginnings of the names of what our libraries may need; anything else would have to be bundled, with its licence."""
SECOND = {"CCACHE_DISABLE": "1", "CMAKE_BUILD_PARALLEL_LEVEL": "1"}


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; it ends the program where it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def build(folder: Path, out: Path, **environment: str) -> list[Path]:
    """The sdist of this tree, and the wheel of the unpacked sdist, which lies in `folder`."""
    run("uv", "build", "--sdist", "--out-dir", out, ROOT, **environment)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    run("uv", "build", "--wheel", "--python", sys.executable, "--out-dir", out, sources, **environment)
    (wheel,) = out.glob("*.whl")
    return [sdist, wheel]


def members(path: Path) -> dict[str, str]:
    """Name → hash of the content, of each file in a wheel or an sdist."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers() if member.isfile()}
        return {name: hashlib.sha256(file.read()).hexdigest() for name, file in files.items() if file}


def differences(first: Path, second: Path) -> Iterator[str]:
    """A line for each way in which two builds differ; none where they have the same bytes."""
    if first.name != second.name:
        yield f"{first.name} and {second.name} are two names"
    if first.read_bytes() == second.read_bytes():
        return
    ours, theirs = members(first), members(second)
    changed = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    for name in changed or ["times, rights or order of its members"]:
        yield f"{first.name}: two builds differ in {name}"


def licence_problems(wheel: Path, notices: str, bundled: dict[str, str]) -> Iterator[str]:
    """A line for each licence that a wheel lacks, and for each library that it needs and does not name.

    Args:
        wheel: a path.
        notices: the text of `NOTICES`.
        bundled: name of each project whose code is compiled into the wheel → the text of its licence.
    """
    for project, licence in bundled.items():
        if " ".join(licence.split()) not in " ".join(notices.split()):
            yield f"{NOTICES.name} lacks the licence of {project}"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for file in ("LICENSE", NOTICES.name):
            if not any(name.endswith(f".dist-info/licenses/{file}") for name in names):
                yield f"{wheel.name} lacks {file}"
        if foreign := [name for name in names if name.split("/")[0] not in ("histo_export", _info(wheel))]:
            yield f"{wheel.name} has {', '.join(foreign[:3])}, which is not the project's"
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                if ".so" in name:
                    for library in needed(Path(archive.extract(name, folder))):
                        if not library.startswith(SYSTEM_LIBRARIES):
                            yield f"{name} needs {library}, which is not a library of the system"


def needed(library: Path) -> list[str]:
    """The libraries that an ELF file names; `readelf` belongs to the compiler."""
    return [line.split("[")[1].rstrip("]") for line in run("readelf", "-d", library).splitlines() if "(NEEDED)" in line]


def _info(wheel: Path) -> str:
    name, version, *_ = wheel.name.split("-")
    return f"{name}-{version}.dist-info"


def pybind11_licence() -> str:
    """The licence of the one library whose code is compiled into the module, as its newest release states it."""
    with tempfile.TemporaryDirectory() as folder:
        run("uv", "pip", "install", "--quiet", "--target", folder, "pybind11")
        (licence,) = Path(folder).glob("pybind11-*.dist-info/**/LICENSE")
        return licence.read_text(encoding="utf-8")


def main() -> None:
    """Ends with exit code 1 and a line for each problem."""
    if len(sys.argv) != 2:
        sys.exit("The folder for what is built is missing: python packaging/release_build.py dist")
    out = Path(sys.argv[1]).absolute()
    when = run("git", "log", "-1", "--format=%ct")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory(prefix="another-") as second:
        built = build(Path(first), out, SOURCE_DATE_EPOCH=when)
        again = build(Path(second) / "deeper", Path(second) / "out", SOURCE_DATE_EPOCH=when, **SECOND)
        problems = [line for pair in zip(built, again, strict=True) for line in differences(*pair)]
    notices = NOTICES.read_text(encoding="utf-8")
    problems += licence_problems(built[1], notices, {"pybind11": pybind11_licence()})
    if problems:
        sys.exit("\n".join(problems))
    for path in built:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}: two builds have the same bytes")


if __name__ == "__main__":
    main()
