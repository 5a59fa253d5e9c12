#include "plan/plan.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace histo {
namespace {

// Where weights are much larger than maps: the first stage whose weights Winograd's algorithm can transform
// on the fly.
constexpr std::size_t on_the_fly_stage = 3;

// Units of the maps of the shallow part and of the deep part: 8 and 64 images at 128 pixels in float32.
// Larger tiles run fewer at a time, which bounds the memory of an Engine.
constexpr std::size_t shallow_units = std::size_t{1} << 21U;
constexpr std::size_t deep_units = std::size_t{6} << 20U;
constexpr std::size_t most_deep_images = 64;

Map make_map(std::size_t side, std::size_t channels, Storage storage, std::size_t border, bool deep) {
  const std::size_t in_whole_tiles = (side + 3) / 4 * 4;
  const std::size_t extent = border == 0 ? side : in_whole_tiles + 2;
  return {.height = side,
          .width = side,
          .channels = channels,
          .storage = storage,
          .border = border,
          .rows = extent,
          .columns = extent,
          .deep = deep};
}

// Of what has no scales.
Precision without_scales(Precision precision) {
  return precision == Precision::int8 ? Precision::bf16 : precision;
}

Precision precision_of(const ConvLayer& layer, Precision precision) {
  return layer.scales ? precision : without_scales(precision);
}

// What `layer` reads.
MapFormat format_for(const ConvLayer& layer, Precision precision) {
  const Storage storage = storage_of(precision_of(layer, precision));
  if (storage == Storage::u8) {
    return {.storage = storage, .scale = layer.scales->input, .inverse = 1 / layer.scales->input};
  }
  return {.storage = storage};
}

// For a 3 x 3 convolution of stride 1. The fewest multiplications are not the fastest where few images share
// one pass over the weights, which grow from 9 to 16 or 36 numbers per pair of channels, or are transformed
// for each pass (Step::weights_on_the_fly). In int8 these numbers also double in size.
Algorithm fastest(const ConvLayer& layer, std::size_t stage, Precision precision,
                  const PlanOptions& options) {
  const bool latency = options.profile == Profile::latency;
  switch (precision) {
    case Precision::fp32:
      return !latency || stage <= 2 ? Algorithm::winograd4
             : stage == 3           ? Algorithm::winograd2
                                    : Algorithm::direct;
    case Precision::bf16:
      // F(4 x 4) would magnify the rounding errors of bf16 tenfold, and the layers that an int8 network keeps
      // in bf16 are kept for their accuracy.
      return options.precision == Precision::bf16 && (!latency || stage <= 3) ? Algorithm::winograd2
                                                                              : Algorithm::direct;
    case Precision::int8:
      return stage <= (latency ? 1 : 3) && fits_winograd(layer) ? Algorithm::winograd4 : Algorithm::direct;
    case Precision::bf16x3:
      break;
  }
  return Algorithm::direct;
}

Algorithm choose(const ConvLayer& layer, std::size_t stage, Precision precision, const PlanOptions& options) {
  if (layer.kernel != 3 || layer.stride != 1 || options.algorithm == AlgorithmPolicy::direct) {
    return Algorithm::direct;
  }
  const AlgorithmSupport& kernels = options.kernels[precision];
  const Algorithm best = fastest(layer, stage, precision, options);
  const bool available = best == Algorithm::winograd2   ? kernels.winograd2
                         : best == Algorithm::winograd4 ? kernels.winograd4
                                                        : true;
  return available ? best : Algorithm::direct;
}

// Goes through the network once, block by block.
class Planner {
 public:
  Planner(const Network& network, const PlanOptions& options) : network_(network), options_(options) {}

  Plan plan() {
    plan_.crop = options_.crop;
    plan_.precision = options_.precision;
    plan_.stem_precision = without_scales(options_.precision);
    plan_.stem_side = (options_.crop + 1) / 2;
    side_ = (plan_.stem_side + 1) / 2;
    input_format_ = format_for(network_.layers[0][0].conv1, options_.precision);
    input_ = map_of(1, block_input, network_.stem.outputs, input_format_);
    plan_.stem_output = input_;
    plan_.stem_format = input_format_;
    for (std::size_t stage = 1; stage <= network_.layers.size(); ++stage) {
      if (stage > 1) {
        side_ = (side_ + 1) / 2;
      }
      const std::vector<BasicBlock>& blocks = network_.layers[stage - 1];
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        const BasicBlock* const next = b + 1 < blocks.size()            ? &blocks[b + 1]
                                       : stage < network_.layers.size() ? &network_.layers[stage][0]
                                                                        : nullptr;
        add_block(stage, blocks[b], next);
      }
      if (stage == 2) {
        plan_.shallow_steps = plan_.steps.size();
      }
    }
    set_images();
    return std::move(plan_);
  }

 private:
  // Each stage needs two maps per storage: the input of a block, and the map between its two convolutions.
  // The second convolution adds to the input and writes the sum in its place where both have the same
  // storage; where they differ, the sum has a map of its own.
  enum Role : std::size_t { block_input, inside };

  std::size_t map_of(std::size_t stage, Role role, std::size_t channels, const MapFormat& format) {
    const auto [entry, added] = known_.try_emplace({stage, role, format.storage}, plan_.maps.size());
    if (added) {
      const bool deep = stage >= (role == inside ? 3 : 2);
      plan_.maps.push_back(make_map(side_, channels, format.storage, 1, deep));
    }
    return entry->second;
  }

  void add(std::size_t stage, const ConvLayer& layer, std::size_t from, std::size_t to,
           const MapFormat& format, bool relu) {
    const Precision precision = precision_of(layer, options_.precision);
    const Algorithm algorithm = choose(layer, stage, precision, options_);
    plan_.steps.push_back({.layer = &layer,
                           .algorithm = algorithm,
                           .weights_on_the_fly = algorithm == Algorithm::winograd4 &&
                                                 stage >= on_the_fly_stage &&
                                                 options_.kernels[precision].weights_on_the_fly,
                           .precision = precision,
                           .input = from,
                           .output = to,
                           .residual = {},
                           .output_format = format,
                           .residual_format = {},
                           .relu = relu,
                           .stage = stage});
  }

  // From the map `input_` to that of the next block, or to the features where `next` is null.
  void add_block(std::size_t stage, const BasicBlock& block, const BasicBlock* next) {
    const std::size_t channels = block.conv1.outputs;
    const MapFormat inner_format = format_for(block.conv2, options_.precision);
    const std::size_t inner = map_of(stage, inside, channels, inner_format);
    add(stage, block.conv1, input_, inner, inner_format, true);
    std::size_t residual = input_;
    MapFormat residual_format = input_format_;
    if (block.shortcut) {  // its output may be negative, which u8 cannot store
      residual_format = {.storage = storage_of(without_scales(options_.precision))};
      residual = map_of(stage, block_input, channels, residual_format);
      add(stage, *block.shortcut, input_, residual, residual_format, false);
    }
    if (next == nullptr) {  // the head reads a map without a border, bf16 or float32
      const bool bf16 = without_scales(options_.precision) == Precision::bf16;
      input_format_ = {.storage = bf16 ? Storage::bf16 : Storage::f32};
      plan_.maps.push_back(make_map(side_, channels, input_format_.storage, 0, true));
      plan_.features = input_ = plan_.maps.size() - 1;
    } else {
      input_format_ = format_for(next->conv1, options_.precision);
      input_ = map_of(stage, block_input, channels, input_format_);
    }
    add(stage, block.conv2, inner, input_, input_format_, true);
    plan_.steps.back().residual = residual;
    plan_.steps.back().residual_format = residual_format;
  }

  void set_images() {
    std::size_t shallow = 0, deep = 0;  // units per image
    for (const Map& map : plan_.maps) {
      (map.deep ? deep : shallow) += map.image();
    }
    plan_.deep_images = std::clamp<std::size_t>(deep_units / deep, 1, most_deep_images);
    plan_.shallow_images = std::clamp<std::size_t>(shallow_units / shallow, 1, plan_.deep_images);
    plan_.interleaved = plan_.shallow_images < options_.interleaved ? 1 : options_.interleaved;
    plan_.shallow_images -= plan_.shallow_images % plan_.interleaved;
  }

  const Network& network_;
  const PlanOptions& options_;
  Plan plan_{};
  std::size_t side_ = 0;   // of the current stage's maps
  std::size_t input_ = 0;  // the next block's input
  MapFormat input_format_;
  std::map<std::tuple<std::size_t, Role, Storage>, std::size_t> known_;
};

}  // namespace

Plan make_plan(const Network& network, const PlanOptions& options) {
  return Planner(network, options).plan();
}

std::vector<LayerTime> describe_layers(const Network& network, const Plan& plan, std::size_t classes) {
  std::vector<LayerTime> layers;
  const auto add = [&layers](const ConvLayer& layer, Algorithm algorithm, Precision precision,
                             std::size_t height, std::size_t width) {
    const std::size_t all = layer.outputs * height * width * layer.inputs * layer.kernel * layer.kernel;
    std::size_t executed = all;
    if (algorithm != Algorithm::direct) {
      const std::size_t m = winograd_tile(algorithm), points = (m + 2) * (m + 2);
      const std::size_t tiles = ((height + m - 1) / m) * ((width + m - 1) / m);
      executed = tiles * points * layer.inputs * layer.outputs;
    }
    layers.push_back({.name = layer.name,
                      .algorithm = algorithm,
                      .precision = precision,
                      .channels = layer.outputs,
                      .height = height,
                      .width = width,
                      .multiply_adds = all,
                      .executed_multiply_adds = executed});
  };
  add(network.stem, Algorithm::direct, plan.stem_precision, plan.stem_side, plan.stem_side);
  for (const Step& step : plan.steps) {
    const Map& map = plan.maps[step.output];
    add(*step.layer, step.algorithm, step.precision, map.height, map.width);
  }
  const Map& features = plan.maps[plan.features];
  const std::size_t head = classes * features.height * features.width * features.channels;
  layers.push_back({.name = "head",
                    .algorithm = Algorithm::direct,
                    .precision = Precision::fp32,
                    .channels = classes,
                    .height = 1,
                    .width = 1,
                    .multiply_adds = head,
                    .executed_multiply_adds = head});
  return layers;
}

Storage storage_of(Precision precision) {
  switch (precision) {
    case Precision::int8:
      return Storage::u8;
    case Precision::bf16x3:
      return Storage::bf16x3;
    case Precision::bf16:
      return Storage::bf16;
    case Precision::fp32:
      break;
  }
  return Storage::f32;
}

bool fits_winograd(const ConvLayer& layer) {
  constexpr float limit = (1 << 25) / 255;  // of the sum of all weights of one sign
  const std::size_t window = layer.weight.size() / layer.outputs;
  for (std::size_t output = 0; output < layer.outputs; ++output) {
    float above = 0, below = 0;  // exact: integers below 2^24
    for (std::size_t i = 0; i < window; ++i) {
      const float w = layer.integer_weight(output, i);
      (w > 0 ? above : below) += w;
    }
    if (std::max(above, -below) >= limit) {
      return false;
    }
  }
  return true;
}

}  // namespace histo
