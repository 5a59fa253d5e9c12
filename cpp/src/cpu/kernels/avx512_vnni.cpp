// int8 in ZMM registers, by AVX-512 VNNI.
#include "kernels.h"
#include "vec_avx512.h"

namespace histo::kernels {

#include "low_precision.inl"
#include "winograd.inl"

namespace {

// bf16 for the layers that an int8 network keeps in it, where the CPU has no BF16. The sums are those of
// VDPBF16PS in the same order, but denormal numbers count.
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

// VPDPBUSD: four products of a byte and a signed byte, and no saturation.
struct Int8 : Int8Sums, Units512 {
  static Sum plus_product(Sum sum, Units a, Units b) { return {_mm512_dpbusd_epi32(sum.v, a, b)}; }
};

// VPDPWSSD: two products of signed 16-bit integers, and no saturation.
struct Int16 : Int8Sums, Units512 {
  static Sum plus_product(Sum sum, Units a, Units b) { return {_mm512_dpwssd_epi32(sum.v, a, b)}; }
};

// Thirty-two 16-bit integers.
struct Int16Vec {
  static constexpr std::size_t lanes = 32;
  __m512i v;

  [[nodiscard]] Int16Vec plus(Int16Vec o) const { return {_mm512_add_epi16(v, o.v)}; }
  [[nodiscard]] Int16Vec minus(Int16Vec o) const { return {_mm512_sub_epi16(v, o.v)}; }
  template <int bits>
  [[nodiscard]] Int16Vec shifted() const {
    return {_mm512_slli_epi16(v, bits)};
  }
};

// F(4 x 4) in integers, for the points 0, +-1, +-2 and infinity. Nothing is rounded, so the result equals
// that of the direct convolution to the bit.
//
// Bytes transformed twice are at most 10 * 5 * 255 in size. Weights are at most 127; with a matrix of the
// rows (1, 0, 0), (1, +-1, 1), (1, +-2, 4) and (0, 0, 1) they become at most 49 * 127. Both fit into 16 bits.
// The usual matrix has the denominators 4, -6, -6, 24, 24 and 1. They are left out, so what comes out is 576
// times the sum. Sums of 32 bits may overflow on the way, but they wrap around: 576 times the sum is known
// modulo 2^32. Multiplication by the inverse of nine modulo 2^32 leaves 64 times the sum. So a sum of less
// than 2^25 in size is exact: Algorithm::winograd4 is only planned where the weights cannot give a larger
// one.
struct F4Integer {
  static constexpr std::size_t output = 4;
  static constexpr std::size_t input = 6;

  static void transform_input(const Int16Vec* d, Int16Vec* v) {
    const Int16Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4], d5 = d[5];
    const Int16Vec even = d4.minus(d2.shifted<2>()), odd = d3.minus(d1.shifted<2>());
    const Int16Vec even2 = d4.minus(d2), odd2 = d3.minus(d1).shifted<1>();
    v[0] = even.plus(d0.shifted<2>()).minus(d2);
    v[1] = even.plus(odd);
    v[2] = even.minus(odd);
    v[3] = even2.plus(odd2);
    v[4] = even2.minus(odd2);
    v[5] = d5.minus(odd).minus(d3.shifted<2>());
  }

  static void transform_weight_low(const Int16Vec* g, Int16Vec* u) {
    const Int16Vec even = g[0].plus(g[2]);
    u[0] = g[0];
    u[1] = even.plus(g[1]);
    u[2] = even.minus(g[1]);
  }
  static void transform_weight_high(const Int16Vec* g, Int16Vec* u) {
    const Int16Vec even = g[0].plus(g[2].shifted<2>()), odd = g[1].shifted<1>();
    u[0] = even.plus(odd);
    u[1] = even.minus(odd);
    u[2] = g[2];
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
  using Products = Int16;
  using Numbers = Int16Vec;
  static constexpr std::size_t map_channels = 4, channels_per_unit = 2, weights_per_unit = 4;

  static Numbers read(const Unit* pixel, std::size_t channel) {
    return {_mm512_cvtepu8_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel + channel / map_channels)))};
  }
  static void write(Numbers v, Unit* row, std::size_t channel) {
    _mm512_storeu_si512(row + channel / channels_per_unit, v.v);
  }
  static Numbers read_weight(const Unit* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Numbers resume_weight(const Unit* p) { return {_mm512_loadu_si512(p)}; }
  static void keep_weight(Numbers v, Unit* p) { _mm512_storeu_si512(p, v.v); }
  static Products::Units factor(Numbers weight) { return weight.v; }
  static void finish(const Epilogue& e, IntVec sum, Vec, std::size_t channel, const Unit* residual,
                     Unit* output) {
    constexpr int inverse_of_nine = 0x38E38E39;
    const __m512i times64 = _mm512_mullo_epi32(sum.v, _mm512_set1_epi32(inverse_of_nine));
    Products::finish(e, {_mm512_srai_epi32(times64, 6)}, channel, residual, output);
  }
};

// Precision::bf16 itself is not offered: multiplied like this it would be slower than float32.
constexpr ConvKernels bf16_by_float{.block = conv_block, .direct = conv<Bf16ByFloat>};

}  // namespace

const ConvKernels avx512_int8{.block = conv_block,
                              .direct = conv<Int8>,
                              .winograd4 = {.input = winograd_input<F4Integer, Int8Winograd>,
                                            .output = winograd_output<F4Integer, Int8Winograd>,
                                            .weights = winograd_weights<F4Integer, Int8Winograd>}};

namespace {

constexpr KernelSet kernel_set{.lanes = Vec::lanes,
                               .of = {.bf16 = &bf16_by_float, .int8 = &avx512_int8},
                               .stem = {.bf16 = &bf16_by_float},
                               .split = split,
                               .max_pool = max_pool};

}  // namespace

extern const IsaRecord avx512_vnni_record;
const IsaRecord avx512_vnni_record{
    .isa = Isa::avx512,
    .description = "AVX-512 with VNNI",
    .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw, &CpuInfo::avx512dq,
              &CpuInfo::avx512vl, &CpuInfo::avx512_vnni},
    .executes = {.int8 = true},
    .kernels = &kernel_set};

}  // namespace histo::kernels
