/// \file
/// Checks an Engine on this machine against the golden tiles of a bundle.
#pragma once

#include <cstddef>
#include <filesystem>

#include "histo/api.h"
#include "histo/engine.h"

namespace histo {

/// The result of self_test(). A relative difference is in units of the tile's largest reference logit, or of
/// 1 where that is smaller.
struct SelfTestResult {
  std::size_t tiles = 0;
  double max_abs = 0;       ///< largest absolute difference of a logit
  double max_relative = 0;  ///< largest relative difference of a logit
  double tolerance = 0;     ///< largest `max_relative` that passes: see self_test()
  bool passed = false;      ///< within the tolerance and no NaN; top classes then differ in ties only
};

/// Runs the golden tiles of a bundle (`golden.safetensors`: `tiles` uint8 `(n, side, side, 3)`, `logits`
/// float64 `(n, classes)`) and compares with the float64 reference.
///
/// The tolerance is 5e-5 in fp32, as in `histo verify`. In the other precisions it is well above the error of
/// a correct engine: 5e-4 in bf16x3, 0.05 in bf16 and 0.25 in int8, because some golden tiles are noise, for
/// which the scales of int8 were not chosen. The test finds wrong weights and wrong kernels. It does not
/// measure how accurate a model is in a precision: `histo export --precision` does, on real tiles.
/// \throws Error  io, invalid_file and out_of_memory as Model::open(), and for more than 1024 tiles;
///                size_mismatch where the golden file belongs to another model. `stage.*` are not read
[[nodiscard]] HISTO_API SelfTestResult self_test(const Engine& engine, const std::filesystem::path& golden);

}  // namespace histo
