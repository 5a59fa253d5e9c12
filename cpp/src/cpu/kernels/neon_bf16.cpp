// bf16 in NEON registers, by the BF16 instructions of Armv8.6.
#include "kernels.h"
#include "vec_neon.h"

namespace histo::kernels {

#include "low_precision.inl"
#include "neon_pairs.inl"
#include "winograd.inl"

namespace {

bfloat16x8_t bf16s(uint32x4_t units) { return vreinterpretq_bf16_u32(units); }

// BFDOT: sum + (low * low' + high * high'). Both additions round to odd, an error of less than one unit in
// the last place in place of half of one; denormal numbers count as zero. BFMMLA is two of them, one after
// the other, so both give the same bits.
struct Bf16Dot : Bf16Sums, Units128 {
  static constexpr bool multiplies_lanes = true;

  static Units load_factors(const Unit* p) { return load(p); }
  static Sum plus_product(Sum sum, Units a, Units b) { return {vbfdotq_f32(sum.v, bf16s(a), bf16s(b))}; }
  template <int lane>
  static Sum plus_lane_product(Sum sum, Units a, Units b) {
    return {vbfdotq_laneq_f32(sum.v, bf16s(b), bf16s(a), lane)};
  }
};

struct Bf16 : Bf16Sums, Units128 {
  static constexpr bool multiplies_pairs = true;

  static Sum plus_pair_product(Sum sum, Units a, Units b) {
    return {vbfmmlaq_f32(sum.v, bf16s(a), bf16s(b))};
  }
};

struct Bf16Winograd {
  using Products = Bf16;
  using Numbers = Vec;
  static constexpr std::size_t map_channels = 2, channels_per_unit = 2;

  static Numbers read(const Unit* pixel, std::size_t channel) {
    return Vec::load(reinterpret_cast<const std::uint16_t*>(pixel) + channel);
  }
  static void write(Numbers v, Unit* row, std::size_t channel) {  // BFCVTN: to nearest, ties to even
    const bfloat16x4_t rounded = vcvt_bf16_f32(v.v);
    __builtin_memcpy(row + channel / channels_per_unit, &rounded, sizeof rounded);
  }
  static void finish(const Epilogue& e, Vec sum, Vec bias, std::size_t channel, const Unit* residual,
                     Unit* output) {
    Products::finish(e, sum.plus(bias), channel, residual, output);
  }
};

// Windows of the stem have an odd number of units.
constexpr ConvKernels stem{.block = conv_block, .direct = conv<Bf16Dot>};

constexpr ConvKernels bf16{
    .block = conv_block,
    .pair = true,
    .direct = conv<Bf16>,
    .winograd2 = {.input = winograd_input<F2, Bf16Winograd>, .output = winograd_output<F2, Bf16Winograd>}};

// bf16x3 is bf16 with three times the channels, and has no kernels for Winograd's algorithm.
constexpr ConvKernels bf16x3{.block = conv_block, .pair = true, .direct = conv<Bf16>};

constexpr KernelSet kernel_set{.lanes = Vec::lanes,
                               .of = {.bf16 = &bf16, .bf16x3 = &bf16x3},
                               .stem = {.bf16 = &stem, .bf16x3 = &stem},
                               .split = split,
                               .max_pool = max_pool};

}  // namespace

extern const IsaRecord neon_bf16_record;
const IsaRecord neon_bf16_record{.isa = Isa::neon,
                                 .description = "NEON with BF16",
                                 .needs = {&CpuInfo::neon, &CpuInfo::neon_bf16},
                                 .executes = {.bf16 = true, .bf16x3 = true},
                                 .kernels = &kernel_set};

}  // namespace histo::kernels
