"""Pooling and linear head on its own: FusedHead beside PyTorch, libtorch and ONNX Runtime.

    python benchmarks/head_table.py

For each pool, map, batch and number of threads this prints microseconds per call, medians over interleaved rounds:

- `read`: a vectorised sum over the same buffer with the same threads, the time that one pass over the features takes;
- `muls`: one multiply-add per feature and class, in registers: what a head costs whose pool does not shrink the map;
- C++, a loop in C++ around each: `histo` (histo::FusedHead) and `torch` (at::adaptive_avg_pool2d and at::linear under
  InferenceMode: libtorch), both on NCHW and channels-last features;
- Python, a loop in Python around each: `histo` (histo_export.FusedHead), `torch` (nn.AdaptiveAvgPool2d and nn.Linear,
  eager, inference mode) and `ort` (ONNX Runtime with bound inputs and outputs, on the head as `histo export` lowers it,
  NCHW; idle threads don't spin).

`of read` is the median over rounds of `read` / `histo` in C++. `lead` is the median over rounds of the fastest peer's
time divided by ours, each called from the same language and in the same layout where it has both: above 1, none was
faster. A case that misses a goal (70 % of read at batch 32, lead 1) is marked with `<`.

What makes it fair: every contestant reads the same bytes with the same number of threads in one process; a round times
each once, in an order that rotates, after a pause in which the threads of the one before go to sleep, and a call that
warms it up; all outputs are compared with float64 before and after.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from histo_export import cmake_prefix
from histo_export._core import FusedHead, build_config
from histo_export.model.lowering import fold_head
from histo_export.spec import head_pool

ROOT = Path(__file__).parents[1]
CHANNELS, CLASSES = 512, 6
PAUSE = 0.003  # seconds; OpenMP's threads watch for new work for about one millisecond

Array = npt.NDArray[np.float32]


class Problem(ctypes.Structure):
    """As in head_bench.cpp."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("pool", "channels", "classes", "batch", "height", "width")),
        ("channels_last", ctypes.c_int),
        ("threads", ctypes.c_uint),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "features", "out")),
    )


def compile_bench(folder: Path) -> ctypes.CDLL:
    """head_bench.cpp against the installed torch and the library that came with histo_export."""
    library = folder / "head_bench.so"
    torch_root, prefix = Path(torch.__file__).parent, cmake_prefix()
    (archive,) = prefix.glob("lib*/libhisto.a")
    command = ["c++", "-std=c++20", "-O2", "-fPIC", "-shared", "-pthread"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{prefix / 'include'}", f"-I{ROOT / 'cpp/src'}", f"-isystem{torch_root / 'include'}"]
    command += [str(ROOT / "benchmarks/head_bench.cpp"), str(archive), "-o", str(library)]
    subprocess.run([*command, f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"], check=True)
    bench = ctypes.CDLL(str(library))
    for name in ("histo", "libtorch", "read", "multiply"):
        getattr(bench, f"open_{name}").restype = ctypes.c_void_p
        getattr(bench, f"open_{name}").argtypes = [ctypes.POINTER(Problem)]
    bench.time_runs.restype = ctypes.c_double
    bench.time_runs.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    bench.copy_logits.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    bench.close_contestant.argtypes = [ctypes.c_void_p]
    return bench


class Contestant:
    """`seconds(calls)` is the mean time of one of that many calls; `logits()` are those of the last call."""

    def __init__(self, seconds: Callable[[int], float], logits: Callable[[], Array] | None) -> None:
        self.seconds, self.logits = seconds, logits
        self.calls = 1
        self.times: list[float] = []


class Case:
    """One head on one batch of feature maps, and everything that is timed on it."""

    def __init__(self, pool: int, side: int, batch: int, threads: int) -> None:
        self.pool, self.side, self.batch, self.threads = pool, side, batch, threads
        torch.manual_seed(pool)
        self.features = torch.rand(batch, CHANNELS, side, side)
        self.channels_last = self.features.contiguous(memory_format=torch.channels_last)
        linear = nn.Linear(CHANNELS * pool * pool, CLASSES)
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten(), linear).eval()
        self.weight, self.bias = linear.weight.detach(), linear.bias.detach()
        with torch.inference_mode():
            pooled = nn.functional.adaptive_avg_pool2d(self.features.double(), pool).flatten(1)
            self.expected = (pooled @ self.weight.double().T + self.bias.double()).numpy()
            magnitude = pooled @ self.weight.double().abs().T + self.bias.double().abs()
        # No order of float32 sums can be further off (n additions, n times the unit roundoff; features are >= 0).
        self.bound = (CHANNELS * max(side, pool) ** 2 + 4) * 2.0**-24 * magnitude.numpy()

    @contextmanager
    def contestants(self, bench: ctypes.CDLL) -> Iterator[dict[str, Contestant]]:
        handles: list[int] = []
        keep: list[object] = []

        def compiled(name: str, channels_last: bool = False) -> Contestant:
            features = self.channels_last if channels_last else self.features
            out = np.zeros((self.batch, CLASSES), np.float32)
            sizes = (self.pool, CHANNELS, CLASSES, self.batch, self.side, self.side, channels_last, self.threads)
            pointers = (self.weight.data_ptr(), self.bias.data_ptr(), features.data_ptr(), out.ctypes.data)
            problem = Problem(*sizes, *pointers)
            handle = getattr(bench, f"open_{name}")(ctypes.byref(problem))
            handles.append(handle)
            keep.append(out)

            def logits() -> Array:
                if name == "libtorch":
                    bench.copy_logits(handle, out.ctypes.data)
                return out

            return Contestant(
                lambda calls: float(bench.time_runs(handle, calls)), None if name in ("read", "multiply") else logits
            )

        yield {
            "read": compiled("read"),
            "muls": compiled("multiply"),
            "C++ histo nchw": compiled("histo"),
            "C++ histo nhwc": compiled("histo", channels_last=True),
            "C++ torch nchw": compiled("libtorch"),
            "C++ torch nhwc": compiled("libtorch", channels_last=True),
            "Python histo nchw": self.histo(channels_last=False),
            "Python histo nhwc": self.histo(channels_last=True),
            "Python torch nchw": self.torch(self.features),
            "Python torch nhwc": self.torch(self.channels_last),
            "Python ort nchw": self.onnxruntime(),
        }
        for handle in handles:
            bench.close_contestant(handle)

    def histo(self, channels_last: bool) -> Contestant:
        head = FusedHead(self.weight.numpy(), self.bias.numpy(), self.pool, threads=self.threads)
        features = self.channels_last.permute(0, 2, 3, 1).numpy() if channels_last else self.features.numpy()
        if channels_last:
            return python_loop(lambda: head.run(features, layout="nhwc"))
        return python_loop(lambda: head.run(features))

    def torch(self, features: torch.Tensor) -> Contestant:
        model = self.model

        def run() -> Array:
            logits: Array = model(features).numpy()
            return logits

        contestant = python_loop(run)
        inner = contestant.seconds

        def seconds(calls: int) -> float:
            with torch.inference_mode():
                return inner(calls)

        contestant.seconds = seconds
        return contestant

    def onnxruntime(self) -> Contestant:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = ort.InferenceSession(self.onnx_head(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        out = np.zeros((self.batch, CLASSES), np.float32)
        binding.bind_cpu_input("features", self.features.numpy())
        binding.bind_output("logits", "cpu", 0, np.float32, out.shape, out.ctypes.data)

        def run() -> Array:
            session.run_with_iobinding(binding)
            return out

        return python_loop(run)

    def onnx_head(self) -> bytes:
        kept = head_pool(self.pool, self.side)
        weight = self.weight if kept == self.pool else fold_head(self.weight, self.pool, self.side).float()
        size = self.side // kept
        nodes = [
            helper.make_node("AveragePool", ["features"], ["pooled"], kernel_shape=[size, size], strides=[size, size]),
            helper.make_node("Flatten", ["pooled" if size > 1 else "features"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
        ]
        graph = helper.make_graph(
            nodes if size > 1 else nodes[1:],
            "head",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, CHANNELS, self.side, self.side])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, CLASSES])],
            [numpy_helper.from_array(weight.numpy(), "weight"), numpy_helper.from_array(self.bias.numpy(), "bias")],
        )
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        onnx.checker.check_model(model)
        serialized: bytes = model.SerializeToString()
        return serialized

    def check(self, contestants: dict[str, Contestant], when: str) -> None:
        for name, contestant in contestants.items():
            if contestant.logits is not None:
                error = np.abs(contestant.logits() - self.expected)
                if not (error <= self.bound).all():
                    sys.exit(f"{name}, {self}: logits differ from float64 by {error.max():.1e} {when} timing")

    def __str__(self) -> str:
        return f"pool {self.pool}, map {self.side}x{self.side}, batch {self.batch}, threads {self.threads}"


def python_loop(run: Callable[[], Array]) -> Contestant:
    last: list[Array] = []

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            logits = run()
        elapsed = time.perf_counter() - start
        last[:] = [logits]
        return elapsed / calls

    return Contestant(seconds, lambda: last[0])


def measure(case: Case, contestants: dict[str, Contestant], rounds: int, burst: float) -> None:
    for contestant in contestants.values():
        contestant.seconds(2)
        contestant.calls = max(1, int(burst / contestant.seconds(1)))
    case.check(contestants, "before")
    order = list(contestants.values())
    for turn in range(rounds):
        start = turn % len(order)
        for contestant in order[start:] + order[:start]:
            time.sleep(PAUSE)
            contestant.seconds(1)
            contestant.times.append(contestant.seconds(contestant.calls))
    case.check(contestants, "after")


def median_ratio(over: list[list[float]], under: list[float]) -> float:
    """Median over rounds of the smallest of `over` divided by `under`."""
    best = [min(times) for times in zip(*over, strict=True)]
    return float(statistics.median(peer / own for peer, own in zip(best, under, strict=True)))


HEADER = (
    f"{'':>14}|{'bounds':^15}|{'C++ histo':^17}{'of read':^14}|{'C++ torch':^17}{'lead':^12}"
    f"|{'Python histo':^17}|{'Python torch, ort':^26}{'lead':^12}\n"
    f"{'map pool batch':>14}|{'read':>7}{'muls':>8}|{'nchw':>8}{'nhwc':>9}{'nchw':>7}{'nhwc':>7}"
    f"|{'nchw':>8}{'nhwc':>9}{'nchw':>6}{'nhwc':>6}|{'nchw':>8}{'nhwc':>9}|{'nchw':>8}{'nhwc':>9}{'ort':>9}"
    f"{'nchw':>6}{'nhwc':>6}"
)


def row(case: Case, contestants: dict[str, Contestant]) -> str:
    times = {name: contestant.times for name, contestant in contestants.items()}
    line = f"{f'{case.side}x{case.side}':>5}{case.pool:>4}{case.batch:>5}|"

    def us(*names: str) -> str:
        return "".join(f"{statistics.median(times[name]) * 1e6:>8.1f} " for name in names)

    def marked(value: float, goal: float, text: str) -> str:
        return f"{text:>5}{'<' if value < goal else ' '}"

    line += us("read", "muls")[:-1] + "|" + us("C++ histo nchw", "C++ histo nhwc")
    for layout in ("nchw", "nhwc"):
        share = median_ratio([times["read"]], times[f"C++ histo {layout}"])
        line += marked(share, 0.7 if case.batch == 32 else 0, f"{share:.0%}")
    line += "|" + us("C++ torch nchw", "C++ torch nhwc")
    for layout in ("nchw", "nhwc"):
        lead = median_ratio([times[f"C++ torch {layout}"]], times[f"C++ histo {layout}"])
        line += marked(lead, 1, f"{lead:.1f}")
    line += "|" + us("Python histo nchw", "Python histo nhwc")
    line += "|" + us("Python torch nchw", "Python torch nhwc", "Python ort nchw")
    for layout, peers in (("nchw", ["torch nchw", "ort nchw"]), ("nhwc", ["torch nhwc"])):
        lead = median_ratio([times[f"Python {peer}"] for peer in peers], times[f"Python histo {layout}"])
        line += marked(lead, 1, f"{lead:.1f}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--maps", type=int, nargs="+", default=[4, 7, 32], help="sides of the feature map")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--burst", type=float, default=0.003, help="seconds that each contestant runs in a round")
    args = parser.parse_args()

    versions = f"torch {torch.__version__}, onnxruntime {ort.__version__}, histo {build_config()['version']}"
    isa = FusedHead(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), 1).isa
    print(f"{versions} ({isa}); float32, {CHANNELS} channels, {CLASSES} classes, microseconds per call")
    with tempfile.TemporaryDirectory() as folder:
        bench = compile_bench(Path(folder))
        for threads in args.threads:
            torch.set_num_threads(threads)
            print(f"\nthreads {threads}\n{HEADER}", flush=True)
            for side in args.maps:
                for batch in args.batches:
                    for pool in args.pools:
                        case = Case(pool, side, batch, threads)
                        with case.contestants(bench) as contestants:
                            measure(case, contestants, args.rounds, args.burst)
                            print(row(case, contestants), flush=True)


if __name__ == "__main__":
    main()
