// Writes the first corpus of model_fuzz: histo_write_fuzz_seeds FOLDER

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model_file.h"

namespace {

namespace fs = std::filesystem;

void write(const fs::path& path, std::span<const std::byte> bytes) {
  std::ofstream file;
  file.exceptions(std::ios::failbit | std::ios::badbit);
  file.open(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void write(const fs::path& path, std::string_view text) { write(path, std::as_bytes(std::span(text))); }

std::vector<std::byte> small_file() {
  SafetensorsWriter writer(R"({"histo.format":"1"})");
  writer.add<double>("logits", "F64", {1, 2}, std::array{1.5, -2.5});
  writer.add<float>("stage.stem", "F32", {2, 1, 1}, std::array{1.0F, 2.0F});
  writer.add<std::uint8_t>("tiles", "U8", {1, 1, 1, 3}, std::array<std::uint8_t, 3>{7, 8, 9});
  return writer.file();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  const fs::path folder = argv[1];
  fs::create_directories(folder);
  write(folder / "model_header", split_safetensors(make_model_file(2, 2, 128, 1)).first);
  write(folder / "small_file", small_file());
  write(folder / "spec",
        R"({"pool": 3, "classes": ["a", "b\u00e9\ud83d\ude00"], "crop": 128, "tile_size": 150, )"
        R"("mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "mpp": null, )"
        R"("dropout": 2.5e-1})");
  return 0;
}
