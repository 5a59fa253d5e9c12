// Convolution by AMX: tiles of 16 rows of 64 bytes, and an instruction that adds the product of two of them
// to a third. Over `Tiles`, the unit that holds them: the processor's, or the tests' emulation of it.
//
// 32 pixels x 32 output channels are computed together, in four tiles of sums; a step takes 16 units of the
// window, so two tiles of pixels and two of weights are loaded for four products of 16 cycles each. The
// weights of a block, 2 KiB for each step, lie in the order of the steps and come from the second-level
// cache, and so do the pixels that they have pushed out of the first.
//
// The rows of a tile of pixels lie at one distance where the images are interleaved by four (four pixels of
// four images) in maps whose width is a multiple of four, or where sixteen pixels of one image lie in one row
// of its map. Elsewhere, and in convolutions of stride 2, they are gathered first: 16 loads and stores.
//
// What follows the sums, from the bias to the output, is done between the products of the next 32 x 32, a few
// pixels in each step: the products wait for nothing, and the vector units work beside them.
//
// AMX has no kernels for Winograd's algorithm: its products are so much faster than the transforms that these
// would take longer than what they save.

#include "low_precision.inl"

namespace {

constexpr std::size_t tile_rows = 16;
constexpr std::size_t tile_units = 16;
constexpr std::size_t amx_pixels = 2 * tile_rows;
constexpr std::size_t amx_block = 2 * tile_units;
constexpr std::size_t amx_interleaved = 4;

// The windows of sixteen pixels, from which tiles are loaded.
class TileRows {
 public:
  // Of `count` pixels; where these are fewer, the last is repeated.
  TileRows(const Pixel* pixels, std::size_t count) {
    for (std::size_t i = 0; i < tile_rows; ++i) {
      pixels_[i] = pixels[i < count ? i : count - 1].input;
    }
    distance_ = pixels_[1] - pixels_[0];
    for (std::size_t i = 2; i < tile_rows; ++i) {
      even_ = even_ && pixels_[i] - pixels_[i - 1] == distance_;
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
  const Unit* pixels_[tile_rows];
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

// Sums of `count` pixels and the channels [channel, channel + 32), of which `finished` pixels are written.
template <typename Sums>
struct AmxSums {
  const Pixel* pixels = nullptr;
  std::size_t count = 0, finished = 0, channel = 0;
  alignas(64) typename Sums::Kept sums[amx_pixels * amx_block];

  [[gnu::always_inline]] void finish(const Epilogue& e, std::size_t most) {
    const std::size_t end = count - finished < most ? count : finished + most;
    for (; finished < end; ++finished) {
      for (std::size_t j = 0; j < amx_block; j += Vec::lanes) {
        Sums::finish(e, amx_sum<Sums>(e, sums + finished * amx_block + j, channel + j), channel + j,
                     pixels[finished].residual, pixels[finished].output);
      }
    }
  }
};

// Computes the sums of `now` and finishes those of `before`.
template <typename Tiles, typename Sums>
void amx_group(const Conv& c, AmxSums<Sums>& now, AmxSums<Sums>& before) {
  const std::size_t parts = c.interleaved == 1 ? 1 : c.window_parts;
  const std::size_t steps = c.window_rows * parts * c.window_run / tile_units;
  const std::size_t each = (before.count + steps - 1) / steps;
  const bool two = now.count > tile_rows;
  TileRows upper(now.pixels, now.count);
  TileRows lower(two ? now.pixels + tile_rows : now.pixels, two ? now.count - tile_rows : now.count);
  const Unit* weight = c.weight + now.channel * steps * tile_units;
  Tiles::clear_sums();
  for (std::size_t row = 0; row < c.window_rows; ++row) {
    for (std::size_t part = 0; part < parts; ++part) {
      const std::size_t from = row * c.window_row + part * c.window_part;
      for (std::size_t k = 0; k < c.window_run; k += tile_units, weight += tile_units * amx_block) {
        upper.template load<Tiles, 0>(from + k);
        Tiles::template load_weights<0>(weight, amx_block);
        Tiles::template load_weights<1>(weight + tile_units, amx_block);
        Tiles::template multiply<Sums, 0>();
        if (two) {
          lower.template load<Tiles, 1>(from + k);
          Tiles::template multiply<Sums, 1>();
        }
        before.finish(c.epilogue, each);
      }
    }
  }
  Tiles::store_sums(now.sums);
}

// As conv() of conv.inl; `window_run` is a multiple of 16.
template <typename Tiles, typename Sums>
void amx_conv(const Conv& c, Range pixels, Range blocks) {
  Pixel groups[2][amx_pixels];  // of `sums`, which are two so that one is finished while the other grows
  AmxSums<Sums> sums[2];
  std::size_t group = 0, now = 0;
  Tiles::begin();
  PixelWalk walk(c, pixels.begin);
  for (std::size_t p = pixels.begin; p < pixels.end; p += amx_pixels, group ^= 1U) {
    const std::size_t left = pixels.end - p, count = left < amx_pixels ? left : amx_pixels;
    for (std::size_t i = 0; i < count; ++i) {
      groups[group][i] = walk.next();
    }
    for (std::size_t block = blocks.begin; block < blocks.end; ++block, now ^= 1U) {
      sums[now].pixels = groups[group];
      sums[now].count = count;
      sums[now].finished = 0;
      sums[now].channel = block * amx_block;
      amx_group<Tiles>(c, sums[now], sums[now ^ 1U]);
    }
  }
  sums[now ^ 1U].finish(c.epilogue, amx_pixels);
  Tiles::end();
}

constexpr ConvKernels amx_kernels(void (*direct)(const Conv& conv, Range pixels, Range blocks)) {
  return {
      .block = amx_block, .run = tile_units, .call_blocks = 2, .call_pixels = tile_rows, .direct = direct};
}

}  // namespace
