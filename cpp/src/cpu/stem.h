// The start of the network: crop, normalisation, the first convolution, ReLU and maximum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "cpu/prepared.h"

namespace histo {

// One task computes a band, some rows of the maximum. It normalises the rows of the tile that they depend on
// and convolves them in the memory of its thread, so the stem's large maps are never stored.
class Stem {
 public:
  explicit Stem(const Prepared& prepared);

  [[nodiscard]] std::size_t bands() const;
  [[nodiscard]] std::size_t scratch_units() const;  // that a band needs

  // Computes band `band` of one tile. `output`: that image's pixel (0, 0) in the map Plan::stem_output, which
  // has these strides.
  // Returns whether the rows of the tile that were read are finite, where int8 cannot carry NaN; else true.
  // `Tile` is an ImageView or a FloatTile.
  template <typename Tile>
  bool run(const Tile& tile, std::size_t band, std::uint32_t* output, const kernels::Strides& strides,
           std::uint32_t* scratch) const;

 private:
  // Rows of the convolution's map are counted from the one above it, so that none is negative. The maximum of
  // the band needs 2 * pooled.begin to 2 * pooled.end inclusive, of which the first and the last may lie
  // outside of the map; `rows` are those inside.
  struct Band {
    Range pooled;  // rows of the maximum
    Range rows;    // of the convolution
  };
  [[nodiscard]] Band band_at(std::size_t band) const;

  [[nodiscard]] std::size_t tile_units() const { return (2 * (2 * rows_ + 1) + 5) * tile_row_; }
  [[nodiscard]] std::size_t map_units() const;

  template <typename Tile>
  bool read_tile(const Tile& tile, const Band& band, std::uint32_t* rows, float* values,
                 std::uint16_t* parts) const;
  void write_row(float* values, std::uint16_t* parts, std::uint16_t* to) const;
  void clear_border(const Band& band, float* map) const;
  void convolve(const Band& band, const std::uint32_t* rows, float* map) const;

  const Prepared& prepared_;
  const Map& output_;
  Storage storage_;           // of the tile
  std::size_t crop_;          // side of the crop
  std::size_t side_;          // of the convolution's map
  std::size_t rows_;          // of the maximum, per band
  std::size_t pixel_halves_;  // 16-bit halves of a pixel of the tile
  std::size_t tile_row_;      // units of a row of the tile, with a border of 3 pixels on both sides
  std::size_t map_row_;       // floats of a row of the convolution's map, with a border of 1 pixel
  std::size_t split_count_;   // floats of a row of the crop, at least one vector, which kernels split at once
};

}  // namespace histo
