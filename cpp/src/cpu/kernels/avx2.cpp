#include "kernels.h"
#include "vec_avx2.h"

namespace histo::kernels {

#include "fp32.inl"

extern const IsaRecord avx2_record;
const IsaRecord avx2_record{.isa = Isa::avx2,
                            .description = "AVX2 with FMA",
                            .needs = {&CpuInfo::avx2, &CpuInfo::fma},
                            .executes = {.fp32 = true},
                            .kernels = &fp32_kernels};

}  // namespace histo::kernels
