// int8 in NEON registers, by the dot products of Armv8.2.
#include "kernels.h"
#include "vec_neon.h"

namespace histo::kernels {

#include "low_precision.inl"
#include "neon_bf16_by_float.inl"

namespace {

// SDOT: four products of signed bytes, and no saturation. Maps have unsigned bytes, so 128 is subtracted from
// each, and start_of() adds what that takes from the sum.
struct Int8 : Int8Sums, Units128 {
  static constexpr bool multiplies_lanes = true;

  static Sum start(const Epilogue& e, std::size_t channel) {
    return IntVec::load(e.start + channel % conv_block);
  }
  static Units broadcast(const Unit* p) { return centred(Units128::broadcast(p)); }
  static Units load_factors(const Unit* p) { return centred(load(p)); }
  static Sum plus_product(Sum sum, Units a, Units b) {
    return {vdotq_s32(sum.v, vreinterpretq_s8_u32(a), vreinterpretq_s8_u32(b))};
  }
  template <int lane>
  static Sum plus_lane_product(Sum sum, Units a, Units b) {
    return {vdotq_laneq_s32(sum.v, vreinterpretq_s8_u32(b), vreinterpretq_s8_u32(a), lane)};
  }

 private:
  static Units centred(Units bytes) { return veorq_u32(bytes, vdupq_n_u32(0x80808080U)); }
};

// 128 times the sum of the weights of each channel of a block.
void start_of(const Unit* weight, std::size_t units, std::int32_t* start) {
  Int8::Sum sums[conv_vectors];
  for (std::size_t j = 0; j < conv_vectors; ++j) {
    sums[j] = Int8::Sum::zero();
  }
  const Int8::Units lowest = vdupq_n_u32(0x80808080U);  // -128, four times
  for (std::size_t k = 0; k < units; ++k, weight += conv_block) {
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      sums[j] = Int8::plus_product(sums[j], lowest, Int8::load(weight + j * Vec::lanes));
    }
  }
  for (std::size_t j = 0; j < conv_vectors; ++j) {
    IntVec{vnegq_s32(sums[j].v)}.store(start + j * Vec::lanes);
  }
}

void int8_direct(const Conv& c, Range pixels, Range blocks) {
  const std::size_t units = c.window_rows * c.window_run;
  Conv with_start = c;
  std::int32_t start[conv_block];
  with_start.epilogue.start = start;
  for (std::size_t block = blocks.begin; block < blocks.end; ++block) {
    start_of(c.weight + block * units * conv_block, units, start);
    conv<Int8>(with_start, pixels, {block, block + 1});
  }
}

constexpr ConvKernels int8{.block = conv_block, .direct = int8_direct};

constexpr KernelSet kernel_set{.lanes = Vec::lanes,
                               .of = {.bf16 = &bf16_by_float, .int8 = &int8},
                               .stem = {.bf16 = &bf16_by_float},
                               .split = split,
                               .max_pool = max_pool};

}  // namespace

extern const IsaRecord neon_dotprod_record;
const IsaRecord neon_dotprod_record{.isa = Isa::neon,
                                    .description = "NEON with DOTPROD",
                                    .needs = {&CpuInfo::neon, &CpuInfo::neon_dotprod},
                                    .executes = {.int8 = true},
                                    .kernels = &kernel_set};

}  // namespace histo::kernels
