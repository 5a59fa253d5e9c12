#include "emulated_kernels.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/kernels/vec_portable.h"

namespace histo::kernels {

#include "cpu/kernels/amx.inl"

namespace {

// Denormal numbers count as zero in both instructions.
float without_denormals(float x) { return std::abs(x) < 0x1p-126F ? std::copysign(0.0F, x) : x; }

// Half `i` of a unit.
float bf16(std::uint32_t unit, int i) {
  return without_denormals(std::bit_cast<float>(i == 1 ? unit & 0xFFFF0000U : unit << 16U));
}

std::int32_t four_products(std::uint32_t bytes, std::uint32_t signed_bytes) {
  std::int32_t sum = 0;
  for (unsigned shift = 0; shift < 32; shift += 8) {
    sum += static_cast<std::int32_t>(bytes >> shift & 0xFFU) *
           static_cast<std::int8_t>(signed_bytes >> shift & 0xFFU);
  }
  return sum;
}

struct Lanes {
  std::uint32_t v[Vec::lanes];
};

struct EmulatedUnits {
  using Units = Lanes;

  static Units broadcast(const std::uint32_t* p) { return {{*p, *p, *p, *p}}; }
  static Units load(const std::uint32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
};

// VDPBF16PS: the product of the high halves is added first, and either sum is rounded. Products need no
// rounding: 8 bits times 8 bits are 16, of a float's 24.
struct EmulatedBf16 : Bf16Sums, EmulatedUnits {
  static Sum plus_product(Sum sum, const Units& a, const Units& b) {
    for (std::size_t i = 0; i < Vec::lanes; ++i) {
      sum.v[i] += bf16(a.v[i], 1) * bf16(b.v[i], 1);
      sum.v[i] += bf16(a.v[i], 0) * bf16(b.v[i], 0);
    }
    return sum;
  }
};

// The sum, or the neighbouring float with an odd last bit where it is not a float: round to odd.
float odd_sum(float a, float b) {
  const double x = a, y = b;
  const double sum = x + y, back = sum - x;
  const double error = (x - (sum - back)) + (y - back);
  auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(sum));
  const double nearest = static_cast<double>(std::bit_cast<float>(bits));
  const double beyond = (nearest - sum) - error;  // its sign is exact
  if (std::isfinite(beyond) && beyond != 0) {
    bits -= (beyond > 0) == (nearest > 0) ? 1 : 0;  // towards zero
    bits |= 1U;
  }
  return without_denormals(std::bit_cast<float>(bits));
}

// BFDOT of Arm: the products are added to each other and then to the sum, and both sums are rounded to odd.
// Source: BFDotAdd() and BFAdd() in the pseudocode of the Arm Architecture Reference Manual (DDI 0487).
struct EmulatedBfdot : Bf16Sums, EmulatedUnits {
  static Sum plus_product(Sum sum, const Units& a, const Units& b) {
    for (std::size_t i = 0; i < Vec::lanes; ++i) {
      const auto product = [&](int half) {
        return without_denormals(bf16(a.v[i], half) * bf16(b.v[i], half));
      };
      sum.v[i] = odd_sum(without_denormals(sum.v[i]), odd_sum(product(0), product(1)));
    }
    return sum;
  }
};

// VPDPBUSD
struct EmulatedInt8 : Int8Sums, EmulatedUnits {
  static Sum plus_product(Sum sum, const Units& a, const Units& b) {
    for (std::size_t i = 0; i < Vec::lanes; ++i) {
      sum.v[i] += four_products(a.v[i], b.v[i]);
    }
    return sum;
  }
};

// Eight tiles as ProcessorTiles of amx.cpp uses them.
struct EmulatedTiles {
  using Tile = std::uint32_t[tile_rows][tile_units];

  static inline thread_local Tile tiles[8];
  static inline thread_local bool in_use = false;

  static void begin() { in_use = true; }
  static void end() { in_use = false; }
  static void clear_sums() { std::memset(tiles, 0, 4 * sizeof(Tile)); }

  template <int i>
  static void load_pixels(const std::uint32_t* p, std::ptrdiff_t units) {
    load(4 + i, p, units);
  }
  template <int i>
  static void load_weights(const std::uint32_t* p, std::ptrdiff_t units) {
    load(6 + i, p, units);
  }
  static void load(int tile, const std::uint32_t* p, std::ptrdiff_t units) {
    for (std::size_t row = 0; in_use && row < tile_rows; ++row) {
      std::memcpy(tiles[tile][row], p + static_cast<std::ptrdiff_t>(row) * units, sizeof tiles[tile][row]);
    }
  }

  template <typename Sums, int i>
  static void multiply() {
    for (int weights = 0; weights < 2; ++weights) {
      add_products(Sums{}, tiles[2 * i + weights], tiles[4 + i], tiles[6 + weights]);
    }
  }
  // TDPBUSD
  static void add_products(Int8Sums, Tile& sums, const Tile& a, const Tile& b) {
    for (std::size_t m = 0; m < tile_rows; ++m) {
      for (std::size_t k = 0; k < tile_units; ++k) {
        for (std::size_t n = 0; n < tile_units; ++n) {
          sums[m][n] += static_cast<std::uint32_t>(four_products(a[m][k], b[k][n]));
        }
      }
    }
  }
  // TDPBF16PS: the products of the low halves are summed apart from those of the high halves. The inner loops
  // are over columns, which compilers turn into vectors.
  static void add_products(Bf16Sums, Tile& sums, const Tile& a, const Tile& b) {
    float factors[tile_units][2][tile_units];
    for (std::size_t k = 0; k < tile_units; ++k) {
      for (std::size_t n = 0; n < tile_units; ++n) {
        factors[k][0][n] = bf16(b[k][n], 0);
        factors[k][1][n] = bf16(b[k][n], 1);
      }
    }
    for (std::size_t m = 0; m < tile_rows; ++m) {
      float halves[2][tile_units] = {};
      for (std::size_t k = 0; k < tile_units; ++k) {
        for (int i = 0; i < 2; ++i) {
          const float factor = bf16(a[m][k], i);
          for (std::size_t n = 0; n < tile_units; ++n) {
            halves[i][n] = without_denormals(halves[i][n] + factor * factors[k][i][n]);
          }
        }
      }
      for (std::size_t n = 0; n < tile_units; ++n) {
        const float sum = std::bit_cast<float>(sums[m][n]);
        sums[m][n] = std::bit_cast<std::uint32_t>(
            without_denormals(without_denormals(halves[0][n] + halves[1][n]) + sum));
      }
    }
  }

  template <typename Kept>
  static void store_sums(Kept* to) {
    for (std::size_t sums = 0; sums < 4; ++sums) {
      for (std::size_t row = 0; row < tile_rows; ++row) {
        std::memcpy(to + (sums / 2 * tile_rows + row) * amx_block + sums % 2 * tile_units, tiles[sums][row],
                    sizeof tiles[sums][row]);
      }
    }
  }
};

constexpr ConvKernels vectors_bf16{.block = conv_block, .direct = conv<EmulatedBf16>};
constexpr ConvKernels vectors_int8{.block = conv_block, .direct = conv<EmulatedInt8>};
constexpr ConvKernels neon_bf16{.block = conv_block, .direct = conv<EmulatedBfdot>};
constexpr ConvKernels tiles_bf16 = amx_kernels(amx_conv<EmulatedTiles, Bf16Sums>);
constexpr ConvKernels tiles_int8 = amx_kernels(amx_conv<EmulatedTiles, Int8Sums>);

}  // namespace

const KernelSet emulated_vectors{
    .lanes = Vec::lanes,
    .of = {.bf16 = &vectors_bf16, .bf16x3 = &vectors_bf16, .int8 = &vectors_int8},
    .stem = {.bf16 = &vectors_bf16, .bf16x3 = &vectors_bf16},
    .split = split,
    .max_pool = max_pool};
const KernelSet emulated_amx{.lanes = Vec::lanes,
                             .interleaved = amx_interleaved,
                             .of = {.bf16 = &tiles_bf16, .bf16x3 = &tiles_bf16, .int8 = &tiles_int8},
                             .stem = {.bf16 = &tiles_bf16, .bf16x3 = &tiles_bf16},
                             .split = split,
                             .max_pool = max_pool};
const KernelSet emulated_neon{.lanes = Vec::lanes,
                              .of = {.bf16 = &neon_bf16, .bf16x3 = &neon_bf16},
                              .stem = {.bf16 = &neon_bf16, .bf16x3 = &neon_bf16},
                              .split = split,
                              .max_pool = max_pool};

}  // namespace histo::kernels
