// Memory for maps and weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "exact_arithmetic.h"
#include "histo/error.h"
#include "platform/platform.h"

namespace histo {

// Floats that begin on a page, so that vectors never straddle cache lines. Large buffers ask for huge pages,
// because a convolution walks through megabytes with strides that would miss the TLB at every step.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  // Zeros, as the borders of maps have to be.
  explicit AlignedBuffer(std::size_t size) : AlignedBuffer(uninitialised(size)) {
    if (size != 0) {
      std::memset(data_.get(), 0, size * sizeof(float));
    }
  }

  // Undefined contents, for what is written before it is read.
  static AlignedBuffer uninitialised(std::size_t size) {
    if (size > (std::numeric_limits<std::size_t>::max() - huge_page) / sizeof(float)) {
      throw Error(ErrorCode::size_overflow, "a map has more elements than fit in memory",
                  "use smaller tiles");
    }
    AlignedBuffer buffer;
    if (size != 0) {
      buffer.data_ = allocate_pages(size * sizeof(float));
      if (buffer.data_ == nullptr) {
        throw Error(
            ErrorCode::out_of_memory,
            "cannot allocate " + std::to_string(size * sizeof(float) >> 20U) + " MiB of weights or maps",
            "use smaller tiles or batches");
      }
    }
    buffer.size_ = size;
    return buffer;
  }

  [[nodiscard]] float* data() noexcept { return static_cast<float*>(data_.get()); }
  [[nodiscard]] const float* data() const noexcept { return static_cast<const float*>(data_.get()); }

  // The same memory for what is not float32: units of 32 bits that hold two bf16, for example.
  [[nodiscard]] std::uint32_t* units() noexcept { return static_cast<std::uint32_t*>(data_.get()); }
  [[nodiscard]] const std::uint32_t* units() const noexcept {
    return static_cast<const std::uint32_t*>(data_.get());
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  Pages data_;
  std::size_t size_ = 0;
};

}  // namespace histo
