// Checks of the contents of a model.safetensors; see docs/bundle.md.
#pragma once

#include "histo/model.h"
#include "model/safetensors.h"

namespace histo {

// Reads the spec from the metadata of `file` and checks every field. Throws Error (invalid_file).
[[nodiscard]] ModelSpec read_model_spec(const Safetensors& file);

// Throws Error (invalid_file) unless `file` holds exactly the tensors of the network that `spec` describes,
// each with its shape. The weights themselves are not read.
void check_model_tensors(const Safetensors& file, const ModelSpec& spec);

// Throws Error (invalid_file) unless every weight is finite, and mean and standard deviation are those of
// `spec`. Call it after check_model_tensors().
void check_model_values(const Safetensors& file, const ModelSpec& spec);

}  // namespace histo
