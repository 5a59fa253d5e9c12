// Fills in a RunRecord.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "plan/backend.h"

namespace histo {

// Adds the time from here to its end to entry `layer` of RunRecord::times, if there is one.
class Timer {
 public:
  Timer(const RunRecord& record, std::size_t layer);
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer();

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point start_;
};

// Appends an image of a map to entry `stage` of RunRecord::stages, if there is one. `image`: its pixel (0,
// 0).
void record_stage(const RunRecord& record, std::size_t stage, const Map& map, const MapFormat& format,
                  const std::uint32_t* image, const kernels::Strides& strides);

}  // namespace histo
