"""WSInfer's own inference, for wsinfer_table.py; runs in WSInfer's Python and imports nothing of this package.

python wsinfer_peer.py JOB.json    # then a line on stdin for each run; answers as histo_export.bench.worker does

A run is `wsinfer.modellib.run_inference.run_inference` on patches that are given: reading, transform, TorchScript,
softmax and CSV. The model is loaded, and compiled for --speedup, once and outside of the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from wsinfer.modellib import run_inference as inference
from wsinfer.modellib.models import LocalModelTorchScript, get_pretrained_torch_module, jit_compile
from wsinfer.patchlib import save_hdf5
from wsinfer_zoo.client import ModelConfiguration


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    bundle, slide, results = Path(job["bundle"]), Path(job["slide"]), Path(job["results"])
    config = ModelConfiguration.from_dict(json.loads((bundle / "config.json").read_text(encoding="utf-8")))
    info = LocalModelTorchScript(config=config, model_path=str(bundle / "torchscript_model.pt"))
    model = get_pretrained_torch_module(info).eval()
    compiled = jit_compile(model) if job["speedup"] else None
    inference.get_pretrained_torch_module = lambda **_: model
    inference.jit_compile = lambda loaded: compiled
    (results / "patches").mkdir(parents=True)
    corners = np.array(job["corners"])
    save_hdf5(results / "patches" / f"{slide.stem}.h5", corners, job["side"], config.spacing_um_px)
    table = results / "model-outputs-csv" / f"{slide.stem}.csv"
    for _ in sys.stdin:
        table.unlink(missing_ok=True)
        with (
            Path(os.devnull).open("w", encoding="utf-8") as silent,
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),
        ):
            start = time.perf_counter()
            inference.run_inference(slide.parent, results, info, job["batch"], job["workers"], job["speedup"])
            seconds = time.perf_counter() - start
        found = pd.read_csv(table)
        assert (found[["minx", "miny"]].to_numpy() == corners).all()
        np.save(job["probabilities"], found.filter(regex="^prob_").to_numpy(np.float32))
        print(json.dumps({"result": {"seconds": seconds}, "idle_cpu": 0, "idle": 0}), flush=True)


if __name__ == "__main__":
    main()
