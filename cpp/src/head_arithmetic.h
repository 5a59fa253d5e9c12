// Arithmetic that every way through the head shares, so that the same sums have the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "exact_arithmetic.h"

namespace histo {

// In float64, rounded once. `out` may be `logits`.
template <typename Logit>
void softmax_of(std::span<const Logit> logits, std::span<float> out) {
  // The largest logit is subtracted first, so that no exponential overflows.
  const auto largest = static_cast<double>(*std::ranges::max_element(logits));
  double sum = 0.0;
  for (const Logit logit : logits) {
    sum += std::exp(static_cast<double>(logit) - largest);
  }
  for (std::size_t k = 0; k < logits.size(); ++k) {
    out[k] = static_cast<float>(std::exp(static_cast<double>(logits[k]) - largest) / sum);
  }
}

// Pairwise, in a fixed order. Destroys `lanes`.
inline float sum_of_lanes(float* lanes, std::size_t count) {
  for (std::size_t half = count / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

}  // namespace histo
