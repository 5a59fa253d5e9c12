#include "cpu/isa_records.h"

namespace histo {
namespace {

constexpr IsaRecord portable{
    .isa = Isa::portable, .description = "the compiler's baseline", .needs = {}, .executes = {.fp32 = true}};
#ifdef HISTO_X86_KERNELS
constexpr IsaRecord avx2{.isa = Isa::avx2,
                         .description = "AVX2 with FMA",
                         .needs = {&CpuInfo::avx2, &CpuInfo::fma},
                         .executes = {.fp32 = true}};
constexpr IsaRecord avx512{.isa = Isa::avx512,
                           .description = "AVX-512",
                           .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw,
                                     &CpuInfo::avx512dq, &CpuInfo::avx512vl},
                           .executes = {.fp32 = true}};
constexpr IsaRecord avx512_vnni{
    .isa = Isa::avx512,
    .description = "AVX-512 with VNNI",
    .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw, &CpuInfo::avx512dq,
              &CpuInfo::avx512vl, &CpuInfo::avx512_vnni},
    .executes = {.int8 = true}};
constexpr IsaRecord avx512_bf16{
    .isa = Isa::avx512,
    .description = "AVX-512 with BF16",
    .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw, &CpuInfo::avx512dq,
              &CpuInfo::avx512vl, &CpuInfo::avx512_vnni, &CpuInfo::avx512_bf16},
    .executes = {.bf16 = true, .bf16x3 = true, .int8 = true}};
constexpr IsaRecord amx{
    .isa = Isa::amx,
    .description = "AMX",
    .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw, &CpuInfo::avx512dq,
              &CpuInfo::avx512vl, &CpuInfo::avx512_vnni, &CpuInfo::avx512_bf16, &CpuInfo::amx_tile,
              &CpuInfo::amx_bf16, &CpuInfo::amx_int8},
    .executes = {.bf16 = true, .bf16x3 = true, .int8 = true}};
#endif

}  // namespace

std::span<const IsaRecord* const> isa_records() {
  static constexpr const IsaRecord* records[] = {
      &portable,
#ifdef HISTO_X86_KERNELS
      &avx2,     &avx512, &avx512_vnni, &avx512_bf16, &amx,
#endif
  };
  return records;
}

}  // namespace histo
