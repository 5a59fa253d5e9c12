#include "plan.h"

#include <algorithm>

namespace histo {
namespace {

// Floats of the maps of the shallow part and of the deep part: 8 and 64 images at 128 pixels. Larger tiles
// run fewer at a time, which bounds the memory of an Engine.
constexpr std::size_t shallow_floats = std::size_t{1} << 21U;
constexpr std::size_t deep_floats = std::size_t{6} << 20U;
constexpr std::size_t most_deep_images = 64;

Map make_map(std::size_t side, std::size_t channels, std::size_t border, bool deep) {
  const std::size_t whole_tiles = (side + 3) / 4 * 4;
  const std::size_t extent = border == 0 ? side : whole_tiles + 2;
  return {.height = side,
          .width = side,
          .channels = channels,
          .border = border,
          .rows = extent,
          .columns = extent,
          .deep = deep};
}

// The fewest multiplications are not the fastest where few images share one pass over the weights, which grow
// from 9 to 16 or 36 numbers per pair of channels.
Convolution choose(const ConvLayer& layer, std::size_t stage, Profile profile, Algorithm algorithm) {
  if (layer.kernel != 3 || layer.stride != 1 || algorithm == Algorithm::direct) {
    return Convolution::direct;
  }
  if (profile == Profile::throughput || stage <= 2) {
    return Convolution::winograd4;
  }
  return stage == 3 ? Convolution::winograd2 : Convolution::direct;
}

}  // namespace

Plan make_plan(const Network& network, std::size_t crop, Profile profile, Algorithm algorithm) {
  Plan plan{};
  plan.crop = crop;
  plan.stem_side = (crop + 1) / 2;
  std::size_t side = (plan.stem_side + 1) / 2;
  std::size_t input = 0;
  std::size_t per_image[2] = {0, 0};  // floats, shallow and deep
  const auto add_map = [&](const Map& map) {
    per_image[map.deep ? 1 : 0] += map.image();
    plan.maps.push_back(map);
    return plan.maps.size() - 1;
  };
  for (std::size_t l = 0; l < network.layers.size(); ++l) {
    const std::size_t stage = l + 1;
    const std::size_t channels = network.layers[l].front().conv1.outputs;
    if (l > 0) {
      side = (side + 1) / 2;
    }
    // Two maps are enough: a block's second convolution adds to its input and may put the sum in its place.
    const std::size_t block_map = add_map(make_map(side, channels, 1, stage >= 2));
    const std::size_t inner_map = add_map(make_map(side, channels, 1, stage >= 3));
    if (l == 0) {
      plan.stem_output = input = block_map;
    }
    for (const BasicBlock& block : network.layers[l]) {
      const auto add = [&](const ConvLayer& layer, std::size_t from, std::size_t to,
                           std::optional<std::size_t> residual, bool relu) {
        plan.steps.push_back({.layer = &layer,
                              .algorithm = choose(layer, stage, profile, algorithm),
                              .input = from,
                              .output = to,
                              .residual = residual,
                              .relu = relu,
                              .stage = stage});
      };
      add(block.conv1, input, inner_map, {}, true);
      if (block.shortcut) {
        add(*block.shortcut, input, block_map, {}, false);
      }
      add(block.conv2, inner_map, block_map, block_map, true);
      input = block_map;
    }
    if (stage == 2) {
      plan.shallow_steps = plan.steps.size();
    }
  }
  // The head takes its map without a border.
  plan.features = add_map(make_map(side, plan.maps.back().channels, 0, true));
  plan.steps.back().output = plan.features;

  plan.deep_images = std::clamp<std::size_t>(deep_floats / per_image[1], 1, most_deep_images);
  plan.shallow_images = std::clamp<std::size_t>(shallow_floats / per_image[0], 1, plan.deep_images);
  return plan;
}

}  // namespace histo
