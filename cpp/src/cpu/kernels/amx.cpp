// AMX with BF16 and INT8, on processors that have AVX-512 BF16 and VNNI as well, as all of them do.
#include "kernels.h"
#include "vec_avx512.h"

namespace histo::kernels {

#include "amx.inl"

namespace {

// A barrier: GCC's intrinsics do not tell the compiler that tiles are loaded from memory and stored to it.
[[gnu::always_inline]] inline void memory_is_used() { __asm__ volatile("" ::: "memory"); }

// Tiles 0 to 3 are sums, 4 and 5 pixels, 6 and 7 weights.
struct ProcessorTiles {
  static void begin() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    memory_is_used();
    _tile_loadconfig(&config);
    memory_is_used();
  }
  static void end() { _tile_release(); }

  static void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  template <int i>
  static void load_pixels(const Unit* p, std::ptrdiff_t units) {
    memory_is_used();
    if constexpr (i == 0) {
      _tile_loadd(4, p, units * 4);
    } else {
      _tile_loadd(5, p, units * 4);
    }
    memory_is_used();  // before what was gathered is replaced
  }
  template <int i>
  static void load_weights(const Unit* p, std::ptrdiff_t units) {
    if constexpr (i == 0) {
      _tile_loadd(6, p, units * 4);
    } else {
      _tile_loadd(7, p, units * 4);
    }
  }

  // Sixteen pixels by both tiles of weights.
  template <typename Sums, int i>
  static void multiply();

  template <typename Kept>
  static void store_sums(Kept* sums) {  // (32, 32)
    constexpr std::size_t stride = amx_block * sizeof(Kept);
    _tile_stored(0, sums, stride);
    _tile_stored(1, sums + tile_units, stride);
    _tile_stored(2, sums + tile_rows * amx_block, stride);
    _tile_stored(3, sums + tile_rows * amx_block + tile_units, stride);
    memory_is_used();
  }
};

template <>
void ProcessorTiles::multiply<Bf16Sums, 0>() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
}

template <>
void ProcessorTiles::multiply<Bf16Sums, 1>() {
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

template <>
void ProcessorTiles::multiply<Int8Sums, 0>() {
  _tile_dpbusd(0, 4, 6);
  _tile_dpbusd(1, 4, 7);
}

template <>
void ProcessorTiles::multiply<Int8Sums, 1>() {
  _tile_dpbusd(2, 5, 6);
  _tile_dpbusd(3, 5, 7);
}

constexpr ConvKernels bf16 = amx_kernels(amx_conv<ProcessorTiles, Bf16Sums>);
constexpr ConvKernels int8 = amx_kernels(amx_conv<ProcessorTiles, Int8Sums>);

constexpr KernelSet kernel_set{.lanes = Vec::lanes,
                               .interleaved = amx_interleaved,
                               .of = {.bf16 = &bf16, .bf16x3 = &bf16, .int8 = &int8},
                               .stem = {.bf16 = &bf16, .bf16x3 = &bf16},
                               .split = split,
                               .max_pool = max_pool};

}  // namespace

extern const IsaRecord amx_record;
const IsaRecord amx_record{
    .isa = Isa::amx,
    .description = "AMX",
    .needs = {&CpuInfo::avx2, &CpuInfo::fma, &CpuInfo::avx512f, &CpuInfo::avx512bw, &CpuInfo::avx512dq,
              &CpuInfo::avx512vl, &CpuInfo::avx512_vnni, &CpuInfo::avx512_bf16, &CpuInfo::amx_tile,
              &CpuInfo::amx_bf16, &CpuInfo::amx_int8},
    .executes = {.bf16 = true, .bf16x3 = true, .int8 = true},
    .kernels = &kernel_set};

}  // namespace histo::kernels
