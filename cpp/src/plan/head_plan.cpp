#include "plan/head_plan.h"

#include <algorithm>
#include <limits>

#include "checks.h"
#include "plan/adaptive_bins.h"

namespace histo {
namespace {

using Form = HeadPlan::Form;

// Below this a second thread gains less than the extra sums cost.
constexpr std::size_t segment_bytes = std::size_t{1} << 17U;
constexpr std::size_t max_segments = 16;

std::size_t divided_up(std::size_t a, std::size_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// How many channels share a vector of `lanes` floats: each has a slot of 4, 8, 16, ... lanes that holds a row
// of `width` cells. 1 where a row needs whole vectors.
std::size_t row_slots(std::size_t width, std::size_t lanes) {
  std::size_t slot = 4;
  while (slot < width && slot < lanes) {
    slot *= 2;
  }
  return lanes / slot;
}

std::vector<Range> bins_of(std::size_t pool, std::size_t size) {
  std::vector<Range> bins(pool);
  for (std::size_t i = 0; i < pool; ++i) {
    bins[i] = adaptive_bin(i, pool, size);
  }
  return bins;
}

double cells_in(const std::vector<Range>& bins) {
  double cells = 0;
  for (const Range& bin : bins) {
    cells += static_cast<double>(bin.end - bin.begin);
  }
  return cells;
}

// Work per tile, in multiply-adds of a vector. Two loads take as long as one multiply-add. Cells of
// channels-last maps lie apart, often at a distance that fills few sets of the first-level cache, so those
// loads take seven times as long (measured on Zen 4 with 512 channels: at about that factor the other form
// becomes the faster one).
double cost(Form form, const HeadPlan& p) {
  const auto classes = static_cast<double>(p.classes);
  const auto channels = static_cast<double>(p.channels);
  const auto lanes = static_cast<double>(p.lanes);
  switch (form) {
    case Form::cells:
      return channels * static_cast<double>(p.height) * static_cast<double>(p.width) / lanes *
             (0.5 + classes);
    case Form::row_sums: {
      const auto vectors = static_cast<double>(divided_up(p.width, p.lanes));
      const double loads = cells_in(p.row_bins) * static_cast<double>(p.slots);
      const double products = static_cast<double>(p.row_bins.size()) * classes;
      return channels / static_cast<double>(p.slots) * vectors * (0.5 * loads + products);
    }
    case Form::cell_sums: {
      const double loads = cells_in(p.row_bins) * cells_in(p.column_bins);
      const auto bins = static_cast<double>(p.row_bins.size()) * static_cast<double>(p.column_bins.size());
      return channels / lanes * (3.5 * loads + bins * classes);
    }
  }
  return std::numeric_limits<double>::infinity();
}

void set_rows(HeadPlan& plan, std::size_t pool, std::size_t height, std::size_t width) {
  plan.height = height;
  plan.width = width;
  plan.slots = row_slots(width, plan.lanes);
  plan.row_bins = bins_of(pool, height);
  plan.column_bins = bins_of(pool, width);
}

void choose_form(HeadPlan& plan, std::size_t pool) {
  set_rows(plan, pool, plan.map_height, plan.map_width);
  if (plan.layout == Layout::nhwc) {
    plan.form = cost(Form::cells, plan) <= cost(Form::cell_sums, plan) ? Form::cells : Form::cell_sums;
    return;
  }
  if (pool == 1) {
    // Only the number of cells counts, so a channel may be cut into rows of any length.
    const std::size_t area = plan.map_height * plan.map_width;
    std::size_t best = plan.map_width;
    double least = cost(Form::row_sums, plan);
    for (std::size_t width = 1; width <= std::min(area, plan.lanes); ++width) {
      if (area % width == 0) {
        set_rows(plan, pool, area / width, width);
        if (const double c = cost(Form::row_sums, plan); c < least) {
          least = c;
          best = width;
        }
      }
    }
    set_rows(plan, pool, area / best, best);
  }
  plan.form = cost(Form::cells, plan) <= cost(Form::row_sums, plan) ? Form::cells : Form::row_sums;
}

void cut_into_chunks(HeadPlan& plan) {
  const std::size_t vectors = divided_up(plan.width, plan.lanes);
  switch (plan.form) {
    case Form::cells: {
      const std::size_t cells = plan.channels * plan.height * plan.width;
      plan.chunk_length = std::min(cells, HeadPlan::chunk_floats);
      plan.chunk_steps = divided_up(plan.chunk_length, plan.lanes);
      plan.chunk_count = divided_up(cells, plan.chunk_length);
      break;
    }
    case Form::row_sums: {
      const std::size_t steps = plan.row_bins.size() * vectors;  // of the channels that share a vector
      const std::size_t groups = divided_up(plan.channels, plan.slots);
      const std::size_t chunk =
          std::clamp<std::size_t>(HeadPlan::chunk_floats / plan.lanes / steps, 1, groups);
      plan.chunk_length = chunk * plan.slots;
      plan.chunk_steps = chunk * steps;
      plan.chunk_count = divided_up(groups, chunk);
      break;
    }
    case Form::cell_sums:
      plan.chunk_length = std::min(plan.channels, HeadPlan::chunk_floats);
      plan.chunk_steps = divided_up(plan.chunk_length, plan.lanes);
      plan.chunk_count = plan.chunks_per_bin() * plan.row_bins.size() * plan.column_bins.size();
      break;
  }
  const std::size_t bytes = plan.channels * plan.height * plan.width * sizeof(float);
  plan.segments = std::clamp<std::size_t>(bytes / segment_bytes, 1, std::min(max_segments, plan.chunk_count));
}

// A bin that a row or column belongs to, and the weight of the row or column in that bin's mean.
struct Share {
  std::size_t bin;
  double weight;
};

std::vector<std::vector<Share>> shares(const std::vector<Range>& bins, std::size_t size) {
  std::vector<std::vector<Share>> result(size);
  for (std::size_t b = 0; b < bins.size(); ++b) {
    for (std::size_t cell = bins[b].begin; cell < bins[b].end; ++cell) {
      result[cell].push_back({b, 1.0 / static_cast<double>(bins[b].end - bins[b].begin)});
    }
  }
  return result;
}

// Every bin, with the weight that makes a sum over its cells a mean.
std::vector<std::vector<Share>> means(const std::vector<Range>& bins) {
  std::vector<std::vector<Share>> result(bins.size());
  for (std::size_t b = 0; b < bins.size(); ++b) {
    result[b].push_back({b, 1.0 / static_cast<double>(bins[b].end - bins[b].begin)});
  }
  return result;
}

// The index of the weight of class 0 for channel `c`, row (or bin of rows) `y` of `rows`, and column (or bin
// of columns) `x` of `columns`.
std::size_t place(const HeadPlan& plan, std::size_t c, std::size_t y, std::size_t rows, std::size_t x,
                  std::size_t columns) {
  std::size_t chunk = 0;
  std::size_t lane = 0;  // counted from the start of the chunk
  switch (plan.form) {
    case Form::cells: {
      const std::size_t i =
          plan.layout == Layout::nchw ? (c * rows + y) * columns + x : (y * columns + x) * plan.channels + c;
      chunk = i / plan.chunk_length;
      lane = i % plan.chunk_length;
      break;
    }
    case Form::row_sums: {
      const std::size_t vectors = divided_up(plan.width, plan.lanes);
      const std::size_t group = c % plan.chunk_length / plan.slots;
      chunk = c / plan.chunk_length;
      lane = (group * rows + y) * vectors * plan.lanes + c % plan.slots * (plan.lanes / plan.slots) + x;
      break;
    }
    case Form::cell_sums:
      chunk = (y * columns + x) * plan.chunks_per_bin() + c / plan.chunk_length;
      lane = c % plan.chunk_length;
      break;
  }
  const std::size_t step = chunk * plan.chunk_steps + lane / plan.lanes;
  return step * plan.classes * plan.lanes + lane % plan.lanes;
}

void fill_weights(HeadPlan& plan, std::size_t pool, std::span<const float> weight) {
  plan.weights = AlignedBuffer(checked_size("weights for this map", {{"chunks", plan.chunk_count},
                                                                     {"steps", plan.chunk_steps},
                                                                     {"classes", plan.classes},
                                                                     {"lanes", plan.lanes}}));
  const auto rows = plan.form == Form::cells ? shares(plan.row_bins, plan.height) : means(plan.row_bins);
  const auto columns =
      plan.form == Form::cell_sums ? means(plan.column_bins) : shares(plan.column_bins, plan.width);
  std::vector<double> rows_done(pool);
  for (std::size_t k = 0; k < plan.classes; ++k) {
    for (std::size_t c = 0; c < plan.channels; ++c) {
      const float* const trained = weight.data() + (k * plan.channels + c) * pool * pool;
      for (std::size_t y = 0; y < rows.size(); ++y) {
        for (std::size_t q = 0; q < pool; ++q) {
          rows_done[q] = 0;
          for (const Share& share : rows[y]) {
            rows_done[q] += share.weight * static_cast<double>(trained[share.bin * pool + q]);
          }
        }
        for (std::size_t x = 0; x < columns.size(); ++x) {
          double sum = 0;
          for (const Share& share : columns[x]) {
            sum += share.weight * rows_done[share.bin];
          }
          plan.weights.data()[place(plan, c, y, rows.size(), x, columns.size()) + k * plan.lanes] =
              static_cast<float>(sum);
        }
      }
    }
  }
}

bool same_bins(const std::vector<Share>& a, const std::vector<Share>& b) {
  return std::ranges::equal(a, b, {}, &Share::bin, &Share::bin);
}

// The group of each row or column of cells, and the shares of each group.
struct Groups {
  std::vector<std::size_t> of_cell;
  std::vector<std::vector<Share>> shares;
};

Groups groups_of(std::size_t pool, std::size_t size) {
  Groups groups;
  for (const std::vector<Share>& cell : shares(bins_of(pool, size), size)) {
    if (groups.shares.empty() || !same_bins(groups.shares.back(), cell)) {
      groups.shares.push_back(cell);
    }
    groups.of_cell.push_back(groups.shares.size() - 1);
  }
  return groups;
}

}  // namespace

CellWeights make_cell_weights(std::size_t pool, std::size_t channels, std::size_t classes,
                              std::span<const float> weight, std::size_t height, std::size_t width,
                              std::size_t lanes) {
  const Groups rows = groups_of(pool, height), columns = groups_of(pool, width);
  CellWeights result{.map_height = height,
                     .map_width = width,
                     .steps = divided_up(channels, lanes),
                     .cell_floats = divided_up(channels, lanes) * classes * lanes,
                     .row_groups = rows.of_cell,
                     .column_groups = columns.of_cell,
                     .groups_in_row = columns.shares.size(),
                     .weights = {}};
  result.weights = AlignedBuffer(checked_size(
      "weights of the cells",
      {{"rows", rows.shares.size()}, {"columns", columns.shares.size()}, {"floats", result.cell_floats}}));
  float* group = result.weights.data();
  for (const std::vector<Share>& row : rows.shares) {
    for (const std::vector<Share>& column : columns.shares) {
      for (std::size_t k = 0; k < classes; ++k) {
        for (std::size_t c = 0; c < channels; ++c) {
          const float* const trained = weight.data() + (k * channels + c) * pool * pool;
          double sum = 0;
          for (const Share& y : row) {
            for (const Share& x : column) {
              sum += y.weight * x.weight * static_cast<double>(trained[y.bin * pool + x.bin]);
            }
          }
          group[(c / lanes * classes + k) * lanes + c % lanes] = static_cast<float>(sum);
        }
      }
      group += result.cell_floats;
    }
  }
  return result;
}

HeadPlan make_head_plan(std::size_t pool, std::size_t channels, std::size_t classes,
                        std::span<const float> weight, std::size_t height, std::size_t width, Layout layout,
                        std::size_t lanes) {
  HeadPlan plan{};
  plan.map_height = height;
  plan.map_width = width;
  plan.layout = layout;
  plan.channels = channels;
  plan.classes = classes;
  plan.lanes = lanes;
  choose_form(plan, pool);
  cut_into_chunks(plan);
  fill_weights(plan, pool, weight);
  return plan;
}

}  // namespace histo
