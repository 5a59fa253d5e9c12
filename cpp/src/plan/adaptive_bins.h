// The bins of adaptive average pooling along one side; the rule and its source stand in histo/fused_head.h.
#pragma once

#include <cstddef>

#include "range.h"

namespace histo {

// The cells of bin `i` (less than `pool`) of a side of `size` cells; at least one.
//
// Computed from size = quotient * pool + rest, so that no product is larger than pool * pool: that product
// was checked when the head was made, while i * size might overflow.
constexpr Range adaptive_bin(std::size_t i, std::size_t pool, std::size_t size) {
  const std::size_t quotient = size / pool;
  const std::size_t rest = size % pool;
  return {i * quotient + i * rest / pool, (i + 1) * quotient + ((i + 1) * rest + pool - 1) / pool};
}

}  // namespace histo
