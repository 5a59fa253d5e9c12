"""What `histo` does where no extra is installed: the commands that work, and those that name the extra they need.

tests/test_extras.py runs them in a process that refuses to import the packages of extras: LIGHT_COMMANDS BUNDLE FOLDER
prints what each gave, as JSON. tests/light_install.py runs them in an environment that holds the wheel and what it
requires.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORK: Sequence[tuple[str, int, str]] = [
    ("--help", 0, "Show versions"),
    ("predict {bundle} {tiles} --out {out}/tiles", 0, "tiles: 4 tiles"),
    ("predict {bundle} {tiles} --out {out}/latency --runtime native-latency", 0, "tiles: 4 tiles"),
    ("verify {bundle}", 3, "1 check passed. Not run by anything here: model.onnx, torchscript_model.pt"),
    ("verify {bundle} --runtimes native", 0, "The check passed."),
    ("inspect {bundle}", 0, "as exported"),
    ("inspect {bundle} --plan throughput --batch 1", 0, "layer4.2.conv2"),
    ("inspect --pool 3", 0, "folded into the linear layer"),
    ("doctor", 0, 'pip install "histo-export[train]"'),
]
"""Arguments, exit code, and words of what is printed."""
BENCH = (
    "bench {bundle} --out {out}/bench --runtimes native --batches 1 --threads 1 --time 0.01 --rounds 7",
    0,
    "report.html, report.json, report.md",
)
"""The same, for an environment of its own: it takes seconds."""
REFUSED: Sequence[tuple[str, str]] = [
    ("train {tiles} --out {out}/x", "train"),
    ("train {tiles} --out {out}/x --weights imagenet", "train"),
    ("export --out {out}/x", "train,onnx"),
    ("export --out {out}/x --formats native", "train"),
    ("export {checkpoint} --out {out}/x", "train,onnx"),
    ("export --weights {weights} --classes a,b --mean 0,0,0 --std 1,1,1 --out {out}/x", "train,onnx"),
    ("inspect {checkpoint}", "train"),
    ("bench --out {out}/x", "train"),
    ("bench {bundle} --precision int8 --out {out}/x", "train"),
    ("bench {bundle} --runtimes native,onnxruntime --out {out}/x", "onnx"),
    ("verify {bundle} --device cuda", "train"),
    ("verify {bundle} --runtimes native,torch", "train"),
    ("predict {bundle} {tiles} --out {out}/x --runtime onnxruntime", "onnx"),
    ("predict {bundle} {tiles} --out {out}/x --runtime openvino", "openvino"),
    ("predict {bundle} {tiles} --out {out}/x --runtime torchscript", "train"),
    ("predict {bundle} {tiles} --out {out}/x --runtime libtorch", "train"),
    ("predict {bundle} {tiles} --out {out}/x --runtime torch", "train"),
    ("predict {bundle} {tiles} --out {out}/x --runtime torch --device cuda", "train"),
    ("predict {bundle} {tiles} --out {out}/x --ray local", "ray"),
    ("serve {bundle}", "serve"),
    ("predict {bundle} {slide} --out {out}/x", "slides"),
    ("predict {bundle} {dicom} --out {out}/x", "slides"),
    ("predict {bundle} {tiles} {slide} --out {out}/x", "slides"),
]
"""Arguments, and the extras that the only line, on stderr, tells to install. Nothing is written; the exit code is 2."""


def places(bundle: Path, folder: Path, side: int) -> dict[str, Path]:
    """Makes the inputs of the commands in `folder`; `side` is that of the bundle's tiles."""
    found = {"bundle": bundle, "out": folder / "out", "tiles": folder / "tiles"}
    names = {"slide": "large.tif", "dicom": "a.dcm", "checkpoint": "a.ckpt", "weights": "a.pth"}
    found |= {kind: folder / name for kind, name in names.items()}
    for name in ("tiles", "out"):
        found[name].mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(found["tiles"] / f"{i}.png")
    Image.new("RGB", (1400, 100), "pink").save(found["slide"])
    found["dicom"].write_bytes(bytes(128) + b"DICM")
    for kind in ("checkpoint", "weights"):
        found[kind].touch()
    return found


class _Refusing(importlib.abc.MetaPathFinder):
    """Refuses to find modules, as if they were not installed."""

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def _captured() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def run(arguments: str, found: dict[str, Path]) -> tuple[int, str, str]:
    """Runs a command in this process; returns its exit code, stdout and stderr."""
    from histo_export import cli

    sys.argv = ["histo", *(word.format(**found) for word in arguments.split())]
    with _captured() as (out, err):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return code, *texts


def _refusal(call: Callable[[], object]) -> str:
    """The error of a call that needs an extra."""
    from histo_export.extras import MissingExtraError

    try:
        call()
    except MissingExtraError as error:
        return str(error)
    return ""


def _hash_once() -> None:
    """Compares each file of the bundle with its sha256 once: a dozen commands would read gigabytes."""
    from histo_export.export import bundle as module

    check, checked = module._check_file, set()

    def check_once(file: Path, expected: Any) -> None:
        if file not in checked:
            check(file, expected)
        checked.add(file)

    module._check_file = check_once


def main(bundle: Path, folder: Path) -> None:
    from histo_export.extras import EXTRAS

    refused = {module for modules in EXTRAS.values() for module in modules}
    sys.meta_path.insert(0, _Refusing(refused))
    from histo_export import load, parity

    parity.TIMING_S = 0.01  # nobody looks at the figures
    _hash_once()
    classifier = load(bundle)
    side = classifier.spec.tile_size
    found = places(bundle, folder, side)
    results: dict[str, Any] = {"logits": classifier.predict(np.zeros((side, side, 3), np.uint8)).logits.tolist()}
    calls = {
        "load(runtime=...)": lambda: load(bundle, runtime="onnxruntime"),
        "predict_slide()": lambda: classifier.predict_slide(found["slide"]),
    }
    results |= {name: _refusal(call) for name, call in calls.items()}
    results |= {arguments: run(arguments, found) for arguments, *_ in (*WORK, *REFUSED)}
    results["imported"] = sorted(refused & {name.partition(".")[0] for name in sys.modules})
    results["written"] = sorted(path.name for path in found["out"].iterdir())
    print(json.dumps(results))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
