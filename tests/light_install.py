"""Installs the wheel alone into new environments, and runs there what must run: `make test-light`.

python tests/light_install.py [--wheel FILE] [--bundle FOLDER] [--tiles FOLDER] [--slide FILE] [--keep FOLDER]

It needs the package index, so it is no part of the test suite. It runs in an environment that holds all extras: that
makes the wheel and the bundle where none are given, and its predictions are those that the light environment must give
byte for byte. Tiles and a slide are drawn where none are given; tiles of another size are resampled. The bundle has
model.onnx, torchscript_model.pt, model.safetensors and µm per pixel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import tifffile

from histo_export.bench.subjects import untrained_checkpoint
from histo_export.export.bundle import open_bundle, spec_of
from histo_export.export.run import ExportSettings, export_bundle
from histo_export.spec import ModelSpec
from light_commands import BENCH, REFUSED, WORK, places

ROOT = Path(__file__).parents[1]
MOST_MB, MOST_PACKAGES = 150, 20
"""Of the light install, histo-export and Python's own pip included."""
LOAD = (
    "import sys, histo_export, numpy as np; "
    "c = histo_export.load(sys.argv[1]); t = np.zeros((c.spec.tile_size,) * 2 + (3,), np.uint8); "
    "print(c, len(c.predict(t)), 'torch' in sys.modules)"
)


def run(*command: object, code: int = 0) -> str:
    """Runs a program that must end with `code`; returns its stdout and stderr."""
    done = subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8", check=False, cwd="/")
    text = done.stdout + done.stderr
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode} and not {code}:\n{text}")
    return text


def demand(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(message)
    print(f"ok: {message.splitlines()[0]}", flush=True)


def built_wheel(folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    return next(folder.glob("histo_export-*.whl"))


def downloaded(wheel: Path, folder: Path) -> Path:
    """A folder with our wheel and the wheels of all that it requires, as `pip download` finds them."""
    run(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", folder, wheel)
    return folder


def environment(folder: Path, *pip: object) -> Path:
    """A new environment with histo-export; returns its folder of programs."""
    venv.create(folder, with_pip=True)
    run(folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *pip)
    return folder / "bin"


def size(programs: Path) -> tuple[float, int]:
    """MB and number of the packages of an environment, without pip and setuptools."""
    packages = [p for p in programs.parent.glob("lib/python*/site-packages/*") if p.is_dir()]
    beside = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
    files = (f for p in packages if not p.name.startswith(beside) for f in p.rglob("*") if f.is_file())
    listed = run(programs / "python", "-m", "pip", "--disable-pip-version-check", "list", "--format", "freeze")
    names = [line for line in listed.splitlines() if "==" in line and not line.startswith(beside)]
    return sum(f.stat().st_size for f in files) / 1e6, len(names)


def make_bundle(out: Path) -> Path:
    spec = ModelSpec(2, tuple("abcdef"), mpp=0.5)
    export_bundle(untrained_checkpoint(spec), out, ExportSettings(threads=2))
    return out


def draw_slide(path: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(235, 250, (1200, 1600, 3), np.uint8)
    pixels[300:900, 400:1200] = rng.integers((180, 90, 140), (220, 140, 190), (600, 800, 3), np.uint8)
    scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), **scale)
    return path


def check_light(programs: Path, bundle: Path, folder: Path, tiles: Path | None) -> None:
    """All commands, the Python interface, and the bytes of predictions in the light environment."""
    found = places(bundle, folder, spec_of(open_bundle(bundle)).tile_size)
    histo = programs / "histo"
    for arguments, code, words in (*WORK, BENCH):
        text = run(histo, *(word.format(**found) for word in arguments.split()), code=code)
        demand(words in text, f"histo {arguments}\nprinted no {words!r}:\n{text}")
    for arguments, needed in REFUSED:
        text = run(histo, *(word.format(**found) for word in arguments.split()), code=2)
        one = text.count("\n") == 1 and f'"histo-export[{needed}]"' in text
        demand(one and not (found["out"] / "x").exists(), f"histo {arguments} names {needed}\nprinted:\n{text}")
    text = run(programs / "python", "-c", LOAD, bundle)
    demand(text.endswith(" 1 False\n"), f"load() predicts without torch\nprinted: {text}")
    tiles = tiles or found["tiles"]
    for program, out in ((histo, folder / "light"), (Path(sys.executable).with_name("histo"), folder / "all")):
        run(program, "predict", bundle, tiles, "--resize", "--out", out)
    for table in sorted((folder / "light").glob("*/*")):
        same = table.read_bytes() == (folder / "all" / table.relative_to(folder / "light")).read_bytes()
        demand(same, f"{table.relative_to(folder / 'light')} has the same bytes in both installs")


def check_slides(programs: Path, bundle: Path, slide: Path, out: Path) -> None:
    run(programs / "histo", "predict", bundle, slide, "--out", out)
    written = {path.name for path in (out / slide.stem).iterdir()}
    wanted = {"tiles.csv", "tiles.geojson", "heatmap.png", "tissue.png", "summary.json"}
    demand(wanted <= written, f"a slide with the extra slides\nlacks {wanted - written}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--wheel", "--bundle", "--tiles", "--slide", "--keep"):
        parser.add_argument(option, type=lambda text: Path(text).absolute())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="histo-light-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        wheels = downloaded(options.wheel or built_wheel(folder / "built"), folder / "downloaded")
        bundle = options.bundle or make_bundle(folder / "bundle")
        light = environment(folder / "light-env", "--no-index", "--find-links", wheels, "histo-export")
        mb, packages = size(light)
        print(f"light install: {mb:.0f} MB in {packages} packages")
        demand(mb < MOST_MB and packages < MOST_PACKAGES, f"below {MOST_MB} MB and {MOST_PACKAGES} packages")
        check_light(light, bundle, folder / "run", options.tiles)
        slides = environment(folder / "slides-env", "--find-links", wheels, "histo-export[slides]")
        mb, packages = size(slides)
        print(f"with slides: {mb:.0f} MB in {packages} packages")
        slide = options.slide or draw_slide(folder / "slide.tif")
        check_slides(slides, bundle, slide, folder / "slides")


if __name__ == "__main__":
    main()
