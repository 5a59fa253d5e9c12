"""`--precision auto` and the hint: which precision a bundle allows on a CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from histo_export.cli import bench
from histo_export.errors import UsageError
from histo_export.export import precision_choice
from histo_export.export.bundle import PrecisionCost, PrecisionCosts
from histo_export.export.precision_choice import FASTER, fastest, remark
from histo_export.predict import work
from histo_export.runtimes import NATIVE_RUNTIMES
from histo_export.spec import PRECISIONS
from histo_export.statistics import paired_difference_interval

CPUS = {
    "amx": dict.fromkeys(PRECISIONS, "amx") | {"fp32": "avx512"},
    "bf16": dict.fromkeys(PRECISIONS, "avx512"),
    "vnni": {"fp32": "avx512", "int8": "avx512"},
    "avx2": {"fp32": "avx2"},
    "laptop": {"fp32": "avx2", "int8": "avx2"},
    "neon": dict.fromkeys(PRECISIONS, "neon"),
}

OnCpu = Callable[[str], None]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """Pretends that this is a CPU of `CPUS`."""

    def pretend(cpu: str) -> None:
        support = {p: SimpleNamespace(isa=CPUS[cpu].get(p), reason="") for p in PRECISIONS}
        monkeypatch.setattr(precision_choice._core, "precision_support", lambda: support)

    return pretend


def config(
    made_for: str = "fp32", lost: dict[str, float] | None = None, tiles: int = 600, max_drop: float = 0.5
) -> Any:
    """Of a bundle; `lost` is precision → points, None for a bundle of an older version."""
    costs = None
    if lost is not None:
        measured: Any = {
            precision: PrecisionCost(
                lost=points, interval=(points - 0.3, points + 0.3), worse=1, better=1, changed=4, measured_with="engine"
            )
            for precision, points in lost.items()
        }
        missing: Any = {p: "it has no scales" for p in PRECISIONS[1:] if p not in lost}
        costs = PrecisionCosts(
            tiles=tiles, of_tiles=tiles, fingerprint="f", max_drop=max_drop, measured=measured, not_measured=missing
        )
    return SimpleNamespace(histo=SimpleNamespace(precision=made_for), histo_precision_costs=costs)


GOOD = {"bf16x3": 0.0, "bf16": 0.0}

CASES: dict[str, tuple[str, Any, str, str]] = {
    "bf16 on AMX": (
        "amx",
        config(lost=GOOD),
        "bf16",
        r"it runs here \(amx\) and lost 0\.0 points \[-0\.3, 0\.3\] on 600",
    ),
    "bf16 on AVX-512": ("bf16", config(lost=GOOD), "bf16", r"\(avx512\) and lost"),
    "bf16 on NEON": ("neon", config(lost=GOOD), "bf16", r"\(neon\) and lost"),
    "int8 where it is measured": ("amx", config("int8", GOOD | {"int8": 0.4}), "int8", "lost 0.4 points"),
    "int8 on AVX2 with VNNI": ("laptop", config("int8", GOOD | {"int8": 0.4}), "int8", r"runs here \(avx2\)"),
    "int8 of an older bundle": ("vnni", config("int8"), "int8", "the bundle is made for it"),
    "int8 made for it, although it loses more": ("vnni", config("int8", {"int8": 3.0}), "int8", "lost 3.0 points"),
    "int8 that loses too much": ("amx", config(lost=GOOD | {"int8": 0.6}), "bf16", "lost 0.0"),
    "just the gate": ("bf16", config(lost={"bf16": 0.5}), "bf16", "lost 0.5"),
    "beyond the gate": (
        "bf16",
        config(lost={"bf16": 0.51}),
        "fp32",
        r"bf16 lost 0\.5 points .* where 0\.5 are allowed",
    ),
    "a wider gate": ("bf16", config(lost={"bf16": 0.51}, max_drop=1), "bf16", "lost 0.5"),
    "an improvement": ("bf16", config(lost={"bf16": -0.2}), "bf16", "lost -0.2"),
    "too few tiles": ("bf16", config(lost=GOOD, tiles=199), "fp32", "on 199 tiles, too few to tell that it loses at"),
    "just enough tiles": ("bf16", config(lost=GOOD, tiles=200), "bf16", "on 200 validation tiles"),
    "a gate of nothing": (
        "bf16",
        config(lost=GOOD, max_drop=0),
        "fp32",
        "too few to tell that it loses at most nothing",
    ),
    "no measurement": ("amx", config(), "fp32", "the bundle does not say what lower precisions cost"),
    "not measured": ("vnni", config(lost=GOOD), "fp32", r"int8 was not measured \(it has no scales\)"),
    "no instructions": ("avx2", config(lost=GOOD), "fp32", "no lower precision is faster on this CPU"),
    "made for int8, no instructions": ("avx2", config("int8", GOOD), "fp32", "no lower precision is faster"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_fastest_allowed_precision_is_chosen_with_its_reason(case: str, on_cpu: OnCpu) -> None:
    cpu, bundle, precision, why = CASES[case]
    on_cpu(cpu)
    choice = fastest(bundle)
    assert choice.precision == precision
    assert re.search(why, choice.why), choice.why
    assert remark(bundle, "auto", choice.precision).startswith(f"--precision auto runs {precision}: ")


def test_a_hint_is_given_where_nothing_was_asked_for_and_something_faster_is_allowed(on_cpu: OnCpu) -> None:
    on_cpu("amx")
    hint = remark(config(lost=GOOD), None, "fp32")
    assert hint == (
        "bf16 is usually faster than fp32: it runs here (amx) and lost 0.0 points [-0.3, 0.3] on 600 validation tiles, "
        "4 with another top class. Use it with --precision bf16"
    )
    assert remark(config("bf16", GOOD | {"int8": 0.0}), None, "bf16").startswith("int8 is usually faster than bf16")
    assert remark(config("bf16x3", GOOD), None, "bf16x3").startswith("bf16 is usually faster than bf16x3")
    for silent in (
        remark(config(lost=GOOD), "fp32", "fp32"),  # which the user asked for
        remark(config(), None, "fp32"),
        remark(config(lost={"bf16": 1.0}), None, "fp32"),
        remark(config("int8", GOOD), None, "int8"),  # nothing is faster
        remark(config("bf16", GOOD), None, "bf16"),
    ):
        assert silent == ""


def test_an_impossible_environment_gives_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTO_ISA", "nothing")
    assert remark(config(lost=GOOD), None, "fp32") == ""


def test_the_table_names_what_the_engine_knows() -> None:
    from histo_export import _core

    assert set(FASTER) < set(_core.ISAS)
    assert all(set(precisions) < set(PRECISIONS) for precisions in FASTER.values())


def test_auto_is_for_the_native_engine(tmp_path: Any) -> None:
    assert NATIVE_RUNTIMES == ("native", "native-latency")
    with pytest.raises(UsageError, match=r"precision auto: chooses by what the native engine runs here, and torch is"):
        work.check_model(tmp_path, "torch", "auto")


@pytest.mark.parametrize(("cpu", "ran"), [("amx", "native-bf16"), ("avx2", "native")])
def test_auto_becomes_the_precision_that_runs(
    cpu: str, ran: str, on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    on_cpu(cpu)
    bundle = SimpleNamespace(config=config(lost=GOOD))
    bundle.config.histo.files = {"model.safetensors": None}
    monkeypatch.setattr(work, "open_bundle", lambda _: bundle)
    monkeypatch.setattr(work, "spec_of", lambda _: None)
    assert str(work.check_model(tmp_path, "native", "auto")[2]) == ran
    assert str(work.check_model(tmp_path, "native", None)[2]) == "native", "nothing changes without the option"


def test_the_interval_of_a_paired_difference() -> None:
    # By hand: half a tile in each cell, so that b = c = 0.5 of 602, and the error is sqrt(1 / 602) / sqrt(602).
    low, high = paired_difference_interval(0, 0, 600)
    assert (low, high) == pytest.approx((-1.95996 / 602, 1.95996 / 602), rel=1e-5)
    assert paired_difference_interval(0, 0, 10)[1] > 0.15, "ten equal answers prove little"
    low, high = paired_difference_interval(9, 1, 100)
    assert 0 < low < 0.08 < high
    assert paired_difference_interval(1, 9, 100) == pytest.approx((-high, -low))


def test_bench_takes_the_precision_that_the_bundles_allow(on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu("amx")
    bundles = {Path("a"): config(lost=GOOD), Path("b"): config(lost=GOOD), Path("c"): config()}
    monkeypatch.setattr("histo_export.export.bundle.open_bundle", lambda path: SimpleNamespace(config=bundles[path]))

    def resolved(*paths: str, **options: Any) -> Any:
        return bench._resolved([Path(path) for path in paths], bench.MeasurementOptions(**options))

    found = resolved("a", "b", precision="auto")
    assert found.precisions == ("bf16",)
    assert found.remarks[1].startswith("b: --precision auto is bf16: it runs here (amx) and lost 0.0 points")
    assert resolved("a", precision="auto, fp32").precisions == ("fp32", "bf16")
    with pytest.raises(UsageError, match=r"differs among the bundles \(a bf16, c fp32\)\. Bench them one by one"):
        resolved("a", "c", precision="auto")
    hint = resolved("a", "c")
    assert (hint.precisions, len(hint.remarks)) == (("fp32",), 1)
    assert hint.remarks[0].startswith("a: bf16 is usually faster than fp32")
    for silent in (resolved("a", precision="fp32"), resolved("a", runtimes="native"), resolved("c"), resolved()):
        assert silent.remarks == []
