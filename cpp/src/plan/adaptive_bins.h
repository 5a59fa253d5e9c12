// The bins of adaptive average pooling along one side; the rule and its source stand in histo/fused_head.h.
#pragma once

#include <cstddef>

namespace histo {

struct Bin {
  std::size_t begin;  // first cell
  std::size_t end;    // one past the last cell; always larger than begin

  friend bool operator==(const Bin&, const Bin&) = default;
};

// Bin `i` (less than `pool`) of a side of `size` cells.
//
// Written with size = whole * pool + rest, so that nothing larger than pool * pool is formed: that product
// has been checked when the head was made, i * size has not.
constexpr Bin adaptive_bin(std::size_t i, std::size_t pool, std::size_t size) {
  const std::size_t whole = size / pool;
  const std::size_t rest = size % pool;
  return {i * whole + i * rest / pool, (i + 1) * whole + ((i + 1) * rest + pool - 1) / pool};
}

}  // namespace histo
