// int8 in NEON registers, by the matrix product of Armv8.6.
#include "kernels.h"
#include "vec_neon.h"

namespace histo::kernels {

#include "low_precision.inl"
#include "neon_bf16_by_float.inl"
#include "neon_pairs.inl"

namespace {

// USMMLA: sums of eight products of a byte and a signed byte, and no saturation.
struct Int8 : Int8Sums, Units128 {
  static constexpr bool multiplies_pairs = true;

  static Sum plus_pair_product(Sum sum, Units a, Units b) {
    return {vusmmlaq_s32(sum.v, vreinterpretq_u8_u32(a), vreinterpretq_s8_u32(b))};
  }
};

constexpr ConvKernels int8{.block = conv_block, .pair = true, .direct = conv<Int8>};

constexpr KernelSet kernel_set{.lanes = Vec::lanes,
                               .of = {.bf16 = &bf16_by_float, .int8 = &int8},
                               .stem = {.bf16 = &bf16_by_float},
                               .split = split,
                               .max_pool = max_pool};

}  // namespace

extern const IsaRecord neon_i8mm_record;
const IsaRecord neon_i8mm_record{.isa = Isa::neon,
                                 .description = "NEON with I8MM",
                                 .needs = {&CpuInfo::neon, &CpuInfo::neon_i8mm},
                                 .executes = {.int8 = true},
                                 .kernels = &kernel_set};

}  // namespace histo::kernels
