// bf16 in ZMM registers, by AVX-512 BF16. Every CPU with BF16 has VNNI as well, so this set has int8, too.
#include "kernels.h"
#include "vec_avx512.h"

namespace histo::kernels {

#include "low_precision.inl"
#include "winograd.inl"

namespace {

// VDPBF16PS: sum + high * high', rounded, + low * low', rounded; denormal bf16 count as zero.
struct Bf16 : Bf16Sums, VecUnits {
  static Sum plus_product(Sum sum, Units a, Units b) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }
};

struct Bf16Winograd {
  using Products = Bf16;
  using Numbers = Vec;
  static constexpr std::size_t map_channels = 2, channels_per_unit = 2;

  static Numbers read(const Unit* pixel, std::size_t channel) {
    return Vec::load(reinterpret_cast<const std::uint16_t*>(pixel) + channel);
  }
  static void write(Numbers v, Unit* row, std::size_t channel) {
    const __m256bh rounded = _mm512_cvtneps_pbh(v.v);
    __builtin_memcpy(row + channel / channels_per_unit, &rounded, sizeof rounded);
  }
  static void finish(const Epilogue& e, Vec sum, Vec bias, std::size_t channel, const Unit* residual,
                     Unit* output) {
    Products::finish(e, sum.plus(bias), channel, residual, output);
  }
};

}  // namespace

const ConvKernels avx512_bf16{
    .block = conv_block,
    .direct = conv<Bf16>,
    .winograd2 = {.input = winograd_input<F2, Bf16Winograd>, .output = winograd_output<F2, Bf16Winograd>}};

namespace {

// bf16x3 is bf16 with three times the channels, and has no kernels for Winograd's algorithm.
constexpr ConvKernels bf16x3{.block = conv_block, .direct = conv<Bf16>};

constexpr KernelSet kernel_set{.lanes = Vec::lanes,
                               .of = {.bf16 = &avx512_bf16, .bf16x3 = &bf16x3, .int8 = &avx512_int8},
                               .stem = {.bf16 = &avx512_bf16, .bf16x3 = &bf16x3},
                               .split = split,
                               .max_pool = max_pool};

}  // namespace

extern const IsaRecord avx512_bf16_record;
const IsaRecord avx512_bf16_record{
    .isa = Isa::avx512,
    .description = "AVX-512 with BF16",
    .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw, &CpuInfo::avx512dq,
              &CpuInfo::avx512vl, &CpuInfo::avx512_vnni, &CpuInfo::avx512_bf16},
    .executes = {.bf16 = true, .bf16x3 = true, .int8 = true},
    .kernels = &kernel_set};

}  // namespace histo::kernels
