#include "cpu/partition.h"

#include <numeric>

#include "cpu/packing.h"

namespace histo {
namespace {

// Output pixels that a task of a direct convolution computes: enough of them to pay for reading the weights.
constexpr std::size_t most_pixels = 192;

// Winograd tiles of a task. Their intermediate results should fit into half a megabyte, half of a common
// second-level cache, beside the weights that pass through. With many channels, whose weights come from
// farther away, they should be enough to pay for reading the weights.
std::size_t most_tiles(std::size_t channels) { return channels <= 64 ? 12 : channels <= 256 ? 24 : 66; }

// Units between planes that would otherwise lie a multiple of 4 KiB apart, and so compete for one set of the
// first-level cache.
constexpr std::size_t plane_padding = 16;

}  // namespace

std::size_t part_size(std::size_t total, std::size_t most, std::size_t threads, std::size_t blocks) {
  const std::size_t even = threads / std::gcd(threads, blocks);
  const std::size_t parts = ceil_div(ceil_div(total, most), even) * even;
  return ceil_div(total, parts);
}

DirectTasks direct_tasks(std::size_t pixels, std::size_t blocks, std::size_t threads,
                         const kernels::ConvKernels& kernels) {
  const bool few = ceil_div(blocks, kernels.call_blocks) < threads;
  const std::size_t some = few ? 1 : kernels.call_blocks, together = kernels.call_pixels;
  const std::size_t part =
      part_size(ceil_div(pixels, together), most_pixels / together, threads, ceil_div(blocks, some));
  return {.pixels = pixels, .part = part * together, .blocks = blocks, .some = some};
}

WinogradTasks winograd_tasks(const Step& step, const Map& output, std::size_t images, std::size_t block,
                             std::size_t threads) {
  const std::size_t m = winograd_tile(step.algorithm);
  const std::size_t blocks = ceil_div(step.layer->outputs, block);
  WinogradTasks t{};
  t.points = (m + 2) * (m + 2);
  t.tiles = images * ceil_div(output.height, m) * ceil_div(output.width, m);
  t.part = part_size(t.tiles, most_tiles(step.layer->inputs), threads);
  t.fused = blocks == 1 || t.parts() >= 2 * threads;
  if (!t.fused) {
    t.part = part_size(t.tiles, most_tiles(step.layer->inputs), threads, blocks);
  }
  t.units = transformed_units(step.precision, step.layer->inputs);
  t.plane = (t.fused ? t.part : t.tiles) * t.units + plane_padding;
  t.products_plane = t.part * block + plane_padding;
  return t;
}

}  // namespace histo
