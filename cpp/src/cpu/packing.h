// Weights in the order in which the kernels read them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "aligned_buffer.h"
#include "cpu/kernels/kernels.h"
#include "cpu/thread_pool.h"
#include "histo/names.h"
#include "model/network.h"

namespace histo {

using WeightTransform = decltype(kernels::WinogradKernels::weights);

// A convolution whose weights are packed for `block` output channels at a time. Sizes are in units of 32
// bits: one float, two bf16 or int16, or four bytes.
struct Packing {
  const ConvLayer& layer;
  Algorithm algorithm;
  Precision precision;
  std::size_t block;
  bool pair = false;                    // as ConvKernels::pair; then a run of units has an even length
  std::size_t run = 1;                  // as ConvKernels::run
  std::size_t lanes = 0;                // floats in a vector
  bool plain = false;                   // as kernels::Winograd::plain_weight
  WeightTransform transform = nullptr;  // as WinogradKernels::weights

  [[nodiscard]] std::size_t blocks() const { return (layer.outputs + block - 1) / block; }

  // Contiguous units of one row of a direct convolution's window (kernels::Conv::window_run), a multiple of
  // `run`.
  [[nodiscard]] std::size_t window_run() const;

  // Units of the weights of one block before Winograd's algorithm transforms them.
  [[nodiscard]] std::size_t plain_units() const;

  // Units of the weights of one block after that.
  [[nodiscard]] std::size_t transformed_units() const;

  // Units of the packed weights of one block.
  [[nodiscard]] std::size_t block_units() const;

  // Units of the buffers of a PackedLayer: of all blocks, of the bias and of the scales.
  [[nodiscard]] std::array<std::size_t, 3> buffers() const {
    return {blocks() * block_units(), blocks() * block, precision == Precision::int8 ? blocks() * block : 0};
  }

  // Writes all units of the output channels [index * block, (index + 1) * block), for kernels::Conv or
  // kernels::Winograd; zeros for channels that the layer does not have.
  void pack(std::size_t index, std::uint32_t* out) const;
};

// Units of one tile's transformed channels, at one point of Winograd's algorithm.
std::size_t transformed_units(Precision precision, std::size_t channels);

struct PackedLayer {
  AlignedBuffer weight;
  AlignedBuffer bias;   // padded with zeros to a multiple of the block
  AlignedBuffer scale;  // int8 only: of the integer sums, padded likewise
  std::size_t blocks;
};

// All layers at once, block by block on all threads.
std::vector<PackedLayer> pack(std::span<const Packing> packings, ThreadPool& threads);

// What a layer that is packed `plain` would have as `weight` if it were not.
AlignedBuffer transform(const Packing& packing, const PackedLayer& packed, ThreadPool& threads);

}  // namespace histo
