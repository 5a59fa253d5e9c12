"""Is one build of the engine faster than another? Both in turn, each in a process of its own.

python benchmarks/engine_ab.py OLD/_core.so NEW/_core.so bundles/tiles-pool2 --profile latency --batch 1

OLD and NEW are copies of the compiled module that `pip install` puts into `site-packages/histo_export`. A round is the
median of some calls of `Engine.run` on noise of the crop's size; the order turns around from round to round. The ratio
of times comes with a 95 % interval; below 1, NEW is faster. The logits of both builds must agree.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 1e-4
"""Largest difference between the logits of the two builds, relative to the largest logit."""


def serve(module: str, job: dict[str, Any]) -> None:
    loader = importlib.machinery.ExtensionFileLoader("_core", module)
    spec = importlib.util.spec_from_loader("_core", loader)
    assert spec is not None
    core = importlib.util.module_from_spec(spec)
    loader.exec_module(core)
    options = {name: job[name] for name in ("threads", "precision", "profile", "isa", "crop")}
    engine = core.Engine(job["model"], **options)
    crop = engine.info()["crop"]
    tiles = np.random.default_rng(0).integers(0, 256, (job["batch"], crop, crop, 3), np.uint8)
    logits = engine.run(tiles).tolist()
    for _ in sys.stdin:
        seconds = []
        for _ in range(job["calls"]):
            start = time.perf_counter()
            engine.run(tiles)
            seconds.append(time.perf_counter() - start)
        result = {"seconds": statistics.median(seconds), "logits": logits, "isa": engine.info()["isa"], "crop": crop}
        print(json.dumps({"result": result, "idle_cpu": 0, "idle": 0}), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], json.loads(sys.argv[3]))
        return
    # Only here: a process can't hold two builds of the module.
    from histo_export import _core
    from histo_export.bench.worker_handle import Worker
    from histo_export.statistics import compare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--profile", default="throughput")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=_core.usable_cpus())
    parser.add_argument("--isa", default=_core.default_isa())
    parser.add_argument("--crop", type=int, help="pixels; default: the model's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, help="in a round; default: about half a second of them")
    args = parser.parse_args()
    job = {"model": str(args.bundle / "model.safetensors"), "calls": args.calls or max(1, 100 // args.batch)}
    job |= {name: getattr(args, name) for name in ("precision", "profile", "batch", "threads", "isa", "crop")}
    workers = [
        Worker(str(module), [sys.executable, __file__, "serve", str(module), json.dumps(job)])
        for module in (args.old, args.new)
    ]
    seconds: tuple[list[float], list[float]] = ([], [])
    try:
        first = [worker.ask("run") for worker in workers]
        logits = [np.array(result["logits"]) for result in first]
        if np.abs(logits[1] - logits[0]).max() > LIMIT * np.abs(logits[0]).max():
            raise SystemExit("the two builds compute different logits")
        for turn in range(args.rounds):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                seconds[i].append(float(workers[i].ask("run")["seconds"]))
    finally:
        for worker in workers:
            worker.close()
    ratio = compare(seconds[1], seconds[0])
    old, new = (statistics.median(each) / args.batch * 1e3 for each in seconds)
    isas = " and ".join(dict.fromkeys(result["isa"] for result in first))  # executed, not those asked for
    print(
        f"{args.precision}, {isas}, {args.profile}, crop {first[0]['crop']}, batch {args.batch}, "
        f"{args.threads} threads, {args.rounds} rounds: {old:.3f} and {new:.3f} ms per tile, "
        f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of the time"
    )


if __name__ == "__main__":
    main()
