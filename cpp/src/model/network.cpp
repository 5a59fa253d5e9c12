#include "model/network.h"

#include <algorithm>
#include <cmath>

namespace histo {

float ConvLayer::integer_weight(std::size_t output, std::size_t i) const {
  const float w = weight[output * inputs * kernel * kernel + i];
  return std::clamp(std::nearbyint(w / scales->weight[output]), -127.0F, 127.0F);
}

Network resnet34() {
  const auto conv = [](const std::string& name, std::size_t inputs, std::size_t outputs, std::size_t kernel,
                       std::size_t stride) {
    return ConvLayer{.name = name,
                     .inputs = inputs,
                     .outputs = outputs,
                     .kernel = kernel,
                     .stride = stride,
                     .weight = {},
                     .bias = {},
                     .scales = {}};
  };
  Network network{.stem = conv("stem.conv", 3, 64, 7, 2), .layers = {}};
  std::size_t inputs = 64, outputs = 64;
  for (std::size_t l = 0; l < block_counts.size(); ++l, outputs *= 2) {
    for (std::size_t b = 0; b < block_counts[l]; ++b) {
      const std::string name = "layer" + std::to_string(l + 1) + "." + std::to_string(b);
      const std::size_t stride = inputs == outputs ? 1 : 2;
      BasicBlock block{.conv1 = conv(name + ".conv1", inputs, outputs, 3, stride),
                       .conv2 = conv(name + ".conv2", outputs, outputs, 3, 1),
                       .shortcut = {}};
      if (inputs != outputs) {
        block.shortcut = conv(name + ".shortcut", inputs, outputs, 1, stride);
      }
      network.layers[l].push_back(std::move(block));
      inputs = outputs;
    }
  }
  return network;
}

Network read_network(const Model& model) {
  Network network = resnet34();
  network.for_each_layer([&model](ConvLayer& layer) {
    layer.weight = model.tensor(layer.name + ".weight").data;
    layer.bias = model.tensor(layer.name + ".bias").data;
    if (const auto input = model.find_tensor(layer.name + ".input_scale")) {
      layer.scales = {.input = input->data[0], .weight = model.tensor(layer.name + ".weight_scale").data};
    }
  });
  return network;
}

}  // namespace histo
