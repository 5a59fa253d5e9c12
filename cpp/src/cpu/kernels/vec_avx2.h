// Eight floats in a YMM register; AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace {

struct Vec {
  static constexpr std::size_t lanes = 8;
  static constexpr std::size_t registers = 16;
  __m256 v;

  // The first `count` lanes.
  struct Mask {
    __m256i bits;
  };
  static Mask first(std::size_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane)};
  }

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, Mask mask) {  // the other lanes are zero and not read
    return {_mm256_maskload_ps(p, mask.bits)};
  }
  static Vec load(const std::uint16_t* p) {  // bf16 is the upper half of a float
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vec load(const std::uint16_t* p, Mask mask) {  // AVX2 has no masked loads of 16 bits
    alignas(16) std::uint16_t part[lanes] = {};
    const auto lanes_set = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask.bits)));
    for (unsigned i = 0; i < lanes && ((lanes_set >> i) & 1U) != 0; ++i) {
      part[i] = p[i];
    }
    return load(part);
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }

  // Half a vector.
  struct Half {
    __m128 v;

    static Half load(const float* p, Mask mask) {
      return {_mm_maskload_ps(p, _mm256_castsi256_si128(mask.bits))};
    }
    static Half load(const std::uint16_t* p, Mask mask) {
      return {_mm256_castps256_ps128(Vec::load(p, mask).v)};
    }
    Half plus(Half o) const { return {_mm_add_ps(v, o.v)}; }
  };
  using Quarter = Half;  // eight lanes are not divided further
  static Vec join(const Vec (&v)[1]) { return v[0]; }
  static Vec join(const Half (&h)[2]) { return {_mm256_set_m128(h[1].v, h[0].v)}; }

  // a * b + this
  Vec plus_product(Vec a, Vec b) const { return {_mm256_fmadd_ps(a.v, b.v, v)}; }
  // this - a * b
  Vec minus_product(Vec a, Vec b) const { return {_mm256_fnmadd_ps(a.v, b.v, v)}; }
  Vec plus(Vec o) const { return {_mm256_add_ps(v, o.v)}; }
  Vec minus(Vec o) const { return {_mm256_sub_ps(v, o.v)}; }
  Vec times(Vec o) const { return {_mm256_mul_ps(v, o.v)}; }
  Vec relu() const { return {_mm256_max_ps(_mm256_setzero_ps(), v)}; }  // in this order NaN stays NaN
  // The larger; NaN where either is NaN (the instruction alone gives `o` then).
  Vec max(Vec o) const {
    return {_mm256_blendv_ps(_mm256_max_ps(v, o.v), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q))};
  }
};

}  // namespace
