// Sixteen floats in a ZMM register; AVX-512 F, BW, DQ and VL.
#pragma once

// GCC 12 warns about undefined operands that are inside its own intrinsics (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace {

struct Vec {
  static constexpr std::size_t lanes = 16;
  static constexpr std::size_t registers = 32;
  __m512 v;

  // The first `count` lanes.
  struct Mask {
    __mmask16 bits;
  };
  static Mask first(std::size_t count) {
    return {static_cast<__mmask16>(count >= lanes ? 0xFFFFU : (1U << count) - 1U)};
  }

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, Mask mask) {  // the other lanes are zero and not read
    return {_mm512_maskz_loadu_ps(mask.bits, p)};
  }
  static Vec load(const std::uint16_t* p) {  // bf16 is the upper half of a float
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static Vec load(const std::uint16_t* p, Mask mask) {
    const __m256i half = _mm256_maskz_loadu_epi16(mask.bits, p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static Vec load(const std::uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  // To nearest, ties to even; NaN stays NaN. Not by the instruction for it, which takes denormals for zero.
  void store_bf16(std::uint16_t* p) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits,
                                   _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  // To nearest, ties to even, and to 0 or 255 what lies beyond; NaN to 0.
  void store_u8(std::uint8_t* p) const {
    const __m512 bounded = _mm512_min_ps(_mm512_max_ps(v, _mm512_setzero_ps()), _mm512_set1_ps(255.0F));
    const __m512i rounded = _mm512_cvt_roundps_epi32(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(rounded));
  }

  // Half a vector, and a quarter.
  struct Half {
    __m256 v;

    static Half load(const float* p, Mask mask) {
      return {_mm256_maskz_loadu_ps(static_cast<__mmask8>(mask.bits), p)};
    }
    static Half load(const std::uint16_t* p, Mask mask) {
      const __m128i half = _mm_maskz_loadu_epi16(static_cast<__mmask8>(mask.bits), p);
      return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
    }
    Half plus(Half o) const { return {_mm256_add_ps(v, o.v)}; }
  };
  struct Quarter {
    __m128 v;

    static Quarter load(const float* p, Mask mask) {
      return {_mm_maskz_loadu_ps(static_cast<__mmask8>(mask.bits), p)};
    }
    static Quarter load(const std::uint16_t* p, Mask mask) {
      const __m128i half = _mm_maskz_loadu_epi16(static_cast<__mmask8>(mask.bits), p);
      return {_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16))};
    }
    Quarter plus(Quarter o) const { return {_mm_add_ps(v, o.v)}; }
  };
  static Vec join(const Vec (&v)[1]) { return v[0]; }
  static Vec join(const Half (&h)[2]) {
    return {_mm512_insertf32x8(_mm512_castps256_ps512(h[0].v), h[1].v, 1)};
  }
  static Vec join(const Quarter (&q)[4]) {
    return join({Half{_mm256_set_m128(q[1].v, q[0].v)}, Half{_mm256_set_m128(q[3].v, q[2].v)}});
  }

  // a * b + this
  Vec plus_product(Vec a, Vec b) const { return {_mm512_fmadd_ps(a.v, b.v, v)}; }
  Vec plus_fused(Vec a, Vec b) const { return plus_product(a, b); }
  // this - a * b
  Vec minus_product(Vec a, Vec b) const { return {_mm512_fnmadd_ps(a.v, b.v, v)}; }
  Vec plus(Vec o) const { return {_mm512_add_ps(v, o.v)}; }
  Vec minus(Vec o) const { return {_mm512_sub_ps(v, o.v)}; }
  Vec times(Vec o) const { return {_mm512_mul_ps(v, o.v)}; }
  Vec relu() const { return {_mm512_max_ps(_mm512_setzero_ps(), v)}; }  // in this order NaN stays NaN
  // The larger; NaN where either is NaN (the instruction alone gives `o` then).
  Vec max(Vec o) const {
    return {_mm512_mask_mov_ps(_mm512_max_ps(v, o.v), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v)};
  }
};

// Sixteen 32-bit integers, which wrap around.
struct IntVec {
  __m512i v;

  static IntVec zero() { return {_mm512_setzero_si512()}; }
  static IntVec load(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(std::int32_t* p) const { _mm512_storeu_si512(p, v); }
  [[nodiscard]] Vec to_float() const { return {_mm512_cvtepi32_ps(v)}; }

  [[nodiscard]] IntVec plus(IntVec o) const { return {_mm512_add_epi32(v, o.v)}; }
  [[nodiscard]] IntVec minus(IntVec o) const { return {_mm512_sub_epi32(v, o.v)}; }
  [[nodiscard]] IntVec times(int x) const { return {_mm512_mullo_epi32(v, _mm512_set1_epi32(x))}; }
  template <unsigned bits>
  [[nodiscard]] IntVec left() const {
    return {_mm512_slli_epi32(v, bits)};
  }
  template <unsigned bits>
  [[nodiscard]] IntVec right() const {  // keeps the sign
    return {_mm512_srai_epi32(v, bits)};
  }
};

// Thirty-two 16-bit integers, which wrap around.
struct Int16Vec {
  static constexpr std::size_t lanes = 32;
  __m512i v;

  static Int16Vec load(const void* p) { return {_mm512_loadu_si512(p)}; }
  static Int16Vec load(const std::uint8_t* p) {
    return {_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Int16Vec load(const std::int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  void store(void* p) const { _mm512_storeu_si512(p, v); }

  [[nodiscard]] Int16Vec plus(Int16Vec o) const { return {_mm512_add_epi16(v, o.v)}; }
  [[nodiscard]] Int16Vec minus(Int16Vec o) const { return {_mm512_sub_epi16(v, o.v)}; }
  template <unsigned bits>
  [[nodiscard]] Int16Vec left() const {
    return {_mm512_slli_epi16(v, bits)};
  }
};

// Sixteen units of 32 bits that hold pairs of bf16 or int16, or four bytes each. A base of each Arithmetic.
struct VecUnits {
  using Units = __m512i;

  static Units broadcast(const std::uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static Units load(const std::uint32_t* p) { return _mm512_loadu_si512(p); }

  // The halves as bf16.
  static Vec high(Units u) {
    return {_mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(static_cast<int>(0xFFFF0000U))))};
  }
  static Vec low(Units u) { return {_mm512_castsi512_ps(_mm512_slli_epi32(u, 16))}; }

#ifdef __AVX512VNNI__
  // VPDPBUSD: four products of a byte and a signed byte, and no saturation.
  static IntVec plus_bytes(IntVec sum, Units a, Units b) { return {_mm512_dpbusd_epi32(sum.v, a, b)}; }
  // VPDPWSSD: two products of signed 16-bit integers, and no saturation.
  static IntVec plus_words(IntVec sum, Units a, Units b) { return {_mm512_dpwssd_epi32(sum.v, a, b)}; }
#endif
};

}  // namespace
