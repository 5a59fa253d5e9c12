/// \file
/// Checks an Engine on this machine against the golden tiles that travel with a bundle.
#pragma once

#include <cstddef>
#include <filesystem>

#include "histo/api.h"
#include "histo/engine.h"

namespace histo {

/// What self_test() found. |delta| is in units of a tile's own largest reference logit, of at least 1.
struct SelfTestResult {
  std::size_t tiles = 0;
  double max_abs = 0;       ///< largest |delta logit|
  double max_relative = 0;  ///< largest |delta| in the unit above
  double tolerance = 0;     ///< allowed: see self_test()
  bool passed = false;      ///< within the tolerance, no NaN, and no top class differs beyond a tie
};

/// Runs the golden tiles of a bundle (`golden.safetensors`: `tiles` uint8 `(n, side, side, 3)`, `logits`
/// float64 `(n, classes)`) and compares with the float64 reference.
///
/// Allowed are 5e-5 in fp32, as in `histo verify`, and what a right engine stays well below in the other
/// precisions: 5e-4 in bf16x3, 0.05 in bf16 and 0.25 in int8, whose golden tiles are in part noise, which no
/// scale was made for. That finds wrong weights and kernels; how accurate a model is in them is another
/// question, which `histo export --precision` answers on real tiles.
/// \throws Error  io, invalid_file as Model::open(); size_mismatch where the tiles are not of this model
[[nodiscard]] HISTO_API SelfTestResult self_test(const Engine& engine, const std::filesystem::path& golden);

}  // namespace histo
