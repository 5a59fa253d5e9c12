// The kernels of low precision without the instructions that they are for: each instruction is a loop over
// its lanes, which rounds as the processor does. For tests on any machine; slow.
#pragma once

#include "cpu/kernels/kernels.h"

namespace histo::kernels {

extern const KernelSet emulated_vectors;  // as avx512_vnni.cpp and avx512_bf16.cpp
extern const KernelSet emulated_amx;      // as amx.cpp
extern const KernelSet emulated_neon;     // as neon_bf16.cpp

}  // namespace histo::kernels
