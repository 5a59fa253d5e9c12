#include "model/model_format.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "histo/error.h"
#include "model/json.h"
#include "model/network.h"

namespace histo {
namespace {

constexpr const char* input_scale = ".input_scale";
constexpr const char* weight_scale = ".weight_scale";

constexpr std::size_t network_stride = 32;
constexpr std::size_t min_classes = 2;

// Far above any tile, and low enough that no size derived from it overflows, not even 512 maps of 2048^2.
constexpr std::size_t max_side = std::size_t{1} << 16U;

[[noreturn]] void fail(const std::string& message, const std::string& remedy = "export the model again") {
  throw Error(ErrorCode::invalid_file, message, remedy);
}

const std::string& required_metadata(const Safetensors& file, const char* key) {
  const std::string* const value = file.find_metadata(key);
  if (value == nullptr) {
    fail(std::string("is not a model that histo exported: its metadata has no ") + key,
         "give the model.safetensors of a bundle");
  }
  return *value;
}

const json::Value& required(const json::Value& spec, const char* field) {
  const json::Value* const value = spec.find(field);
  if (value == nullptr) {
    fail(std::string("histo.spec has no ") + field);
  }
  return *value;
}

std::size_t read_side(const json::Value& spec, const char* field, std::size_t smallest) {
  const std::optional<std::size_t> value = required(spec, field).unsigned_integer();
  if (!value || *value < smallest || *value > max_side) {
    fail(std::string("histo.spec: ") + field + " is not an integer from " + std::to_string(smallest) +
         " to " + std::to_string(max_side));
  }
  return *value;
}

std::vector<std::string> read_classes(const json::Value& spec) {
  const json::Value::Array* const array = required(spec, "classes").array();
  if (array == nullptr || array->size() < min_classes) {
    fail("histo.spec: classes are not an array of at least " + std::to_string(min_classes) + " names");
  }
  std::vector<std::string> classes;
  std::set<std::string_view> seen;
  for (const json::Value& element : *array) {
    const std::string* const name = element.string();
    // A NUL would cut the name short in the C interface.
    if (name == nullptr || name->find('\0') != std::string::npos) {
      fail("histo.spec: class " + std::to_string(classes.size()) + " is not a name");
    }
    if (!seen.insert(*name).second) {
      fail("histo.spec: class " + in_quotes(*name) + " occurs twice");
    }
    classes.push_back(*name);
  }
  return classes;
}

std::array<float, 3> read_rgb(const json::Value& spec, const char* field) {
  std::array<float, 3> rgb{};
  const json::Value::Array* const array = required(spec, field).array();
  if (array == nullptr || array->size() != rgb.size()) {
    fail(std::string("histo.spec: ") + field + " is not an array of three numbers");
  }
  for (std::size_t c = 0; c < rgb.size(); ++c) {
    const double* const value = (*array)[c].number();
    if (value == nullptr || std::abs(*value) > static_cast<double>(std::numeric_limits<float>::max())) {
      fail(std::string("histo.spec: ") + field + " is not an array of three float32 numbers");
    }
    rgb[c] = static_cast<float>(*value);
  }
  return rgb;
}

std::optional<double> read_mpp(const json::Value& spec) {
  const json::Value& value = required(spec, "mpp");
  if (value.is_null()) {
    return std::nullopt;
  }
  const double* const mpp = value.number();
  if (mpp == nullptr || !(*mpp > 0)) {
    fail("histo.spec: mpp is neither null nor a positive number");
  }
  return *mpp;
}

std::size_t read_head_pool(const Safetensors& file, const ModelSpec& spec) {
  const std::string& text = required_metadata(file, "histo.head_pool");
  const std::size_t map = map_size(spec.crop);
  const std::size_t expected = map % spec.pool == 0 ? spec.pool : map;
  if (text != std::to_string(expected)) {
    fail("histo.head_pool is " + in_quotes(text) + "; pool " + std::to_string(spec.pool) + " on a " +
         std::to_string(map) + "x" + std::to_string(map) + " map needs " + std::to_string(expected));
  }
  return expected;
}

using NamedShape = std::pair<std::string, std::vector<std::size_t>>;

std::vector<NamedShape> network_tensors(const ModelSpec& spec) {
  std::vector<NamedShape> tensors{{"stem.mean", {3, 1, 1}}, {"stem.std", {3, 1, 1}}};
  std::size_t channels = 0;
  resnet34().for_each_layer([&](const ConvLayer& layer) {
    tensors.push_back({layer.name + ".weight", {layer.outputs, layer.inputs, layer.kernel, layer.kernel}});
    tensors.push_back({layer.name + ".bias", {layer.outputs}});
    channels = layer.outputs;
  });
  const std::size_t features = channels * spec.head_pool * spec.head_pool;
  tensors.push_back({"head.linear.weight", {spec.classes.size(), features}});
  tensors.push_back({"head.linear.bias", {spec.classes.size()}});
  return tensors;
}

// The tensors that format 2 adds: the scales of the layers that run in int8. A layer has both or none.
std::vector<NamedShape> scale_tensors(const Safetensors& file) {
  std::vector<NamedShape> tensors;
  if (required_metadata(file, "histo.format") == "1") {
    return tensors;
  }
  Network network = resnet34();
  for (std::vector<BasicBlock>& blocks : network.layers) {
    for (BasicBlock& block : blocks) {
      const auto add = [&](const ConvLayer& layer) {
        const bool there = file.find(layer.name + input_scale) != nullptr;
        if (there || file.find(layer.name + weight_scale) != nullptr) {
          tensors.push_back({layer.name + input_scale, {1}});
          tensors.push_back({layer.name + weight_scale, {layer.outputs}});
        }
        return there;
      };
      const bool first = add(block.conv1);
      add(block.conv2);
      if (block.shortcut && add(*block.shortcut) != first) {
        fail("tensors " + in_quotes(block.conv1.name + input_scale) + " and " +
             in_quotes(block.shortcut->name + input_scale) +
             " scale the same map, and only one of the two is present");
      }
    }
  }
  return tensors;
}

// Checks that both layers that read a block's input have the same scale for it.
void check_shared_scales(const Safetensors& file) {
  Network network = resnet34();
  for (std::vector<BasicBlock>& blocks : network.layers) {
    for (BasicBlock& block : blocks) {
      const StoredTensor* const first = file.find(block.conv1.name + input_scale);
      if (first != nullptr && block.shortcut) {
        const StoredTensor* const other = file.find(block.shortcut->name + input_scale);
        if (first->values<float>()[0] != other->values<float>()[0]) {
          fail("tensors " + in_quotes(first->name) + " and " + in_quotes(other->name) +
               " scale the same map and differ");
        }
      }
    }
  }
}

}  // namespace

std::size_t map_size(std::size_t crop) noexcept {
  std::size_t side = crop;
  for (int halving = 0; halving < 5; ++halving) {
    side = side / 2 + side % 2;
  }
  return side;
}

ModelSpec read_model_spec(const Safetensors& file) {
  const std::string& format = required_metadata(file, "histo.format");
  if (format != "1" && format != "2") {
    fail("histo.format is " + in_quotes(format) + ", and this version reads \"1\" and \"2\"",
         "export the model again, or update histo");
  }
  const std::string& text = required_metadata(file, "histo.spec");
  json::Value fields;
  try {
    fields = json::parse(text);
  } catch (const Error& error) {
    fail("histo.spec: " + std::string(error.message()));
  }
  ModelSpec spec;
  spec.pool = read_side(fields, "pool", 1);
  spec.classes = read_classes(fields);
  spec.crop = read_side(fields, "crop", network_stride);
  spec.tile_size = read_side(fields, "tile_size", spec.crop);
  spec.mean = read_rgb(fields, "mean");
  spec.std = read_rgb(fields, "std");
  if (std::ranges::any_of(spec.std, [](float value) { return !(value > 0); })) {
    fail("histo.spec: std is not greater than zero");
  }
  spec.mpp = read_mpp(fields);
  spec.head_pool = read_head_pool(file, spec);
  return spec;
}

void check_model_tensors(const Safetensors& file, const ModelSpec& spec) {
  std::vector<NamedShape> expected = network_tensors(spec);
  std::ranges::move(scale_tensors(file), std::back_inserter(expected));
  for (const auto& [name, shape] : expected) {
    const StoredTensor* const tensor = file.find(name);
    if (tensor == nullptr) {
      fail("tensor " + in_quotes(name) + " is missing");
    }
    (void)tensor->values<float>();
    tensor->check_shape(shape);
  }
  for (const StoredTensor& tensor : file.tensors) {
    if (std::ranges::find(expected, tensor.name, &NamedShape::first) == expected.end()) {
      fail("tensor " + in_quotes(tensor.name) + " is not part of the network");
    }
  }
}

void check_model_values(const Safetensors& file, const ModelSpec& spec) {
  for (const StoredTensor& tensor : file.tensors) {
    check_finite(tensor, tensor.values<float>());
    if (tensor.name.ends_with(input_scale) || tensor.name.ends_with(weight_scale)) {
      // Denormal numbers are refused, too: the reciprocal of some is infinite.
      if (std::ranges::any_of(tensor.values<float>(),
                              [](float scale) { return !std::isnormal(scale) || scale < 0; })) {
        fail("tensor " + in_quotes(tensor.name) + " holds a scale that is not a positive number");
      }
    }
  }
  check_shared_scales(file);
  // Mean and standard deviation are stored twice: in the spec to be read by people, and as float32 tensors.
  if (!std::ranges::equal(file.find("stem.mean")->values<float>(), spec.mean) ||
      !std::ranges::equal(file.find("stem.std")->values<float>(), spec.std)) {
    fail("tensors \"stem.mean\" and \"stem.std\" differ from mean and std in histo.spec");
  }
}

}  // namespace histo
