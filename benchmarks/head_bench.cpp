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

// Each thread takes one stretch.
struct Bound : Contestant {
  histo::ThreadPool threads;
  histo::Isa isa;
  std::span<const float> features;
  std::size_t classes;  // 0: read
  std::vector<float> results;

  Bound(unsigned n, histo::Isa i, std::span<const float> f, std::size_t k)
      : threads(n), isa(i), features(f), classes(k), results(n) {}
  void run() override {
    threads.for_each(results.size(), [this](std::size_t i) {
      const std::size_t begin = features.size() * i / results.size();
      const std::size_t end = features.size() * (i + 1) / results.size();
      results[i] = classes == 0 ? read(isa, features.data() + begin, end - begin)
                                : multiply(isa, (end - begin) * classes);
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

static Contestant* bound(const Problem* p, std::size_t classes) {
  return new Bound(p->threads, histo::default_isa(),
                   {p->features, p->batch * p->channels * p->height * p->width}, classes);
}
void* open_read(const Problem* p) { return bound(p, 0); }
void* open_multiply(const Problem* p) { return bound(p, p->classes); }
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
