#include "cpu/stem.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/partition.h"

namespace histo {
namespace {

constexpr std::size_t kernel = 7, border = 3;  // of the convolution, whose stride is 2

// Floats of the convolution's map that a band keeps before the maximum is taken: half a megabyte.
constexpr std::size_t band_floats = std::size_t{1} << 17U;

// 16-bit halves of a pixel's three channels.
std::size_t pixel_halves(Storage storage) {
  return storage == Storage::f32 ? 6 : storage == Storage::bf16 ? 3 : 9;
}

}  // namespace

Stem::Stem(const Prepared& prepared)
    : prepared_(prepared),
      output_(prepared.plan().maps[prepared.plan().stem_output]),
      storage_(storage_of(prepared.plan().stem_precision)),
      crop_(prepared.plan().crop),
      side_(prepared.plan().stem_side),
      rows_(std::clamp<std::size_t>(band_floats / (output_.channels * 2 * (side_ + 2)), 1, 8)),
      pixel_halves_(pixel_halves(storage_)),
      // A window may end behind the last pixel, in numbers that it multiplies by zero.
      tile_row_(std::max(
          ceil_div((crop_ + 2 * border) * pixel_halves_, 2),
          (side_ - 1) * pixel_halves_ + stem_packing(*prepared.program, prepared.kernels).window_run())),
      map_row_((side_ + 2) * output_.channels),
      split_count_(std::max(crop_ * 3, prepared.kernels.lanes)) {}

std::size_t Stem::bands() const { return ceil_div(output_.height, rows_); }

std::size_t Stem::map_units() const { return (2 * rows_ + 1) * map_row_; }

// Behind the map are the two parts of a row, which take half a unit each.
std::size_t Stem::scratch_units() const { return tile_units() + map_units() + split_count_; }

Stem::Band Stem::band_at(std::size_t band) const {
  const std::size_t begin = band * rows_, end = std::min(begin + rows_, output_.height);
  return {.pooled = {begin, end},
          .rows = {std::max<std::size_t>(2 * begin, 1), std::min(2 * end, side_) + 1}};
}

template <typename Tile>
bool Stem::run(const Tile& tile, std::size_t band_index, std::uint32_t* output,
               const kernels::Strides& strides, std::uint32_t* scratch) const {
  const Band band = band_at(band_index);
  std::uint32_t* const rows = scratch;
  float* const map = reinterpret_cast<float*>(scratch + tile_units());
  auto* const parts = reinterpret_cast<std::uint16_t*>(scratch + tile_units() + map_units());
  // The map is free until the convolution.
  const bool finite = read_tile(tile, band, rows, map, parts);
  clear_border(band, map);
  convolve(band, rows, map);
  prepared_.kernels.max_pool(map, map_row_, output + band.pooled.begin * strides.row, strides.row,
                             strides.column, prepared_.plan().stem_format,
                             band.pooled.end - band.pooled.begin, output_.height, output_.channels);
  return finite;
}

template bool Stem::run(const ImageView&, std::size_t, std::uint32_t*, const kernels::Strides&,
                        std::uint32_t*) const;
template bool Stem::run(const FloatTile&, std::size_t, std::uint32_t*, const kernels::Strides&,
                        std::uint32_t*) const;

// Row r of the convolution reads 7 rows of the tile, whose first is 2 * (r - 1), counted from three above the
// crop. `values` is room for a row, `parts` for its parts.
template <typename Tile>
bool Stem::read_tile(const Tile& tile, const Band& band, std::uint32_t* rows, float* values,
                     std::uint16_t* parts) const {
  const bool checked = std::is_same_v<Tile, FloatTile> && prepared_.plan().precision == Precision::int8;
  const std::size_t first = 2 * (band.rows.begin - 1), last = 2 * (band.rows.end - 2) + kernel;
  bool finite = true;
  for (std::size_t y = first; y < last; ++y) {
    std::uint32_t* const row = rows + (y - first) * tile_row_;
    if (y < border || y >= crop_ + border) {
      std::fill_n(row, tile_row_, 0U);
      continue;
    }
    auto* const halves = reinterpret_cast<std::uint16_t*>(row);
    std::fill_n(halves, border * pixel_halves_, std::uint16_t{0});
    std::fill(halves + (border + crop_) * pixel_halves_, halves + 2 * tile_row_, std::uint16_t{0});
    std::uint16_t* const inside = halves + border * pixel_halves_;
    float* const to = storage_ == Storage::f32 ? reinterpret_cast<float*>(inside) : values;
    prepared_.normaliser.row(tile, y - border, to);
    finite =
        finite && (!checked || std::all_of(to, to + crop_ * 3, [](float v) { return std::isfinite(v); }));
    write_row(to, parts, inside);
  }
  return finite;
}

// `values`, (crop, 3), in the format of the tile; float32 is in its place already. Behind the values there is
// room for a vector.
void Stem::write_row(float* values, std::uint16_t* parts, std::uint16_t* to) const {
  const std::size_t count = crop_ * 3;
  if (storage_ == Storage::f32) {
    return;
  }
  if (storage_ == Storage::bf16 && count == split_count_) {
    prepared_.kernels.split(values, count, to, nullptr);
    return;
  }
  std::fill(values + count, values + split_count_, 0.0F);  // split() takes at least one vector
  const std::uint16_t *const high = parts, *const low = parts + split_count_;
  prepared_.kernels.split(values, split_count_, parts, parts + split_count_);
  if (storage_ == Storage::bf16) {
    std::copy_n(high, count, to);
    return;
  }
  for (std::size_t x = 0; x < crop_; ++x) {  // high, low and high again: see Storage::bf16x3
    std::uint16_t* const pixel = to + x * pixel_halves_;
    std::copy_n(high + 3 * x, 3, pixel);
    std::copy_n(low + 3 * x, 3, pixel + 3);
    std::copy_n(high + 3 * x, 3, pixel + 6);
  }
}

// Zeros around the convolution's map do not change the maximum: after ReLU all of the map is at least zero.
void Stem::clear_border(const Band& band, float* map) const {
  const std::size_t channels = output_.channels, above = 2 * band.pooled.begin;
  std::fill_n(map, (band.rows.begin - above) * map_row_, 0.0F);
  for (std::size_t y = band.rows.begin; y < band.rows.end; ++y) {
    float* const row = map + (y - above) * map_row_;
    std::fill_n(row, channels, 0.0F);
    std::fill_n(row + (side_ + 1) * channels, channels, 0.0F);
  }
  std::fill(map + (band.rows.end - above) * map_row_,
            map + (2 * (band.pooled.end - band.pooled.begin) + 1) * map_row_, 0.0F);
}

void Stem::convolve(const Band& band, const std::uint32_t* rows, float* map) const {
  const std::size_t channels = output_.channels, height = band.rows.end - band.rows.begin;
  float* const first = map + (band.rows.begin - 2 * band.pooled.begin) * map_row_ + channels;
  const Packing packing = stem_packing(*prepared_.program, prepared_.kernels);
  const kernels::Conv conv{
      .input = rows,
      .input_strides = {.column = pixel_halves_, .row = 2 * tile_row_, .image = 0, .group = 0},  // two pixels
      .window_rows = kernel,
      .window_run = packing.window_run(),
      .window_row = tile_row_,
      .weight = prepared_.stem.weight.units(),
      .epilogue = {.bias = prepared_.stem.bias.data(),
                   .scale = nullptr,
                   .channels = channels,
                   .residual = nullptr,
                   .residual_strides = {},
                   .residual_format = {},
                   .output = reinterpret_cast<std::uint32_t*>(first),
                   .output_strides = {.column = channels, .row = map_row_, .image = 0, .group = 0},
                   .output_format = {},
                   .height = height,
                   .width = side_,
                   .relu = true}};
  prepared_.stem_kernels().direct(conv, {0, height * side_}, {0, prepared_.stem.blocks});
}

}  // namespace histo
