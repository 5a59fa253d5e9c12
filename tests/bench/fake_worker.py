"""A worker that computes nothing: it keeps the protocol, answers with made times, and misbehaves on request.

    python fake_worker.py [--fault FAULT] [--slower FRACTION] [--executed TEXT] [--devices NAMES]

A model in a folder whose name begins with "slow" takes `FRACTION` longer. Times have the noise of a machine: a drift
from round to round that all workers share, and jitter of each call's own. Both depend on the runtime, the model and the
number of the round alone, so that a test finds the same times whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from histo_export.parity import Golden

parser = argparse.ArgumentParser()
parser.add_argument("--fault", default="")
parser.add_argument("--slower", type=float, default=0.0)
parser.add_argument("--executed", default="cpu fp32")
parser.add_argument("--devices", default="cpu")
arguments = parser.parse_args()


class FakeWorker:
    def __init__(self) -> None:
        self.rounds: Counter[int] = Counter()  # by batch

    def open(self, runtime: str, precision: str, file: str, golden: str, threads: int, device: str) -> dict[str, Any]:
        if arguments.fault == "refuse":
            return {"error": ["fake", "is not installed", "Install it"]}
        if arguments.fault == "die":
            sys.exit("out of luck")
        if arguments.fault == "kill":
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        if arguments.fault == "hang":
            time.sleep(600)
        self.golden = Golden.read(Path(golden))
        self.slow = Path(file).parent.name.startswith("slow")
        name = runtime if precision == "fp32" else f"{runtime} {precision}"
        self.random = random.Random(f"{name} {Path(file).parent.name} {threads}")
        return {"result": {"name": f"Fake {name}", "import_s": 0.1, "load_s": 0.2}}

    def executed(self) -> dict[str, Any]:
        return {"result": {"executed": arguments.executed, "isa": "avx2"}}

    def devices(self) -> dict[str, Any]:
        return {"result": {"devices": arguments.devices.split(",")}}

    def logits(self, batch: int) -> dict[str, Any]:
        logits = self.golden.logits.copy()
        if arguments.fault == "wrong" or (arguments.fault == "wrong later" and self.rounds.total() > 2):
            logits[0, 0] += 0.01
        if arguments.fault == "nan":
            logits[-1, -1] = float("nan")
        return {"result": {"logits": logits.tolist()}}

    def warm(self, batch: int) -> dict[str, Any]:
        return {"result": {"calls": 5, "seconds": 0.01, "call_s": 0.001, "stable": arguments.fault != "restless"}}

    def time(self, batch: int, seconds: float, calls: int, refill: int) -> dict[str, Any]:
        self.rounds[batch] += 1
        drift = 1 + 0.2 * math.sin(self.rounds[batch])
        base = 0.01 * batch * drift * (1 + arguments.slower * self.slow)
        return {"result": {"seconds": [base * math.exp(self.random.gauss(0, 0.01)) for _ in range(5)]}}

    def layers(self, batch: int) -> dict[str, Any]:
        return {"result": {"layers": [["stem", "stem.conv", 0.009], ["head", "head.linear", 0.001]]}}

    def memory(self) -> dict[str, Any]:
        return {"result": {"before": 100.0, "peak": 200.0}}


def main() -> None:
    worker = FakeWorker()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        if arguments.fault == "nonsense":
            print("Hello!", flush=True)
            continue
        print(json.dumps(answer | {"idle_cpu": 0.5 if arguments.fault == "spin" else 0.0, "idle": 1.0}), flush=True)


main()
