// Classifies what a viewer shows, where it lies: viewer_cpp MODEL IMAGE HEIGHT WIDTH
//
// IMAGE holds premultiplied BGRA pixels, row by row, as Cairo and OpenSlide have them in memory. Each line
// that is printed is a tile: x, y, its likeliest class, the probability, and the cell of the last feature map
// with the largest share in that class's logit (row, column and share).

#include <histo/engine.h>
#include <histo/error.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

namespace {

struct Place {
  std::size_t x, y;
};

void classify(const histo::Engine& engine, const histo::ImageView& image) {
  const std::size_t side = engine.model().spec().tile_size;
  std::vector<histo::ImageView> tiles;  // regions of the image: no pixel is copied
  std::vector<Place> places;
  for (std::size_t y = 0; y + side <= image.height; y += side) {
    for (std::size_t x = 0; x + side <= image.width; x += side) {
      tiles.push_back(image.region({.x = x, .y = y, .height = side, .width = side}));
      places.push_back({x, y});
    }
  }
  const std::size_t map = engine.info().map_side, cells = map * map;
  std::vector<std::uint32_t> top(tiles.size());
  std::vector<float> probability(tiles.size()), contributions(tiles.size() * engine.classes() * cells);
  engine.run(
      tiles,
      {.top = 1, .top_classes = top, .top_probabilities = probability, .contributions = contributions});

  for (std::size_t i = 0; i < tiles.size(); ++i) {
    const std::span<const float> shares =
        std::span(contributions).subspan((i * engine.classes() + top[i]) * cells, cells);
    const auto cell = static_cast<std::size_t>(std::ranges::max_element(shares) - shares.begin());
    std::printf("%zu\t%zu\t%s\t%.9g\t%zu\t%zu\t%.9g\n", places[i].x, places[i].y,
                engine.model().spec().classes[top[i]].c_str(), static_cast<double>(probability[i]),
                cell / map, cell % map, static_cast<double>(shares[cell]));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s MODEL IMAGE HEIGHT WIDTH\n", argv[0]);
    return 2;
  }
  try {
    const histo::Engine engine(histo::Model::open(argv[1]));
    std::ifstream file(argv[2], std::ios::binary);
    const std::vector<std::uint8_t> pixels{std::istreambuf_iterator<char>(file), {}};
    classify(engine, {.bytes = pixels,
                      .height = std::stoul(argv[3]),
                      .width = std::stoul(argv[4]),
                      .format = histo::PixelFormat::bgra_premultiplied});
  } catch (const histo::Error& error) {
    std::fprintf(stderr, "viewer: %s (error %d)\n", error.what(), static_cast<int>(error.code()));
    return 1;
  }
}
