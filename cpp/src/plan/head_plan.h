// How FusedHead computes its logits for one map size: which features it sums before it multiplies, and the
// weights for these sums.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "aligned_buffer.h"
#include "exact_arithmetic.h"
#include "histo/fused_head.h"
#include "range.h"

namespace histo {

// A tile's logits are sums over steps: one vector of the features, or of sums of them, times one vector of
// weights per class. Steps come in chunks, so that a chunk's weights stay in the first-level cache while the
// tiles pass by.
struct HeadPlan {
  enum class Form {
    cells,      // the features, cell by cell. A chunk is a run of them.
    row_sums,   // NCHW: sums over the rows of each bin. A chunk is some channels.
    cell_sums,  // NHWC: sums over the cells of each bin. A chunk is some channels of one bin.
  };
  // Floats in a chunk of sums, or cells in a run.
  static constexpr std::size_t chunk_floats = 1024;

  std::size_t map_height, map_width;  // the map that the plan is for
  Layout layout;

  std::size_t channels, height, width;  // of the map as the kernels see it
  std::size_t classes;
  std::size_t lanes;
  Form form;
  std::vector<Range> row_bins, column_bins;
  std::size_t slots;  // Form::row_sums: channels that share a vector, 1, 2 or 4

  std::size_t chunk_length;  // cells of a run, or channels; the last of a map or bin may have fewer
  std::size_t chunk_steps;   // of a full chunk
  std::size_t chunk_count;
  std::size_t segments;   // parts for different threads, each with sums of its own
  AlignedBuffer weights;  // (chunks, chunk_steps, classes, lanes); zero where there is no feature

  [[nodiscard]] std::pair<std::size_t, std::size_t> chunks(std::size_t segment) const {
    return {segment * chunk_count / segments, (segment + 1) * chunk_count / segments};
  }
  [[nodiscard]] std::size_t chunks_per_bin() const { return (channels + chunk_length - 1) / chunk_length; }
};

// `weight` as FusedHead's constructor takes it; `lanes` floats in a vector.
HeadPlan make_head_plan(std::size_t pool, std::size_t channels, std::size_t classes,
                        std::span<const float> weight, std::size_t height, std::size_t width, Layout layout,
                        std::size_t lanes);

// What single cells of a channels-last map add to each logit. Cells that belong to the same bins have the
// same weights, so that these are never much larger than the head: they come in groups.
struct CellWeights {
  std::size_t map_height, map_width;       // the map that they are for
  std::size_t steps;                       // vectors of a cell's channels
  std::size_t cell_floats;                 // steps * classes * lanes
  std::vector<std::size_t> row_groups;     // of each row of cells
  std::vector<std::size_t> column_groups;  // of each column
  std::size_t groups_in_row;
  AlignedBuffer
      weights;  // (groups of rows, groups of columns, steps, classes, lanes); zero behind the channels

  [[nodiscard]] const float* of_cell(std::size_t y, std::size_t x) const {
    return weights.data() + (row_groups[y] * groups_in_row + column_groups[x]) * cell_floats;
  }
};

// Arguments as above.
CellWeights make_cell_weights(std::size_t pool, std::size_t channels, std::size_t classes,
                              std::span<const float> weight, std::size_t height, std::size_t width,
                              std::size_t lanes);

}  // namespace histo
