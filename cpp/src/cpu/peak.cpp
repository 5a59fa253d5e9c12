// Loops of nothing but one instruction, on registers that do not depend on one another. They are written out,
// because of equal sums a compiler would compute one, and because registers that are named need no flags:
// this file is compiled for the baseline, and each loop runs only where the kernels with its instruction do.
#include "histo/peak.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "aligned_buffer.h"
#include "cpu/isa_selection.h"
#include "cpu/peak_loops.h"
#include "cpu/thread_pool.h"
#include "histo/error.h"

namespace histo {
namespace {

using Loop = PeakLoop;

// What the portable kernels are, in the registers of the baseline.
constexpr std::size_t portable_sums = 12;
using Floats [[gnu::vector_size(16)]] = float;

void portable_loop(std::size_t rounds) {
  std::array<Floats, portable_sums> sums{};
  Floats factor = Floats{} + 0.5F;
  __asm__ volatile("" : "+m"(factor));
  for (std::size_t i = 0; i < rounds; ++i) {
    for (Floats& sum : sums) {
      sum = sum * factor + factor;
    }
  }
  Floats total{};
  for (const Floats& sum : sums) {
    total += sum;
  }
  __asm__ volatile("" : "+m"(total));
}

constexpr Loop portable{"fp32", "vectors of four floats", portable_loop, 4 * portable_sums};

#if defined(__x86_64__)

// Fourteen sums cover the latency of each of these. The factor is not zero, because zeros need less power.
constexpr double sums_of_loop = 14;
#define HISTO_TO_SUM(to, r, n) to " %%" r "mm14, %%" r "mm14, %%" r "mm" #n "\n\t"
#define HISTO_TO_SEVEN(to, r, a, b, c, d, e, f, g) \
  HISTO_TO_SUM(to, r, a)                           \
  HISTO_TO_SUM(to, r, b)                           \
  HISTO_TO_SUM(to, r, c)                           \
  HISTO_TO_SUM(to, r, d) HISTO_TO_SUM(to, r, e) HISTO_TO_SUM(to, r, f) HISTO_TO_SUM(to, r, g)
#define HISTO_LOOP(name, instruction, r, broadcast, factor)                                                  \
  void name(std::size_t rounds) {                                                                            \
    const std::uint32_t value = factor;                                                                      \
    __asm__ volatile("vzeroall\n\t" broadcast " %[value], %%" r                                              \
                     "mm14\n\t"                                                                              \
                     "0:\n\t" HISTO_TO_SEVEN(instruction, r, 0, 1, 2, 3, 4, 5, 6) HISTO_TO_SEVEN(            \
                         instruction, r, 7, 8, 9, 10, 11, 12, 13) "dec %[rounds]\n\tjnz 0b\n\tvzeroupper"    \
                     : [rounds] "+r"(rounds)                                                                 \
                     : [value] "m"(value)                                                                    \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                                \
  }
HISTO_LOOP(avx2_loop, "vfmadd231ps", "y", "vbroadcastss", 0x3f000000)            // 0.5
HISTO_LOOP(avx_int8_loop, "%{vex%} vpdpbusd", "y", "vpbroadcastd", 0x01010101)   // 1 four times
HISTO_LOOP(avx_int16_loop, "%{vex%} vpdpwssd", "y", "vpbroadcastd", 0x00010001)  // 1 twice
HISTO_LOOP(avx512_loop, "vfmadd231ps", "z", "vbroadcastss", 0x3f000000)          // 0.5
HISTO_LOOP(avx512_bf16_loop, "vdpbf16ps", "z", "vbroadcastss", 0x3f003f00)       // 0.5 twice
HISTO_LOOP(avx512_int8_loop, "vpdpbusd", "z", "vpbroadcastd", 0x01010101)        // 1 four times
HISTO_LOOP(avx512_int16_loop, "vpdpwssd", "z", "vpbroadcastd", 0x00010001)       // 1 twice
#undef HISTO_LOOP
#undef HISTO_TO_SEVEN
#undef HISTO_TO_SUM

// Eight tiles of 16 rows of 64 bytes: four sums, and two tiles on each side, as a matrix kernel has them.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr double sums_of_tiles = 4 * 16 * 16;
#define HISTO_LOOP(name, instruction, factor)                                               \
  void name(std::size_t rounds) {                                                           \
    const TileConfig config;                                                                \
    alignas(64) std::array<std::uint32_t, 256> values;                                      \
    values.fill(factor);                                                                    \
    const std::size_t row = 64;                                                             \
    __asm__ volatile(                                                                       \
        "ldtilecfg %[config]\n\t" /* which zeroes the tiles */                              \
        "tileloadd (%[values],%[row],1), %%tmm4\n\t"                                        \
        "tileloadd (%[values],%[row],1), %%tmm5\n\t"                                        \
        "tileloadd (%[values],%[row],1), %%tmm6\n\t"                                        \
        "tileloadd (%[values],%[row],1), %%tmm7\n\t"                                        \
        "0:\n\t" instruction " %%tmm6, %%tmm4, %%tmm0\n\t" instruction                      \
        " %%tmm7, %%tmm4, %%tmm1\n\t" instruction " %%tmm6, %%tmm5, %%tmm2\n\t" instruction \
        " %%tmm7, %%tmm5, %%tmm3\n\t"                                                       \
        "dec %[rounds]\n\t"                                                                 \
        "jnz 0b\n\t"                                                                        \
        "tilerelease"                                                                       \
        : [rounds] "+r"(rounds)                                                             \
        : [config] "m"(config), [values] "r"(values.data()), [row] "r"(row)                 \
        : "cc", "memory");                                                                  \
  }
#if !defined(_WIN32)                                // which has no kernels for AMX, and perhaps no assembler
HISTO_LOOP(amx_bf16_loop, "tdpbf16ps", 0x3f003f00)  // 0.5 twice
HISTO_LOOP(amx_int8_loop, "tdpbusd", 0x01010101)    // 1 four times
#endif
#undef HISTO_LOOP

}  // namespace

std::vector<Loop> peak_loops(Isa isa, Precision precision) {
  if (precision == Precision::fp32) {
    if (isa == Isa::avx512) {
      return {{"fp32", "VFMADD231PS, 512 bits", avx512_loop, 16 * sums_of_loop}};
    }
    return {isa == Isa::avx2 ? Loop{"fp32", "VFMADD231PS, 256 bits", avx2_loop, 8 * sums_of_loop} : portable};
  }
#if !defined(_WIN32)
  if (isa == Isa::amx) {
    return {precision == Precision::bf16 ? Loop{"bf16", "TDPBF16PS", amx_bf16_loop, 32 * sums_of_tiles}
                                         : Loop{"int8", "TDPBUSD", amx_int8_loop, 64 * sums_of_tiles}};
  }
#endif
  if (isa == Isa::avx512) {
    if (precision == Precision::bf16) {
      return {{"bf16", "VDPBF16PS", avx512_bf16_loop, 32 * sums_of_loop}};
    }
    return {{"int8", "VPDPBUSD", avx512_int8_loop, 64 * sums_of_loop},
            {"int16", "VPDPWSSD", avx512_int16_loop, 32 * sums_of_loop}};
  }
  if (isa == Isa::avx2 && precision == Precision::int8) {
    return {{"int8", "VPDPBUSD, 256 bits", avx_int8_loop, 32 * sums_of_loop},
            {"int16", "VPDPWSSD, 256 bits", avx_int16_loop, 16 * sums_of_loop}};
  }
  return {};
}

#elif defined(__aarch64__)

// Twenty-four sums, for CPUs with four units and a latency of four cycles and more. The instructions are
// written as numbers, whose last five bits are the sum's register, because assemblers know them by flags
// only. The factor is v30.
constexpr double sums_of_loop = 24;
#define HISTO_TO_SUM(code, n) ".inst " #code " + " #n "\n\t"
#define HISTO_TO_FOUR(code, a, b, c, d) \
  HISTO_TO_SUM(code, a) HISTO_TO_SUM(code, b) HISTO_TO_SUM(code, c) HISTO_TO_SUM(code, d)
#define HISTO_LOOP(name, code, factor)                                                                     \
  void name(std::size_t rounds) {                                                                          \
    __asm__ volatile("dup v30.4s, %w[value]\n\t"                                                         \
                     "0:\n\t" HISTO_TO_FOUR(code, 0, 1, 2, 3) HISTO_TO_FOUR(code, 4, 5, 6, 7)            \
                         HISTO_TO_FOUR(code, 16, 17, 18, 19) HISTO_TO_FOUR(code, 20, 21, 22, 23)         \
                             HISTO_TO_FOUR(code, 24, 25, 26, 27) HISTO_TO_FOUR(code, 28, 29, 31, 15)     \
                     "subs %[rounds], %[rounds], #1\n\t"                                                 \
                     "b.ne 0b"                                                                           \
                     : [rounds] "+r"(rounds)                                                             \
                     : [value] "r"(std::uint32_t{factor})                                                \
                     : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v15", "v16", "v17", "v18", \
                       "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29",      \
                       "v30", "v31"); \
  }
HISTO_LOOP(neon_loop, 0x4e3ecfc0, 0x3f000000)          // FMLA, 0.5
HISTO_LOOP(neon_dotprod_loop, 0x4e9e97c0, 0x01010101)  // SDOT, 1 four times
HISTO_LOOP(neon_i8mm_loop, 0x4e9eafc0, 0x01010101)     // USMMLA, 1 four times
HISTO_LOOP(neon_bf16_loop, 0x6e5eefc0, 0x3f003f00)     // BFMMLA, 0.5 twice
#undef HISTO_LOOP
#undef HISTO_TO_FOUR
#undef HISTO_TO_SUM

}  // namespace

std::vector<Loop> peak_loops(Isa isa, Precision precision) {
  if (isa != Isa::neon) {
    return {portable};
  }
  if (precision == Precision::bf16) {
    return {{"bf16", "BFMMLA", neon_bf16_loop, 16 * sums_of_loop}};
  }
  if (precision == Precision::int8) {
    return {cpu_info().neon_i8mm ? Loop{"int8", "USMMLA", neon_i8mm_loop, 32 * sums_of_loop}
                                 : Loop{"int8", "SDOT", neon_dotprod_loop, 16 * sums_of_loop}};
  }
  return {{"fp32", "FMLA", neon_loop, 4 * sums_of_loop}};
}

#else

}  // namespace

std::vector<Loop> peak_loops(Isa, Precision) { return {portable}; }

#endif

namespace {

using Clock = std::chrono::steady_clock;

// Seconds of the fastest of the runs that fit into `budget` seconds; one at least.
template <typename Run>
double fastest(double budget, const Run& run) {
  double best = std::numeric_limits<double>::infinity();
  const Clock::time_point start = Clock::now();
  do {
    const Clock::time_point begin = Clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  } while (std::chrono::duration<double>(Clock::now() - start).count() < budget);
  return best;
}

void check_seconds(double seconds) {
  if (!(seconds >= 0 && seconds <= 60)) {
    throw Error(ErrorCode::invalid_argument, "seconds is not a number from 0 to 60", "use e.g. 0.1");
  }
}

// Multiply-adds per second. A run is so long that the start of threads does not count.
double measured(const Loop& loop, ThreadPool& threads, double seconds) {
  constexpr double long_enough = 2e-3;
  std::size_t rounds = 1024;
  const auto run = [&] { threads.for_each(threads.threads(), [&](std::size_t) { loop.run(rounds); }); };
  run();  // starts the threads
  while (fastest(0, run) < long_enough) {
    rounds *= 2;
  }
  return loop.multiply_adds * static_cast<double>(rounds) * threads.threads() / fastest(seconds, run);
}

using Words [[gnu::vector_size(16)]] = std::uint32_t;

// Eight sums, so that additions wait for loads and not for one another.
std::uint32_t sum_of(const std::uint32_t* units, std::size_t count) {
  std::array<Words, 8> sums{};
  for (std::size_t i = 0; i + 32 <= count; i += 32) {
    for (std::size_t j = 0; j < sums.size(); ++j) {
      Words words;
      std::memcpy(&words, units + i + 4 * j, sizeof words);
      sums[j] += words;
    }
  }
  std::uint32_t total = 0;
  for (const Words& sum : sums) {
    total += sum[0] + sum[1] + sum[2] + sum[3];
  }
  return total;
}

}  // namespace

std::vector<Peak> measure_peaks(unsigned threads, double seconds, std::optional<Isa> highest) {
  check_seconds(seconds);
  const Isa isa = require_usable(highest ? *highest : default_isa());
  const Machine machine = this_machine();
  ThreadPool pool(threads == 0 ? usable_cpus() : threads);
  std::vector<Peak> peaks;
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::int8}) {
    const IsaRecord* const record = select_record(isa_records(), machine, precision, isa).record;
    if (record == nullptr) {
      continue;
    }
    for (const Loop& loop : peak_loops(record->isa, precision)) {
      peaks.push_back({.products = loop.products,
                       .instruction = loop.instruction,
                       .multiply_adds = measured(loop, pool, seconds)});
    }
  }
  return peaks;
}

double measure_reading(unsigned threads, double seconds) {
  check_seconds(seconds);
  ThreadPool pool(threads == 0 ? usable_cpus() : threads);
  const AlignedBuffer buffer(std::size_t{1} << 26U);  // zeros, so that each page has memory of its own
  const std::size_t parts = pool.threads();
  std::vector<std::uint32_t> sums(parts);
  const double best = fastest(seconds, [&] {
    pool.for_each(parts, [&](std::size_t i) {
      const std::size_t begin = buffer.size() * i / parts;
      sums[i] = sum_of(buffer.units() + begin, buffer.size() * (i + 1) / parts - begin);
    });
  });
  std::uint32_t total = 0;
  for (const std::uint32_t sum : sums) {
    total += sum;
  }
  __asm__ volatile("" : "+r"(total));  // else the compiler might not read
  return static_cast<double>(buffer.size() * sizeof(std::uint32_t)) / best;
}

}  // namespace histo
