// Crop and normalisation, one row of a tile at a time: from the caller's pixels to the stem's input.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "exact_arithmetic.h"
#include "histo/engine.h"
#include "histo/image_view.h"
#include "histo/model.h"
#include "tiles.h"

namespace histo {

// Where torchvision's CenterCrop starts: round((side - crop) / 2), and Python rounds a half to the even
// number.
constexpr std::size_t crop_offset(std::size_t side, std::size_t crop) {
  const std::size_t half = (side - crop) / 2;
  return half + (side - crop) % 2 * (half % 2);
}

// Checks that the tiles hold the crop and that the buffer is as long as the shape says.
template <typename Value>
void check_tiles(std::span<const Value> tiles, TileShape shape, std::size_t crop);

// The same for tiles at places of their own.
void check_tiles(std::span<const ImageView> tiles, std::size_t crop);

class Normaliser {
 public:
  Normaliser(const ModelSpec& spec, std::size_t crop);

  // Row `y` of the crop of one tile as (crop, 3).
  void row(const ImageView& tile, std::size_t y, float* out) const;
  void row(const FloatTile& tile, std::size_t y, float* out) const;

  // 256 divisions in place of one per pixel; the same bits.
  using OfByte = std::array<std::array<float, 256>, 3>;

 private:
  std::size_t crop_;
  std::array<float, 3> mean_, std_;
  OfByte of_byte_;
};

}  // namespace histo
