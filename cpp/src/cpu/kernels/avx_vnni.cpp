// int8 in YMM registers, by AVX-VNNI: CPUs without AVX-512, as in laptops since 2021.
#include "kernels.h"
#include "vec_avx2.h"

namespace histo::kernels {

#include "vnni.inl"

extern const IsaRecord avx_vnni_record;
const IsaRecord avx_vnni_record{.isa = Isa::avx2,
                                .description = "AVX2 with VNNI",
                                .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx_vnni},
                                .executes = {.int8 = true},
                                .kernels = &vnni_kernels};

}  // namespace histo::kernels
