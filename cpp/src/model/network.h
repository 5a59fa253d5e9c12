// ResNet34 with batch norm folded into its convolutions: the one place that knows its layers.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "histo/model.h"
#include "histo/names.h"

namespace histo {

// How a convolution is computed in int8: a number is its scale times an integer, from 0 to 255 for inputs and
// from -127 to 127 for weights.
struct Scales {
  float input;
  std::span<const float> weight;  // (outputs)
};

// A convolution with bias and padding kernel / 2.
struct ConvLayer {
  std::string name;  // as in the model file, without ".weight"
  std::size_t inputs, outputs, kernel, stride;
  std::span<const float> weight;  // (outputs, inputs, kernel, kernel)
  std::span<const float> bias;    // (outputs)
  std::optional<Scales> scales = std::nullopt;

  // Weight `i` of an output channel in int8, where the layer has scales: the nearest integer, of two the even
  // one.
  [[nodiscard]] float integer_weight(std::size_t output, std::size_t i) const;
};

// relu(conv2(relu(conv1(x))) + shortcut(x)); without a shortcut layer, shortcut(x) is x.
struct BasicBlock {
  ConvLayer conv1, conv2;
  std::optional<ConvLayer> shortcut;
};

struct Network {
  ConvLayer stem;  // followed by ReLU and a 3 x 3 maximum with stride 2
  std::array<std::vector<BasicBlock>, block_counts.size()> layers;

  // Calls function(ConvLayer&) for every convolution, in the order of the computation.
  template <typename Function>
  void for_each_layer(const Function& function) {
    function(stem);
    for (std::vector<BasicBlock>& layer : layers) {
      for (BasicBlock& block : layer) {
        function(block.conv1);
        if (block.shortcut) {
          function(*block.shortcut);
        }
        function(block.conv2);
      }
    }
  }
};

// Without weights.
Network resnet34();

// With the weights and, where it has them, the scales of `model`; the spans live as long as any copy of it.
Network read_network(const Model& model);

}  // namespace histo
