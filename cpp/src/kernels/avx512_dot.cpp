// Dot products of bf16 and of bytes in ZMM registers, for AVX-512 VNNI and BF16, which CPUs have in any
// combination. `Int8` is only run where VNNI is, `Bf16` where BF16 is, `Bf16ByFloat` anywhere.
#include "kernels.h"
#include "vec_avx512.h"

namespace histo::kernels {

#include "dot.inl"
#include "winograd.inl"

namespace {

// Sixteen units: pairs of bf16, or fours of bytes.
struct Units512 {
  using Units = __m512i;

  static Units broadcast(const std::uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static Units load(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
};

// VDPBF16PS: sum + high * high', rounded, + low * low', rounded; denormal bf16 count as zero.
struct Bf16 : Bf16Sums, Units512 {
  static Sum plus_product(Sum sum, Units a, Units b) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }
};

// The same in the same order, but for denormals.
struct Bf16ByFloat : Bf16Sums, Units512 {
  static Sum plus_product(Sum sum, Units a, Units b) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000U));
    const auto product = [](__m512i x, __m512i y, __m512 s) {
      return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), s);
    };
    const __m512 first = product(_mm512_and_si512(a, high), _mm512_and_si512(b, high), sum.v);
    return {product(_mm512_slli_epi32(a, 16), _mm512_slli_epi32(b, 16), first)};
  }
};

struct Bf16Winograd {
  using Dot = Bf16;
  using Problem = DotWinograd;
  static constexpr std::size_t channels_per_unit = 2;

  static Vec read(const std::uint32_t* pixel, std::size_t channel) {
    return Vec::load(reinterpret_cast<const std::uint16_t*>(pixel) + channel);
  }
  static void write(Vec v, std::uint32_t* row, std::size_t channel) {
    const __m256bh rounded = _mm512_cvtneps_pbh(v.v);
    __builtin_memcpy(row + channel / channels_per_unit, &rounded, sizeof rounded);
  }
};

// VPDPBUSD: four products of a byte and a signed byte, and no saturation.
struct Int8 : Int8Sums, Units512 {
  static Sum plus_product(Sum sum, Units a, Units b) { return {_mm512_dpbusd_epi32(sum.v, a, b)}; }
};

}  // namespace

const DotTable avx512_vnni_table{.conv_block = conv_block,
                                 .bf16 = conv<Bf16ByFloat>,
                                 .winograd2 = {},
                                 .int8 = conv<Int8>,
                                 .split = split,
                                 .max_pool = max_pool_cells};
const DotTable avx512_bf16_table{
    .conv_block = conv_block,
    .bf16 = conv<Bf16>,
    .winograd2 = {.input = winograd_input<F2, Bf16Winograd>, .output = winograd_output<F2, Bf16Winograd>},
    .int8 = conv<Int8>,
    .split = split,
    .max_pool = max_pool_cells};

}  // namespace histo::kernels
