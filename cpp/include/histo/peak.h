/// \file
/// What this machine can do at most, to judge the times of an Engine by: multiply-adds in registers, and
/// reading from memory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "histo/api.h"
#include "histo/cpu.h"
#include "histo/names.h"

namespace histo {

/// How fast one kind of products is.
struct Peak {
  std::string products;  ///< what is multiplied: "fp32", "bf16", "int8" (bytes) or "int16" (words, in which
                         ///< int8's Winograd multiplies)
  std::string instruction;  ///< that the kernels of this machine use for them, such as "VPDPBUSD"
  double multiply_adds;     ///< per second, of all threads together
};

/// Measures the multiply-adds per second of the instructions that an Engine's kernels consist of, in
/// registers: without loads, on all threads at once. Each is repeated for `seconds`, and the fastest
/// repetition counts, so that nothing can be faster.
///
/// bf16x3 forms three products in bf16 for each of the network's.
///
/// \param threads  as EngineOptions::threads; 0: usable_cpus()
/// \param seconds  for each kind of products
/// \param highest  the highest instruction set to use, as EngineOptions::isa; none: default_isa()
/// \return         of each kind that the kernels of this machine multiply, fp32 first
/// \throws Error   as default_isa() and require_usable(); invalid_argument where `seconds` is not from 0 to
///                 60, unsupported where the system does not start that many threads
///
/// \code
/// for (const histo::Peak& peak : histo::measure_peaks()) {
///   std::cout << peak.products << ": " << 2e-9 * peak.multiply_adds << " GFLOP/s\n";
/// }
/// \endcode
[[nodiscard]] HISTO_API std::vector<Peak> measure_peaks(unsigned threads = 0, double seconds = 0.1,
                                                        std::optional<Isa> highest = {});

/// Measures the bytes per second that all threads together read from a buffer of 256 MiB, which few caches
/// hold. It is repeated for `seconds`, and the fastest repetition counts. Errors as measure_peaks(), and
/// out_of_memory.
[[nodiscard]] HISTO_API double measure_reading(unsigned threads = 0, double seconds = 0.3);

}  // namespace histo
