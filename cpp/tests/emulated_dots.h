// The kernels of low precision without the instructions that they are for: each instruction is a loop over
// its lanes, which rounds as the processor does. For tests on any machine; slow.
#pragma once

#include "cpu/kernels/kernels.h"

namespace histo::kernels {

extern const DotTable emulated_vectors;  // as avx512_dot.cpp
extern const DotTable emulated_amx;      // as amx.cpp

}  // namespace histo::kernels
