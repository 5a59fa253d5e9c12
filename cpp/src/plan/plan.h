// What an Engine does for one crop: the maps it keeps in memory and the convolutions between them. Data only;
// engine.cpp runs it.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "histo/engine.h"
#include "model/network.h"

namespace histo {

// A channels-last feature map of several images, in units of 32 bits. A convolution of padding 1 reads a
// border of zeros around it, and Winograd's tiles reach up to three pixels farther at the right and at the
// bottom; no one ever writes there.
struct Map {
  std::size_t height, width, channels;
  kernels::Cell cell;
  std::size_t border;         // 1, or 0 where no convolution reads the map
  std::size_t rows, columns;  // in memory
  bool deep;                  // see Plan::deep_images

  [[nodiscard]] std::size_t pixel() const { return kernels::units_of_pixel(cell, channels); }
  [[nodiscard]] std::size_t row() const { return columns * pixel(); }
  [[nodiscard]] std::size_t image() const { return rows * row(); }
  [[nodiscard]] std::size_t origin() const { return border * (row() + pixel()); }  // of pixel (0, 0)
};

struct Step {
  const ConvLayer* layer;
  Algorithm algorithm;
  Precision precision;
  std::size_t input, output;  // indices into Plan::maps
  std::optional<std::size_t> residual;
  kernels::CellFormat output_format, residual_format;
  bool relu;
  std::size_t stage;  // 1 to 4: layer1 to layer4
};

struct Plan {
  std::size_t crop;
  std::size_t stem_side;  // of the stem's map, before its maximum
  std::vector<Map> maps;
  std::vector<Step> steps;  // of layer1 to layer4
  std::size_t stem_output;  // indices into maps
  kernels::CellFormat stem_format;
  std::size_t features;

  // Early maps are large and their weights are small, so layer1 and layer2 run on few images at a time, whose
  // maps stay in the caches; late maps are small and their weights are large, so layer3 and layer4 run
  // on many, which share one pass over the weights. `shallow_steps` is where the first part ends.
  std::size_t shallow_steps;
  std::size_t shallow_images;
  std::size_t deep_images;
};

struct PlanOptions {
  std::size_t crop;
  Precision precision;  // in int8 the layers without scales run in bf16
  Profile profile;
  AlgorithmPolicy algorithm;
  bool winograd_bf16, winograd_int8;  // whether there are kernels for it
};

// `network` must outlive the plan.
Plan make_plan(const Network& network, const PlanOptions& options);

}  // namespace histo
