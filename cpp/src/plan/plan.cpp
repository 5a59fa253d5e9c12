#include "plan/plan.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "cpu/packing.h"

namespace histo {
namespace {

// Floats of the maps of the shallow part and of the deep part: 8 and 64 images at 128 pixels. Larger tiles
// run fewer at a time, which bounds the memory of an Engine.
constexpr std::size_t shallow_floats = std::size_t{1} << 21U;
constexpr std::size_t deep_floats = std::size_t{6} << 20U;
constexpr std::size_t most_deep_images = 64;

Map make_map(std::size_t side, std::size_t channels, kernels::Cell cell, std::size_t border, bool deep) {
  const std::size_t whole_tiles = (side + 3) / 4 * 4;
  const std::size_t extent = border == 0 ? side : whole_tiles + 2;
  return {.height = side,
          .width = side,
          .channels = channels,
          .cell = cell,
          .border = border,
          .rows = extent,
          .columns = extent,
          .deep = deep};
}

Precision precision_of(const ConvLayer& layer, Precision precision) {
  return precision == Precision::int8 && !layer.scales ? Precision::bf16 : precision;
}

// What `layer` reads.
kernels::CellFormat format_for(const ConvLayer& layer, Precision precision) {
  switch (precision_of(layer, precision)) {
    case Precision::int8:
      return {.cell = kernels::Cell::u8, .scale = layer.scales->input, .inverse = 1 / layer.scales->input};
    case Precision::bf16x3:
      return {.cell = kernels::Cell::bf16x3};
    case Precision::bf16:
      return {.cell = kernels::Cell::bf16};
    case Precision::fp32:
      break;
  }
  return {};
}

// The fewest multiplications are not the fastest where few images share one pass over the weights, which grow
// from 9 to 16 or 36 numbers per pair of channels; in int8 these are of twice the bytes, too.
Algorithm choose(const ConvLayer& layer, std::size_t stage, Precision precision, const PlanOptions& options) {
  const bool latency = options.profile == Profile::latency;
  if (layer.kernel != 3 || layer.stride != 1 || options.algorithm == AlgorithmPolicy::direct) {
    return Algorithm::direct;
  }
  switch (precision) {
    case Precision::fp32:
      return !latency || stage <= 2 ? Algorithm::winograd4
             : stage == 3           ? Algorithm::winograd2
                                    : Algorithm::direct;
    case Precision::bf16:  // F(4 x 4) would magnify its rounding tenfold
      return options.winograd_bf16 && (!latency || stage <= 3) ? Algorithm::winograd2 : Algorithm::direct;
    case Precision::int8:
      return options.winograd_int8 && stage <= (latency ? 1 : 3) && fits_winograd(layer)
                 ? Algorithm::winograd4
                 : Algorithm::direct;
    case Precision::bf16x3:
      break;
  }
  return Algorithm::direct;
}

}  // namespace

Plan make_plan(const Network& network, const PlanOptions& options) {
  const Precision precision = options.precision;
  Plan plan{};
  plan.crop = options.crop;
  plan.stem_side = (options.crop + 1) / 2;
  std::size_t side = (plan.stem_side + 1) / 2;
  // Two maps for each layer are enough, of each kind of cell: a block's second convolution adds to the
  // block's input and puts the sum in its place where both are of one kind, and elsewhere where they are not.
  enum Role : std::size_t { block_input, inside };
  std::map<std::tuple<std::size_t, Role, kernels::Cell>, std::size_t> known;
  const auto map_of = [&](std::size_t stage, Role role, std::size_t channels, kernels::CellFormat format) {
    const auto [entry, added] = known.try_emplace({stage, role, format.cell}, plan.maps.size());
    if (added) {
      plan.maps.push_back(make_map(side, channels, format.cell, 1, stage >= (role == inside ? 3 : 2)));
    }
    return entry->second;
  };
  std::vector<const BasicBlock*> blocks;
  for (const auto& layer : network.layers) {
    for (const BasicBlock& block : layer) {
      blocks.push_back(&block);
    }
  }
  const Precision float_precision = precision == Precision::int8 ? Precision::bf16 : precision;
  kernels::CellFormat input_format = format_for(blocks.front()->conv1, precision);
  std::size_t input = map_of(1, block_input, network.stem.outputs, input_format);
  plan.stem_output = input;
  plan.stem_format = input_format;
  auto block = blocks.begin();
  for (std::size_t stage = 1; stage <= network.layers.size(); ++stage) {
    if (stage > 1) {
      side = (side + 1) / 2;
    }
    for (std::size_t b = 0; b < network.layers[stage - 1].size(); ++b, ++block) {
      const auto add = [&](const ConvLayer& layer, std::size_t from, std::size_t to,
                           kernels::CellFormat format, bool relu) {
        const Precision own = precision_of(layer, precision);
        plan.steps.push_back({.layer = &layer,
                              .algorithm = choose(layer, stage, own, options),
                              .precision = own,
                              .input = from,
                              .output = to,
                              .residual = {},
                              .output_format = format,
                              .residual_format = {},
                              .relu = relu,
                              .stage = stage});
      };
      const std::size_t channels = (*block)->conv1.outputs;
      const kernels::CellFormat inner_format = format_for((*block)->conv2, precision);
      const std::size_t inner = map_of(stage, inside, channels, inner_format);
      add((*block)->conv1, input, inner, inner_format, true);
      std::size_t residual = input;
      kernels::CellFormat residual_format = input_format;
      if ((*block)->shortcut) {  // whose output may be negative, which bytes can't be
        residual_format = format_for({}, float_precision);
        residual = map_of(stage, block_input, channels, residual_format);
        add(*(*block)->shortcut, input, residual, residual_format, false);
      }
      if (block + 1 == blocks.end()) {  // the head takes its map without a border, bf16 or float32
        input_format = {.cell =
                            float_precision == Precision::bf16 ? kernels::Cell::bf16 : kernels::Cell::f32};
        plan.maps.push_back(make_map(side, channels, input_format.cell, 0, true));
        plan.features = input = plan.maps.size() - 1;
      } else {
        input_format = format_for((*(block + 1))->conv1, precision);
        input = map_of(stage, block_input, channels, input_format);
      }
      add((*block)->conv2, inner, input, input_format, true);
      plan.steps.back().residual = residual;
      plan.steps.back().residual_format = residual_format;
    }
    if (stage == 2) {
      plan.shallow_steps = plan.steps.size();
    }
  }

  std::size_t per_image[2] = {0, 0};  // units, shallow and deep
  for (const Map& map : plan.maps) {
    per_image[map.deep ? 1 : 0] += map.image();
  }
  plan.deep_images = std::clamp<std::size_t>(deep_floats / per_image[1], 1, most_deep_images);
  plan.shallow_images = std::clamp<std::size_t>(shallow_floats / per_image[0], 1, plan.deep_images);
  return plan;
}

}  // namespace histo
