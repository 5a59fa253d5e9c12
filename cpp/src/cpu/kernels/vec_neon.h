// Four floats in a NEON register of AArch64.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace {

struct Vec {
  static constexpr std::size_t lanes = 4;
  static constexpr std::size_t registers = 32;
  static constexpr bool multiplies_lanes = true;
  float32x4_t v;

  // The first `count` lanes.
  struct Mask {
    std::size_t count;
  };
  static Mask first(std::size_t count) { return {count}; }

  static Vec zero() { return {vdupq_n_f32(0)}; }
  static Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec load(const float* p, Mask mask) {  // the other lanes are zero and not read
    const float32x4_t none = vdupq_n_f32(0);
    switch (mask.count) {
      case 0:
        return {none};
      case 1:
        return {vld1q_lane_f32(p, none, 0)};
      case 2:
        return {vcombine_f32(vld1_f32(p), vdup_n_f32(0))};
      case 3:
        return {vld1q_lane_f32(p + 2, vcombine_f32(vld1_f32(p), vdup_n_f32(0)), 2)};
      default:
        return load(p);
    }
  }
  static Vec load(const std::uint16_t* p) {  // bf16 is the upper half of a float
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))};
  }
  static Vec load(const std::uint16_t* p, Mask mask) {
    std::uint16_t part[lanes] = {};
    for (std::size_t i = 0; i < lanes && i < mask.count; ++i) {
      part[i] = p[i];
    }
    return load(part);
  }
  static Vec load(const std::uint8_t* p) {
    std::uint32_t bytes = 0;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const uint16x8_t halves = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)));
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves)))};
  }
  void store(float* p) const { vst1q_f32(p, v); }
  // To nearest, ties to even; NaN stays NaN.
  void store_bf16(std::uint16_t* p) const {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
  }
  // To nearest, ties to even, and to 0 or 255 what lies beyond; NaN to 0.
  void store_u8(std::uint8_t* p) const {
    const uint16x4_t halves = vqmovn_u32(vcvtnq_u32_f32(v));  // each step saturates
    const uint8x8_t bytes = vqmovn_u16(vcombine_u16(halves, halves));
    const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    __builtin_memcpy(p, &four, sizeof four);
  }

  // Four lanes are not divided further.
  using Half = Vec;
  using Quarter = Vec;

  static Vec join(const Vec (&v)[1]) { return v[0]; }

  // a * b + this
  Vec plus_product(Vec a, Vec b) const { return {vfmaq_f32(v, a.v, b.v)}; }
  // The same with lane `lane` of a in place of a.
  template <int lane>
  Vec plus_lane_product(Vec a, Vec b) const {
    return {vfmaq_laneq_f32(v, b.v, a.v, lane)};
  }
  Vec plus_fused(Vec a, Vec b) const { return plus_product(a, b); }
  // this - a * b
  Vec minus_product(Vec a, Vec b) const { return {vfmsq_f32(v, a.v, b.v)}; }
  Vec plus(Vec o) const { return {vaddq_f32(v, o.v)}; }
  Vec minus(Vec o) const { return {vsubq_f32(v, o.v)}; }
  Vec times(Vec o) const { return {vmulq_f32(v, o.v)}; }
  Vec relu() const { return {vmaxq_f32(v, vdupq_n_f32(0))}; }  // NaN stays NaN
  // The larger; NaN where either is NaN.
  Vec max(Vec o) const { return {vmaxq_f32(v, o.v)}; }
};

// Four 32-bit integers.
struct IntVec {
  int32x4_t v;

  static IntVec zero() { return {vdupq_n_s32(0)}; }
  static IntVec load(const std::int32_t* p) { return {vld1q_s32(p)}; }
  void store(std::int32_t* p) const { vst1q_s32(p, v); }
  [[nodiscard]] Vec to_float() const { return {vcvtq_f32_s32(v)}; }
};

// Four units of 32 bits that hold pairs of bf16, or four bytes each. A base of each Arithmetic.
struct Units128 {
  using Units = uint32x4_t;

  static Units broadcast(const std::uint32_t* p) { return vld1q_dup_u32(p); }
  static Units load(const std::uint32_t* p) { return vld1q_u32(p); }
};

}  // namespace
