// Makes model files for tests, from what docs/bundle.md says and without the reader's own code.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// A safetensors file of this header, padded with spaces to a multiple of 8 bytes, and `data`.
inline std::vector<std::byte> safetensors_file(std::string header, std::span<const std::byte> data) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::vector<std::byte> file(8 + header.size());
  for (std::size_t i = 0; i < 8; ++i) {
    file[i] = static_cast<std::byte>(header.size() >> (8 * i) & 0xFFU);
  }
  std::memcpy(file.data() + 8, header.data(), header.size());
  file.insert(file.end(), data.begin(), data.end());
  return file;
}

// Header and data of such a file.
inline std::pair<std::string, std::span<const std::byte>> split_safetensors(std::span<const std::byte> file) {
  std::size_t size = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    size |= std::to_integer<std::size_t>(file[i]) << (8 * i);
  }
  return {std::string(reinterpret_cast<const char*>(file.data()) + 8, size), file.subspan(8 + size)};
}

// Puts tensors into a safetensors file one after the other.
class SafetensorsWriter {
 public:
  // `metadata`: JSON.
  explicit SafetensorsWriter(const std::string& metadata) : header_("{\"__metadata__\":" + metadata) {}

  template <typename T>
  void add(const std::string& name, const std::string& dtype, const std::vector<std::size_t>& shape,
           std::span<const T> values) {
    const std::size_t begin = data_.size();
    const auto bytes = std::as_bytes(values);
    data_.insert(data_.end(), bytes.begin(), bytes.end());
    header_ += ",\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[";
    for (std::size_t i = 0; i < shape.size(); ++i) {
      header_ += (i > 0 ? "," : "") + std::to_string(shape[i]);
    }
    header_ += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(data_.size()) + "]}";
  }

  [[nodiscard]] std::vector<std::byte> file() const { return safetensors_file(header_ + "}", data_); }

 private:
  std::string header_;
  std::vector<std::byte> data_;
};

// A valid model.safetensors, about 85 MB, the same for the same arguments: `classes` classes named "class 0"
// and so on, tiles 16 pixels larger than the crop. The weights are random, and of such a size that
// activations neither vanish nor explode on the way through the network. `scaled` says which maps have scales
// for int8, by the names of the first convolutions that read them; none of them makes a file of format 1.
inline std::vector<std::byte> make_model_file(
    std::size_t pool, std::size_t classes, std::size_t crop, std::uint64_t seed,
    const std::function<bool(const std::string&)>& scaled = nullptr) {
  std::size_t map = crop;
  for (int halving = 0; halving < 5; ++halving) {
    map = (map + 1) / 2;
  }
  const std::size_t head_pool = map % pool == 0 ? pool : map;

  std::string names;
  for (std::size_t k = 0; k < classes; ++k) {
    names += (k > 0 ? ", " : "") + ("\\\"class " + std::to_string(k)) + "\\\"";
  }
  SafetensorsWriter writer(R"({"histo.format":")" + std::string(scaled ? "2" : "1") +
                           R"(","histo.head_pool":")" + std::to_string(head_pool) +
                           R"(","histo.spec":"{\"pool\": )" + std::to_string(pool) + R"(, \"classes\": [)" +
                           names + R"(], \"crop\": )" + std::to_string(crop) + R"(, \"tile_size\": )" +
                           std::to_string(crop + 16) +
                           R"(, \"mean\": [0.485, 0.456, 0.406], \"std\": [0.229, 0.224, 0.225], )"
                           R"(\"mpp\": 0.5, \"dropout\": 0.0}"})");

  std::uint64_t state = seed;
  const auto uniform = [&](std::size_t count, double variance) {
    const auto amplitude = static_cast<float>(std::sqrt(3.0 * variance));
    std::vector<float> values(count);
    for (float& value : values) {
      // splitmix64 (Steele, Lea and Flood, 2014): the standard library's distributions differ between
      // systems.
      std::uint64_t bits = state += 0x9E3779B97F4A7C15U;
      bits = (bits ^ bits >> 30U) * 0xBF58476D1CE4E5B9U;
      bits = (bits ^ bits >> 27U) * 0x94D049BB133111EBU;
      bits ^= bits >> 31U;
      value = amplitude * (static_cast<float>(bits >> 40U) * 0x1p-23F - 1.0F);
    }
    return values;
  };
  // `gain`: the output's second moment over the input's.
  const auto convolution = [&](const std::string& name, std::size_t outputs, std::size_t inputs,
                               std::size_t kernel, double gain) {
    const std::size_t fan_in = inputs * kernel * kernel;
    writer.add<float>(name + ".weight", "F32", {outputs, inputs, kernel, kernel},
                      uniform(outputs * fan_in, gain / static_cast<double>(fan_in)));
    writer.add<float>(name + ".bias", "F32", {outputs}, uniform(outputs, 0.001));
    // Inputs are of unit size, and weights uniform.
    const std::string reader = name.ends_with("shortcut") ? name.substr(0, name.size() - 8) + "conv1" : name;
    if (scaled && name != "stem.conv" && scaled(reader)) {
      const auto largest = static_cast<float>(std::sqrt(3.0 * gain / static_cast<double>(fan_in)));
      writer.add<float>(name + ".input_scale", "F32", {1}, std::vector{6.0F / 255.0F});
      writer.add<float>(name + ".weight_scale", "F32", {outputs}, std::vector(outputs, largest / 127.0F));
    }
  };

  writer.add<float>("stem.mean", "F32", {3, 1, 1}, std::vector{0.485F, 0.456F, 0.406F});
  writer.add<float>("stem.std", "F32", {3, 1, 1}, std::vector{0.229F, 0.224F, 0.225F});
  convolution("stem.conv", 64, 3, 7, 2.0);
  std::size_t inputs = 64;
  for (std::size_t layer = 0; layer < 4; ++layer) {
    const std::size_t outputs = std::size_t{64} << layer;
    for (std::size_t block = 0; block < std::vector<std::size_t>{3, 4, 6, 3}[layer]; ++block) {
      const std::string name = "layer" + std::to_string(layer + 1) + "." + std::to_string(block);
      convolution(name + ".conv1", outputs, inputs, 3, 2.0);
      convolution(name + ".conv2", outputs, outputs, 3, 0.2);
      if (inputs != outputs) {
        convolution(name + ".shortcut", outputs, inputs, 1, 1.8);
      }
      inputs = outputs;
    }
  }
  const std::size_t features = inputs * head_pool * head_pool;
  writer.add<float>("head.linear.weight", "F32", {classes, features},
                    uniform(classes * features, 1.0 / static_cast<double>(features)));
  writer.add<float>("head.linear.bias", "F32", {classes}, uniform(classes, 0.01));
  return writer.file();
}
