#include "histo/engine.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>

#include "checks.h"
#include "cpu/aligned_buffer.h"
#include "cpu/isa_selection.h"
#include "cpu/kernels/kernels.h"
#include "cpu/normaliser.h"
#include "cpu/packing.h"
#include "cpu/thread_pool.h"
#include "histo/cpu.h"
#include "histo/fused_head.h"
#include "model/network.h"
#include "plan/plan.h"

namespace histo {
namespace {

using kernels::Cell;
using kernels::CellFormat;
using kernels::Range;
using kernels::Strides;

// Output pixels that a task of a direct convolution computes: enough of them to pay for reading the weights.
constexpr std::size_t most_pixels = 192;

// Winograd tiles of a task: so many that their intermediates fit into half a megabyte, half of a common
// second-level cache, beside the weights that pass through; but with many channels, whose weights come from
// farther away, no fewer than pay for that.
std::size_t most_tiles(std::size_t channels) { return channels <= 64 ? 12 : channels <= 256 ? 24 : 66; }

// Floats between planes that would otherwise lie a multiple of 4 KiB apart, and so compete for one set of
// the first-level cache.
constexpr std::size_t plane_padding = 16;

// Floats of the stem's map that a task keeps before their maximum is taken: half a megabyte.
constexpr std::size_t stem_floats = std::size_t{1} << 17U;

// Buffers hold floats, and units of other kinds in the same place.
template <typename Unit = std::uint32_t>
Unit* units(float* p) {
  return reinterpret_cast<Unit*>(p);
}
template <typename Unit = std::uint32_t>
const Unit* units(const float* p) {
  return reinterpret_cast<const Unit*>(p);
}

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// The size of the pieces that `total` is cut into: at most `most`, and as equal as can be, in a number that
// the threads share evenly where each piece is `blocks` tasks. With one image that is a single piece: a
// second would read the weights again, and leave fewer pixels than the micro-kernel takes together.
std::size_t piece_size(std::size_t total, std::size_t most, std::size_t threads, std::size_t blocks = 1) {
  const std::size_t even = threads / std::gcd(threads, blocks);
  const std::size_t pieces = ceil_div(ceil_div(total, most), even) * even;
  return ceil_div(total, pieces);
}

std::size_t winograd_tile(Algorithm algorithm) { return algorithm == Algorithm::winograd4 ? 4 : 2; }

template <typename Unit, typename Epilogue>
using ConvKernel = void (*)(const kernels::ConvOf<Unit, Epilogue>&, Range, Range);
template <typename Unit, typename Epilogue>
using WinogradKernels = kernels::WinogradKernelsOf<kernels::WinogradOf<Unit, Epilogue>>;

struct PackedLayer {
  AlignedBuffer weight;
  AlignedBuffer bias;   // padded with zeros to whole blocks
  AlignedBuffer scale;  // of the sums of int8, padded likewise
  std::size_t blocks;
};

// What the layers read that run in `precision`.
Cell cell_of(Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return Cell::bf16;
    case Precision::bf16x3:
      return Cell::bf16x3;
    case Precision::int8:
      return Cell::u8;
    case Precision::fp32:
      break;
  }
  return Cell::f32;
}

// A convolution whose weights are to be packed for `block` output channels at a time.
struct Packing {
  const ConvLayer& layer;
  Algorithm algorithm;
  Precision precision;
  std::size_t block;

  [[nodiscard]] std::size_t blocks() const { return ceil_div(layer.outputs, block); }
  [[nodiscard]] std::size_t block_units() const {
    return precision == Precision::fp32     ? packed_block_size(layer, algorithm, block)
           : algorithm == Algorithm::direct ? packed_dot_size(layer, cell_of(precision), block)
                                            : packed_dot_winograd_size(layer, algorithm, block);
  }
  [[nodiscard]] PackedLayer allocate() const {
    PackedLayer packed{.weight = AlignedBuffer(blocks() * block_units()),
                       .bias = AlignedBuffer(blocks() * block),
                       .scale = {},
                       .blocks = blocks()};
    std::ranges::copy(layer.bias, packed.bias.data());
    if (precision == Precision::int8) {
      packed.scale = AlignedBuffer(blocks() * block);
      std::ranges::transform(layer.scales->weight, packed.scale.data(),
                             [this](float scale) { return layer.scales->input * scale; });
    }
    return packed;
  }
  void pack(std::size_t index, PackedLayer& to) const {
    float* const out = to.weight.data() + index * block_units();
    if (precision == Precision::fp32) {
      pack_weight(layer, algorithm, block, index, out);
    } else if (algorithm == Algorithm::direct) {
      pack_dot_weight(layer, cell_of(precision), block, index, units(out));
    } else {
      pack_dot_winograd(layer, algorithm, block, index, units(out));
    }
  }
};

FusedHead make_head(const Model& model, Isa isa) {
  const TensorView weight = model.tensor("head.linear.weight");
  const std::size_t cells = model.spec().head_pool * model.spec().head_pool;
  return {model.spec().head_pool,
          weight.shape[1] / cells,
          model.spec().classes.size(),
          weight.data,
          model.tensor("head.linear.bias").data,
          {.threads = 1, .isa = isa}};
}

EngineOptions resolved(const Model& model, EngineOptions options) {
  const ModelSpec& spec = model.spec();
  if (name(options.precision) == "unknown") {
    throw Error(ErrorCode::unsupported, "the precision is not a value of histo::Precision",
                "use " + name_list<Precision>());
  }
  options.threads = options.threads == 0 ? usable_cpus() : options.threads;
  options.isa = require_record(options.precision, options.isa ? *options.isa : default_isa()).isa;
  options.crop = options.crop == 0 ? spec.crop : options.crop;
  if (spec.head_pool != spec.pool && map_size(options.crop) != map_size(spec.crop)) {
    throw Error(ErrorCode::unsupported,
                "crop " + std::to_string(options.crop) + " gives another feature map than crop " +
                    std::to_string(spec.crop) + ", for which the head of this model was folded",
                "export for it");
  }
  return options;
}

// All that an Engine and its copies share; never changes once made.
struct Prepared {
  Model model;
  EngineOptions options;
  const kernels::Table& kernel;
  kernels::DotTables dots;  // null in fp32
  Network network;
  Plan plan;
  FusedHead head;
  Normaliser normaliser;
  PackedLayer stem;
  std::vector<PackedLayer> layers;  // of plan.steps

  Prepared(Model m, const EngineOptions& given, ThreadPool& threads)
      : model(std::move(m)),
        options(given),
        kernel(kernels::table(*options.isa)),
        dots(options.precision == Precision::fp32 ? kernels::DotTables{} : kernels::dot_tables(*options.isa)),
        network(read_network(model)),
        plan(make_plan(network, {.crop = options.crop,
                                 .precision = options.precision,
                                 .profile = options.profile,
                                 .algorithm = options.algorithm,
                                 // Layers that int8 keeps in bf16 are kept for their accuracy.
                                 .winograd_bf16 = options.precision == Precision::bf16 &&
                                                  dots.layers->winograd2_bf16.input != nullptr,
                                 .winograd_int8 = options.precision == Precision::int8 &&
                                                  dots.layers->winograd4_int8.input != nullptr})),
        head(make_head(model, *options.isa)),
        normaliser(model.spec(), options.crop) {
    if (options.precision == Precision::int8 &&
        std::ranges::find(plan.steps, Precision::int8, &Step::precision) == plan.steps.end()) {
      throw Error(ErrorCode::unsupported, "the model has no scales for int8",
                  "export it with --precision int8, or use fp32 or bf16");
    }
    std::vector<Packing> packings{{network.stem, Algorithm::direct, stem_precision(),
                                   dots.stem ? dots.stem->conv_block : kernel.conv_block}};
    for (const Step& step : plan.steps) {
      packings.push_back({*step.layer, step.algorithm, step.precision,
                          dots.layers ? dots.layers->conv_block : kernel.conv_block});
    }
    struct Task {
      const Packing* packing;
      std::size_t layer, block;
    };
    std::vector<Task> tasks;
    for (std::size_t i = 0; i < packings.size(); ++i) {
      layers.push_back(packings[i].allocate());
      for (std::size_t block = 0; block < layers[i].blocks; ++block) {
        tasks.push_back({&packings[i], i, block});
      }
    }
    threads.for_each(tasks.size(),
                     [&](std::size_t i) { tasks[i].packing->pack(tasks[i].block, layers[tasks[i].layer]); });
    stem = std::move(layers.front());
    layers.erase(layers.begin());
  }

  // The stem has no scales: its input is not a map of the network.
  [[nodiscard]] Precision stem_precision() const {
    return options.precision == Precision::int8 ? Precision::bf16 : options.precision;
  }

  [[nodiscard]] std::size_t weight_bytes() const {
    const auto size = [](const PackedLayer& l) {
      return (l.weight.size() + l.bias.size() + l.scale.size()) * sizeof(float);
    };
    std::size_t bytes = size(stem);
    for (const PackedLayer& layer : layers) {
      bytes += size(layer);
    }
    return bytes + (model.tensor("head.linear.weight").data.size() + head.classes()) * sizeof(float);
  }
};

// What a run leaves behind besides the logits, for whoever asks.
struct Record {
  std::vector<Stage>* stages = nullptr;
  std::vector<LayerTime>* times = nullptr;
};

bool all_finite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

// Adds the time until its end to one entry of a Record.
class Timer {
 public:
  Timer(const Record& record, std::size_t layer)
      : seconds_(record.times == nullptr ? nullptr : &(*record.times)[layer].seconds) {
    if (seconds_ != nullptr) {
      start_ = std::chrono::steady_clock::now();
    }
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() {
    if (seconds_ != nullptr) {
      *seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
  }

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point start_;
};

// Channel `channel` of the pixel at `pixel`.
float number_at(const float* pixel, CellFormat format, std::size_t channel, std::size_t channels) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(pixel);
  const auto bf16 = [bytes](std::size_t i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes + 2 * i, sizeof bits);
    return std::bit_cast<float>(std::uint32_t{bits} << 16U);
  };
  switch (format.cell) {
    case Cell::u8:
      return format.scale * static_cast<float>(bytes[channel]);
    case Cell::bf16:
      return bf16(channel);
    case Cell::bf16x3:
      return bf16(channel) + bf16(channels + channel);
    case Cell::f32:
      break;
  }
  return pixel[channel];
}

// How one Winograd convolution is cut into tasks.
struct WinogradTasks {
  std::size_t tiles;  // in all
  std::size_t piece;  // tiles of a task
  bool fused;  // a task transforms its own input; else that is done first, and tasks split by channels, too
  std::size_t units;           // of one tile's transformed channels, at one point
  std::size_t plane;           // of the transformed input
  std::size_t products_plane;  // of the products
  std::size_t points;

  [[nodiscard]] std::size_t pieces() const { return ceil_div(tiles, piece); }
  [[nodiscard]] Range range(std::size_t i) const { return {i * piece, std::min((i + 1) * piece, tiles)}; }
  [[nodiscard]] std::size_t private_floats() const {  // of each thread
    return points * (products_plane + (fused ? plane : 0));
  }
  [[nodiscard]] std::size_t shared_floats() const { return fused ? 0 : points * plane; }
};

}  // namespace

struct Engine::State {
  // The threads come first: they pack the weights.
  State(Model model, const EngineOptions& options)
      : threads(options.threads),
        shared(std::make_shared<const Prepared>(std::move(model), options, threads)) {}
  explicit State(std::shared_ptr<const Prepared> prepared)
      : threads(prepared->options.threads), shared(std::move(prepared)) {}

  ThreadPool threads;
  std::shared_ptr<const Prepared> shared;

  std::mutex one_run;  // guards all that follows
  std::vector<AlignedBuffer> maps;
  std::size_t images = 0;  // that the maps hold, at most
  AlignedBuffer shared_scratch;
  std::vector<AlignedBuffer> private_scratch;  // per thread
  std::atomic<std::size_t> workspace_bytes{0};
  std::vector<std::atomic<bool>> not_finite;  // of the images in the maps: int8 has no NaN to pass on

  template <typename Value>
  void run(std::span<const Value> tiles, TileShape shape, std::span<float> logits, const Record& record = {});

 private:
  template <typename Value>
  void run_images(const Value* tiles, TileShape shape, std::size_t count, float* logits,
                  const Record& record);
  template <typename Value>
  void run_stem(const Value* tiles, TileShape shape, std::size_t first, std::size_t count);
  void write_stem_row(const float* values, std::size_t side, Cell cell, std::uint16_t* row);
  void run_step(std::size_t index, std::size_t first, std::size_t count);
  template <typename Unit, typename Epilogue>
  void run_direct(const Step& step, const PackedLayer& packed, const Epilogue& epilogue,
                  std::size_t window_run, ConvKernel<Unit, Epilogue> kernel, std::size_t first,
                  std::size_t count);
  template <typename Unit, typename Epilogue>
  void run_winograd(const Step& step, const PackedLayer& packed, const Epilogue& epilogue,
                    const WinogradKernels<Unit, Epilogue>& kernel, std::size_t first, std::size_t count);
  void run_head(std::size_t count, float* logits);

  void reserve(std::size_t count);
  WinogradTasks winograd_tasks(const Step& step, std::size_t count) const;
  float* pixels(std::size_t map, std::size_t first);
  void record_stage(const Record& record, std::size_t stage, std::size_t map, CellFormat format,
                    std::size_t first, std::size_t count);

  // body(task, slot) for all tasks; slot, less than the number of threads, is never in use twice at a time.
  template <typename Body>
  void for_each(std::size_t tasks, const Body& body) {
    std::atomic<std::size_t> next{0};
    threads.for_each(std::min<std::size_t>(tasks, threads.threads()), [&](std::size_t slot) {
      for (std::size_t i = next.fetch_add(1, std::memory_order_relaxed); i < tasks;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        body(i, slot);
      }
    });
  }
};

namespace {

// The extents of the stem, for tasks that compute some rows of its maximum each: from the rows of the tile
// over the convolution's rows, one more at the top than the maximum has to itself.
struct StemBand {
  std::size_t crop, side, pooled;  // the sides of the crop, of the convolution's map and of the maximum's
  std::size_t rows;                // of the maximum, per task
  std::size_t pixel;               // bytes of a pixel of the tile

  StemBand(const Plan& plan, const Map& output, Cell cell)
      : crop(plan.crop),
        side(plan.stem_side),
        pooled(output.height),
        rows(std::clamp<std::size_t>(stem_floats / (output.channels * 2 * (plan.stem_side + 2)), 1, 8)),
        pixel(cell == Cell::f32    ? 12
              : cell == Cell::bf16 ? 6
                                   : 18) {}

  [[nodiscard]] std::size_t bands() const { return ceil_div(pooled, rows); }
  // Units, with a border of 3 pixels on both sides; the windows of low precision reach a number farther.
  [[nodiscard]] std::size_t tile_row() const { return ceil_div((crop + 6) * pixel + 4, 4); }
  [[nodiscard]] std::size_t tile_floats() const { return (2 * (2 * rows + 1) + 5) * tile_row(); }
  [[nodiscard]] std::size_t conv_row(std::size_t channels) const { return (side + 2) * channels; }
  [[nodiscard]] std::size_t floats(std::size_t channels) const {
    return tile_floats() + (2 * rows + 1) * conv_row(channels);
  }
};

}  // namespace

float* Engine::State::pixels(std::size_t map, std::size_t first) {
  const Map& m = shared->plan.maps[map];
  return maps[map].data() + (m.deep ? first * m.image() : 0) + m.origin();
}

WinogradTasks Engine::State::winograd_tasks(const Step& step, std::size_t count) const {
  const Map& output = shared->plan.maps[step.output];
  const std::size_t m = winograd_tile(step.algorithm);
  const std::size_t blocks = ceil_div(step.layer->outputs, shared->kernel.conv_block);
  WinogradTasks t{};
  t.points = (m + 2) * (m + 2);
  t.tiles = count * ceil_div(output.height, m) * ceil_div(output.width, m);
  t.piece = piece_size(t.tiles, most_tiles(step.layer->inputs), threads.threads());
  t.fused = blocks == 1 || t.pieces() >= 2 * threads.threads();
  if (!t.fused) {
    t.piece = piece_size(t.tiles, most_tiles(step.layer->inputs), threads.threads(), blocks);
  }
  t.units = step.precision == Precision::fp32 ? step.layer->inputs : step.layer->inputs / 2;
  t.plane = (t.fused ? t.piece : t.tiles) * t.units + plane_padding;
  t.products_plane = t.piece * shared->kernel.conv_block + plane_padding;
  return t;
}

void Engine::State::reserve(std::size_t count) {
  const Plan& plan = shared->plan;
  const std::size_t wanted = std::min(count, plan.deep_images);
  if (wanted <= images) {
    return;
  }
  std::size_t shared_floats = 0;
  std::size_t private_floats = StemBand(plan, plan.maps[plan.stem_output], cell_of(shared->stem_precision()))
                                   .floats(plan.maps[plan.stem_output].channels);
  // The cut into tasks, and with it the scratch, depends on the number of images, but not steadily.
  for (std::size_t n = 1; n <= wanted; ++n) {
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      if (plan.steps[i].algorithm != Algorithm::direct &&
          (i >= plan.shallow_steps || n <= plan.shallow_images)) {
        const WinogradTasks tasks = winograd_tasks(plan.steps[i], n);
        private_floats = std::max(private_floats, tasks.private_floats());
        shared_floats = std::max(shared_floats, tasks.shared_floats());
      }
    }
  }
  // The old buffers go first, and `images` says so: an allocation that fails leaves an Engine that can run a
  // smaller batch.
  images = 0;
  maps.clear();
  private_scratch.clear();
  shared_scratch = AlignedBuffer();
  std::size_t floats = 0;
  for (const Map& map : plan.maps) {
    maps.emplace_back((map.deep ? wanted : std::min(wanted, plan.shallow_images)) * map.image());
    floats += maps.back().size();
  }
  not_finite = std::vector<std::atomic<bool>>(wanted);
  shared_scratch = AlignedBuffer(shared_floats);
  for (unsigned i = 0; i < threads.threads(); ++i) {
    private_scratch.emplace_back(private_floats);
  }
  workspace_bytes = (floats + shared_floats + threads.threads() * private_floats) * sizeof(float);
  images = wanted;
}

template <typename Value>
void Engine::State::run(std::span<const Value> tiles, TileShape shape, std::span<float> logits,
                        const Record& record) {
  check_tiles(tiles, shape, shared->options.crop);
  const std::size_t classes = shared->head.classes();
  check_buffer("logits", logits, checked_size("logits", {{"batch", shape.batch}, {"classes", classes}}));
  const std::lock_guard lock(one_run);
  reserve(shape.batch);
  const std::size_t tile_size = shape.height * shape.width * 3;
  for (std::size_t first = 0; first < shape.batch; first += images) {
    run_images(tiles.data() + first * tile_size, shape, std::min(images, shape.batch - first),
               logits.data() + first * classes, record);
  }
}

template <typename Value>
void Engine::State::run_images(const Value* tiles, TileShape shape, std::size_t count, float* logits,
                               const Record& record) {
  const Plan& plan = shared->plan;
  const auto run_steps = [&](std::size_t begin, std::size_t end, std::size_t first, std::size_t n) {
    for (std::size_t i = begin; i < end; ++i) {
      {
        const Timer timer(record, i + 1);
        run_step(i, first, n);
      }
      if (i + 1 == plan.steps.size() || plan.steps[i + 1].stage != plan.steps[i].stage) {
        record_stage(record, plan.steps[i].stage, plan.steps[i].output, plan.steps[i].output_format, first,
                     n);
      }
    }
  };
  for (std::size_t first = 0; first < count; first += plan.shallow_images) {
    const std::size_t n = std::min(plan.shallow_images, count - first);
    {
      const Timer timer(record, 0);
      run_stem(tiles, shape, first, n);
    }
    record_stage(record, 0, plan.stem_output, plan.stem_format, first, n);
    run_steps(0, plan.shallow_steps, first, n);
  }
  run_steps(plan.shallow_steps, plan.steps.size(), 0, count);
  const Timer timer(record, plan.steps.size() + 1);
  run_head(count, logits);
  for (std::size_t image = 0; image < count; ++image) {
    if (not_finite[image].exchange(false, std::memory_order_relaxed) &&
        shared->options.precision == Precision::int8) {
      std::fill_n(logits + image * shared->head.classes(), shared->head.classes(),
                  std::numeric_limits<float>::quiet_NaN());
    }
  }
}

// `values`, (side, 3), between the borders of a row of the tile as the stem reads it.
void Engine::State::write_stem_row(const float* values, std::size_t side, Cell cell, std::uint16_t* row) {
  const std::size_t count = side * 3;
  if (cell == Cell::bf16) {
    shared->dots.stem->split(values, count, row + 9, nullptr);
    return;
  }
  std::vector<std::uint16_t> parts(2 * count);
  shared->dots.stem->split(values, count, parts.data(), parts.data() + count);
  for (std::size_t x = 0; x < side; ++x) {  // high, low and high again, as in every map of this kind
    std::uint16_t* const pixel = row + (x + 3) * 9;
    std::copy_n(parts.data() + 3 * x, 3, pixel);
    std::copy_n(parts.data() + count + 3 * x, 3, pixel + 3);
    std::copy_n(parts.data() + 3 * x, 3, pixel + 6);
  }
}

template <typename Value>
void Engine::State::run_stem(const Value* tiles, TileShape shape, std::size_t first, std::size_t count) {
  const Map& output = shared->plan.maps[shared->plan.stem_output];
  const StemBand band(shared->plan, output, cell_of(shared->stem_precision()));
  const std::size_t channels = output.channels;
  const std::size_t conv_row = band.conv_row(channels);
  const Cell stem_cell = cell_of(shared->stem_precision());
  for_each(count * band.bands(), [&](std::size_t task, std::size_t slot) {
    const std::size_t image = task / band.bands();
    const Value* const tile = tiles + (first + image) * shape.height * shape.width * 3;
    const std::size_t pooled_begin = task % band.bands() * band.rows;
    const std::size_t pooled_end = std::min(pooled_begin + band.rows, band.pooled);
    float* const rows = private_scratch[slot].data();
    float* const conv = rows + band.tile_floats();

    // Rows of the convolution are counted from the one above the map, so that none is negative; the maximum
    // needs [2 * pooled_begin, 2 * pooled_end], of which the first and the last may be outside of the map.
    const std::size_t begin = std::max<std::size_t>(2 * pooled_begin, 1);
    const std::size_t end = std::min(2 * pooled_end, band.side) + 1;

    // Row r of the convolution reads 7 rows of the tile; the first is 2 * (r - 1), counted from three above.
    const std::size_t tile_row = band.tile_row();
    for (std::size_t y = 2 * (begin - 1); y < 2 * (end - 2) + 7; ++y) {
      float* const to = rows + (y - 2 * (begin - 1)) * tile_row;
      if (y < 3 || y >= band.crop + 3) {
        std::fill_n(to, tile_row, 0.0F);
      } else if (stem_cell == Cell::f32) {
        std::fill_n(to, 9, 0.0F);
        shared->normaliser.row(tile, shape, y - 3, to + 9);
        std::fill_n(to + 9 + band.crop * 3, 9, 0.0F);
      } else {
        float* const values = conv;  // which is free until the convolution
        shared->normaliser.row(tile, shape, y - 3, values);
        if (std::is_same_v<Value, float> && !all_finite({values, band.crop * 3})) {
          not_finite[first + image].store(true, std::memory_order_relaxed);
        }
        std::fill_n(to, tile_row, 0.0F);
        write_stem_row(values, band.crop, stem_cell, reinterpret_cast<std::uint16_t*>(to));
      }
    }

    // Zeros around the convolution's map leave the maximum alone: ReLU has made all of it at least zero.
    float* const conv_begin = conv + (begin - 2 * pooled_begin) * conv_row;
    std::fill(conv, conv_begin, 0.0F);
    for (std::size_t y = begin; y < end; ++y) {
      float* const row = conv + (y - 2 * pooled_begin) * conv_row;
      std::fill_n(row, channels, 0.0F);
      std::fill_n(row + (band.side + 1) * channels, channels, 0.0F);
    }
    std::fill(conv + (end - 2 * pooled_begin) * conv_row,
              conv + (2 * (pooled_end - pooled_begin) + 1) * conv_row, 0.0F);

    std::uint32_t* const output_rows =
        units(pixels(shared->plan.stem_output, 0) + image * output.image() + pooled_begin * output.row());
    if (stem_cell != Cell::f32) {
      const std::size_t step = 3 * (stem_cell == Cell::bf16x3 ? 3 : 1);  // units of two pixels
      const kernels::DotConv stem{
          .input = units(rows),
          .input_strides = {.column = step, .row = 2 * tile_row, .image = 0},
          .window_rows = 7,
          .window_run = dot_run(shared->network.stem, stem_cell),
          .window_row = tile_row,
          .weight = units(shared->stem.weight.data()),
          .epilogue = {.bias = shared->stem.bias.data(),
                       .scale = nullptr,
                       .channels = channels,
                       .residual = nullptr,
                       .residual_strides = {},
                       .residual_format = {},
                       .output = units(conv_begin + channels),
                       .output_strides = {.column = channels, .row = conv_row, .image = 0},
                       .output_format = {},
                       .height = end - begin,
                       .width = band.side,
                       .relu = true}};
      shared->dots.stem->conv_bf16(stem, {0, (end - begin) * band.side}, {0, shared->stem.blocks});
      shared->dots.stem->max_pool(conv, conv_row, output_rows, output.row(), shared->plan.stem_format,
                                  pooled_end - pooled_begin, band.pooled, channels);
      return;
    }
    const kernels::Conv stem{.input = rows,
                             .input_strides = {.column = 2 * 3, .row = 2 * tile_row, .image = 0},
                             .window_rows = 7,
                             .window_run = 7 * 3,
                             .window_row = tile_row,
                             .weight = shared->stem.weight.data(),
                             .epilogue = {.bias = shared->stem.bias.data(),
                                          .residual = nullptr,
                                          .residual_strides = {},
                                          .output = conv_begin + channels,
                                          .output_strides = {.column = channels, .row = conv_row, .image = 0},
                                          .height = end - begin,
                                          .width = band.side,
                                          .relu = true}};
    shared->kernel.conv(stem, {0, (end - begin) * band.side}, {0, shared->stem.blocks});
    shared->kernel.max_pool(conv, conv_row, reinterpret_cast<float*>(output_rows), output.row(),
                            pooled_end - pooled_begin, band.pooled, channels);
  });
}

void Engine::State::run_step(std::size_t index, std::size_t first, std::size_t count) {
  const Step& step = shared->plan.steps[index];
  const PackedLayer& packed = shared->layers[index];
  const ConvLayer& layer = *step.layer;
  const Map& output = shared->plan.maps[step.output];
  const Map* const residual = step.residual ? &shared->plan.maps[*step.residual] : nullptr;
  const auto strides = [](const Map& m) {
    return Strides{.column = m.pixel(), .row = m.row(), .image = m.image()};
  };
  const Strides residual_strides = residual == nullptr ? Strides{} : strides(*residual);
  float* const residual_pixels = residual == nullptr ? nullptr : pixels(*step.residual, first);
  if (step.precision == Precision::fp32) {
    const kernels::Epilogue epilogue{.bias = packed.bias.data(),
                                     .residual = residual_pixels,
                                     .residual_strides = residual_strides,
                                     .output = pixels(step.output, first),
                                     .output_strides = strides(output),
                                     .height = output.height,
                                     .width = output.width,
                                     .relu = step.relu};
    const kernels::Table& kernel = shared->kernel;
    if (step.algorithm == Algorithm::direct) {
      run_direct<float>(step, packed, epilogue, layer.kernel * layer.inputs, kernel.conv, first, count);
    } else {
      run_winograd<float>(step, packed, epilogue,
                          step.algorithm == Algorithm::winograd4 ? kernel.winograd4 : kernel.winograd2, first,
                          count);
    }
    return;
  }
  const kernels::DotEpilogue epilogue{.bias = packed.bias.data(),
                                      .scale = packed.scale.data(),
                                      .channels = layer.outputs,
                                      .residual = units(residual_pixels),
                                      .residual_strides = residual_strides,
                                      .residual_format = step.residual_format,
                                      .output = units(pixels(step.output, first)),
                                      .output_strides = strides(output),
                                      .output_format = step.output_format,
                                      .height = output.height,
                                      .width = output.width,
                                      .relu = step.relu};
  const kernels::DotTable& kernel = *shared->dots.layers;
  if (step.algorithm == Algorithm::direct) {
    run_direct<std::uint32_t>(step, packed, epilogue, dot_run(layer, cell_of(step.precision)),
                              step.precision == Precision::int8 ? kernel.conv_int8 : kernel.conv_bf16, first,
                              count);
  } else {
    run_winograd<std::uint32_t>(
        step, packed, epilogue,
        step.precision == Precision::int8 ? kernel.winograd4_int8 : kernel.winograd2_bf16, first, count);
  }
}

template <typename Unit, typename Epilogue>
void Engine::State::run_direct(const Step& step, const PackedLayer& packed, const Epilogue& epilogue,
                               std::size_t window_run, ConvKernel<Unit, Epilogue> kernel, std::size_t first,
                               std::size_t count) {
  const Map& input = shared->plan.maps[step.input];
  const ConvLayer& layer = *step.layer;
  const float* const window = pixels(step.input, first) - layer.kernel / 2 * (input.row() + input.pixel());
  const kernels::ConvOf<Unit, Epilogue> conv{.input = units<Unit>(window),
                                             .input_strides = {.column = layer.stride * input.pixel(),
                                                               .row = layer.stride * input.row(),
                                                               .image = input.image()},
                                             .window_rows = layer.kernel,
                                             .window_run = window_run,
                                             .window_row = input.row(),
                                             .weight = units<Unit>(packed.weight.data()),
                                             .epilogue = epilogue};
  const std::size_t total = count * epilogue.height * epilogue.width;
  const std::size_t piece = piece_size(total, most_pixels, threads.threads(), packed.blocks);
  const std::size_t pieces = ceil_div(total, piece);
  for_each(pieces * packed.blocks, [&](std::size_t task, std::size_t) {
    const std::size_t block = task / pieces, begin = task % pieces * piece;
    kernel(conv, {begin, std::min(begin + piece, total)}, {block, block + 1});
  });
}

template <typename Unit, typename Epilogue>
void Engine::State::run_winograd(const Step& step, const PackedLayer& packed, const Epilogue& epilogue,
                                 const WinogradKernels<Unit, Epilogue>& kernel, std::size_t first,
                                 std::size_t count) {
  const Map& input = shared->plan.maps[step.input];
  const std::size_t m = winograd_tile(step.algorithm);
  const kernels::WinogradOf<Unit, Epilogue> w{
      .input = units<Unit>(pixels(step.input, first) - input.row() - input.pixel()),
      .input_strides = {.column = input.pixel(), .row = input.row(), .image = input.image()},
      .channels = input.channels,
      .tile_rows = ceil_div(epilogue.height, m),
      .tile_columns = ceil_div(epilogue.width, m),
      .weight = units<Unit>(packed.weight.data()),
      .epilogue = epilogue};
  const WinogradTasks t = winograd_tasks(step, count);
  if (t.fused) {
    for_each(t.pieces(), [&](std::size_t i, std::size_t slot) {
      float* const products = private_scratch[slot].data();
      Unit* const transformed = units<Unit>(products + t.points * t.products_plane);
      kernel.input(w, t.range(i), transformed, t.plane);
      kernel.output(w, t.range(i), {0, packed.blocks}, transformed, t.plane, products, t.products_plane);
    });
    return;
  }
  Unit* const transformed = units<Unit>(shared_scratch.data());
  const std::size_t few = ceil_div(t.tiles, 4 * threads.threads());
  for_each(ceil_div(t.tiles, few), [&](std::size_t i, std::size_t) {
    kernel.input(w, {i * few, std::min((i + 1) * few, t.tiles)}, transformed + i * few * t.units, t.plane);
  });
  // Neighbouring tasks read the same weights.
  for_each(packed.blocks * t.pieces(), [&](std::size_t i, std::size_t slot) {
    const std::size_t block = i / t.pieces();
    const Range tiles = t.range(i % t.pieces());
    kernel.output(w, tiles, {block, block + 1}, transformed + tiles.begin * t.units, t.plane,
                  private_scratch[slot].data(), t.products_plane);
  });
}

void Engine::State::run_head(std::size_t count, float* logits) {
  const Map& features = shared->plan.maps[shared->plan.features];
  const std::size_t classes = shared->head.classes();
  const std::size_t piece = ceil_div(count, threads.threads());
  for_each(ceil_div(count, piece), [&](std::size_t task, std::size_t) {
    const std::size_t first = task * piece;
    const std::size_t n = std::min(piece, count - first);
    const FeatureShape shape{
        .batch = n, .height = features.height, .width = features.width, .layout = Layout::nhwc};
    const std::span<float> out(logits + first * classes, n * classes);
    const float* const begin = pixels(shared->plan.features, first);
    if (features.cell == Cell::bf16) {
      shared->head.run({reinterpret_cast<const Bfloat16*>(begin), 2 * n * features.image()}, shape, out);
    } else {
      shared->head.run({begin, n * features.image()}, shape, out);
    }
  });
}

void Engine::State::record_stage(const Record& record, std::size_t stage, std::size_t map, CellFormat format,
                                 std::size_t first, std::size_t count) {
  if (record.stages == nullptr) {
    return;
  }
  const Map& m = shared->plan.maps[map];
  Stage& to = (*record.stages)[stage];
  to.shape[0] += count;
  to.shape[1] = m.channels;
  to.shape[2] = m.height;
  to.shape[3] = m.width;
  for (std::size_t n = 0; n < count; ++n) {
    const float* const image = pixels(map, first) + n * m.image();
    for (std::size_t c = 0; c < m.channels; ++c) {
      for (std::size_t y = 0; y < m.height; ++y) {
        for (std::size_t x = 0; x < m.width; ++x) {
          to.data.push_back(number_at(image + y * m.row() + x * m.pixel(), format, c, m.channels));
        }
      }
    }
  }
}

Engine::Engine(Model model, const EngineOptions& options)
    : state_(std::make_unique<State>(model, resolved(model, options))) {}
Engine::Engine(const Engine& other) : state_(std::make_unique<State>(other.state_->shared)) {}
Engine& Engine::operator=(const Engine& other) {
  if (this != &other) {
    state_ = std::make_unique<State>(other.state_->shared);
  }
  return *this;
}
Engine::Engine(Engine&& other) noexcept = default;
Engine& Engine::operator=(Engine&& other) noexcept = default;
Engine::~Engine() = default;

void Engine::run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits) const {
  state_->run(tiles, shape, logits);
}

void Engine::run(std::span<const float> tiles, TileShape shape, std::span<float> logits) const {
  state_->run(tiles, shape, logits);
}

void Engine::warmup(std::size_t batch) const {
  const std::size_t crop = state_->shared->options.crop;
  const TileShape shape{.batch = batch, .height = crop, .width = crop};
  const std::vector<std::uint8_t> tiles(
      checked_size("tiles", {{"batch", batch}, {"height", crop}, {"width", crop}, {"channels", 3}}));
  std::vector<float> logits(checked_size("logits", {{"batch", batch}, {"classes", classes()}}));
  run(tiles, shape, logits);
}

std::vector<Stage> Engine::stages(std::span<const std::uint8_t> tiles, TileShape shape) const {
  std::vector<Stage> stages;
  for (const std::string_view stage : stage_names) {
    stages.push_back({.name = std::string(stage), .shape = {0, 0, 0, 0}, .data = {}});
  }
  check_tiles(tiles, shape, state_->shared->options.crop);
  Stage& head = stages.back();
  head.shape = {shape.batch, classes()};
  head.data.resize(checked_size("logits", {{"batch", shape.batch}, {"classes", classes()}}));
  state_->run(tiles, shape, head.data, {.stages = &stages, .times = nullptr});
  return stages;
}

std::vector<LayerTime> Engine::layer_times(std::span<const std::uint8_t> tiles, TileShape shape) const {
  const Prepared& shared = *state_->shared;
  std::vector<LayerTime> times;
  const auto add = [&times](const ConvLayer& layer, Algorithm algorithm, Precision precision,
                            std::size_t height, std::size_t width) {
    const std::size_t all = layer.outputs * height * width * layer.inputs * layer.kernel * layer.kernel;
    std::size_t executed = all;
    if (algorithm != Algorithm::direct) {
      const std::size_t m = winograd_tile(algorithm);
      executed = ceil_div(height, m) * ceil_div(width, m) * (m + 2) * (m + 2) * layer.inputs * layer.outputs;
    }
    times.push_back({.name = layer.name,
                     .algorithm = algorithm,
                     .precision = precision,
                     .channels = layer.outputs,
                     .height = height,
                     .width = width,
                     .multiply_adds = all,
                     .executed_multiply_adds = executed});
  };
  add(shared.network.stem, Algorithm::direct, shared.stem_precision(), shared.plan.stem_side,
      shared.plan.stem_side);
  for (const Step& step : shared.plan.steps) {
    const Map& map = shared.plan.maps[step.output];
    add(*step.layer, step.algorithm, step.precision, map.height, map.width);
  }
  const Map& features = shared.plan.maps[shared.plan.features];
  const std::size_t head = classes() * features.height * features.width * features.channels;
  times.push_back({.name = "head",
                   .algorithm = Algorithm::direct,
                   .precision = Precision::fp32,
                   .channels = classes(),
                   .height = 1,
                   .width = 1,
                   .multiply_adds = head,
                   .executed_multiply_adds = head});

  check_tiles(tiles, shape, shared.options.crop);
  std::vector<float> logits(checked_size("logits", {{"batch", shape.batch}, {"classes", classes()}}));
  state_->run(tiles, shape, std::span<float>(logits), {.stages = nullptr, .times = &times});
  return times;
}

EngineInfo Engine::info() const {
  const Prepared& shared = *state_->shared;
  return {.isa = *shared.options.isa,
          .precision = shared.options.precision,
          .profile = shared.options.profile,
          .algorithm = shared.options.algorithm,
          .threads = state_->threads.threads(),
          .crop = shared.options.crop,
          .weight_bytes = shared.weight_bytes(),
          .workspace_bytes = state_->workspace_bytes};
}

const Model& Engine::model() const noexcept { return state_->shared->model; }

std::size_t Engine::classes() const noexcept { return state_->shared->head.classes(); }

}  // namespace histo
