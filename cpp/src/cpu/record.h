// Fills in a RunRecord.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

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

// Appends `count` images of a map to entry `stage` of RunRecord::stages, if there is one. `pixels`: of image
// 0, pixel (0, 0).
void record_stage(const RunRecord& record, std::size_t stage, const Map& map, const MapFormat& format,
                  const std::uint32_t* pixels, std::size_t count);

}  // namespace histo
