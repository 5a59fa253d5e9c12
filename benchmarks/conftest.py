"""Options, models and workers of the benchmark suite.

    pytest benchmarks                                          # pools 1, 2, 4, 8 at batch 1, 8, 32 in every runtime
    pytest benchmarks --pools 2 --runtimes native,onnxruntime --threads 1
    pytest benchmarks --benchmark-json new.json --benchmark-compare

Runtimes run in processes of their own (`histo_export.bench.worker`), one at a time, and time themselves: the pipe is in
no figure. pytest-benchmark runs one benchmark after the other, so a small difference here may be the machine's
drift; `histo bench` interleaves and tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest

from histo_export import _core
from histo_export.bench.contestants import precision_of, require_device
from histo_export.bench.subjects import Subject, untrained_subjects
from histo_export.bench.worker_handle import Worker
from histo_export.errors import HistoError
from histo_export.parity import FP32_TOLERANCE, Golden
from histo_export.runtimes import Variant, all_variants, default_variants

RUNTIMES = tuple(variant.runtime for variant in all_variants() if variant.precision == "fp32")

QUICK_POOLS, QUICK_BATCHES = "2", "8"
"""Used where timing is disabled: the suite is a test then, for which one pool and one batch are enough."""

MIN_ROUNDS = 3
"""The default instead of pytest-benchmark's 5, because a batch of 32 takes a second in a slow runtime."""


@dataclass(frozen=True)
class Choice:
    """What the options chose."""

    pools: tuple[int, ...]
    batches: tuple[int, ...]
    runtimes: tuple[str, ...]
    threads: int
    device: str
    precision: str
    named: bool  # --runtimes was given, so that an unavailable one is a failure
    timing: bool

    @property
    def settings(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}, {self.precision}, {self.device}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("histo", "what the benchmarks of histo-export cover")
    group.addoption("--pools", metavar="N,N,…", help="default: 1,2,4,8; with --benchmark-disable 2")
    group.addoption("--batches", metavar="N,N,…", help="default: 1,8,32; with --benchmark-disable 8")
    group.addoption("--runtimes", metavar="R,R,…", help=f"some of {', '.join(RUNTIMES)}")
    group.addoption(
        "--threads", type=int, default=_core.usable_cpus(), help="of each runtime; default: all usable CPUs"
    )
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="if it is unavailable, tests fail")
    group.addoption("--precision", choices=("fp32",), default="fp32", help="that must have been executed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[CHOICE] = _choice(config)
    given = " ".join(config.invocation_params.args)
    if "--benchmark-min-rounds" not in given:
        config.option.benchmark_min_rounds = MIN_ROUNDS
    if "--benchmark-columns" not in given:
        config.option.benchmark_columns = ["median", "iqr", "min", "max", "rounds"]
    if "--benchmark-sort" not in given:
        config.option.benchmark_sort = "min"


CHOICE = pytest.StashKey[Choice]()


def _choice(config: pytest.Config) -> Choice:
    option = config.getoption
    quick = option("benchmark_disable") and not option("benchmark_enable")

    def numbers(name: str, default: str) -> tuple[int, ...]:
        text = option(name) or default
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in text.split(",")):
            raise pytest.UsageError(f"--{name} {text}: is not a list of integers of 1 or more")
        return tuple(dict.fromkeys(map(int, text.split(","))))

    device = option("device")
    named = option("runtimes")
    names = named.split(",") if named else [str(variant) for variant in default_variants(device)]
    runtimes = tuple(dict.fromkeys(names))
    if unknown := [runtime for runtime in runtimes if runtime not in RUNTIMES]:
        raise pytest.UsageError(f"--runtimes {unknown[0]}: is unknown; use some of {', '.join(RUNTIMES)}")
    return Choice(
        pools=numbers("pools", QUICK_POOLS if quick else "1,2,4,8"),
        batches=numbers("batches", QUICK_BATCHES if quick else "1,8,32"),
        runtimes=runtimes,
        threads=option("threads"),
        device=device,
        precision=option("precision"),
        named=bool(named),
        timing=not quick,
    )


def pytest_report_header(config: pytest.Config) -> str:
    choice = config.stash[CHOICE]
    pools, batches = (", ".join(map(str, numbers)) for numbers in (choice.pools, choice.batches))
    return f"benchmarks: pools {pools}; batches {batches}; {choice.settings}; {', '.join(choice.runtimes)}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`runtime_id` and `pool` have the session's scope, so that the tests of one worker come one after the other."""
    choice = metafunc.config.stash[CHOICE]
    if "runtime_id" in metafunc.fixturenames:
        compiled = {"torch-compile"}  # anew in each process
        runtimes = [pytest.param(name, marks=pytest.mark.slow if name in compiled else ()) for name in choice.runtimes]
        metafunc.parametrize("runtime_id", runtimes, scope="session")
    if "pool" in metafunc.fixturenames and metafunc.definition.path.name != "test_head.py":
        metafunc.parametrize("pool", choice.pools, ids=[f"pool{pool}" for pool in choice.pools], scope="session")
    if "batch" in metafunc.fixturenames and metafunc.definition.path.name != "test_head.py":
        metafunc.parametrize("batch", choice.batches, ids=[f"batch{batch}" for batch in choice.batches])


@pytest.fixture(scope="session")
def choice(request: pytest.FixtureRequest) -> Choice:
    return request.config.stash[CHOICE]


@pytest.fixture(scope="session")
def subjects(choice: Choice, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Subject]:
    """Untrained networks by pool, all with one trunk."""
    files = {Variant(runtime).file for runtime in choice.runtimes}
    made = untrained_subjects(choice.pools, tmp_path_factory.mktemp("models"), files)
    return {subject.spec.pool: subject for subject in made}


class Timed:
    """One runtime with one model in a worker, and the benchmark of what it does.

    pytest-benchmark reads a clock before and after a call; here that clock shows what the worker itself has timed.
    """

    def __init__(self, worker: Worker, runtime: str, subject: Subject, choice: Choice) -> None:
        self.worker, self.runtime, self.choice = worker, runtime, choice
        variant = Variant(runtime)
        self.file = subject.file(variant.file)
        self.golden_file = subject.folder / "golden.safetensors"
        self.golden = Golden.read(self.golden_file)
        self.facts = worker.open(variant, self.file, self.golden_file, threads=choice.threads, device=choice.device)

    def check(self, logits: np.ndarray) -> None:
        """Checks logits `(n, classes)` of the golden tiles in order, the first tile following the last one."""
        assert self.golden.relative_error(logits) <= FP32_TOLERANCE

    def check_executed(self) -> None:
        """Checks, after a real run, that precision and device are those in the group's name."""
        assert precision_of(self.worker.executed()["executed"]) == self.choice.precision
        require_device(self.worker.label, self.choice.device, self.worker.devices())


@pytest.fixture(scope="session")
def open_timed(choice: Choice) -> Callable[[ExitStack, str, Subject], Timed]:
    """Opens a model in a process that ends with the stack; skips the test where the runtime is unavailable."""

    def open_worker(stack: ExitStack, runtime: str, subject: Subject) -> Timed:
        worker = stack.enter_context(Worker(f"{runtime}, {subject.label}"))
        try:
            return Timed(worker, runtime, subject, choice)
        except HistoError as error:
            if choice.named:
                raise
            pytest.skip(str(error))

    return open_worker


@pytest.fixture(scope="session")
def timed(
    runtime_id: str, pool: int, subjects: dict[int, Subject], open_timed: Callable[..., Timed]
) -> Iterator[Timed]:
    """The runtime with the model of a pool; its process ends before the next one starts."""
    with ExitStack() as stack:
        yield open_timed(stack, runtime_id, subjects[pool])


@pytest.fixture
def run_benchmark(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Benchmarks a function that returns the seconds it took, as the worker measured them.

    Args of the function returned: `call`; `group`, the table that the result stands in; `rounds`, where
    `--benchmark-min-rounds` and `--benchmark-max-time` do not apply; `info`, kept in the JSON.
    """
    now = 0.0

    def clock() -> float:
        return now

    request.node.add_marker(pytest.mark.benchmark(timer=clock))
    benchmark = request.getfixturevalue("benchmark")

    def run(call: Callable[[], float], group: str, rounds: int | None = None, **info: object) -> None:
        def advance() -> None:
            nonlocal now
            now += call()

        benchmark.group = group
        benchmark.extra_info.update(info)
        if rounds is None and benchmark.enabled:
            least, most_s = (request.config.getoption(f"benchmark_{name}") for name in ("min_rounds", "max_time"))
            rounds = max(least, math.ceil(float(most_s) / call()))
        benchmark.pedantic(advance, rounds=rounds or 1)

    return run
