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
  static Vec load(const std::uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  // As in vec_avx512.h.
  void store_bf16(std::uint16_t* p) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i rounded =
        _mm256_blendv_epi8(sum, nan, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i halves = _mm256_srli_epi32(rounded, 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), in_16_bits(halves));
  }
  void store_u8(std::uint8_t* p) const {
    const __m256 bounded = _mm256_min_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_set1_ps(255.0F));
    const __m256 whole = _mm256_round_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m128i words = in_16_bits(_mm256_cvttps_epi32(whole));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

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
  Vec plus_fused(Vec a, Vec b) const { return plus_product(a, b); }
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

 private:
  // Of integers from 0 to 65535.
  static __m128i in_16_bits(__m256i x) {
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  }
};

// As in vec_avx512.h: eight 32-bit integers.
struct IntVec {
  __m256i v;

  static IntVec zero() { return {_mm256_setzero_si256()}; }
  static IntVec load(const std::int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  void store(std::int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  [[nodiscard]] Vec to_float() const { return {_mm256_cvtepi32_ps(v)}; }

  [[nodiscard]] IntVec plus(IntVec o) const { return {_mm256_add_epi32(v, o.v)}; }
  [[nodiscard]] IntVec minus(IntVec o) const { return {_mm256_sub_epi32(v, o.v)}; }
  [[nodiscard]] IntVec times(int x) const { return {_mm256_mullo_epi32(v, _mm256_set1_epi32(x))}; }
  template <unsigned bits>
  [[nodiscard]] IntVec left() const {
    return {_mm256_slli_epi32(v, bits)};
  }
  template <unsigned bits>
  [[nodiscard]] IntVec right() const {
    return {_mm256_srai_epi32(v, bits)};
  }
};

// Sixteen 16-bit integers.
struct Int16Vec {
  static constexpr std::size_t lanes = 16;
  __m256i v;

  static Int16Vec load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  static Int16Vec load(const std::uint8_t* p) {
    return {_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Int16Vec load(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

  [[nodiscard]] Int16Vec plus(Int16Vec o) const { return {_mm256_add_epi16(v, o.v)}; }
  [[nodiscard]] Int16Vec minus(Int16Vec o) const { return {_mm256_sub_epi16(v, o.v)}; }
  template <unsigned bits>
  [[nodiscard]] Int16Vec left() const {
    return {_mm256_slli_epi16(v, bits)};
  }
};

// As in vec_avx512.h: eight units.
struct VecUnits {
  using Units = __m256i;

  static Units broadcast(const std::uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
  static Units load(const std::uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Vec high(Units u) {
    return {_mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32(static_cast<int>(0xFFFF0000U))))};
  }
  static Vec low(Units u) { return {_mm256_castsi256_ps(_mm256_slli_epi32(u, 16))}; }

  // The tests run the instructions of AVX-512 in their place, where those alone exist.
#if defined(__AVXVNNI__)
  static IntVec plus_bytes(IntVec sum, Units a, Units b) { return {_mm256_dpbusd_avx_epi32(sum.v, a, b)}; }
  static IntVec plus_words(IntVec sum, Units a, Units b) { return {_mm256_dpwssd_avx_epi32(sum.v, a, b)}; }
#elif defined(__AVX512VNNI__)
  static IntVec plus_bytes(IntVec sum, Units a, Units b) { return {_mm256_dpbusd_epi32(sum.v, a, b)}; }
  static IntVec plus_words(IntVec sum, Units a, Units b) { return {_mm256_dpwssd_epi32(sum.v, a, b)}; }
#endif
};

}  // namespace
