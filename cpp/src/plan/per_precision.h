// One value for each precision.
#pragma once

#include "histo/cpu.h"

namespace histo {

// An aggregate, so that constants of it need no code to initialise them.
template <typename T>
struct PerPrecision {
  T fp32{}, bf16{}, bf16x3{}, int8{};

  constexpr const T& operator[](Precision precision) const {
    switch (precision) {
      case Precision::bf16:
        return bf16;
      case Precision::bf16x3:
        return bf16x3;
      case Precision::int8:
        return int8;
      default:
        return fp32;
    }
  }
};

}  // namespace histo
