// Images as hosts hold them, made from packed RGB, and what they are worth as packed RGB: written without the
// library's own tables.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "histo/image_view.h"

// Packed RGB, `(height, width, 3)`.
struct Rgb {
  std::size_t height, width;
  std::vector<std::uint8_t> bytes;
};

// `memory` ends with the last pixel, so that a sanitizer sees what is read behind it.
struct HostImage {
  std::vector<std::uint8_t> memory;
  histo::ImageView view;
};

struct HostLayout {
  histo::PixelFormat format;
  bool planar;
  std::size_t row_gap = 0, plane_gap = 0;  // bytes that belong to no pixel
};

inline std::vector<HostLayout> all_layouts() {
  std::vector<HostLayout> layouts;
  for (const auto& [format, name] : histo::name_table<histo::PixelFormat>) {
    for (const bool planar : {false, true}) {
      layouts.push_back({.format = format, .planar = planar});
      layouts.push_back({.format = format, .planar = planar, .row_gap = 5, .plane_gap = 11});
    }
  }
  return layouts;
}

// The letters of its bytes: "bgra". Of grey "g", which stands for all colours.
inline std::string letters_of(histo::PixelFormat format) {
  return std::string(histo::name(format))
      .substr(0, histo::name(format).find('_'))
      .substr(0, format == histo::PixelFormat::grey ? 1 : 4);
}

// An image of random bytes, and the packed RGB that it is worth.
inline std::pair<HostImage, Rgb> random_image(std::size_t height, std::size_t width, const HostLayout& layout,
                                              std::mt19937& generator) {
  const std::string letters = letters_of(layout.format);
  const std::size_t bytes = letters.size(), row = width * (layout.planar ? 1 : bytes) + layout.row_gap;
  const std::size_t plane = layout.planar ? height * row + layout.plane_gap : 0;
  const std::size_t size = (layout.planar ? (bytes - 1) * plane : 0) + height * row - layout.row_gap;
  HostImage image{.memory = std::vector<std::uint8_t>(size), .view = {}};
  std::ranges::generate(image.memory, [&] { return static_cast<std::uint8_t>(generator()); });
  image.view = {.bytes = image.memory,
                .height = height,
                .width = width,
                .format = layout.format,
                .row_stride = layout.row_gap == 0 ? 0 : row,
                .plane_stride = plane};
  Rgb rgb{height, width, {}};
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < width; ++x) {
      const auto byte = [&](char letter) {
        const std::size_t i = bytes == 1 ? 0 : letters.find(letter);
        return image.memory[layout.planar ? i * plane + y * row + x : y * row + x * bytes + i];
      };
      for (const char letter : {'r', 'g', 'b'}) {
        int colour = byte(letter);
        if (layout.format == histo::PixelFormat::bgra_premultiplied) {
          colour = std::min(255, colour + 255 - byte('a'));
        }
        rgb.bytes.push_back(static_cast<std::uint8_t>(colour));
      }
    }
  }
  return {std::move(image), std::move(rgb)};
}

inline Rgb cut(const Rgb& image, const histo::Region& region) {
  Rgb part{region.height, region.width, {}};
  for (std::size_t y = 0; y < region.height; ++y) {
    const auto first =
        image.bytes.begin() + static_cast<std::ptrdiff_t>(((region.y + y) * image.width + region.x) * 3);
    part.bytes.insert(part.bytes.end(), first, first + static_cast<std::ptrdiff_t>(region.width * 3));
  }
  return part;
}
