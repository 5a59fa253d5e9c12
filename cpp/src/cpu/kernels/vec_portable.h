// Four floats in the compiler's own vector type: SSE on x86-64-v2, NEON on AArch64, scalar code elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fused.h"

namespace {

struct Vec {
  typedef float Native __attribute__((vector_size(16)));
  static constexpr std::size_t lanes = 4;
  static constexpr std::size_t registers = 16;
  Native v;

  // The first `count` lanes.
  struct Mask {
    std::size_t count;
  };
  static Mask first(std::size_t count) { return {count}; }

  static Vec zero() { return {Native{}}; }
  static Vec broadcast(float x) { return {Native{x, x, x, x}}; }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  static Vec load(const float* p, Mask mask) {  // the other lanes are zero and not read
    switch (mask.count) {
      case 0:
        return zero();
      case 1:
        return {Native{p[0], 0, 0, 0}};
      case 2:
        return {Native{p[0], p[1], 0, 0}};
      case 3:
        return {Native{p[0], p[1], p[2], 0}};
      default:
        return load(p);
    }
  }
  static Vec load(const std::uint16_t* p) {  // bf16 is the upper half of a float
    std::uint32_t bits[lanes];
    for (std::size_t i = 0; i < lanes; ++i) bits[i] = std::uint32_t{p[i]} << 16;
    Vec r;
    std::memcpy(&r.v, bits, sizeof r.v);
    return r;
  }
  static Vec load(const std::uint16_t* p, Mask mask) {
    std::uint16_t part[lanes] = {};
    for (std::size_t i = 0; i < mask.count; ++i) part[i] = p[i];
    return load(part);
  }
  static Vec load(const std::uint8_t* p) {
    return {Native{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                   static_cast<float>(p[3])}};
  }
  void store(float* p) const { std::memcpy(p, &v, sizeof v); }
  // To nearest, ties to even; NaN stays NaN.
  void store_bf16(std::uint16_t* p) const {
    for (std::size_t i = 0; i < lanes; ++i) {
      const float x = v[i];
      std::uint32_t bits = 0;
      std::memcpy(&bits, &x, sizeof bits);
      bits = x != x ? bits | 0x400000U : bits + 0x7FFFU + (bits >> 16U & 1U);
      p[i] = static_cast<std::uint16_t>(bits >> 16U);
    }
  }
  // To nearest, ties to even, and to 0 or 255 what lies beyond; NaN to 0.
  void store_u8(std::uint8_t* p) const {
    constexpr float large = 0x1.8p23F;  // so large that a float of this size has no fraction
    for (std::size_t i = 0; i < lanes; ++i) {
      const float x = v[i] > 0 ? (v[i] < 255 ? v[i] : 255) : 0;
      p[i] = static_cast<std::uint8_t>(x + large - large);
    }
  }

  // Four lanes are not divided further.
  using Half = Vec;
  using Quarter = Vec;

  static Vec join(const Vec (&v)[1]) { return v[0]; }

  // a * b + this
  Vec plus_product(Vec a, Vec b) const { return {v + a.v * b.v}; }
  // The same, rounded once.
  Vec plus_fused(Vec a, Vec b) const {
    Vec r;
    for (std::size_t i = 0; i < lanes; ++i) r.v[i] = fused(a.v[i], b.v[i], v[i]);
    return r;
  }
  // this - a * b
  Vec minus_product(Vec a, Vec b) const { return {v - a.v * b.v}; }
  Vec plus(Vec o) const { return {v + o.v}; }
  Vec minus(Vec o) const { return {v - o.v}; }
  Vec times(Vec o) const { return {v * o.v}; }
  Vec relu() const { return {v < Native{} ? Native{} : v}; }  // in this order NaN stays NaN
  // The larger; NaN where either is NaN.
  Vec max(Vec o) const { return {((v > o.v) | (v != v)) ? v : o.v}; }
};

// Four 32-bit integers.
struct IntVec {
  typedef std::int32_t Native __attribute__((vector_size(16)));
  Native v;

  static IntVec zero() { return {Native{}}; }
  static IntVec load(const std::int32_t* p) {
    IntVec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  void store(std::int32_t* p) const { std::memcpy(p, &v, sizeof v); }
  [[nodiscard]] Vec to_float() const { return {__builtin_convertvector(v, Vec::Native)}; }
};

}  // namespace
