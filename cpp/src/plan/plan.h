// What an Engine does for one crop: the maps it keeps in memory and the convolutions between them. Data only;
// a Backend executes it.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "histo/engine.h"
#include "histo/names.h"
#include "model/network.h"
#include "plan/map_format.h"
#include "plan/per_precision.h"

namespace histo {

// A channels-last feature map of several images, in units of 32 bits. A convolution of padding 1 reads a
// border of zeros around it, and Winograd's tiles reach up to three pixels farther at the right and at the
// bottom; these zeros are never overwritten.
struct Map {
  std::size_t height, width, channels;
  Storage storage;
  std::size_t border;         // 1, or 0 where no convolution reads the map
  std::size_t rows, columns;  // in memory
  bool deep;                  // see Plan::deep_images

  [[nodiscard]] std::size_t pixel() const { return units_of_pixel(storage, channels); }
  [[nodiscard]] std::size_t row() const { return columns * pixel(); }
  [[nodiscard]] std::size_t image() const { return rows * row(); }
};

struct Step {
  const ConvLayer* layer;
  Algorithm algorithm;
  bool weights_on_the_fly;  // they are kept as trained, and Winograd's algorithm transforms them when it runs
                            // on few tiles
  Precision precision;
  std::size_t input, output;  // indices into Plan::maps
  std::optional<std::size_t> residual;
  MapFormat output_format, residual_format;
  bool relu;
  std::size_t stage;  // 1 to 4: layer1 to layer4
};

struct Plan {
  std::size_t crop;
  Precision precision;       // that was asked for
  Precision stem_precision;  // the stem has no scales, because its input is not a map of the network
  std::size_t stem_side;     // of the stem's map, before its maximum
  std::vector<Map> maps;
  std::vector<Step> steps;  // of layer1 to layer4
  std::size_t stem_output;  // index into maps
  MapFormat stem_format;
  std::size_t features;  // index into maps

  // Early maps are large and their weights are small, so layer1 and layer2 run on few images at a time, whose
  // maps stay in the caches; late maps are small and their weights are large, so layer3 and layer4 run
  // on many, which share one pass over the weights. `shallow_steps` is where the first part ends.
  std::size_t shallow_steps;
  std::size_t shallow_images;
  std::size_t deep_images;
  std::size_t interleaved;  // images, where a run has as many: kernels::KernelSet::interleaved, or 1 where
                            // shallow_images is less; else shallow_images is a multiple of it
};

// Which of Winograd's algorithms have kernels; the direct convolution always has.
struct AlgorithmSupport {
  bool winograd2 = false, winograd4 = false;
  bool weights_on_the_fly = false;  // of winograd4
};

struct PlanOptions {
  std::size_t crop;
  Precision precision;  // in int8 the layers without scales run in bf16
  Profile profile;
  AlgorithmPolicy algorithm;
  PerPrecision<AlgorithmSupport> kernels;
  std::size_t interleaved = 1;  // kernels::KernelSet::interleaved
};

// `network` must outlive the plan.
Plan make_plan(const Network& network, const PlanOptions& options);

// The stem, the steps and the head with their sizes, in the order of the computation; the seconds are zero.
std::vector<LayerTime> describe_layers(const Network& network, const Plan& plan, std::size_t classes);

// Pixels along one side of the output tiles of Winograd's algorithm: 2 or 4.
constexpr std::size_t winograd_tile(Algorithm algorithm) { return algorithm == Algorithm::winograd4 ? 4 : 2; }

// What a layer reads that runs in `precision`.
Storage storage_of(Precision precision);

// Whether F(4 x 4) in integers is exact for a layer that has scales: no sum of products may leave the range
// that kernels/vnni.inl can restore.
bool fits_winograd(const ConvLayer& layer);

}  // namespace histo
