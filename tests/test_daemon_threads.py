"""A program that ends while its daemon threads are in the core ends quietly, with its own exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes

PROGRAMS = 3
"""Whether a thread is in the core when its program ends is a matter of chance, but of these threads some always are."""

PROGRAM = """
import sys, threading
import numpy as np
from histo_export._core import BatchRunner, Engine, FusedHead, Model, preprocess

path = sys.argv[1]
model = Model.open(path)
engine = Engine(model, threads=2)
tiles = np.zeros((4, 75, 75, 3), np.uint8)
head = FusedHead(np.zeros((6, 2048), np.float32), np.zeros(6, np.float32), 2, threads=2)
features = np.zeros((64, 512, 4, 4), np.float32)

def endless(started):
    while True:
        started.set()
        yield tiles[0]

def in_python(batch):
    sum(range(5000))
    return np.zeros((len(batch), 6), np.float32)

def repeat(work, started):
    while True:
        started.set()
        work()

def deliver(source):
    BatchRunner(in_python, 6, batch=2).run(source, lambda result: sum(range(500)), progress=lambda stats: True)

works = [
    lambda started: repeat(lambda: engine.run(tiles), started),
    lambda started: repeat(engine.copy, started),
    lambda started: repeat(lambda: head.run(features), started),
    lambda started: repeat(lambda: Model.open(path), started),
    lambda started: repeat(lambda: preprocess(tiles, model), started),
    lambda started: BatchRunner(engine, batch=2).run(endless(started), lambda result: None),
    lambda started: deliver(endless(started)),
    lambda started: [None for result in BatchRunner(in_python, 6, batch=2).results(endless(started))],
]
started = [threading.Event() for work in works]
for work, event in zip(works, started):
    threading.Thread(target=work, args=(event,), daemon=True).start()
for event in started:
    event.wait()
threading.Event().wait(float(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def model_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    path.write_bytes(native_bytes(lower(checkpoint.net(), checkpoint.spec), checkpoint.spec))
    return path


def test_a_program_ends_while_daemon_threads_are_in_the_core(model_file: Path) -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, model_file, str(0.02 * i)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for i in range(PROGRAMS)
    ]
    # Three took 24 s on two CPUs with a load of 40, so a minute was near; the limit is for a hang.
    ends = [(program.communicate(timeout=600)[0], program.returncode) for program in programs]
    assert ends == [(b"", 0)] * PROGRAMS
