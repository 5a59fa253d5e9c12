/// \file
/// Pixels where the host holds them: whole tiles, or regions of a large image, without a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "histo/api.h"
#include "histo/names.h"

namespace histo {

/// Bytes of a pixel: the channels, of a byte each.
[[nodiscard]] constexpr std::size_t bytes_of_pixel(PixelFormat format) noexcept {
  switch (format) {
    case PixelFormat::rgb:
    case PixelFormat::bgr:
      return 3;
    case PixelFormat::rgba:
    case PixelFormat::bgra:
    case PixelFormat::bgra_premultiplied:
      return 4;
    case PixelFormat::grey:
      break;
  }
  return 1;
}

/// A rectangle of an image, in pixels.
struct Region {
  std::size_t x;  ///< of its left column
  std::size_t y;  ///< of its upper row
  std::size_t height;
  std::size_t width;
};

/// An image or a tile in the memory of the host, which must stay as it is while a call reads it.
///
/// Byte c of pixel (x, y) is at `y * row_stride + x * C + c`, where C is
/// `bytes_of_pixel(format)`; in planar images it is at `y * row_stride + x + c * plane_stride`. Bytes between
/// rows and planes are not read.
///
/// The results are those of the same pixels as packed RGB, to the last bit. A pixel of
/// PixelFormat::bgra_premultiplied becomes what it is on white: `min(255, colour + 255 - alpha)` for each of
/// its colours. So transparent pixels are white, and opaque ones are as they are. The alpha of other formats
/// is ignored.
///
/// \code
/// // 20 tiles of what a viewer shows, which it holds as Cairo does
/// const histo::ImageView image{.bytes = {cairo_image_surface_get_data(surface), size},
///                              .height = 2000,
///                              .width = 3000,
///                              .format = histo::PixelFormat::bgra_premultiplied,
///                              .row_stride = stride};
/// std::vector<histo::ImageView> tiles;
/// for (std::size_t i = 0; i < 20; ++i) {
///   tiles.push_back(image.region({.x = 150 * i, .y = 0, .height = 150, .width = 150}));
/// }
/// engine.run(tiles, {.logits = logits});
/// \endcode
struct ImageView {
  std::span<const std::uint8_t> bytes = {};  ///< from the first pixel on; may be longer than the pixels take
  std::size_t height = 0;                    ///< pixels, at least 1
  std::size_t width = 0;                     ///< pixels, at least 1
  PixelFormat format = PixelFormat::rgb;
  std::size_t row_stride = 0;    ///< bytes from a row to the next, at least a row; 0: rows without gaps
  std::size_t plane_stride = 0;  ///< bytes from a channel's plane to the next, at least a row; 0: interleaved

  /// A part of this image, over the same memory.
  /// \throws Error  invalid_argument where an extent of either is 0, the region is not inside the image, or
  ///                the image has an impossible stride or no format; size_mismatch where `bytes` is shorter
  ///                than the pixels take, size_overflow where they have no size
  [[nodiscard]] HISTO_API ImageView region(const Region& region) const;
};

}  // namespace histo
