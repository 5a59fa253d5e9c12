"""Whether an installed wheel works: python packaging/smoke.py [BUNDLE]. It needs what the light install brings, only.

The compiled head is compared with NumPy in every instruction set that runs here, `histo` must start, and with a bundle,
its logits of random tiles must be the same in a batch and one by one, and `histo verify` must pass. docs/releasing.md
tells how an emulator runs it.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

import histo_export
from histo_export._core import FusedHead, usable_isas, usable_precisions


def check_head() -> None:
    """Pooling and linear layer against float64."""
    random = np.random.default_rng(0)
    features = random.standard_normal((3, 512, 4, 4), np.float32)
    weight = random.standard_normal((5, 512 * 4), np.float32)
    bias = random.standard_normal(5, np.float32)
    pooled = features.astype(np.float64).reshape(3, 512, 2, 2, 2, 2).mean((3, 5)).reshape(3, -1)
    expected = pooled @ weight.T.astype(np.float64) + bias
    for isa in usable_isas():
        error = abs(FusedHead(weight, bias, 2, isa=isa).run(features) - expected).max()
        assert error < 1e-4, f"{isa}: the head's largest error is {error:.1e}"
        print(f"head, {isa}: largest error {error:.1e}")


def check_kernels() -> None:
    """A build whose compiler refused a flag has the portable kernels alone, and would be slow."""
    if sys.platform != "linux":
        return
    expected = set()
    if platform.machine() == "x86_64":
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
        kernels = {
            "avx2": {"avx2"},
            "avx512": {"avx512bw"},
            "int8": {"avx512_vnni", "avx_vnni"},
            "bf16": {"avx512_bf16"},
        }
        expected = {kernel for kernel, any_of in kernels.items() if any_of & flags}
    elif platform.machine() == "aarch64":
        system = ctypes.CDLL(None)
        system.getauxval.restype, system.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        first, second = map(system.getauxval, (16, 26))  # AT_HWCAP, AT_HWCAP2
        bits = {"neon": first >> 1, "int8": first >> 20, "bf16": second >> 14}  # ASIMD, ASIMDDP, BF16
        expected = {kernel for kernel, bit in bits.items() if bit & 1}
    found = {*usable_isas(), *usable_precisions()}
    assert expected <= found, f"this CPU can run {sorted(expected)}, and the wheel has {sorted(found)}"
    print(f"kernels: {', '.join(sorted(expected))}")


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def check_bundle(bundle: Path) -> None:
    classifier = histo_export.load(bundle)
    side = classifier.spec.tile_size
    tiles = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), np.uint8)
    together = classifier.predict(tiles).logits
    alone = np.concatenate([classifier.predict(tile[None]).logits for tile in tiles])
    assert np.array_equal(together, alone), "a tile's logits depend on its batch"
    print(f"logits of {bundle.name}: {' '.join(value.hex() for value in map(float, together[0]))}")


def main() -> None:
    histo = Path(sysconfig.get_path("scripts")) / "histo"
    print(f"{platform.machine()}, Python {platform.python_version()}, {histo_export.__file__}")
    assert "torch" not in sys.modules
    check_kernels()
    check_head()
    print(run(sys.executable, histo, "--version").strip())
    assert "predict" in run(sys.executable, histo, "--help")
    for bundle in map(Path, sys.argv[1:]):
        check_bundle(bundle)
        print(run(sys.executable, histo, "verify", bundle, "--runtimes", "native").strip().splitlines()[-1])


if __name__ == "__main__":
    main()
