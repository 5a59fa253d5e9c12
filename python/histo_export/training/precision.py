"""Which precision a run trains in, decided by timing."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from histo_export.errors import UsageError
from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec
from histo_export.training.module import make_optimizer
from histo_export.training.recipes import TrainConfig

LIGHTNING = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WORTHWHILE = 1.1
"""How many times faster low precision must be before its coarser arithmetic is accepted."""


@contextmanager
def without_tf32() -> Iterator[None]:
    """In the block, fp32 is fp32 on a GPU too: TF32, which torch allows for convolutions, keeps 10 bits of mantissa."""
    settings: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        yield
    finally:
        for setting, allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = allowed


def low_precision(device: torch.device) -> str | None:
    """The 16-bit type that the device computes in natively: "bf16", "fp16" or None.

    On a CPU only AVX-512 BF16 or AMX count; others emulate bf16 and are slower than in fp32.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else None
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else None


def choose_precision(
    net: TileNet, spec: ModelSpec, config: TrainConfig, device: torch.device, batch: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Decides the precision and tells why.

    Args:
        net: is not changed; the timing trains copies.
        batch: uint8 `(n, 3, crop, crop)` and labels, as training sees them.

    Returns:
        Plain values: `asked`, `executed` ("fp32", "bf16", "fp16"), `reason`, and where both were timed
        `seconds_per_step` by precision.

    Raises:
        UsageError: the named precision is unavailable on the device.
    """
    low = low_precision(device)
    asked = config.autocast
    if asked == "fp16" and device.type == "cpu":
        raise UsageError("--autocast fp16", "trains on CUDA only", "Use --autocast auto, fp32 or bf16")
    if asked != "auto":
        emulated = asked == "bf16" and low != "bf16"
        return {
            "asked": asked,
            "executed": asked,
            "reason": "asked for" + (", emulated here" if emulated else ""),
        }
    if low is None:
        return {
            "asked": asked,
            "executed": "fp32",
            "reason": f"this {device.type} has no native 16-bit arithmetic",
        }
    if config.processes > 1:
        # Processes that time for themselves could decide differently.
        return {"asked": asked, "executed": "fp32", "reason": "not timed with several processes"}
    seconds = step_seconds(net, spec, config, device, batch, ["fp32", low])
    ratio = seconds["fp32"] / seconds[low]
    executed = low if ratio >= WORTHWHILE else "fp32"
    return {
        "asked": asked,
        "executed": executed,
        "reason": f"a step: {seconds['fp32'] * 1e3:.0f} ms in fp32, {seconds[low] * 1e3:.0f} ms in {low}",
        "seconds_per_step": seconds,
    }


def step_seconds(
    net: TileNet,
    spec: ModelSpec,
    config: TrainConfig,
    device: torch.device,
    batch: tuple[Tensor, Tensor],
    precisions: list[str],
    rounds: int = 5,
    budget: float = 6.0,
) -> dict[str, float]:
    """Median seconds of a training step by precision.

    Args:
        net: is not changed.
        spec, config, device: of the run.
        batch: uint8 `(n, 3, crop, crop)` and labels `(n,)`.
        precisions: "fp32", "bf16" or "fp16"; each takes one step in each round, after one step of warm-up.
        rounds: at most.
        budget: seconds after which no further round begins.
    """
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    tiles = batch[0].to(device).contiguous(memory_format=memory_format)
    labels = batch[1].to(device)

    copies = {}
    for precision in precisions:
        twin = copy.deepcopy(net).to(device, memory_format=memory_format).train()
        copies[precision] = (
            twin,
            make_optimizer(twin, config),
            torch.amp.GradScaler(device.type, enabled=False),
        )
        if precision == "fp16":
            copies[precision] = (*copies[precision][:2], torch.amp.GradScaler(device.type))

    def step(precision: str) -> float:
        twin, optimizer, scaler = copies[precision]
        start = time.perf_counter()
        low = precision != "fp32"
        with torch.autocast(device.type, DTYPES[precision]) if low else nullcontext():
            loss = functional.cross_entropy(twin(normalise(tiles, spec)).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    begun = time.perf_counter()
    times: dict[str, list[float]] = {precision: [] for precision in precisions}
    for precision in precisions:
        step(precision)
    for _ in range(rounds):
        for precision in precisions:
            times[precision].append(step(precision))
        if time.perf_counter() - begun > budget:
            break
    return {precision: statistics.median(values) for precision, values in times.items()}
