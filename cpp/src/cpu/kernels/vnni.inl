// int8 by the dot products of VNNI, over `Vec`, for ZMM registers (avx512_vnni.cpp) and YMM (avx_vnni.cpp).

#include "low_precision.inl"
#include "winograd.inl"

namespace {

// bf16 for the layers that an int8 network keeps in it, where the CPU has no BF16. The sums are those of
// VDPBF16PS in the same order, but denormal numbers count.
struct Bf16ByFloat : Bf16Sums, VecUnits {
  static Sum plus_product(Sum sum, Units a, Units b) {
    return sum.plus_product(high(a), high(b)).plus_product(low(a), low(b));
  }
};

struct Int8 : Int8Sums, VecUnits {
  static Sum plus_product(Sum sum, Units a, Units b) { return plus_bytes(sum, a, b); }
};

struct Int16 : Int8Sums, VecUnits {
  static Sum plus_product(Sum sum, Units a, Units b) { return plus_words(sum, a, b); }
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
    const Int16Vec even = d4.minus(d2.left<2>()), odd = d3.minus(d1.left<2>());
    const Int16Vec even2 = d4.minus(d2), odd2 = d3.minus(d1).left<1>();
    v[0] = even.plus(d0.left<2>()).minus(d2);
    v[1] = even.plus(odd);
    v[2] = even.minus(odd);
    v[3] = even2.plus(odd2);
    v[4] = even2.minus(odd2);
    v[5] = d5.minus(odd).minus(d3.left<2>());
  }

  static void transform_weight_low(const Int16Vec* g, Int16Vec* u) {
    const Int16Vec even = g[0].plus(g[2]);
    u[0] = g[0];
    u[1] = even.plus(g[1]);
    u[2] = even.minus(g[1]);
  }
  static void transform_weight_high(const Int16Vec* g, Int16Vec* u) {
    const Int16Vec even = g[0].plus(g[2].left<2>()), odd = g[1].left<1>();
    u[0] = even.plus(odd);
    u[1] = even.minus(odd);
    u[2] = g[2];
  }

  // Twenty-four times the transform.
  static void transform_output(const IntVec* p, IntVec* y) {
    const IntVec plus1 = p[1].plus(p[2]), minus1 = p[1].minus(p[2]);
    const IntVec plus2 = p[3].plus(p[4]), minus2 = p[3].minus(p[4]);
    y[0] = plus2.minus(plus1.left<2>()).plus(p[0].left<2>()).plus(p[0].left<1>());
    y[1] = minus2.left<1>().minus(minus1.left<2>());
    y[2] = plus2.minus(plus1).left<2>();
    y[3] = minus2.left<3>().minus(minus1.left<2>()).plus(p[5].left<4>()).plus(p[5].left<3>());
  }
};

struct Int8Winograd {
  using Products = Int16;
  using Numbers = Int16Vec;
  static constexpr std::size_t map_channels = 4, channels_per_unit = 2, weights_per_unit = 4;

  static Numbers read(const Unit* pixel, std::size_t channel) {
    return Numbers::load(reinterpret_cast<const std::uint8_t*>(pixel) + channel);
  }
  static void write(Numbers v, Unit* row, std::size_t channel) { v.store(row + channel / channels_per_unit); }
  static Numbers read_weight(const Unit* p) { return Numbers::load(reinterpret_cast<const std::int8_t*>(p)); }
  static Numbers resume_weight(const Unit* p) { return Numbers::load(static_cast<const void*>(p)); }
  static void keep_weight(Numbers v, Unit* p) { v.store(p); }
  static Products::Units factor(Numbers weight) { return weight.v; }
  static void finish(const Epilogue& e, IntVec sum, Vec, std::size_t channel, const Unit* residual,
                     Unit* output) {
    constexpr int inverse_of_nine = 0x38E38E39;
    Products::finish(e, sum.times(inverse_of_nine).right<6>(), channel, residual, output);
  }
};

// Precision::bf16 itself is not offered: multiplied like this it would be slower than float32.
constexpr ConvKernels bf16_by_float{.block = conv_block, .direct = conv<Bf16ByFloat>};

constexpr ConvKernels vnni_int8{.block = conv_block,
                                .direct = conv<Int8>,
                                .winograd4 = {.input = winograd_input<F4Integer, Int8Winograd>,
                                              .output = winograd_output<F4Integer, Int8Winograd>,
                                              .weights = winograd_weights<F4Integer, Int8Winograd>}};

constexpr KernelSet vnni_kernels{.lanes = Vec::lanes,
                                 .of = {.bf16 = &bf16_by_float, .int8 = &vnni_int8},
                                 .stem = {.bf16 = &bf16_by_float},
                                 .split = split,
                                 .max_pool = max_pool};

}  // namespace
