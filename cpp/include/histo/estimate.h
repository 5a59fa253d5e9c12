/// \file
/// How much memory an Engine will take, before there is one.
#pragma once

#include <cstddef>

#include "histo/api.h"
#include "histo/engine.h"
#include "histo/model.h"

namespace histo {

/// Bytes that an Engine takes from the system: between weight_bytes + workspace_bytes, and huge_page_bytes
/// more. Without the tiles and the logits, which are the caller's, the stacks of the threads and the library
/// itself. On Linux a test compares this with the growth of the process, to 2 %.
struct MemoryEstimate {
  std::size_t model_bytes;      ///< the contents of the file, which every Engine of the Model shares
  std::size_t weight_bytes;     ///< packed weights, shared between copies of an Engine
  std::size_t workspace_bytes;  ///< activations of a batch, of each Engine and each copy
  std::size_t thread_bytes;     ///< the part of workspace_bytes that each thread of the Engine has
  std::size_t huge_page_bytes;  ///< what rounding to pages of 2 MiB adds, where the system gives such pages
};

/// What an Engine with these options takes when it has run `batch` tiles at once: the same numbers as
/// EngineInfo has then. Packs no weights and starts no thread.
///
/// A larger batch runs in parts, so the estimate does not grow beyond some batch. That of one tile is much
/// smaller in Profile::throughput at crop 128: see EngineInfo::weight_bytes.
///
/// \throws Error  as the constructor of Engine, so that it also tells whether the options are possible here;
///                invalid_argument where `batch` is 0
///
/// \code
/// const histo::MemoryEstimate memory = histo::estimate(model, {.precision = histo::Precision::bf16}, 32);
/// const std::size_t four_copies = memory.model_bytes + memory.weight_bytes + 4 * memory.workspace_bytes;
/// \endcode
[[nodiscard]] HISTO_API MemoryEstimate estimate(const Model& model, const EngineOptions& options,
                                                std::size_t batch);

}  // namespace histo
