// A range of indices.
#pragma once

#include <cstddef>

namespace histo {

// The indices begin <= i < end.
struct Range {
  std::size_t begin;
  std::size_t end;

  friend bool operator==(const Range&, const Range&) = default;
};

}  // namespace histo
