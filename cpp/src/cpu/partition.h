// How the work of a convolution is divided into tasks for the threads.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cpu/kernels/kernels.h"
#include "plan/plan.h"
#include "range.h"

namespace histo {

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// The size of the parts that `total` is divided into: at most `most`, as equal as possible, and so many that
// parts x blocks is a multiple of the threads, so that none idles. One image makes a single part: a second
// would read the weights again, and leave fewer pixels than the micro-kernel takes together.
std::size_t part_size(std::size_t total, std::size_t most, std::size_t threads, std::size_t blocks = 1);

// The tasks of a direct convolution: each computes some output pixels of some blocks of channels.
struct DirectTasks {
  std::size_t pixels;  // in all
  std::size_t part;    // pixels of a task
  std::size_t blocks;  // in all
  std::size_t some;    // blocks of a task

  [[nodiscard]] std::size_t parts() const { return ceil_div(pixels, part); }
  [[nodiscard]] std::size_t count() const { return parts() * ceil_div(blocks, some); }
  [[nodiscard]] Range pixels_of(std::size_t task) const {
    const std::size_t begin = task % parts() * part;
    return {begin, std::min(begin + part, pixels)};
  }
  [[nodiscard]] Range blocks_of(std::size_t task) const {
    const std::size_t begin = task / parts() * some;
    return {begin, std::min(begin + some, blocks)};
  }
};

DirectTasks direct_tasks(std::size_t pixels, std::size_t blocks, std::size_t threads,
                         const kernels::ConvKernels& kernels);

// The tasks of a convolution by Winograd's algorithm, and the memory that they need. Where `fused`, a task
// transforms its own tiles and computes all blocks of channels. Otherwise all tiles are transformed first,
// and a task computes some tiles of one block.
struct WinogradTasks {
  std::size_t tiles;  // in all
  std::size_t part;   // tiles of a task
  bool fused;
  std::size_t units;           // of one tile's transformed channels, at one point
  std::size_t plane;           // units from one point to the next of the transformed input
  std::size_t products_plane;  // floats from one point to the next of the products
  std::size_t points;

  [[nodiscard]] std::size_t parts() const { return ceil_div(tiles, part); }
  [[nodiscard]] Range range(std::size_t i) const { return {i * part, std::min((i + 1) * part, tiles)}; }
  // Scratch of each thread, in units of 32 bits: products, then a fused task's transformed input.
  [[nodiscard]] std::size_t private_units() const { return points * (products_plane + (fused ? plane : 0)); }
  // Scratch that all threads share: the transformed input, unless fused.
  [[nodiscard]] std::size_t shared_units() const { return fused ? 0 : points * plane; }
};

// `block`: output channels that the kernels of this step compute together.
WinogradTasks winograd_tasks(const Step& step, const Map& output, std::size_t images, std::size_t block,
                             std::size_t threads);

}  // namespace histo
