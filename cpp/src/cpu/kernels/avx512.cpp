#include "kernels.h"
#include "vec_avx512.h"

namespace histo::kernels {

#include "fp32.inl"

extern const IsaRecord avx512_record;
const IsaRecord avx512_record{.isa = Isa::avx512,
                              .description = "AVX-512",
                              .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw,
                                        &CpuInfo::avx512dq, &CpuInfo::avx512vl},
                              .executes = {.fp32 = true},
                              .kernels = &fp32_kernels};

}  // namespace histo::kernels
