#include "histo/fused_head.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cpu/isa_selection.h"
#include "cpu/kernels/kernels.h"
#include "cpu/thread_pool.h"
#include "head_arithmetic.h"
#include "histo/cpu.h"
#include "plan/adaptive_bins.h"
#include "plan/head_plan.h"
#include "platform/exclusive.h"
#include "platform/platform.h"

namespace histo {
namespace {

float widened(float value) { return value; }
float widened(Bfloat16 value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16U); }

// Kernels take bf16 as plain integers.
const float* as_numbers(const float* features) { return features; }
const std::uint16_t* as_numbers(const Bfloat16* features) { return &features->bits; }

// Tiles that the widest kernel handles together.
constexpr std::size_t tile_block = 4;

// Sums (tiles, classes, lanes) that a thread works on: they share the first-level cache with a chunk of
// weights.
constexpr std::size_t sums_size = 4096;

// Bytes. Larger tiles are read a block of tiles at a time, in long runs: they come from memory, and a chunk
// of each of many tiles would be a jump per chunk. Their weights take little time beside them.
constexpr std::size_t large_tile = std::size_t{1} << 18U;

// Bytes of features that one thread reads in the time that it takes to wake another.
constexpr std::size_t worth_waking = std::size_t{1} << 16U;

// A part of a batch: some tiles and classes, which share one pass over the weights of a segment.
struct Part {
  std::size_t first_tile, tiles;
  std::size_t first_class, classes;
};

// The kernels that the head uses, and the floats in their vectors.
struct Kernels {
  const kernels::HeadTable& table;
  std::size_t lanes;

  template <typename Feature>
  [[nodiscard]] const kernels::HeadKernels<Feature>& of() const {
    if constexpr (std::is_same_v<Feature, float>) {
      return table.f32;
    } else {
      return table.bf16;
    }
  }
};

// The cells of a bin of channels-last maps are summed together, vector by vector, if they are this few. Each
// is a stream of memory of its own then, so more of them are summed in the order in which they lie in memory,
// into a buffer.
constexpr std::size_t most_streams = 4;

// What HeadKernels::bin does, by way of a buffer.
template <typename Feature>
void add_summed_bin(const Kernels& kernels, const kernels::HeadBin<Feature>& bin,
                    const kernels::HeadWeights& weights, float* sums) {
  constexpr std::size_t stride = HeadPlan::chunk_floats;
  alignas(64) std::array<float, tile_block * stride> bin_sums;
  for (std::size_t t = 0; t < bin.tiles.count; t += tile_block) {
    const std::size_t tiles = std::min(tile_block, bin.tiles.count - t);
    for (std::size_t i = 0; i < tiles; ++i) {
      kernels::HeadBin<Feature> one = bin;
      one.tiles.first += (t + i) * bin.tiles.stride;
      kernels.of<Feature>().sum_bin(one, bin_sums.data() + i * stride);
    }
    kernels.table.f32.runs({.tiles = {bin_sums.data(), stride, tiles}, .length = bin.count}, weights,
                           sums + t * weights.classes * kernels.lanes);
  }
}

// Adds chunk `chunk` of `plan` to `sums`.
template <typename Feature>
void add_chunk(const Kernels& kernels, const HeadPlan& plan, std::size_t chunk, const Feature* features,
               const Part& part, float* sums) {
  const std::size_t tile_size = plan.channels * plan.height * plan.width;
  const Feature* const tile = features + part.first_tile * tile_size;
  const std::size_t step = plan.classes * plan.lanes;
  const kernels::HeadWeights weights{
      .first = plan.weights.data() + chunk * plan.chunk_steps * step + part.first_class * plan.lanes,
      .stride = step,
      .classes = part.classes};
  switch (plan.form) {
    case HeadPlan::Form::cells: {
      const std::size_t begin = chunk * plan.chunk_length;
      kernels.of<Feature>().runs({.tiles = {tile + begin, tile_size, part.tiles},
                                  .length = std::min(plan.chunk_length, tile_size - begin)},
                                 weights, sums);
      break;
    }
    case HeadPlan::Form::row_sums: {
      const std::size_t begin = chunk * plan.chunk_length;
      kernels.of<Feature>().rows({.tiles = {tile + begin * plan.height * plan.width, tile_size, part.tiles},
                                  .channels = std::min(plan.chunk_length, plan.channels - begin),
                                  .height = plan.height,
                                  .width = plan.width,
                                  .slots = plan.slots,
                                  .bins = plan.row_bins.data(),
                                  .bin_count = plan.row_bins.size()},
                                 weights, sums);
      break;
    }
    case HeadPlan::Form::cell_sums: {
      const std::size_t bin = chunk / plan.chunks_per_bin();
      const std::size_t begin = chunk % plan.chunks_per_bin() * plan.chunk_length;
      const kernels::HeadBin<Feature> cells{.tiles = {tile + begin, tile_size, part.tiles},
                                            .channels = plan.channels,
                                            .count = std::min(plan.chunk_length, plan.channels - begin),
                                            .width = plan.width,
                                            .rows = plan.row_bins[bin / plan.column_bins.size()],
                                            .columns = plan.column_bins[bin % plan.column_bins.size()]};
      const std::size_t rows = cells.rows.end - cells.rows.begin;
      const std::size_t columns = cells.columns.end - cells.columns.begin;
      if (rows * columns > most_streams) {
        add_summed_bin(kernels, cells, weights, sums);
      } else {
        kernels.of<Feature>().bin(cells, weights, sums);
      }
      break;
    }
  }
}

// How a batch is divided into tasks: each computes, for one segment of the plan, some classes of some tiles.
struct Tasks {
  std::size_t batch, classes, segments;
  std::size_t class_block, class_blocks;
  std::size_t tile_group, tile_groups;

  Tasks(const HeadPlan& plan, std::size_t images, std::size_t feature_bytes, std::size_t threads)
      : batch(images),
        classes(plan.classes),
        segments(plan.segments),
        // As many classes as a block of tiles has sums for, and as many tiles as these leave room for.
        class_block(std::min(classes, sums_size / (tile_block * plan.lanes))),
        class_blocks((classes + class_block - 1) / class_block) {
    const std::size_t share = (batch + threads - 1) / threads;
    const std::size_t fit =
        feature_bytes / batch > large_tile ? tile_block : sums_size / (class_block * plan.lanes);
    tile_group = std::min(fit, (share + tile_block - 1) / tile_block * tile_block) / tile_block * tile_block;
    tile_groups = (batch + tile_group - 1) / tile_group;
  }

  [[nodiscard]] std::size_t count() const { return segments * class_blocks * tile_groups; }
  [[nodiscard]] std::size_t segment(std::size_t task) const { return task / class_blocks / tile_groups; }
  [[nodiscard]] Part part(std::size_t task) const {
    const std::size_t first_class = task / tile_groups % class_blocks * class_block;
    const std::size_t first_tile = task % tile_groups * tile_group;
    return {.first_tile = first_tile,
            .tiles = std::min(tile_group, batch - first_tile),
            .first_class = first_class,
            .classes = std::min(class_block, classes - first_class)};
  }
};

// Calls function(index into (batch, classes), sum over the segment's features) for each tile and class of a
// part.
template <typename Feature, typename Function>
void for_each_sum(const Kernels& kernels, const HeadPlan& plan, std::size_t segment, const Feature* features,
                  const Part& part, const Function& function) {
  alignas(64) std::array<float, sums_size> sums;
  std::fill_n(sums.begin(), part.tiles * part.classes * plan.lanes, 0.0F);
  const auto [begin, end] = plan.chunks(segment);
  for (std::size_t chunk = begin; chunk < end; ++chunk) {
    add_chunk(kernels, plan, chunk, features, part, sums.data());
  }
  for (std::size_t t = 0; t < part.tiles; ++t) {
    for (std::size_t k = 0; k < part.classes; ++k) {
      function((part.first_tile + t) * plan.classes + part.first_class + k,
               sum_of_lanes(sums.data() + (t * part.classes + k) * plan.lanes, plan.lanes));
    }
  }
}

}  // namespace

struct FusedHead::State {
  std::size_t pool;
  std::size_t channels;
  std::size_t classes;
  std::vector<float> weight;  // as given
  std::vector<float> bias;
  Isa isa;
  Kernels kernels;
  ThreadPool threads;

  using Plans = std::vector<std::shared_ptr<const HeadPlan>>;
  Exclusive<Plans> kept_plans;  // most recent first

  std::shared_ptr<const HeadPlan> plan(const FeatureShape& shape);

  template <typename Feature>
  void check(std::span<const Feature> features, const FeatureShape& shape, std::span<float> out) const;
  template <typename Feature>
  void run(std::span<const Feature> features, const FeatureShape& shape, std::span<float> out,
           Softmax softmax);
  template <typename Feature>
  void run_reference(std::span<const Feature> features, const FeatureShape& shape, std::span<float> out,
                     Softmax softmax) const;
};

std::shared_ptr<const HeadPlan> FusedHead::State::plan(const FeatureShape& shape) {
  constexpr std::size_t kept = 8;
  std::shared_ptr<const HeadPlan> result;
  kept_plans.use([&](Plans& plans) {
    auto found = std::ranges::find_if(plans, [&](const auto& p) {
      return p->map_height == shape.height && p->map_width == shape.width && p->layout == shape.layout;
    });
    if (found == plans.end()) {
      if (plans.size() == kept) {
        plans.pop_back();
      }
      plans.push_back(std::make_shared<const HeadPlan>(make_head_plan(
          pool, channels, classes, weight, shape.height, shape.width, shape.layout, kernels.lanes)));
      found = plans.end() - 1;
    }
    std::rotate(plans.begin(), found, found + 1);
    result = plans.front();
  });
  return result;
}

template <typename Feature>
void FusedHead::State::check(std::span<const Feature> features, const FeatureShape& shape,
                             std::span<float> out) const {
  if (shape.layout != Layout::nchw && shape.layout != Layout::nhwc) {
    throw Error(ErrorCode::invalid_argument, "layout is neither nchw nor nhwc", "give one of them");
  }
  check_buffer("features", features,
               checked_size("features", {{"batch", shape.batch},
                                         {"channels", channels},
                                         {"height", shape.height},
                                         {"width", shape.width}}));
  check_buffer("out", out, checked_size("out", {{"batch", shape.batch}, {"classes", classes}}));
}

template <typename Feature>
void FusedHead::State::run(std::span<const Feature> features, const FeatureShape& shape, std::span<float> out,
                           Softmax softmax) {
  check(features, shape, out);
  const std::shared_ptr<const HeadPlan> kept = plan(shape);
  const HeadPlan& p = *kept;
  const Tasks tasks(p, shape.batch, features.size_bytes(), threads.threads());

  // Sums of several segments are added when all are there; those of a single one are the logits.
  std::vector<float> partial(p.segments == 1 ? 0 : p.segments * out.size());
  const auto run_task = [&](std::size_t task) {
    const std::size_t segment = tasks.segment(task);
    for_each_sum(kernels, p, segment, as_numbers(features.data()), tasks.part(task),
                 [&](std::size_t i, float sum) {
                   if (p.segments == 1) {
                     out[i] = sum + bias[i % classes];
                   } else {
                     partial[segment * out.size() + i] = sum;
                   }
                 });
  };
  if (features.size_bytes() < worth_waking) {
    for (std::size_t task = 0; task < tasks.count(); ++task) {
      run_task(task);
    }
  } else {
    threads.for_each(tasks.count(), run_task);
  }
  for (std::size_t i = 0; p.segments != 1 && i < out.size(); ++i) {
    float sum = bias[i % classes];
    for (std::size_t segment = 0; segment < p.segments; ++segment) {
      sum += partial[segment * out.size() + i];
    }
    out[i] = sum;
  }
  if (softmax == Softmax::yes) {
    for (std::size_t n = 0; n < shape.batch; ++n) {
      const std::span<float> row = out.subspan(n * classes, classes);
      softmax_of(std::span<const float>(row), row);
    }
  }
}

template <typename Feature>
void FusedHead::State::run_reference(std::span<const Feature> features, const FeatureShape& shape,
                                     std::span<float> out, Softmax softmax) const {
  check(features, shape, out);
  const std::size_t area = shape.height * shape.width;
  const bool nchw = shape.layout == Layout::nchw;
  const std::size_t cell_step = nchw ? 1 : channels;
  std::vector<double> logits(classes);
  for (std::size_t n = 0; n < shape.batch; ++n) {
    std::ranges::copy(bias, logits.begin());
    for (std::size_t c = 0; c < channels; ++c) {
      const Feature* const map = features.data() + n * channels * area + c * (nchw ? area : 1);
      for (std::size_t p = 0; p < pool; ++p) {
        const Range rows = adaptive_bin(p, pool, shape.height);
        for (std::size_t q = 0; q < pool; ++q) {
          const Range columns = adaptive_bin(q, pool, shape.width);
          double sum = 0.0;
          for (std::size_t y = rows.begin; y < rows.end; ++y) {
            for (std::size_t x = columns.begin; x < columns.end; ++x) {
              sum += static_cast<double>(widened(map[(y * shape.width + x) * cell_step]));
            }
          }
          const double mean = sum / (static_cast<double>(rows.end - rows.begin) *
                                     static_cast<double>(columns.end - columns.begin));
          for (std::size_t k = 0; k < classes; ++k) {
            logits[k] += mean * static_cast<double>(weight[((k * channels + c) * pool + p) * pool + q]);
          }
        }
      }
    }
    const std::span<float> row = out.subspan(n * classes, classes);
    if (softmax == Softmax::yes) {
      softmax_of(std::span<const double>(logits), row);
    } else {
      std::ranges::transform(logits, row.begin(), [](double logit) { return static_cast<float>(logit); });
    }
  }
}

FusedHead::FusedHead(std::size_t pool, std::size_t channels, std::size_t classes,
                     std::span<const float> weight, std::span<const float> bias,
                     const FusedHeadOptions& options) {
  check_buffer(
      "weight", weight,
      checked_size("weight", {{"classes", classes}, {"channels", channels}, {"pool", pool}, {"pool", pool}}));
  check_buffer("bias", bias, classes);
  const IsaRecord& record = require_record(Precision::fp32, options.isa ? *options.isa : default_isa());
  state_ = std::shared_ptr<State>(
      new State{.pool = pool,
                .channels = channels,
                .classes = classes,
                .weight = {weight.begin(), weight.end()},
                .bias = {bias.begin(), bias.end()},
                .isa = record.isa,
                .kernels = {.table = *record.kernels->head, .lanes = record.kernels->lanes},
                .threads = ThreadPool(options.threads != 0 ? options.threads : usable_cpus()),
                .kept_plans = {}});
}

void FusedHead::run(std::span<const float> features, FeatureShape shape, std::span<float> out,
                    Softmax softmax) const {
  const FloatEnvironment environment;
  state_->run(features, shape, out, softmax);
}

void FusedHead::run(std::span<const Bfloat16> features, FeatureShape shape, std::span<float> out,
                    Softmax softmax) const {
  const FloatEnvironment environment;
  state_->run(features, shape, out, softmax);
}

void FusedHead::run_reference(std::span<const float> features, FeatureShape shape, std::span<float> out,
                              Softmax softmax) const {
  const FloatEnvironment environment;
  state_->run_reference(features, shape, out, softmax);
}

void FusedHead::run_reference(std::span<const Bfloat16> features, FeatureShape shape, std::span<float> out,
                              Softmax softmax) const {
  const FloatEnvironment environment;
  state_->run_reference(features, shape, out, softmax);
}

std::size_t FusedHead::pool() const noexcept { return state_->pool; }
std::size_t FusedHead::channels() const noexcept { return state_->channels; }
std::size_t FusedHead::classes() const noexcept { return state_->classes; }
Isa FusedHead::isa() const noexcept { return state_->isa; }
unsigned FusedHead::threads() const noexcept { return state_->threads.threads(); }

}  // namespace histo
