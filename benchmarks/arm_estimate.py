"""Estimates of the NEON kernels' speed, for machines that nobody has measured.

python benchmarks/arm_estimate.py                        # needs aarch64-linux-gnu-g++ and llvm-mca, version 18 or later
python benchmarks/arm_estimate.py --mca llvm-mca-19 --cpu neoverse-v1 apple-m1

Compiles each kernel as a release does, cuts out its innermost loop and asks llvm-mca for its cycles, all data being in
the first-level cache. Beside them: the floor, which is the loop's arithmetic instructions over the CPU's units for
them, and the bytes that the loop loads. The second table is the floor of the whole network: what remains to be
multiplied for a tile of 128 pixels, and the packed weights that a single tile has to read.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "cpp/src/cpu/kernels"
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-schedule-insns")
UNITS = {"neoverse-v1": 4, "neoverse-n2": 2, "apple-m1": 4}
"""Vector instructions a cycle: the CPUs' published number of 128-bit units. LLVM's model of apple-m1 has three."""

REPETITIONS = 200
ARITHMETIC = re.compile(r"\t(?:fmla|fmls|fmul|fadd|fsub|[us]*dot|bfdot|[us]*mmla|bfmmla)\t")
MULTIPLICATION = re.compile(r"\t(?:fmla|[us]*dot|bfdot|[us]*mmla|bfmmla)\t")


class Kernel(NamedTuple):
    """A loop of a kernel.

    Attributes:
        name: for people.
        file: of `KERNELS`, without its suffix.
        march: what it is compiled for.
        function: its mangled name contains all of these.
        products: multiply-adds of one instruction; 0 where the loop transforms and does not multiply.
    """

    name: str
    file: str
    march: str
    function: tuple[str, ...]
    products: int


V8, DOTPROD, I8MM, BF16 = "armv8-a", "armv8.2-a+dotprod", "armv8.2-a+i8mm", "armv8.2-a+bf16"
ALL = (
    Kernel("fp32, direct", "neon", V8, ("conv_group", "4Fp32", "Lm6ELm1E"), 4),
    Kernel("fp32, Winograd's products", "neon", V8, ("product_rows", "4Fp32", "Lm6ELm1E"), 4),
    Kernel("fp32, F(4x4) of the input", "neon", V8, ("winograd_input", "2F4"), 0),
    Kernel("fp32, F(4x4) of the output", "neon", V8, ("winograd_output", "2F4"), 0),
    Kernel("int8, SDOT", "neon_dotprod", DOTPROD, ("conv_group", "4Int8", "Lm6ELm1E"), 16),
    Kernel("int8, USMMLA", "neon_i8mm", I8MM, ("conv_group", "4Int8", "Lm6ELm1E"), 32),
    Kernel("bf16 kept by int8, FMLA", "neon_i8mm", I8MM, ("conv_group", "11Bf16ByFloat", "Lm6ELm0E"), 4),
    Kernel("bf16, BFMMLA, direct", "neon_bf16", BF16, ("conv_group", "4Bf16E", "Lm6ELm1E"), 16),
    Kernel("bf16, BFMMLA, Winograd's products", "neon_bf16", BF16, ("product_rows", "4Bf16E", "Lm6ELm1E"), 16),
    Kernel("bf16, the stem, BFDOT", "neon_bf16", BF16, ("conv_group", "7Bf16Dot", "Lm6ELm0E"), 8),
)


class Loop(NamedTuple):
    """What a kernel repeats.

    Attributes:
        code: the assembler's lines.
        arithmetic: its additions and multiplications of vectors.
        multiplications: those that multiply and add.
        bytes: that it loads.
    """

    code: str
    arithmetic: int
    multiplications: int
    bytes: int


class Layers(NamedTuple):
    """Multiply-adds of a tile of 128 pixels, in millions: the stem, 3x3 of stride 1, and the others."""

    stem: float = 38.5
    winograd: float = 1_094.7
    other: float = 62.9


def compiled(kernel: Kernel, folder: Path) -> list[str]:
    """The assembler's lines of the kernel's file; it is compiled once."""
    path = folder / f"{kernel.file}.s"
    if not path.exists():
        include = [f"-I{ROOT / 'cpp/src'}", f"-I{ROOT / 'cpp/include'}"]
        source = KERNELS / f"{kernel.file}.cpp"
        subprocess.run([COMPILER, *FLAGS, f"-march={kernel.march}", *include, "-S", source, "-o", path], check=True)
    return path.read_text(encoding="utf-8").splitlines()


def function_body(lines: Sequence[str], kernel: Kernel) -> list[str]:
    """The lines of the kernel's function.

    Raises:
        LookupError: the file does not contain exactly one such function.
    """
    starts = [
        i
        for i, line in enumerate(lines)
        if line.startswith("_Z") and ":" in line and all(part in line for part in kernel.function)
    ]
    if len(starts) != 1:
        raise LookupError(f"{kernel.file}: {len(starts)} functions match {' '.join(kernel.function)}, not one")
    end = next(i for i in range(starts[0], len(lines)) if lines[i].lstrip().startswith(".size"))
    return list(lines[starts[0] + 1 : end])


def loop_of(kernel: Kernel, folder: Path) -> Loop:
    """The innermost loop with the most arithmetic: from a label to a branch back to it, without another one inside."""
    body = function_body(compiled(kernel, folder), kernel)
    labels = {line[:-1]: i for i, line in enumerate(body) if re.fullmatch(r"\.L\w+:", line)}
    found: list[list[str]] = []
    for i, line in enumerate(body):
        branch = re.match(r"\t(?:b\.?[a-z]*|cbn?z|tbn?z)\t.*(\.L\w+)$", line)
        if branch and labels.get(branch[1], i) < i:
            inside = body[labels[branch[1]] + 1 : i + 1]
            branches_back = sum(
                1
                for j, other in enumerate(inside[:-1], labels[branch[1]] + 1)
                if (b := re.match(r"\t(?:b\.?[a-z]*|cbn?z)\t.*(\.L\w+)$", other)) and labels.get(b[1], j) < j
            )
            if branches_back == 0:
                found.append([text for text in inside if text.startswith("\t") and not text.startswith("\t.")])
    code = max(found, key=lambda loop: sum(1 for text in loop if ARITHMETIC.search(text)))
    loads = [re.search(r"\t(ldp|ldr|ldur|ld1r|ld1)\t\{?([qdsvxw])", text) for text in code]
    size = {"q": 16, "d": 8, "s": 4, "v": 4, "x": 0, "w": 0}
    return Loop(
        "\n".join(code) + "\n",
        sum(1 for text in code if ARITHMETIC.search(text)),
        sum(1 for text in code if MULTIPLICATION.search(text)),
        sum(size[m[2]] * (2 if m[1] == "ldp" else 1) for m in loads if m),
    )


def cycles(loop: Loop, cpu: str, mca: str) -> float:
    """The cycles of one turn of the loop, by llvm-mca."""
    command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+dotprod,+i8mm,+bf16", f"-iterations={REPETITIONS}"]
    ran = subprocess.run([*command, "-"], input=loop.code, capture_output=True, encoding="utf-8", check=True)
    total = re.search(r"Total Cycles:\s+(\d+)", ran.stdout)
    if total is None:
        raise RuntimeError(f"{mca} printed no cycles for {cpu}: {ran.stderr.strip()}")
    return int(total[1]) / REPETITIONS


def kernel_table(cpus: Sequence[str], mca: str) -> Table:
    """One row for each kernel: the loop, and for each CPU its cycles and the share of the peak that follows."""
    table = Table("kernel", "arithmetic", "loaded", *(f"{cpu}: cycles, floor, share" for cpu in cpus))
    with tempfile.TemporaryDirectory() as folder:
        for kernel in ALL:
            loop = loop_of(kernel, Path(folder))
            cells = []
            for cpu in cpus:
                taken, floor = cycles(loop, cpu, mca), loop.arithmetic / UNITS[cpu]
                cells.append(f"{taken:.1f}, {floor:.1f}, {floor / taken:.0%}")
            table.add_row(kernel.name, str(loop.arithmetic), f"{loop.bytes} B", *cells)
    return table


def network_table(cpus: Sequence[str]) -> Table:
    """The floor of the whole network: multiplications over the peak, and the bytes of the weights."""
    layers = Layers()
    rows = {
        "fp32, direct": ((layers.stem + layers.winograd + layers.other) / 4, 81),
        "fp32, throughput profile: F(4x4)": ((layers.stem + layers.winograd / 4 + layers.other) / 4, 96),
        "int8, SDOT": (layers.stem / 4 + (layers.winograd + layers.other) / 16, 22),
        "int8, USMMLA": (layers.stem / 4 + (layers.winograd + layers.other) / 32, 22),
        "bf16, throughput profile: F(2x2)": (
            layers.stem / 8 + (layers.winograd / 2.25 + layers.other) / 16,
            73,
        ),
    }
    table = Table("arithmetic", "instructions", "weights", *(f"{cpu}: cycles" for cpu in cpus))
    for name, (instructions, weights) in rows.items():
        cells = [f"{instructions / UNITS[cpu]:.1f} M" for cpu in cpus]
        table.add_row(name, f"{instructions:.1f} M", f"{weights} MB", *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mca", default="llvm-mca", help="the program (default: llvm-mca)")
    parser.add_argument("--cpu", nargs="+", choices=sorted(UNITS), default=list(UNITS))
    options = parser.parse_args()
    console = Console(width=160)
    console.print(kernel_table(options.cpu, options.mca), network_table(options.cpu))


if __name__ == "__main__":
    main()
