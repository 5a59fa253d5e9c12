// What a run gives besides the logits that comes from the last feature map: the embedding, and the
// contributions of its cells.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "cpu/kernels/kernels.h"
#include "histo/names.h"
#include "plan/head_plan.h"
#include "platform/exclusive.h"

namespace histo {

// A channels-last map of one image. `Feature` is float, or std::uint16_t for bf16.
template <typename Feature>
struct FeatureMap {
  const Feature* features;
  std::size_t height, width;
};

// Adaptive pooling and the linear layer behind it, as a model file stores them.
struct StoredHead {
  std::size_t trained_pool;  // of the embedding
  std::size_t pool;          // that `weight` expects
  std::size_t channels, classes;
  std::span<const float> weight;  // (classes, channels, pool, pool); must outlive those who use it
};

// Several threads may use one at a time. The outputs are those of histo/engine.h.
class MapOutputs {
 public:
  MapOutputs(const StoredHead& head, Isa isa);

  // `out`: (channels, trained_pool, trained_pool).
  template <typename Feature>
  void embedding(const FeatureMap<Feature>& map, float* out) const;

  // The weights for contributions of maps of this size, which are made at the first call.
  [[nodiscard]] std::shared_ptr<const CellWeights> weights(std::size_t height, std::size_t width) const;

  // `out`: (classes, height, width).
  template <typename Feature>
  void contributions(const FeatureMap<Feature>& map, const CellWeights& weights, float* out) const;

 private:
  template <typename Feature>
  [[nodiscard]] const kernels::HeadKernels<Feature>& kernels_of() const;

  StoredHead head_;
  const kernels::KernelSet& kernels_;  // of float32
  mutable Exclusive<std::shared_ptr<const CellWeights>> kept_;
};

}  // namespace histo
