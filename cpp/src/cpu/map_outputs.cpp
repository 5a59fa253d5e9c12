#include "cpu/map_outputs.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "cpu/isa_selection.h"
#include "head_arithmetic.h"
#include "plan/adaptive_bins.h"

namespace histo {
namespace {

// Floats on the stack: sums of one cell, or channels of one bin.
constexpr std::size_t part_floats = 4096;

}  // namespace

MapOutputs::MapOutputs(const StoredHead& head, Isa isa)
    : head_(head), kernels_(*require_record(Precision::fp32, isa).kernels) {}

template <typename Feature>
const kernels::HeadKernels<Feature>& MapOutputs::kernels_of() const {
  if constexpr (std::is_same_v<Feature, float>) {
    return kernels_.head->f32;
  } else {
    return kernels_.head->bf16;
  }
}

template <typename Feature>
void MapOutputs::embedding(const FeatureMap<Feature>& map, float* out) const {
  alignas(64) std::array<float, part_floats> sums;
  const std::size_t pool = head_.trained_pool;
  for (std::size_t first = 0; first < head_.channels; first += part_floats) {
    const std::size_t count = std::min(part_floats, head_.channels - first);
    for (std::size_t p = 0; p < pool; ++p) {
      for (std::size_t q = 0; q < pool; ++q) {
        const Range rows = adaptive_bin(p, pool, map.height), columns = adaptive_bin(q, pool, map.width);
        kernels_of<Feature>().sum_bin({.tiles = {map.features + first, 0, 1},
                                       .channels = head_.channels,
                                       .count = count,
                                       .width = map.width,
                                       .rows = rows,
                                       .columns = columns},
                                      sums.data());
        const auto cells = static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin));
        for (std::size_t c = 0; c < count; ++c) {
          out[((first + c) * pool + p) * pool + q] = sums[c] / cells;
        }
      }
    }
  }
}

template void MapOutputs::embedding(const FeatureMap<float>&, float*) const;
template void MapOutputs::embedding(const FeatureMap<std::uint16_t>&, float*) const;

std::shared_ptr<const CellWeights> MapOutputs::weights(std::size_t height, std::size_t width) const {
  std::shared_ptr<const CellWeights> result;
  kept_.use([&](std::shared_ptr<const CellWeights>& kept) {
    if (kept == nullptr || kept->map_height != height || kept->map_width != width) {
      kept = std::make_shared<const CellWeights>(make_cell_weights(
          head_.pool, head_.channels, head_.classes, head_.weight, height, width, kernels_.lanes));
    }
    result = kept;
  });
  return result;
}

template <typename Feature>
void MapOutputs::contributions(const FeatureMap<Feature>& map, const CellWeights& weights, float* out) const {
  alignas(64) std::array<float, part_floats> sums;
  const std::size_t lanes = kernels_.lanes, block = part_floats / lanes;
  for (std::size_t y = 0; y < map.height; ++y) {
    for (std::size_t x = 0; x < map.width; ++x) {
      const Feature* const cell = map.features + (y * map.width + x) * head_.channels;
      for (std::size_t first = 0; first < head_.classes; first += block) {
        const std::size_t count = std::min(block, head_.classes - first);
        std::fill_n(sums.begin(), count * lanes, 0.0F);
        kernels_of<Feature>().runs({.tiles = {cell, 0, 1}, .length = head_.channels},
                                   {.first = weights.of_cell(y, x) + first * lanes,
                                    .stride = head_.classes * lanes,
                                    .classes = count},
                                   sums.data());
        for (std::size_t k = 0; k < count; ++k) {
          out[((first + k) * map.height + y) * map.width + x] = sum_of_lanes(sums.data() + k * lanes, lanes);
        }
      }
    }
  }
}

template void MapOutputs::contributions(const FeatureMap<float>&, const CellWeights&, float*) const;
template void MapOutputs::contributions(const FeatureMap<std::uint16_t>&, const CellWeights&, float*) const;

}  // namespace histo
