// int8 in ZMM registers, by AVX-512 VNNI.
#include "kernels.h"
#include "vec_avx512.h"

namespace histo::kernels {

#include "vnni.inl"

const ConvKernels avx512_int8 = vnni_int8;

extern const IsaRecord avx512_vnni_record;
const IsaRecord avx512_vnni_record{
    .isa = Isa::avx512,
    .description = "AVX-512 with VNNI",
    .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw, &CpuInfo::avx512dq,
              &CpuInfo::avx512vl, &CpuInfo::avx512_vnni},
    .executes = {.int8 = true},
    .kernels = &vnni_kernels};

}  // namespace histo::kernels
