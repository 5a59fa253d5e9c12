// bf16 for the layers that an int8 network keeps in it, multiplied as floats. The sums are those of VDPBF16PS
// in the same order, but denormal numbers count. So int8 has the same convolutions' bits on every CPU: BFDOT,
// where it exists, rounds in its own way (neon_bf16.cpp).

namespace {

struct Bf16ByFloat : Bf16Sums, Units128 {
  static Sum plus_product(Sum sum, Units a, Units b) {
    const uint32x4_t high = vdupq_n_u32(0xFFFF0000U);
    const auto product = [](float32x4_t s, uint32x4_t x, uint32x4_t y) {
      return vfmaq_f32(s, vreinterpretq_f32_u32(x), vreinterpretq_f32_u32(y));
    };
    const float32x4_t first = product(sum.v, vandq_u32(a, high), vandq_u32(b, high));
    return {product(first, vshlq_n_u32(a, 16), vshlq_n_u32(b, 16))};
  }
};

// Precision::bf16 itself is not offered: multiplied like this it would be slower than float32.
constexpr ConvKernels bf16_by_float{.block = conv_block, .direct = conv<Bf16ByFloat>};

}  // namespace
