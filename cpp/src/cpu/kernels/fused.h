// a * b + c of floats, rounded once, on CPUs without an instruction for it. Not std::fma: that of MinGW-w64
// rounds more than once, and misses one result of four.
#pragma once

#include <bit>
#include <cstdint>

namespace {

// The product is exact in double. The sum is rounded to odd there, which keeps what the second rounding, to
// float, needs to know of the digits that were lost. Source: S. Boldo, G. Melquiond, "Emulation of a FMA and
// correctly rounded sums" (2008).
[[maybe_unused]] inline float fused(float a, float b, float c) {
  const double product = static_cast<double>(a) * static_cast<double>(b), addend = static_cast<double>(c);
  const double sum = product + addend;
  const double of_addend = sum - product;
  const double lost =
      (product - (sum - of_addend)) + (addend - of_addend);  // NaN where the sum is not finite
  auto bits = std::bit_cast<std::uint64_t>(sum);
  if ((lost > 0 || lost < 0) && bits % 2 == 0) {
    bits += (lost > 0) == (sum > 0) ? 1 : -1ULL;  // to the neighbour on the other side of the exact sum
  }
  return static_cast<float>(std::bit_cast<double>(bits));
}

}  // namespace
