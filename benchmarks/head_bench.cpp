// What head_table.py times without Python in the loop: histo::FusedHead, libtorch, and two bounds that no
// head can beat, a plain read of the features and the multiply-adds alone. It is compiled by head_table.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cpu/thread_pool.h"
#include "histo/cpu.h"
#include "histo/fused_head.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

struct Contestant {
  virtual ~Contestant() = default;
  virtual void run() = 0;
};

struct Histo : Contestant {
  histo::FusedHead head;
  std::span<const float> features;
  histo::FeatureShape shape;
  std::span<float> out;

  Histo(histo::FusedHead h, std::span<const float> f, histo::FeatureShape s, std::span<float> o)
      : head(std::move(h)), features(f), shape(s), out(o) {}
  void run() override { head.run(features, shape, out); }
};

// The same two calls that torch.nn.AdaptiveAvgPool2d and torch.nn.Linear end in.
struct Libtorch : Contestant {
  at::Tensor features, weight, bias, logits;
  std::int64_t pool;

  void run() override {
    const c10::InferenceMode guard;
    logits = at::linear(at::adaptive_avg_pool2d(features, {pool, pool}).flatten(1), weight, bias);
  }
};

using Floats [[gnu::vector_size(64)]] = float;  // the compiler cuts it to the registers that there are

// Eight sums, so that additions wait for loads and not for one another.
template <int = 0>
[[gnu::always_inline]] inline float sum(const float* p, std::size_t count) {
  Floats sums[8] = {};
  std::size_t i = 0;
  for (; i + 128 <= count; i += 128) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < 8; ++j) {
      Floats v;
      std::memcpy(&v, p + i + 16 * j, sizeof v);
      sums[j] += v;
    }
  }
  float total = 0;
  for (const Floats& s : sums) {
    for (std::size_t lane = 0; lane < 16; ++lane) {
      total += s[lane];
    }
  }
  for (; i < count; ++i) {
    total += p[i];
  }
  return total;
}

// `count` multiply-adds in registers.
template <int chains>
[[gnu::always_inline]] inline float multiply_add(std::size_t count) {
  Floats sums[chains] = {};
  Floats factor = Floats{} + 0.5F;
  __asm__("" : "+m"(factor));
  for (std::size_t i = 0; i < count; i += 16 * chains) {
#pragma GCC unroll 24
    for (int j = 0; j < chains; ++j) {
      sums[j] = sums[j] * factor + factor;
    }
  }
  float total = 0;
  for (const Floats& s : sums) {
    total += s[0] + s[15];
  }
  return total;
}

#if defined(__x86_64__)
[[gnu::target("avx512f,avx512vl,avx512dq,fma")]] float sum_avx512(const float* p, std::size_t n) {
  return sum<>(p, n);
}
[[gnu::target("avx2,fma")]] float sum_avx2(const float* p, std::size_t n) { return sum<>(p, n); }
[[gnu::target("avx512f,avx512vl,avx512dq,fma")]] float multiply_add_avx512(std::size_t n) {
  return multiply_add<16>(n);
}
[[gnu::target("avx2,fma")]] float multiply_add_avx2(std::size_t n) { return multiply_add<6>(n); }
#endif

// AMX multiplies no float32: CPUs with it run the AVX-512 loops.
bool has_avx512(histo::Isa isa) { return isa == histo::Isa::avx512 || isa == histo::Isa::amx; }

float read(histo::Isa isa, const float* p, std::size_t n) {
#if defined(__x86_64__)
  if (isa != histo::Isa::portable) {
    return has_avx512(isa) ? sum_avx512(p, n) : sum_avx2(p, n);
  }
#endif
  return sum<>(p, n);
}

float multiply(histo::Isa isa, std::size_t n) {
#if defined(__x86_64__)
  if (isa != histo::Isa::portable) {
    return has_avx512(isa) ? multiply_add_avx512(n) : multiply_add_avx2(n);
  }
#endif
  return multiply_add<3>(n);
}

// Products of low precision in registers, `count` multiply-adds; 0 where the CPU or the compiler has none.
// With AMX these are its tiles, else VDPBF16PS or VPDPBUSD with as many sums as cover their latency.
#if defined(__x86_64__)
//
// The instructions are written out: of equal sums the compiler would compute one, and unequal ones it copies
// back and forth.
#define HISTO_BENCH_DOT(name, instruction, products)                                  \
  [[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]] int name(std::size_t count) { \
    constexpr int chains = 16;                                                        \
    __m512i sums[chains] = {}, a = _mm512_set1_epi16(0x0101);                         \
    for (std::size_t i = 0; i < count; i += 16 * (products) * chains) {               \
      _Pragma("GCC unroll 16") for (int j = 0; j < chains; ++j) {                     \
        __asm__ volatile(instruction " %1, %1, %0" : "+v"(sums[j]) : "v"(a));         \
      }                                                                               \
    }                                                                                 \
    return 1;                                                                         \
  }
HISTO_BENCH_DOT(dot_bf16, "vdpbf16ps", 2)
HISTO_BENCH_DOT(dot_int8, "vpdpbusd", 4)
HISTO_BENCH_DOT(dot_words, "vpdpwssd",
                2)  // 16-bit words, in which Winograd's transformed bytes are multiplied
#undef HISTO_BENCH_DOT

// Of this thread: eight tiles of 16 rows of 64 bytes.
[[gnu::target("amx-tile")]] void configure_tiles() {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  // A barrier: GCC's intrinsic does not tell the compiler that memory is read, which then drops the stores.
  __asm__ volatile("" ::: "memory");
  _tile_loadconfig(&config);  // which zeroes them
}

// Four sums, two tiles on each side, as a matrix kernel has them.
[[gnu::target("amx-tile,amx-bf16")]] int tiles_bf16(std::size_t count) {
  configure_tiles();
  for (std::size_t i = 0; i < count; i += 4 * 16 * 16 * 32) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 1;
}

[[gnu::target("amx-tile,amx-int8")]] int tiles_int8(std::size_t count) {
  configure_tiles();
  for (std::size_t i = 0; i < count; i += 4 * 16 * 16 * 64) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
  return 1;
}
#endif

enum class Kind { fp32, bf16, int8, words };

// 0 where there is no such instruction.
float multiply_low([[maybe_unused]] Kind kind, [[maybe_unused]] histo::Isa isa,
                   [[maybe_unused]] std::size_t n) {
#if defined(__x86_64__)
  const histo::CpuInfo cpu = histo::cpu_info();
  if (isa == histo::Isa::amx && kind != Kind::words) {
    return static_cast<float>(kind == Kind::int8 ? tiles_int8(n) : tiles_bf16(n));
  }
  if (has_avx512(isa) && (kind == Kind::bf16 ? cpu.avx512_bf16 : cpu.avx512_vnni)) {
    return static_cast<float>(kind == Kind::bf16   ? dot_bf16(n)
                              : kind == Kind::int8 ? dot_int8(n)
                                                   : dot_words(n));
  }
#endif
  return 0;
}

// Each thread takes one stretch.
struct Bound : Contestant {
  histo::ThreadPool threads;
  histo::Isa isa;
  std::span<const float> features;
  std::size_t classes;  // 0: read
  Kind kind;
  std::vector<float> results;

  Bound(unsigned n, histo::Isa i, std::span<const float> f, std::size_t k, Kind what)
      : threads(n), isa(i), features(f), classes(k), kind(what), results(n) {}
  void run() override {
    threads.for_each(results.size(), [this](std::size_t i) {
      const std::size_t begin = features.size() * i / results.size();
      const std::size_t end = features.size() * (i + 1) / results.size();
      results[i] = classes == 0         ? read(isa, features.data() + begin, end - begin)
                   : kind == Kind::fp32 ? multiply(isa, (end - begin) * classes)
                                        : multiply_low(kind, isa, (end - begin) * classes);
    });
  }
};

}  // namespace

extern "C" {

struct Problem {
  std::size_t pool, channels, classes, batch, height, width;
  int channels_last;
  unsigned threads;
  const float* weight;
  const float* bias;
  const float* features;
  float* out;
};

void* open_histo(const Problem* p) {
  const std::size_t weights = p->classes * p->channels * p->pool * p->pool;
  histo::FusedHead head(p->pool, p->channels, p->classes, {p->weight, weights}, {p->bias, p->classes},
                        {.threads = p->threads, .isa = std::nullopt});
  const histo::FeatureShape shape{
      .batch = p->batch,
      .height = p->height,
      .width = p->width,
      .layout = p->channels_last != 0 ? histo::Layout::nhwc : histo::Layout::nchw};
  return static_cast<Contestant*>(new Histo(std::move(head),
                                            {p->features, p->batch * p->channels * p->height * p->width},
                                            shape, {p->out, p->batch * p->classes}));
}

// Its threads are torch's: at::set_num_threads is the caller's to call.
void* open_libtorch(const Problem* p) {
  const auto signed_size = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  const auto wrap = [](const float* data, at::IntArrayRef shape) {
    return at::from_blob(const_cast<float*>(data), shape, at::kFloat);
  };
  auto result = std::make_unique<Libtorch>();
  const std::int64_t n = signed_size(p->batch), c = signed_size(p->channels), h = signed_size(p->height),
                     w = signed_size(p->width), k = signed_size(p->classes);
  result->pool = signed_size(p->pool);
  result->features = p->channels_last != 0 ? wrap(p->features, {n, h, w, c}).permute({0, 3, 1, 2})
                                           : wrap(p->features, {n, c, h, w});
  result->weight = wrap(p->weight, {k, c * result->pool * result->pool});
  result->bias = wrap(p->bias, {k});
  return static_cast<Contestant*>(result.release());
}

void copy_logits(void* libtorch, float* out) {
  const at::Tensor logits = static_cast<Libtorch*>(static_cast<Contestant*>(libtorch))->logits.contiguous();
  std::copy_n(logits.data_ptr<float>(), logits.numel(), out);
}

static Contestant* bound(const Problem* p, std::size_t classes, Kind kind = Kind::fp32) {
  return new Bound(p->threads, histo::default_isa(),
                   {p->features, p->batch * p->channels * p->height * p->width}, classes, kind);
}
void* open_read(const Problem* p) { return bound(p, 0); }
void* open_multiply(const Problem* p) { return bound(p, p->classes); }
// Null where this CPU has no such instruction.
static Contestant* low_bound(const Problem* p, Kind kind) {
  return multiply_low(kind, histo::default_isa(), 1) != 0 ? bound(p, p->classes, kind) : nullptr;
}
void* open_multiply_bf16(const Problem* p) { return low_bound(p, Kind::bf16); }
void* open_multiply_int8(const Problem* p) { return low_bound(p, Kind::int8); }
void* open_multiply_words(const Problem* p) { return low_bound(p, Kind::words); }

// Seconds per call.
double time_runs(void* contestant, std::size_t calls) {
  auto* const c = static_cast<Contestant*>(contestant);
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < calls; ++i) {
    c->run();
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
         static_cast<double>(calls);
}

void close_contestant(void* contestant) { delete static_cast<Contestant*>(contestant); }

}  // extern "C"
