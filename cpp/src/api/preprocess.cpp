#include "histo/preprocess.h"

#include <string>
#include <vector>

#include "checks.h"
#include "cpu/normaliser.h"
#include "platform/platform.h"

namespace histo {

template <typename Value>
void check_tiles(std::span<const Value> tiles, TileShape shape, std::size_t crop) {
  const std::size_t size = checked_size(
      "tiles", {{"batch", shape.batch}, {"height", shape.height}, {"width", shape.width}, {"channels", 3}});
  if (shape.height < crop || shape.width < crop) {
    throw Error(ErrorCode::invalid_argument,
                "tiles are " + std::to_string(shape.height) + " x " + std::to_string(shape.width) + " pixels",
                "the crop needs " + std::to_string(crop) + " x " + std::to_string(crop));
  }
  check_buffer("tiles", tiles, size);
}

template void check_tiles(std::span<const std::uint8_t> tiles, TileShape shape, std::size_t crop);
template void check_tiles(std::span<const float> tiles, TileShape shape, std::size_t crop);

Normaliser::Normaliser(const ModelSpec& spec, std::size_t crop)
    : crop_(crop), mean_(spec.mean), std_(spec.std), of_byte_{} {
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      of_byte_[c][byte] = (static_cast<float>(byte) / 255.0F - mean_[c]) / std_[c];
    }
  }
}

void Normaliser::row(const std::uint8_t* tile, TileShape shape, std::size_t y, float* out) const {
  const std::size_t top = crop_offset(shape.height, crop_), left = crop_offset(shape.width, crop_);
  const std::uint8_t* in = tile + ((top + y) * shape.width + left) * 3;
  for (std::size_t x = 0; x < crop_; ++x, in += 3, out += 3) {
    for (std::size_t c = 0; c < 3; ++c) {
      out[c] = of_byte_[c][in[c]];
    }
  }
}

void Normaliser::row(const float* tile, TileShape shape, std::size_t y, float* out) const {
  const std::size_t top = crop_offset(shape.height, crop_), left = crop_offset(shape.width, crop_);
  for (std::size_t c = 0; c < 3; ++c) {
    const float* const in = tile + (c * shape.height + top + y) * shape.width + left;
    for (std::size_t x = 0; x < crop_; ++x) {
      out[x * 3 + c] = (in[x] - mean_[c]) / std_[c];
    }
  }
}

void preprocess(std::span<const std::uint8_t> tiles, TileShape shape, const ModelSpec& spec, std::size_t crop,
                std::span<float> out) {
  const FloatEnvironment environment;
  const std::size_t side = crop == 0 ? spec.crop : crop;
  check_tiles(tiles, shape, side);
  check_buffer(
      "out", out,
      checked_size("out", {{"batch", shape.batch}, {"channels", 3}, {"crop", side}, {"crop", side}}));
  const Normaliser normaliser(spec, side);
  std::vector<float> row(side * 3);
  for (std::size_t n = 0; n < shape.batch; ++n) {
    const std::uint8_t* const tile = tiles.data() + n * shape.height * shape.width * 3;
    for (std::size_t y = 0; y < side; ++y) {
      normaliser.row(tile, shape, y, row.data());
      for (std::size_t c = 0; c < 3; ++c) {
        for (std::size_t x = 0; x < side; ++x) {
          out[((n * 3 + c) * side + y) * side + x] = row[x * 3 + c];
        }
      }
    }
  }
}

}  // namespace histo
