// Memory for maps and weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "histo/error.h"
#include "platform/platform.h"

namespace histo {

// Floats that begin on a page and are zero: vectors never straddle cache lines, and the borders of maps are
// zero from the start. Large buffers ask for huge pages, because a convolution walks through megabytes with
// strides that would miss the TLB at every step.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  explicit AlignedBuffer(std::size_t size) : size_(size) {
    constexpr std::size_t rounding = std::size_t{1} << 21U;  // of zeroed_pages()
    if (size > (std::numeric_limits<std::size_t>::max() - rounding) / sizeof(float)) {
      throw Error(ErrorCode::size_overflow, "a map has more elements than fit in memory",
                  "use smaller tiles");
    }
    if (size != 0) {
      data_ = zeroed_pages(size * sizeof(float));
      if (data_ == nullptr) {
        throw Error(
            ErrorCode::out_of_memory,
            "cannot allocate " + std::to_string(size * sizeof(float) >> 20U) + " MiB of weights or maps",
            "use smaller tiles or batches");
      }
    }
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
  std::unique_ptr<void, FreePages> data_;
  std::size_t size_ = 0;
};

}  // namespace histo
