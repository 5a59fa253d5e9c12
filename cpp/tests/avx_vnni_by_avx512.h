// See avx_vnni_by_avx512.cpp.
#pragma once

#include "cpu/kernels/kernels.h"

namespace histo::kernels {

extern const KernelSet* const avx_vnni_by_avx512;  // needs AVX-512 VNNI and VL; null where it is not compiled

}  // namespace histo::kernels
