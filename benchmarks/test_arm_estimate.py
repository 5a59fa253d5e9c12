"""The loops that arm_estimate.py gives to llvm-mca, without a compiler for Arm."""

from __future__ import annotations

from pathlib import Path

import arm_estimate
import pytest
from arm_estimate import Kernel, Loop

SOURCE = """
_ZN1a12product_rowsI4Fp32Lm6ELm1EEE:
\tldr\tq9, [x0]
.L2:
\tldp\tq1, q2, [x1], 32
\tldr\tq3, [x2]
\tfmla\tv4.4s, v1.4s, v3.s[0]
\tfmla\tv5.4s, v2.4s, v3.s[0]
\tadd\tx2, x2, 16
\tcmp\tx2, x3
\tbne\t.L2
.L3:
\tfadd\tv4.4s, v4.4s, v9.4s
.L4:
\tldr\ts1, [x4]
\tfmul\tv1.4s, v1.4s, v2.4s
\tcbnz\tx4, .L4
\tcbnz\tx5, .L3
\tret
\t.size\t_ZN1a12product_rowsI4Fp32Lm6ELm1EEE, .-_ZN1a12product_rowsI4Fp32Lm6ELm1EEE
"""


def test_the_loop_is_the_innermost_one_with_the_most_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm_estimate, "compiled", lambda kernel, folder: SOURCE.splitlines())
    kernel = Kernel("products", "neon", "armv8-a", ("product_rows", "4Fp32", "Lm6ELm1E"), 4)
    loop = arm_estimate.loop_of(kernel, Path())
    assert loop == Loop("\n".join(SOURCE.splitlines()[4:11]) + "\n", arithmetic=2, multiplications=2, bytes=48)
    with pytest.raises(LookupError, match="0 functions match conv_group"):
        arm_estimate.loop_of(kernel._replace(function=("conv_group",)), Path())


def test_every_kernel_is_in_a_file_that_exists() -> None:
    for kernel in arm_estimate.ALL:
        assert (arm_estimate.KERNELS / f"{kernel.file}.cpp").is_file(), kernel.name
