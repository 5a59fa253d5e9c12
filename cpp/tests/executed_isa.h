// Which instruction set a test should see at work.
#pragma once

#include <optional>

#include "histo/cpu.h"

// Where `highest` is asked for; nothing where it cannot run `precision`. AMX, for example, runs float32 on
// AVX-512.
inline std::optional<histo::Isa> executed_isa(histo::Precision precision, histo::Isa highest) {
  for (const histo::PrecisionSupport& support : histo::precision_support(highest)) {
    if (support.precision == precision) {
      return support.isa;
    }
  }
  return std::nullopt;
}
