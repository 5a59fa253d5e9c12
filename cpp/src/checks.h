// Checks of shapes and buffers that all public functions share.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>

#include "histo/error.h"

namespace histo {

struct Extent {
  const char* name;
  std::size_t value;
};

// The number of elements of `what`, whose shape is `shape`. Throws Error (invalid_argument, size_overflow).
inline std::size_t checked_size(const char* what, std::initializer_list<Extent> shape) {
  std::size_t size = 1;
  for (const Extent& extent : shape) {
    if (extent.value == 0) {
      throw Error(ErrorCode::invalid_argument, std::string(extent.name) + " is 0", "it must be at least 1");
    }
    if (size > std::numeric_limits<std::size_t>::max() / extent.value) {
      throw Error(ErrorCode::size_overflow, std::string(what) + " has more elements than fit in memory",
                  "check its shape");
    }
    size *= extent.value;
  }
  return size;
}

template <typename T>
void check_buffer(const char* what, std::span<T> buffer, std::size_t expected) {
  if (buffer.data() == nullptr) {
    throw Error(ErrorCode::invalid_argument, std::string(what) + " is a null pointer",
                "give the address of its first element");
  }
  if (buffer.size() != expected) {
    throw Error(ErrorCode::size_mismatch,
                std::string(what) + " has " + std::to_string(buffer.size()) + " elements",
                "its shape needs " + std::to_string(expected));
  }
}

}  // namespace histo
