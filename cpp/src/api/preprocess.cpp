#include "histo/preprocess.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/normaliser.h"
#include "image_layout.h"
#include "platform/platform.h"

namespace histo {
namespace {

void check_crop(const std::string& what, std::size_t height, std::size_t width, std::size_t crop) {
  if (height < crop || width < crop) {
    throw Error(ErrorCode::invalid_argument,
                what + std::to_string(height) + " x " + std::to_string(width) + " pixels",
                "the crop needs " + std::to_string(crop) + " x " + std::to_string(crop));
  }
}

// `count` pixels, `step` bytes apart, whose channels begin at `rgb`, as (count, 3).
template <std::size_t step>
void normalise(const Normaliser::OfByte& of_byte, const std::array<const std::uint8_t*, 3>& rgb,
               std::size_t count, float* out) {
  for (std::size_t x = 0; x < count; ++x, out += 3) {
    for (std::size_t c = 0; c < 3; ++c) {
      out[c] = of_byte[c][rgb[c][x * step]];
    }
  }
}

// The same on white, for colours that are multiplied by alpha: see ImageView.
template <std::size_t step>
void normalise_on_white(const Normaliser::OfByte& of_byte, const std::array<const std::uint8_t*, 3>& rgb,
                        const std::uint8_t* alpha, std::size_t count, float* out) {
  for (std::size_t x = 0; x < count; ++x, out += 3) {
    const unsigned white = 255U - alpha[x * step];
    for (std::size_t c = 0; c < 3; ++c) {
      out[c] = of_byte[c][std::min(rgb[c][x * step] + white, 255U)];
    }
  }
}

}  // namespace

template <typename Value>
void check_tiles(std::span<const Value> tiles, TileShape shape, std::size_t crop) {
  const std::size_t size = checked_size(
      "tiles", {{"batch", shape.batch}, {"height", shape.height}, {"width", shape.width}, {"channels", 3}});
  check_crop("tiles are ", shape.height, shape.width, crop);
  check_buffer("tiles", tiles, size);
}

template void check_tiles(std::span<const std::uint8_t> tiles, TileShape shape, std::size_t crop);
template void check_tiles(std::span<const float> tiles, TileShape shape, std::size_t crop);

void check_tiles(std::span<const ImageView> tiles, std::size_t crop) {
  check_buffer("tiles", tiles, checked_size("tiles", {{"batch", tiles.size()}}));
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    const std::string name = "tile " + std::to_string(i);
    check_image(tiles[i], name);
    check_crop(name + " has ", tiles[i].height, tiles[i].width, crop);
  }
}

Normaliser::Normaliser(const ModelSpec& spec, std::size_t crop)
    : crop_(crop), mean_(spec.mean), std_(spec.std), of_byte_{} {
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      of_byte_[c][byte] = (static_cast<float>(byte) / 255.0F - mean_[c]) / std_[c];
    }
  }
}

void Normaliser::row(const ImageView& tile, std::size_t y, float* out) const {
  const std::size_t top = crop_offset(tile.height, crop_), left = crop_offset(tile.width, crop_);
  const ImageStrides strides = strides_of(tile);
  const Channels channels = channels_of(tile.format);
  const std::uint8_t* const first = tile.bytes.data() + (top + y) * strides.row + left * strides.pixel;
  const auto channel = [&](std::size_t byte) { return first + byte * strides.channel; };
  const std::array rgb{channel(channels.rgb[0]), channel(channels.rgb[1]), channel(channels.rgb[2])};
  if (channels.premultiplied) {
    const auto on_white = strides.pixel == 1 ? normalise_on_white<1> : normalise_on_white<4>;
    on_white(of_byte_, rgb, channel(channels.alpha), crop_, out);
  } else {
    const auto run = strides.pixel == 1 ? normalise<1> : strides.pixel == 3 ? normalise<3> : normalise<4>;
    run(of_byte_, rgb, crop_, out);
  }
}

void Normaliser::row(const FloatTile& tile, std::size_t y, float* out) const {
  const std::size_t top = crop_offset(tile.height, crop_), left = crop_offset(tile.width, crop_);
  for (std::size_t c = 0; c < 3; ++c) {
    const float* const in = tile.values + (c * tile.height + top + y) * tile.width + left;
    for (std::size_t x = 0; x < crop_; ++x) {
      out[x * 3 + c] = (in[x] - mean_[c]) / std_[c];
    }
  }
}

namespace {

void preprocess_checked(const ByteTiles& tiles, const ModelSpec& spec, std::size_t side,
                        std::span<float> out) {
  check_buffer(
      "out", out,
      checked_size("out", {{"batch", tiles.size()}, {"channels", 3}, {"crop", side}, {"crop", side}}));
  const Normaliser normaliser(spec, side);
  std::vector<float> row(side * 3);
  for (std::size_t n = 0; n < tiles.size(); ++n) {
    const ImageView tile = tiles[n];
    for (std::size_t y = 0; y < side; ++y) {
      normaliser.row(tile, y, row.data());
      for (std::size_t c = 0; c < 3; ++c) {
        for (std::size_t x = 0; x < side; ++x) {
          out[((n * 3 + c) * side + y) * side + x] = row[x * 3 + c];
        }
      }
    }
  }
}

}  // namespace

void preprocess(std::span<const std::uint8_t> tiles, TileShape shape, const ModelSpec& spec, std::size_t crop,
                std::span<float> out) {
  const FloatEnvironment environment;
  const std::size_t side = crop == 0 ? spec.crop : crop;
  check_tiles(tiles, shape, side);
  preprocess_checked(ByteTiles(tiles, shape), spec, side, out);
}

void preprocess(std::span<const ImageView> tiles, const ModelSpec& spec, std::size_t crop,
                std::span<float> out) {
  const FloatEnvironment environment;
  const std::size_t side = crop == 0 ? spec.crop : crop;
  check_tiles(tiles, side);
  preprocess_checked(ByteTiles(tiles), spec, side, out);
}

}  // namespace histo
