// Weights in the order in which the kernels read them.
#pragma once

#include <cstddef>

#include "histo/engine.h"
#include "network.h"

namespace histo {

// Floats that pack_weight() writes per block of `kernels.conv_block` output channels.
std::size_t packed_block_size(const ConvLayer& layer, Convolution algorithm, std::size_t block);

// Packs the output channels [index * block, (index + 1) * block) of `layer` to `out`, for kernels::Conv or
// kernels::Winograd; `out` is zero before, and stays so for channels that the layer does not have.
void pack_weight(const ConvLayer& layer, Convolution algorithm, std::size_t block, std::size_t index,
                 float* out);

}  // namespace histo
