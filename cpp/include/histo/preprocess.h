/// \file
/// From the bytes of a decoder to the input of the network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "histo/api.h"
#include "histo/engine.h"
#include "histo/image_view.h"
#include "histo/model.h"

namespace histo {

/// Crops and normalises tiles, as Engine does before its first convolution and as the exported graphs do.
///
/// The centre crop starts where torchvision's CenterCrop puts it: at `(side - crop) / 2`, a half rounded to
/// the even number. A byte becomes `(byte / 255 - mean) / std`, in float32 and in this order, so that the
/// result is bit-identical to PyTorch's. There is no padding here: the convolutions pad with zeros
/// afterwards.
///
/// \param tiles   uint8 RGB, row-major `(batch, height, width, 3)`
/// \param spec    of the model: its mean and std
/// \param crop    side of the crop, at least 1; 0: the model's
/// \param out     float32, row-major `(batch, 3, crop, crop)`
/// \throws Error  as Engine::run()
HISTO_API void preprocess(std::span<const std::uint8_t> tiles, TileShape shape, const ModelSpec& spec,
                          std::size_t crop, std::span<float> out);

/// The same for tiles that are where and how the host holds them.
HISTO_API void preprocess(std::span<const ImageView> tiles, const ModelSpec& spec, std::size_t crop,
                          std::span<float> out);

}  // namespace histo
