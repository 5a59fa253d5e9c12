// Weights in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "histo/engine.h"
#include "model/network.h"

namespace histo {

// Floats that pack_weight() writes per block of `kernels.conv_block` output channels.
std::size_t packed_block_size(const ConvLayer& layer, Algorithm algorithm, std::size_t block);

// Packs the output channels [index * block, (index + 1) * block) of `layer` to `out`, for kernels::Conv or
// kernels::Winograd; `out` is zero before, and stays so for channels that the layer does not have.
void pack_weight(const ConvLayer& layer, Algorithm algorithm, std::size_t block, std::size_t index,
                 float* out);

// The same for kernels::DotConv, of a layer whose input map has the format `cell`: units of a row of its
// window, units per block, and the weights themselves, which with Cell::u8 are divided by the layer's scales.
//
// For kernels::DotWinograd, F(2 x 2) in bf16 or F(4 x 4) in words, the last three; the last says whether the
// latter is exact for a layer that has scales.
std::size_t dot_run(const ConvLayer& layer, kernels::Cell cell);
std::size_t packed_dot_size(const ConvLayer& layer, kernels::Cell cell, std::size_t block);
void pack_dot_weight(const ConvLayer& layer, kernels::Cell cell, std::size_t block, std::size_t index,
                     std::uint32_t* out);
std::size_t packed_dot_winograd_size(const ConvLayer& layer, Algorithm algorithm, std::size_t block);
void pack_dot_winograd(const ConvLayer& layer, Algorithm algorithm, std::size_t block, std::size_t index,
                       std::uint32_t* out);
bool fits_winograd(const ConvLayer& layer);

}  // namespace histo
