// The loops whose speed measure_peaks() measures.
#pragma once

#include <cstddef>
#include <vector>

#include "histo/names.h"

namespace histo {

struct PeakLoop {
  const char* products;
  const char* instruction;
  void (*run)(std::size_t rounds);  // on a CPU with the instruction
  double multiply_adds;             // of a round
};

// Of the kernels of `isa` in a precision that they execute: at least one. bf16x3 multiplies in bf16.
[[nodiscard]] std::vector<PeakLoop> peak_loops(Isa isa, Precision precision);

}  // namespace histo
