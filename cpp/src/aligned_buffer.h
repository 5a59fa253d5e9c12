// Memory for maps and weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "histo/error.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace histo {

// Floats that begin on a page and are zero: vectors never straddle cache lines, and the borders of maps are
// zero from the start. Large buffers ask for huge pages, because a convolution walks through megabytes with
// strides that would miss the TLB at every step.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  explicit AlignedBuffer(std::size_t size) : size_(size) {
    constexpr std::size_t small_page = 4096, huge_page = std::size_t{1} << 21U;
    if (size > (std::numeric_limits<std::size_t>::max() - huge_page) / sizeof(float)) {
      throw Error(ErrorCode::size_overflow, "a map has more elements than fit in memory",
                  "use smaller tiles");
    }
    const std::size_t page = size * sizeof(float) >= huge_page ? huge_page : small_page;
    const std::size_t bytes = (size * sizeof(float) + page - 1) / page * page;
    data_.reset(static_cast<float*>(std::aligned_alloc(page, bytes)));
    if (data_ == nullptr && bytes != 0) {
      throw Error(ErrorCode::out_of_memory,
                  "cannot allocate " + std::to_string(bytes >> 20U) + " MiB of weights or maps",
                  "use smaller tiles or batches");
    }
#ifdef __linux__
    if (page == huge_page) {
      madvise(data_.get(), bytes, MADV_HUGEPAGE);  // a hint: where it is refused, only speed is lost
    }
#endif
    if (bytes != 0) {
      std::memset(data_.get(), 0, bytes);
    }
  }

  [[nodiscard]] float* data() noexcept { return data_.get(); }
  [[nodiscard]] const float* data() const noexcept { return data_.get(); }

  // The same memory for what is not float32: units of 32 bits that hold two bf16, for example.
  [[nodiscard]] std::uint32_t* units() noexcept { return reinterpret_cast<std::uint32_t*>(data_.get()); }
  [[nodiscard]] const std::uint32_t* units() const noexcept {
    return reinterpret_cast<const std::uint32_t*>(data_.get());
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  struct Free {
    void operator()(float* p) const noexcept { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace histo
