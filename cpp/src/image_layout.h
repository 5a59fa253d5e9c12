// Where the pixels of an ImageView lie.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>

#include "histo/image_view.h"

namespace histo {

// Which bytes of a pixel are red, green, blue and, where it counts, alpha.
struct Channels {
  std::array<std::size_t, 3> rgb;
  std::size_t alpha = 0;
  bool premultiplied = false;
};

constexpr Channels channels_of(PixelFormat format) {
  switch (format) {
    case PixelFormat::bgr:
      return {.rgb = {2, 1, 0}};
    case PixelFormat::rgba:
      return {.rgb = {0, 1, 2}};
    case PixelFormat::bgra:
      return {.rgb = {2, 1, 0}};
    case PixelFormat::bgra_premultiplied:
      return {.rgb = {2, 1, 0}, .alpha = 3, .premultiplied = true};
    case PixelFormat::grey:
      return {.rgb = {0, 0, 0}};
    case PixelFormat::rgb:
      break;
  }
  return {.rgb = {0, 1, 2}};
}

// Bytes from one channel, pixel and row to the next.
struct ImageStrides {
  std::size_t channel, pixel, row;
};

// Without checks: for an image that check_image() has seen.
constexpr ImageStrides strides_of(const ImageView& image) {
  const bool planar = image.plane_stride != 0;
  const std::size_t pixel = planar ? 1 : bytes_of_pixel(image.format);
  return {.channel = planar ? image.plane_stride : 1,
          .pixel = pixel,
          .row = image.row_stride == 0 ? image.width * pixel : image.row_stride};
}

// Throws Error where `image`, which messages call `name`, is not what ImageView says.
void check_image(const ImageView& image, const std::string& name);

}  // namespace histo
