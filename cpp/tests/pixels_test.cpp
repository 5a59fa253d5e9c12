// Pixels where the host holds them: each layout gives the bits of the same pixels as packed RGB.

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "error_code.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/image_view.h"
#include "histo/preprocess.h"
#include "model_file.h"
#include "pixel_cases.h"

namespace {

using histo::Engine;
using histo::ErrorCode;
using histo::ImageView;
using histo::Model;
using histo::PixelFormat;
using histo::Precision;
using histo::Region;

constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();

const histo::ModelSpec& spec() {
  static const histo::ModelSpec spec = [] {
    histo::ModelSpec made;
    made.mean = {0.7F, 0.6F, 0.5F};
    made.std = {0.2F, 0.3F, 0.4F};
    return made;
  }();
  return spec;
}

std::vector<float> preprocessed(const ImageView& view, std::size_t crop) {
  std::vector<float> out(3 * crop * crop);
  histo::preprocess(std::span(&view, 1), spec(), crop, out);
  return out;
}

std::vector<float> preprocessed(const Rgb& rgb, std::size_t crop) {
  std::vector<float> out(3 * crop * crop);
  histo::preprocess(rgb.bytes, {1, rgb.height, rgb.width}, spec(), crop, out);
  return out;
}

TEST_CASE("pixels: every layout, stride and region is preprocessed as the same pixels in packed RGB") {
  std::mt19937 generator(1);
  const auto at_most = [&](std::size_t most) { return generator() % (most + 1); };
  for (const HostLayout& layout : all_layouts()) {
    CAPTURE(histo::name(layout.format));
    CAPTURE(layout.planar);
    for (int round = 0; round < 20; ++round) {
      const std::size_t crop = 1 + at_most(20);
      const Region whole{.x = 0, .y = 0, .height = crop + at_most(30), .width = crop + at_most(30)};
      const auto [image, rgb] = random_image(whole.height, whole.width, layout, generator);
      CHECK(preprocessed(image.view, crop) == preprocessed(rgb, crop));

      Region region{.x = 0,
                    .y = 0,
                    .height = crop + at_most(whole.height - crop),
                    .width = crop + at_most(whole.width - crop)};
      region.x = at_most(whole.width - region.width);
      region.y = at_most(whole.height - region.height);
      const ImageView part = image.view.region(region);
      CHECK(preprocessed(part, crop) == preprocessed(cut(rgb, region), crop));
      // A region of a region.
      const Region corner{.x = region.width - crop, .y = region.height - crop, .height = crop, .width = crop};
      CHECK(preprocessed(part.region(corner), crop) == preprocessed(cut(cut(rgb, region), corner), crop));
    }
  }
}

TEST_CASE("pixels: premultiplied colours are composited on white, for every colour and alpha") {
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint8_t> expected;
  for (int alpha = 0; alpha < 256; ++alpha) {
    for (int colour = 0; colour < 256; ++colour) {
      const std::array pixel{colour, 255 - colour, colour / 2, alpha};  // blue, green, red, alpha
      for (const int byte : pixel) {
        bytes.push_back(static_cast<std::uint8_t>(byte));
      }
      for (const int c : {2, 1, 0}) {
        expected.push_back(
            static_cast<std::uint8_t>(std::min(255, pixel[static_cast<std::size_t>(c)] + 255 - alpha)));
      }
    }
  }
  CHECK(preprocessed({.bytes = bytes, .height = 256, .width = 256, .format = PixelFormat::bgra_premultiplied},
                     256) == preprocessed({256, 256, expected}, 256));
}

TEST_CASE("pixels: planes may lie between each other's rows") {
  std::mt19937 generator(3);
  std::vector<std::uint8_t> lines(40 * 3 * 40);  // (height, channels, width)
  std::ranges::generate(lines, [&] { return static_cast<std::uint8_t>(generator()); });
  Rgb rgb{40, 40, {}};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    rgb.bytes.push_back(lines[i / 120 * 120 + i % 3 * 40 + i % 120 / 3]);
  }
  CHECK(preprocessed({.bytes = lines, .height = 40, .width = 40, .row_stride = 120, .plane_stride = 40},
                     40) == preprocessed(rgb, 40));
}

// Tiles of all layouts and of different sizes, alone and as regions, and the same as packed RGB.
struct MixedTiles {
  std::vector<HostImage> images;
  std::vector<ImageView> views;
  std::vector<Rgb> rgb;
};

MixedTiles mixed_tiles(std::size_t crop, std::mt19937& generator) {
  MixedTiles tiles;
  for (const HostLayout& layout : all_layouts()) {
    if (layout.row_gap == 0) {
      continue;
    }
    const std::size_t height = crop + generator() % 20, width = crop + generator() % 20;
    auto [image, rgb] = random_image(height, width, layout, generator);
    const Region region{.x = width - crop, .y = height - crop, .height = crop, .width = crop};
    tiles.images.push_back(std::move(image));  // its memory stays where it is
    tiles.views.push_back(tiles.images.back().view);
    tiles.views.push_back(tiles.views.back().region(region));
    tiles.rgb.push_back(rgb);
    tiles.rgb.push_back(cut(rgb, region));
  }
  return tiles;
}

TEST_CASE(
    "engine: pixels of all layouts give the bits of packed RGB, whatever batch, threads and precision") {
  constexpr std::size_t crop = 32, classes = 6;
  const Model model =
      Model::from_memory(make_model_file(2, classes, crop, 1, [](const std::string&) { return true; }));
  std::mt19937 generator(2);
  const MixedTiles tiles = mixed_tiles(crop, generator);
  for (const Precision precision : histo::usable_precisions()) {
    CAPTURE(histo::name(precision));
    std::vector<float> expected(tiles.rgb.size() * classes);
    const Engine packed(model, {.threads = 1, .precision = precision});
    for (std::size_t i = 0; i < tiles.rgb.size(); ++i) {
      packed.run(tiles.rgb[i].bytes, {1, tiles.rgb[i].height, tiles.rgb[i].width},
                 std::span(expected).subspan(i * classes, classes));
    }
    const Engine engine(model, {.threads = 3, .precision = precision});
    std::vector<float> logits(expected.size());
    engine.run(tiles.views, {.logits = logits});
    CHECK(logits == expected);
    std::ranges::fill(logits, 0.0F);
    for (std::size_t first = 0; first < tiles.views.size();) {
      const std::size_t n = std::min<std::size_t>(1 + generator() % 9, tiles.views.size() - first);
      packed.run(std::span(tiles.views).subspan(first, n),
                 {.logits = std::span(logits).subspan(first * classes, n * classes)});
      first += n;
    }
    CHECK(logits == expected);
  }
}

// The message of the Error, whose code must be `code`.
template <typename Function>
std::string complaint(ErrorCode code, const Function& function) {
  CHECK(code_of(function) == code);
  try {
    function();
  } catch (const histo::Error& error) {
    return error.what();
  }
  return {};
}

TEST_CASE("pixels: a region outside of its image is refused by name, without overflow") {
  const std::vector<std::uint8_t> bytes(100 * 80 * 4);
  const ImageView image{.bytes = bytes, .height = 100, .width = 80, .format = PixelFormat::bgra};
  const auto refused = [&](const Region& region) {
    return complaint(ErrorCode::invalid_argument, [&] { (void)image.region(region); });
  };
  CHECK(refused({.x = 50, .y = 7, .height = 20, .width = 31}) ==
        "the region of 20 x 31 pixels at x 50, y 7 is not inside the image of 100 x 80 pixels; move it, or "
        "make "
        "it smaller");
  (void)refused({.x = 0, .y = 81, .height = 20, .width = 30});
  (void)refused({.x = 0, .y = 0, .height = 101, .width = 1});
  (void)refused({.x = huge, .y = 0, .height = 1, .width = 1});
  (void)refused({.x = 0, .y = huge, .height = 1, .width = 1});
  (void)refused({.x = 1, .y = 0, .height = 1, .width = huge});
  (void)refused({.x = huge - 1, .y = 0, .height = 1, .width = 2});
  (void)refused({.x = 0, .y = 2, .height = huge, .width = 1});
  (void)refused({.x = 0, .y = 0, .height = 0, .width = 1});
  (void)refused({.x = 0, .y = 0, .height = 1, .width = 0});
  CHECK(image.region({.x = 79, .y = 99, .height = 1, .width = 1}).bytes.size() == 4);
}

TEST_CASE("pixels: an impossible image is refused, and the message says what it is") {
  const std::vector<std::uint8_t> bytes(40 * 40 * 4);
  const ImageView good{.bytes = bytes, .height = 40, .width = 40, .format = PixelFormat::bgra};
  const auto refused = [&](ErrorCode code, auto change) {
    ImageView view = good;
    change(view);
    std::vector<float> out(3 * 32 * 32, 5.0F);
    const std::array views{good, view};
    std::vector<float> both(2 * 3 * 32 * 32, 5.0F);
    const std::string text = complaint(code, [&] { histo::preprocess(views, spec(), 32, both); });
    CHECK(both.front() == 5.0F);
    CHECK(text.find("tile 1") != std::string::npos);
    CHECK(code_of([&] { (void)view.region({0, 0, 1, 1}); }) == code);
    return text;
  };
  const auto argument = ErrorCode::invalid_argument;
  (void)refused(argument, [](ImageView& view) { view.height = 0; });
  (void)refused(argument, [](ImageView& view) { view.width = 0; });
  (void)refused(argument, [](ImageView& view) { view.format = static_cast<PixelFormat>(99); });
  (void)refused(argument, [](ImageView& view) { view.bytes = {}; });
  CHECK(refused(argument, [](ImageView& view) { view.row_stride = 159; }) ==
        "row_stride of tile 1 is 159 bytes, less than a row, which takes 160; give the bytes from one to the "
        "next, or 0");
  (void)refused(argument, [](ImageView& view) { view.plane_stride = 39; });
  (void)refused(ErrorCode::size_mismatch, [](ImageView& view) { view.row_stride = 161; });
  CHECK(refused(ErrorCode::size_mismatch, [](ImageView& view) { view.bytes = view.bytes.first(6399); }) ==
        "tile 1 has 6399 bytes; its pixels take 6400");
  (void)refused(ErrorCode::size_mismatch, [](ImageView& view) { view.plane_stride = 1601; });
  (void)refused(ErrorCode::size_overflow, [](ImageView& view) { view.width = huge; });
  (void)refused(ErrorCode::size_overflow, [](ImageView& view) { view.height = huge; });
  (void)refused(ErrorCode::size_overflow, [](ImageView& view) { view.row_stride = huge; });
  (void)refused(ErrorCode::size_overflow, [](ImageView& view) { view.plane_stride = huge / 2; });
  std::vector<float> out(3 * 41 * 41);
  CHECK(complaint(argument, [&] { histo::preprocess(std::span(&good, 1), spec(), 41, out); }) ==
        "tile 0 has 40 x 40 pixels; the crop needs 41 x 41");
  CHECK(code_of([&] { histo::preprocess(std::span<const ImageView>(), spec(), 32, out); }) == argument);
}

}  // namespace
