// Convolution by AMX: tiles of 16 rows of 64 bytes, and an instruction that adds the product of two of them
// to a third. Over `Tiles`, the unit that holds them: the processor's, or the tests' emulation of it.
//
// 32 pixels x 32 output channels are computed together, in four tiles of sums; a step takes 16 units of the
// window, so two tiles of pixels and two of weights are loaded for four products. Weights are packed as for
// the vector kernels, (units, 64 channels): 16 channels of 16 units are a tile whose rows lie 256 bytes
// apart.
//
// Sixteen pixels of one row of a map lie at one distance, too, and are loaded from where they are. Where they
// run over the end of a row, as in maps that are narrower than 16, they are gathered first: 16 loads and
// stores beside two products of 16 cycles each.
//
// AMX has no kernels for Winograd's algorithm: its products are so much faster than the transforms that these
// would take longer than what they save.

#include "low_precision.inl"

namespace {

constexpr std::size_t tile_rows = 16;
constexpr std::size_t tile_units = 16;
constexpr std::size_t amx_pixels = 2 * tile_rows;
constexpr std::size_t amx_channels = 2 * tile_units;
constexpr std::size_t amx_block = 64;

// Sixteen pixels' windows, from which tiles are loaded.
class TileRows {
 public:
  explicit TileRows(const Unit* const* pixels) : pixels_(pixels), distance_(pixels[1] - pixels[0]) {
    for (std::size_t i = 2; i < tile_rows; ++i) {
      even_ = even_ && pixels[i] - pixels[i - 1] == distance_;
    }
  }

  // 16 units of each from `offset` on.
  template <typename Tiles, int a>
  void load(std::size_t offset) {
    if (even_) {
      Tiles::template load_pixels<a>(pixels_[0] + offset, distance_);
      return;
    }
    for (std::size_t i = 0; i < tile_rows; ++i) {
      __builtin_memcpy(gathered_ + i * tile_units, pixels_[i] + offset, tile_units * sizeof *gathered_);
    }
    Tiles::template load_pixels<a>(gathered_, tile_units);
  }

 private:
  const Unit* const* pixels_;
  std::ptrdiff_t distance_;  // units
  bool even_ = true;
  alignas(64) Unit gathered_[tile_rows * tile_units];
};

template <typename Sums>
typename Sums::Sum amx_sum(const Epilogue& e, const typename Sums::Kept* sums, std::size_t channel);

template <>
[[gnu::always_inline]] inline Vec amx_sum<Bf16Sums>(const Epilogue& e, const float* sums,
                                                    std::size_t channel) {
  return Vec::load(sums).plus(Vec::load(e.bias + channel));
}

template <>
[[gnu::always_inline]] inline IntVec amx_sum<Int8Sums>(const Epilogue&, const std::int32_t* sums,
                                                       std::size_t) {
  return IntVec::load(sums);
}

// `pixels`, of which the last may be repeated, and the channels [channel, channel + 32).
template <typename Tiles, typename Sums>
void amx_group(const Conv& c, const Pixel* pixels, std::size_t count, std::size_t channel) {
  const Unit* x[amx_pixels];
  for (std::size_t i = 0; i < amx_pixels; ++i) {
    x[i] = pixels[i < count ? i : count - 1].input;
  }
  TileRows upper(x), lower(x + tile_rows);
  const Unit* weight =
      c.weight + channel / amx_block * c.window_rows * c.window_run * amx_block + channel % amx_block;
  Tiles::clear_sums();
  for (std::size_t row = 0; row < c.window_rows; ++row) {
    for (std::size_t k = 0; k < c.window_run; k += tile_units, weight += tile_units * amx_block) {
      upper.template load<Tiles, 0>(row * c.window_row + k);
      Tiles::template load_weights<0>(weight, amx_block);
      Tiles::template load_weights<1>(weight + tile_units, amx_block);
      lower.template load<Tiles, 1>(row * c.window_row + k);
      Tiles::template multiply<Sums>();
    }
  }
  alignas(64) typename Sums::Kept sums[amx_pixels * amx_channels];
  Tiles::store_sums(sums);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t j = 0; j < amx_channels; j += Vec::lanes) {
      Sums::finish(c.epilogue, amx_sum<Sums>(c.epilogue, sums + i * amx_channels + j, channel + j),
                   channel + j, pixels[i].residual, pixels[i].output);
    }
  }
}

// As conv() of conv.inl; `window_run` is a multiple of 16.
template <typename Tiles, typename Sums>
void amx_conv(const Conv& c, Range pixels, Range blocks) {
  Tiles::begin();
  for (std::size_t block = blocks.begin; block < blocks.end; ++block) {
    PixelWalk walk(c, pixels.begin);
    for (std::size_t p = pixels.begin; p < pixels.end; p += amx_pixels) {
      const std::size_t left = pixels.end - p, count = left < amx_pixels ? left : amx_pixels;
      Pixel group[amx_pixels];
      for (std::size_t i = 0; i < count; ++i) {
        group[i] = walk.next();
      }
      for (std::size_t channel = 0; channel < amx_block; channel += amx_channels) {
        amx_group<Tiles, Sums>(c, group, count, block * amx_block + channel);
      }
    }
  }
  Tiles::end();
}

}  // namespace
