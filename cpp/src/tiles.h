// The tiles of a run, where the caller has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "histo/engine.h"
#include "histo/image_view.h"

namespace histo {

// Tiles of bytes: packed, or each at a place of its own.
class ByteTiles {
 public:
  ByteTiles(std::span<const std::uint8_t> packed, TileShape shape) : packed_(packed), shape_(shape) {}
  explicit ByteTiles(std::span<const ImageView> views)
      : views_(views), shape_{.batch = views.size(), .height = 0, .width = 0} {}

  [[nodiscard]] std::size_t size() const { return shape_.batch; }
  [[nodiscard]] ImageView operator[](std::size_t i) const {
    if (!views_.empty()) {
      return views_[i];
    }
    const std::size_t size = shape_.height * shape_.width * 3;
    return {.bytes = packed_.subspan(i * size, size), .height = shape_.height, .width = shape_.width};
  }

 private:
  std::span<const std::uint8_t> packed_;  // unless there are views
  std::span<const ImageView> views_;
  TileShape shape_;
};

// (3, height, width), in [0, 1].
struct FloatTile {
  const float* values;
  std::size_t height, width;
};

class FloatTiles {
 public:
  FloatTiles(std::span<const float> packed, TileShape shape) : packed_(packed), shape_(shape) {}

  [[nodiscard]] std::size_t size() const { return shape_.batch; }
  [[nodiscard]] FloatTile operator[](std::size_t i) const {
    return {.values = packed_.data() + i * shape_.height * shape_.width * 3,
            .height = shape_.height,
            .width = shape_.width};
  }

 private:
  std::span<const float> packed_;
  TileShape shape_;
};

}  // namespace histo
