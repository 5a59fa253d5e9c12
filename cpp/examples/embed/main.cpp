// Classifies a tile of raw RGB bytes with a model.safetensors: embed MODEL TILE HEIGHT WIDTH

#include <histo/engine.h>
#include <histo/error.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s MODEL TILE HEIGHT WIDTH\n", argv[0]);
    return 2;
  }
  try {
    const histo::Engine engine(histo::Model::open(argv[1]));

    std::ifstream file(argv[2], std::ios::binary);
    const std::vector<std::uint8_t> tile{std::istreambuf_iterator<char>(file), {}};
    const std::size_t height = std::stoul(argv[3]);
    const std::size_t width = std::stoul(argv[4]);

    std::vector<float> logits(engine.classes());
    engine.run(tile, {.batch = 1, .height = height, .width = width}, logits);

    for (std::size_t k = 0; k < logits.size(); ++k) {
      std::printf("%s\t%.9g\n", engine.model().spec().classes[k].c_str(), static_cast<double>(logits[k]));
    }
  } catch (const histo::Error& error) {
    std::fprintf(stderr, "embed: %s (error %d)\n", error.what(), static_cast<int>(error.code()));
    return 1;
  }
}
