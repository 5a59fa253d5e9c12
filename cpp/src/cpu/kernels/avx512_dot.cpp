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
  using Numbers = Vec;
  static constexpr std::size_t map_channels = 2, channels_per_unit = 2;

  static Numbers read(const std::uint32_t* pixel, std::size_t channel) {
    return Vec::load(reinterpret_cast<const std::uint16_t*>(pixel) + channel);
  }
  static void write(Numbers v, std::uint32_t* row, std::size_t channel) {
    const __m256bh rounded = _mm512_cvtneps_pbh(v.v);
    __builtin_memcpy(row + channel / channels_per_unit, &rounded, sizeof rounded);
  }
  static void finish(const DotEpilogue& e, Vec sum, Vec bias, std::size_t channel,
                     const std::uint32_t* residual, std::uint32_t* output) {
    Dot::finish(e, sum.plus(bias), channel, residual, output);
  }
};

// VPDPBUSD: four products of a byte and a signed byte, and no saturation.
struct Int8 : Int8Sums, Units512 {
  static Sum plus_product(Sum sum, Units a, Units b) { return {_mm512_dpbusd_epi32(sum.v, a, b)}; }
};

// VPDPWSSD: two products of signed words, and no saturation.
struct Int16 : Int8Sums, Units512 {
  static Sum plus_product(Sum sum, Units a, Units b) { return {_mm512_dpwssd_epi32(sum.v, a, b)}; }
};

// Thirty-two words.
struct Words {
  static constexpr std::size_t lanes = 32;
  __m512i v;

  [[nodiscard]] Words plus(Words o) const { return {_mm512_add_epi16(v, o.v)}; }
  [[nodiscard]] Words minus(Words o) const { return {_mm512_sub_epi16(v, o.v)}; }
  template <int bits>
  [[nodiscard]] Words shifted() const {
    return {_mm512_slli_epi16(v, bits)};
  }
};

// F(4 x 4) in whole numbers, for the points 0, +-1, +-2 and infinity, without a rounding anywhere: the result
// is that of the definition to the bit.
//
// Bytes transformed twice are at most 10 * 5 * 255 in size, and weights of 127, whose matrix has the rows (1,
// 0, 0), (1, +-1, 1), (1, +-2, 4) and (0, 0, 1), at most 49 * 127: both fit into words. The denominators of
// the usual matrix, 4, -6, -6, 24, 24 and 1, are made up for at the end: what comes out is 576 times the sum.
// Sums of 32 bits may overflow on the way, but wrap around, so 576 times the sum is known modulo 2^32; nine
// times the inverse of nine is one there, and what remains is 64 times the sum. So a sum of less than 2^25 in
// size comes out right: Algorithm::winograd4 is only planned where the weights cannot give a larger one.
struct F4Whole {
  static constexpr std::size_t output = 4;
  static constexpr std::size_t input = 6;

  static void transform_input(const Words* d, Words* v) {
    const Words d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4], d5 = d[5];
    const Words even = d4.minus(d2.shifted<2>()), odd = d3.minus(d1.shifted<2>());
    const Words even2 = d4.minus(d2), odd2 = d3.minus(d1).shifted<1>();
    v[0] = even.plus(d0.shifted<2>()).minus(d2);
    v[1] = even.plus(odd);
    v[2] = even.minus(odd);
    v[3] = even2.plus(odd2);
    v[4] = even2.minus(odd2);
    v[5] = d5.minus(odd).minus(d3.shifted<2>());
  }

  // Twenty-four times the transform.
  static void transform_output(const IntVec* p, IntVec* y) {
    const __m512i plus1 = _mm512_add_epi32(p[1].v, p[2].v), minus1 = _mm512_sub_epi32(p[1].v, p[2].v);
    const __m512i plus2 = _mm512_add_epi32(p[3].v, p[4].v), minus2 = _mm512_sub_epi32(p[3].v, p[4].v);
    const auto times = [](__m512i x, unsigned bits) { return _mm512_slli_epi32(x, bits); };
    y[0] = {_mm512_add_epi32(_mm512_sub_epi32(plus2, times(plus1, 2)),
                             _mm512_add_epi32(times(p[0].v, 2), times(p[0].v, 1)))};
    y[1] = {_mm512_sub_epi32(times(minus2, 1), times(minus1, 2))};
    y[2] = {times(_mm512_sub_epi32(plus2, plus1), 2)};
    y[3] = {_mm512_add_epi32(_mm512_sub_epi32(times(minus2, 3), times(minus1, 2)),
                             _mm512_add_epi32(times(p[5].v, 4), times(p[5].v, 3)))};
  }
};

struct Int8Winograd {
  using Dot = Int16;
  using Problem = DotWinograd;
  using Numbers = Words;
  static constexpr std::size_t map_channels = 4, channels_per_unit = 2;

  static Numbers read(const std::uint32_t* pixel, std::size_t channel) {
    return {_mm512_cvtepu8_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel + channel / map_channels)))};
  }
  static void write(Numbers v, std::uint32_t* row, std::size_t channel) {
    _mm512_storeu_si512(row + channel / channels_per_unit, v.v);
  }
  static void finish(const DotEpilogue& e, IntVec sum, Vec, std::size_t channel,
                     const std::uint32_t* residual, std::uint32_t* output) {
    constexpr int inverse_of_nine = 0x38E38E39;
    const __m512i times64 = _mm512_mullo_epi32(sum.v, _mm512_set1_epi32(inverse_of_nine));
    Dot::finish(e, {_mm512_srai_epi32(times64, 6)}, channel, residual, output);
  }
};

}  // namespace

const DotTable avx512_vnni_table{.conv_block = conv_block,
                                 .conv_bf16 = conv<Bf16ByFloat>,
                                 .winograd2_bf16 = {},
                                 .conv_int8 = conv<Int8>,
                                 .winograd4_int8 = {.input = winograd_input<F4Whole, Int8Winograd>,
                                                    .output = winograd_output<F4Whole, Int8Winograd>},
                                 .split = split,
                                 .max_pool = max_pool_cells};
const DotTable avx512_bf16_table{.conv_block = conv_block,
                                 .conv_bf16 = conv<Bf16>,
                                 .winograd2_bf16 = {.input = winograd_input<F2, Bf16Winograd>,
                                                    .output = winograd_output<F2, Bf16Winograd>},
                                 .conv_int8 = conv<Int8>,
                                 .winograd4_int8 = {.input = winograd_input<F4Whole, Int8Winograd>,
                                                    .output = winograd_output<F4Whole, Int8Winograd>},
                                 .split = split,
                                 .max_pool = max_pool_cells};

}  // namespace histo::kernels
