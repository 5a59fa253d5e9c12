"""Which precision is the fastest that a bundle's own measurement allows on this CPU: `--precision auto`, and the hint.

A precision is allowed where the bundle is made for it, or where it lost at most `max_drop` points of accuracy at export
on so many tiles that one of them is not more than that. Nothing here changes what runs unless the user asks for "auto".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from histo_export import _core
from histo_export.export.bundle import BundleConfig, PrecisionCost, PrecisionCosts
from histo_export.spec import AskedPrecision, Precision

FASTER: Mapping[str, tuple[Precision, ...]] = {
    "amx": ("int8", "bf16"),
    "avx512": ("int8", "bf16"),
    "avx2": ("int8",),  # with AVX-VNNI
    "neon": ("int8", "bf16"),
}
"""Instruction set → the precisions in which its instructions multiply more numbers at once than in fp32, fastest first.

bf16x3 is not among them: its three products, without Winograd's algorithm, take longer than fp32's.
"""


@dataclass(frozen=True)
class Choice:
    """A precision, and a sentence without its subject that says why."""

    precision: Precision
    why: str


def faster_here() -> dict[Precision, str]:
    """Precision → the instruction set that executes it here, of those that are faster than fp32, fastest first."""
    try:
        support = _core.precision_support()
    except (ValueError, RuntimeError):  # $HISTO_ISA; opening the engine reports it
        return {}
    isas = {precision: found.isa for precision, found in support.items() if found.isa}
    order = dict.fromkeys(precision for precisions in FASTER.values() for precision in precisions)
    return {
        precision: isas[precision]
        for precision in order
        if precision in isas and precision in FASTER.get(isas[precision], ())
    }


def fastest(config: BundleConfig) -> Choice:
    """The fastest precision that the bundle allows on this CPU; fp32 where it allows no faster one."""
    here = faster_here()
    if not here:
        return Choice("fp32", "no lower precision is faster on this CPU")
    refused = []
    for precision, isa in here.items():
        objection = _objection(config, precision)
        if objection is None:
            return Choice(precision, f"it runs here ({isa}) and {_allowed_because(config, precision)}")
        if objection not in refused:
            refused.append(objection)
    return Choice("fp32", "; ".join(refused))


def remark(config: BundleConfig, asked: AskedPrecision | None, runs: Precision) -> str:
    """What to tell the user of the precision that runs: why "auto" took it, or that a faster one is allowed; or "".

    Args:
        config: of the bundle.
        asked: by the user; None where nothing was asked for.
        runs: what runs.
    """
    if asked not in ("auto", None):
        return ""
    choice = fastest(config)
    if asked == "auto":
        return f"--precision auto runs {choice.precision}: {choice.why}"
    order = list(faster_here())
    faster = choice.precision in order and (runs not in order or order.index(choice.precision) < order.index(runs))
    if not faster:
        return ""
    return f"{choice.precision} is usually faster than {runs}: {choice.why}. Use it with --precision {choice.precision}"


def described(cost: PrecisionCost, costs: PrecisionCosts) -> str:
    """What a precision lost, in words: "lost 0.0 points [-0.3, 0.3] on 600 validation tiles, …"."""
    low, high = (f"{value:.1f}".replace("-0.0", "0.0") for value in cost.interval)
    lost = f"{cost.lost:.1f}".replace("-0.0", "0.0")
    tiles = f"{costs.tiles:,} validation tile{'s' * (costs.tiles != 1)}"
    how = " (simulated at export)" if cost.measured_with == "PyTorch simulation" else ""
    return f"lost {lost} points [{low}, {high}] on {tiles}, {cost.changed:,} with another top class{how}"


def _allowed_because(config: BundleConfig, precision: Precision) -> str:
    costs = config.histo_precision_costs
    if costs is not None and precision in costs.measured:
        return described(costs.measured[precision], costs)
    return "the bundle is made for it"


def _objection(config: BundleConfig, precision: Precision) -> str | None:
    """Why the bundle does not allow a precision; None where it does."""
    if config.histo.precision == precision:
        return None
    costs = config.histo_precision_costs
    if costs is None:
        return "the bundle does not say what lower precisions cost (histo export RUN --data TILES measures it)"
    cost = costs.measured.get(precision)
    if cost is None:
        return f"{precision} was not measured ({costs.not_measured.get(precision, 'no reason is recorded')})"
    if cost.lost > costs.max_drop:
        return f"{precision} {described(cost, costs)}, where {costs.max_drop:g} are allowed"
    if costs.tiles * costs.max_drop < 100:
        least = f"{costs.max_drop:g} points" if costs.max_drop else "nothing"
        return f"{precision} was measured on {costs.tiles:,} tiles, too few to tell that it loses at most {least}"
    return None
