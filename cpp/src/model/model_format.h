// What a model.safetensors must hold; see docs/bundle.md.
#pragma once

#include "histo/model.h"
#include "model/safetensors.h"

namespace histo {

// The spec that the metadata of `file` holds, every field checked. Throws Error (invalid_file).
[[nodiscard]] ModelSpec read_model_spec(const Safetensors& file);

// Whether `file` holds the tensors of the network that `spec` describes, all of them, each in its shape, and
// no others. The weights themselves are not read. Throws Error (invalid_file).
void check_model_tensors(const Safetensors& file, const ModelSpec& spec);

// Whether every weight is finite, and mean and standard deviation are those of `spec`. To be called after
// check_model_tensors(). Throws Error (invalid_file).
void check_model_values(const Safetensors& file, const ModelSpec& spec);

}  // namespace histo
