/// \file
/// What a model file says of itself, without its weights.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "histo/api.h"
#include "histo/model.h"

namespace histo {

/// The description of a model, from the header of its `model.safetensors`.
struct ModelInfo {
  ModelSpec spec;          ///< classes, tile size, crop, pool, micrometres per pixel
  std::size_t file_bytes;  ///< of the file, and about what a Model of it takes in memory
  bool int8;               ///< whether it has the scales that Precision::int8 needs

  /// All of the file's metadata, key and value, sorted by key: histo.format, histo.spec, histo.head_pool and
  /// histo.precision, which docs/bundle.md describes, and what later versions add. A name or a hash of the
  /// model is not among them today: the SHA-256 of the file is in the bundle's config.json.
  std::vector<std::pair<std::string, std::string>> metadata{};
};

/// Reads the header, some kilobytes, and checks it like Model::open(): every tensor of the network is there
/// in its shape, and the file is as long as they need. The weights are not read, so this tells nothing of
/// their values.
/// \throws Error  io where the file cannot be read, invalid_file where it is not a model, out_of_memory
///
/// \code
/// const histo::ModelInfo info = histo::read_model_info("bundle/model.safetensors");
/// std::cout << info.spec.classes.size() << " classes at " << info.spec.mpp.value_or(0) << " um per pixel\n";
/// \endcode
[[nodiscard]] HISTO_API ModelInfo read_model_info(const std::filesystem::path& file);

}  // namespace histo
