#include "histo/engine.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "error_code.h"
#include "executed_isa.h"
#include "histo/cpu.h"
#include "histo/error.h"
#include "histo/fused_head.h"
#include "histo/preprocess.h"
#include "joined_threads.h"
#include "model/network.h"
#include "model_file.h"
#include "plan/plan.h"

namespace {

using histo::Algorithm;
using histo::AlgorithmPolicy;
using histo::Engine;
using histo::EngineOptions;
using histo::Error;
using histo::ErrorCode;
using histo::Isa;
using histo::Model;
using histo::Precision;
using histo::Profile;
using histo::TileShape;

using Bytes = std::vector<std::uint8_t>;

Bytes random_tiles(TileShape shape, unsigned seed) {
  std::mt19937 generator(seed);
  Bytes tiles(shape.batch * shape.height * shape.width * 3);
  std::ranges::generate(tiles, [&] { return static_cast<std::uint8_t>(generator()); });
  return tiles;
}

std::vector<float> as_floats(const Bytes& tiles, TileShape shape) {
  const std::size_t area = shape.height * shape.width;
  std::vector<float> floats(tiles.size());
  for (std::size_t n = 0; n < shape.batch; ++n) {
    for (std::size_t pixel = 0; pixel < area; ++pixel) {
      for (std::size_t c = 0; c < 3; ++c) {
        floats[(n * 3 + c) * area + pixel] = static_cast<float>(tiles[(n * area + pixel) * 3 + c]) / 255.0F;
      }
    }
  }
  return floats;
}

Model make_model(std::size_t pool, std::size_t crop, unsigned seed = 1) {
  return Model::from_memory(make_model_file(pool, 6, crop, seed));
}

std::vector<float> run(const Engine& engine, const Bytes& tiles, TileShape shape) {
  std::vector<float> logits(shape.batch * engine.classes());
  engine.run(tiles, shape, logits);
  return logits;
}

// The same, cut into batches of 1 to 40 tiles.
std::vector<float> run_in_parts(const Engine& engine, const Bytes& tiles, TileShape all,
                                std::mt19937& generator) {
  const std::size_t tile_size = tiles.size() / all.batch, classes = engine.classes();
  std::vector<float> logits(all.batch * classes);
  for (std::size_t first = 0; first < all.batch;) {
    const std::size_t n = std::min<std::size_t>(1 + generator() % 40, all.batch - first);
    engine.run(std::span(tiles).subspan(first * tile_size, n * tile_size),
               {.batch = n, .height = all.height, .width = all.width},
               std::span(logits).subspan(first * classes, n * classes));
    first += n;
  }
  return logits;
}

// Of five tiles, number `at` of tile 1 and of tile 3 become NaN and infinity.
void check_that_nan_stays_in_its_row(const Engine& engine, const Bytes& bytes, TileShape shape,
                                     std::size_t at) {
  REQUIRE(shape.batch == 5);
  const std::size_t tile_size = bytes.size() / shape.batch;
  std::vector<float> tiles = as_floats(bytes, shape);
  std::vector<float> clean(5 * 6), dirty(5 * 6);
  engine.run(tiles, shape, clean);
  CHECK(clean == run(engine, bytes, shape));
  tiles[1 * tile_size + at] = std::numeric_limits<float>::quiet_NaN();
  tiles[3 * tile_size + at] = std::numeric_limits<float>::infinity();
  engine.run(tiles, shape, dirty);
  for (std::size_t i = 0; i < dirty.size(); ++i) {
    if (i / 6 == 1 || i / 6 == 3) {
      CHECK_FALSE(std::isfinite(dirty[i]));
    } else {
      CHECK(dirty[i] == clean[i]);
    }
  }
  engine.run(as_floats(bytes, shape), shape, dirty);  // nothing of it is left behind
  CHECK(dirty == clean);
}

// --- the definition, in double, one tile ------------------------------------------------------------------

struct Planes {  // (channels, side, side)
  std::size_t channels, side;
  std::vector<double> data;
};

Planes convolve(const Planes& in, const histo::ConvLayer& layer) {
  const std::size_t side = (in.side + layer.stride - 1) / layer.stride, k = layer.kernel;
  Planes out{layer.outputs, side, std::vector<double>(layer.outputs * side * side)};
  for (std::size_t o = 0; o < layer.outputs; ++o) {
    for (std::size_t y = 0; y < side; ++y) {
      for (std::size_t x = 0; x < side; ++x) {
        double sum = static_cast<double>(layer.bias[o]);
        for (std::size_t c = 0; c < layer.inputs; ++c) {
          for (std::size_t i = 0; i < k; ++i) {
            for (std::size_t j = 0; j < k; ++j) {
              // Unsigned: what lies above or left of the map wraps round and is too large, too.
              const std::size_t row = y * layer.stride + i - k / 2, column = x * layer.stride + j - k / 2;
              if (row < in.side && column < in.side) {
                sum += in.data[(c * in.side + row) * in.side + column] *
                       static_cast<double>(layer.weight[((o * layer.inputs + c) * k + i) * k + j]);
              }
            }
          }
        }
        out.data[(o * side + y) * side + x] = sum;
      }
    }
  }
  return out;
}

void relu(Planes& planes) {
  for (double& value : planes.data) {
    value = std::max(value, 0.0);
  }
}

Planes max_pool(const Planes& in) {
  const std::size_t side = (in.side + 1) / 2;
  Planes out{in.channels, side, std::vector<double>(in.channels * side * side)};
  for (std::size_t c = 0; c < in.channels; ++c) {
    for (std::size_t y = 0; y < side; ++y) {
      for (std::size_t x = 0; x < side; ++x) {
        double largest = 0;
        for (std::size_t i = 0; i < 3; ++i) {
          for (std::size_t j = 0; j < 3; ++j) {
            const std::size_t row = 2 * y + i - 1, column = 2 * x + j - 1;
            if (row < in.side && column < in.side) {
              largest = std::max(largest, in.data[(c * in.side + row) * in.side + column]);
            }
          }
        }
        out.data[(c * side + y) * side + x] = largest;
      }
    }
  }
  return out;
}

// Logits of the last map of one tile (channels, side, side), summed in float64.
std::vector<float> reference_head(const Model& model, const std::vector<float>& map, std::size_t side) {
  const histo::FusedHead head(model.spec().head_pool, map.size() / (side * side), model.spec().classes.size(),
                              model.tensor("head.linear.weight").data, model.tensor("head.linear.bias").data);
  std::vector<float> logits(head.classes());
  head.run_reference(map, {.batch = 1, .height = side, .width = side}, logits);
  return logits;
}

// The outputs of the six stages.
std::vector<std::vector<double>> reference_stages(const Model& model, const Bytes& tile, TileShape shape,
                                                  std::size_t crop) {
  std::vector<float> input(3 * crop * crop);
  histo::preprocess(tile, shape, model.spec(), crop, input);
  const histo::Network network = histo::read_network(model);
  Planes x = convolve({3, crop, {input.begin(), input.end()}}, network.stem);
  relu(x);
  x = max_pool(x);
  std::vector<std::vector<double>> stages{x.data};
  for (const auto& layer : network.layers) {
    for (const histo::BasicBlock& block : layer) {
      Planes y = convolve(x, block.conv1);
      relu(y);
      y = convolve(y, block.conv2);
      const Planes shortcut = block.shortcut ? convolve(x, *block.shortcut) : x;
      std::ranges::transform(y.data, shortcut.data, y.data.begin(), std::plus<>());
      relu(y);
      x = std::move(y);
    }
    stages.push_back(x.data);
  }
  const auto logits = reference_head(model, {x.data.begin(), x.data.end()}, x.side);
  stages.emplace_back(logits.begin(), logits.end());
  return stages;
}

// --- tests -------------------------------------------------------------------------------------------------

TEST_CASE("engine: every stage is what the definition says, for every instruction set and algorithm") {
  struct Case {
    std::size_t pool, crop, height, width;
  };
  for (const Case c : {Case{1, 32, 32, 32}, Case{3, 65, 72, 75}}) {
    CAPTURE(c.crop);
    const Model model = make_model(c.pool, c.crop);
    const TileShape shape{.batch = 1, .height = c.height, .width = c.width};
    const Bytes tile = random_tiles(shape, 2);
    const auto expected = reference_stages(model, tile, shape, c.crop);
    for (const Isa isa : histo::usable_isas()) {
      CAPTURE(histo::name(isa));
      // Convolutions run direct or as F(4 x 4); the latency profile adds F(2 x 2).
      for (const auto& [profile, algorithm] : {std::pair{Profile::throughput, AlgorithmPolicy::fastest},
                                               std::pair{Profile::latency, AlgorithmPolicy::fastest},
                                               std::pair{Profile::throughput, AlgorithmPolicy::direct}}) {
        const Engine engine(model, {.threads = 2, .isa = isa, .profile = profile, .algorithm = algorithm});
        const auto stages = engine.stages(tile, shape);
        REQUIRE(stages.size() == expected.size());
        for (std::size_t s = 0; s < stages.size(); ++s) {
          CAPTURE(stages[s].name);
          REQUIRE(stages[s].data.size() == expected[s].size());
          double largest = 1e-30, worst = 0;
          for (std::size_t i = 0; i < expected[s].size(); ++i) {
            largest = std::max(largest, std::abs(expected[s][i]));
            worst = std::max(worst, std::abs(static_cast<double>(stages[s].data[i]) - expected[s][i]));
          }
          CHECK(worst / largest < 5e-6);  // a wrong weight, border or crop is at 1e-3 and above
        }
        CHECK(stages.back().data == run(engine, tile, shape));
      }
    }
  }
}

TEST_CASE("engine: bits do not depend on batch, position, threads or copies") {
  const Model model = make_model(2, 33);
  const TileShape all{.batch = 71, .height = 50, .width = 45};  // more than run at a time
  const Bytes tiles = random_tiles(all, 3);
  std::mt19937 generator(4);
  for (const Isa isa : histo::usable_isas()) {
    CAPTURE(histo::name(isa));
    for (const Profile profile : {Profile::throughput, Profile::latency}) {
      if (profile == Profile::latency && isa != histo::usable_isas().back()) {
        continue;  // it differs in the plan, not in the kernels
      }
      const auto expected = run(Engine(model, {.threads = 1, .isa = isa, .profile = profile}), tiles, all);
      for (const unsigned threads : {2U, 3U}) {
        const Engine engine(model, {.threads = threads, .isa = isa, .profile = profile});
        CHECK(run_in_parts(engine, tiles, all, generator) == expected);
      }
    }
  }
}

// A single tile of a small crop makes at most 4 of Winograd's tiles in layers 3 and 4, nine tiles more
// than 4.
TEST_CASE("engine: weights are transformed when a batch needs it, and give the bits of a single tile") {
  const Model model =
      Model::from_memory(make_model_file(2, 6, 64, 1, [](const std::string&) { return true; }));
  const TileShape nine{.batch = 9, .height = 64, .width = 64}, one{.batch = 1, .height = 64, .width = 64};
  const Bytes tiles = random_tiles(nine, 11);
  const Bytes first(tiles.begin(), tiles.begin() + 64 * 64 * 3);
  std::vector<EngineOptions> all;
  for (const Isa isa : histo::usable_isas()) {
    all.push_back({.threads = 2, .isa = isa});
  }
  const auto usable = histo::usable_precisions();
  if (std::ranges::find(usable, Precision::int8) != usable.end()) {
    all.push_back({.threads = 2, .precision = Precision::int8});
  }
  for (const EngineOptions& options : all) {
    const Engine engine(model, options);
    CAPTURE(histo::name(engine.info().isa));
    CAPTURE(histo::name(options.precision));
    const std::size_t as_trained = engine.info().weight_bytes;
    const std::vector<float> alone = run(engine, first, one);
    CHECK(engine.info().weight_bytes == as_trained);
    const Engine copy = engine;
    const std::vector<float> together = run(engine, tiles, nine);
    const auto layers = engine.layer_times(tiles, nine);
    const bool grows = std::ranges::any_of(layers, [](const histo::LayerTime& layer) {
      return layer.algorithm == Algorithm::winograd4 && layer.name.starts_with("layer3");
    });
    CHECK((engine.info().weight_bytes > as_trained) == grows);
    CHECK(copy.info().weight_bytes == engine.info().weight_bytes);  // they share it
    CHECK(std::ranges::equal(alone, std::span(together).first(alone.size())));
    CHECK(run(engine, first, one) == alone);
    CHECK(run(copy, first, one) == alone);
  }
}

TEST_CASE("engine: floats in [0, 1] give the bits of the bytes that they came from") {
  const Engine engine(make_model(1, 32), {.threads = 2});
  const TileShape shape{.batch = 3, .height = 37, .width = 36};
  const Bytes tiles = random_tiles(shape, 5);
  std::vector<float> logits(3 * 6);
  engine.run(as_floats(tiles, shape), shape, logits);
  CHECK(logits == run(engine, tiles, shape));
}

TEST_CASE("engine: NaN and infinity in a tile stay in its row") {
  const TileShape shape{.batch = 5, .height = 64, .width = 64};
  for (const AlgorithmPolicy algorithm : {AlgorithmPolicy::fastest, AlgorithmPolicy::direct}) {
    const Engine engine(make_model(2, 64), {.threads = 2, .algorithm = algorithm});
    check_that_nan_stays_in_its_row(engine, random_tiles(shape, 6), shape, 2000);
  }
}

TEST_CASE("engine: tiles of several sizes in turn, and a crop other than the model's") {
  const Model model = make_model(2, 64);
  const Engine engine(model, {.threads = 2});
  const TileShape small{.batch = 2, .height = 64, .width = 64}, large{.batch = 9, .height = 90, .width = 81};
  const auto first = run(engine, random_tiles(small, 7), small);
  const auto other = run(engine, random_tiles(large, 8), large);
  CHECK(run(engine, random_tiles(small, 7), small) == first);
  CHECK(run(engine, random_tiles(large, 8), large) == other);
  for (const std::size_t crop : {1, 2, 3, 47}) {
    const Engine cropped(model, {.threads = 2, .crop = crop});
    CHECK(cropped.info().crop == crop);
    const TileShape shape{.batch = 1, .height = 101, .width = 120};
    const Bytes tile = random_tiles(shape, 9);
    const auto stages = cropped.stages(tile, shape);
    CHECK(stages[4].shape == std::vector<std::size_t>{1, 512, histo::map_size(crop), histo::map_size(crop)});
    const auto expected = reference_stages(model, tile, shape, crop);
    for (std::size_t k = 0; k < 6; ++k) {
      CHECK(static_cast<double>(stages[5].data[k]) == doctest::Approx(expected[5][k]).epsilon(1e-4));
    }
  }
}

TEST_CASE("engine: many threads at once, on one engine and on copies") {
  const Model model = make_model(1, 32);
  const Engine engine(model, {.threads = 2});
  const TileShape shape{.batch = 4, .height = 32, .width = 32};
  const Bytes tiles = random_tiles(shape, 10);
  const auto expected = run(engine, tiles, shape);
  std::vector<std::vector<float>> results(6);
  {
    JoinedThreads threads;
    for (std::size_t i = 0; i < results.size(); ++i) {
      threads.emplace_back([&, i] {
        if (i % 2 == 0) {
          results[i] = run(engine, tiles, shape);
        } else {
          const Engine copy(engine);
          results[i] = run(copy, tiles, shape);
        }
      });
    }
  }
  for (const auto& logits : results) {
    CHECK(logits == expected);
  }
}

TEST_CASE("engine: it says what it does") {
  const Model model = make_model(4, 128);
  const Isa isa = histo::usable_isas().back();
  Engine engine(model, {.threads = 3, .isa = isa, .profile = Profile::latency});
  CHECK(engine.info().isa == executed_isa(Precision::fp32, isa));
  CHECK(engine.info().precision == Precision::fp32);
  CHECK(engine.info().threads == 3);
  CHECK(engine.info().crop == 128);
  CHECK(engine.info().profile == Profile::latency);
  CHECK(engine.info().algorithm == AlgorithmPolicy::fastest);
  CHECK(engine.info().weight_bytes > 80'000'000);
  CHECK(engine.info().workspace_bytes == 0);

  engine.warmup(2);
  const std::size_t two = engine.info().workspace_bytes;
  CHECK(two > 0);
  engine.warmup(1);
  CHECK(engine.info().workspace_bytes == two);  // kept

  const TileShape shape{.batch = 2, .height = 128, .width = 128};
  const auto times = engine.layer_times(random_tiles(shape, 1), shape);
  REQUIRE(times.size() == 37);
  CHECK(times.front().name == "stem.conv");
  CHECK(times.back().name == "head");
  std::size_t all = 0, executed = 0;
  for (const auto& layer : times) {
    CHECK(layer.seconds > 0);
    all += layer.multiply_adds;
    executed += layer.executed_multiply_adds;
  }
  CHECK(all == 1'196'212'224);  // as torch's meta device counts them: `histo inspect --pool 4`
  CHECK(executed < all * 6 / 10);

  Engine other(make_model(1, 32));
  CHECK(other.info().threads == histo::usable_cpus());
  other = engine;
  CHECK(other.info().crop == 128);
  other = std::move(engine);
  CHECK(other.classes() == 6);
}

TEST_CASE("engine: bad arguments have codes, and the logits stay as they were") {
  const Model model = make_model(3, 64);  // folded for a 2 x 2 map
  const Engine engine(model, {.threads = 1});
  const Bytes tile(64 * 64 * 3);
  std::vector<float> logits(6, 5.0F);
  const auto code = [&](std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> out) {
    const ErrorCode run_code = code_of([&] { engine.run(tiles, shape, out); });
    if (out.size() == 6 && out.data() != nullptr) {
      CHECK(code_of([&] { static_cast<void>(engine.stages(tiles, shape)); }) == run_code);
      CHECK(code_of([&] { static_cast<void>(engine.layer_times(tiles, shape)); }) == run_code);
    }
    return run_code;
  };
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max() / 2;
  CHECK(code(tile, {0, 64, 64}, logits) == ErrorCode::invalid_argument);
  CHECK(code(tile, {1, 0, 64}, logits) == ErrorCode::invalid_argument);
  CHECK(code(tile, {1, 63, 64}, logits) == ErrorCode::invalid_argument);
  CHECK(code(tile, {1, 64, 65}, logits) == ErrorCode::size_mismatch);
  CHECK(code(tile, {2, 64, 64}, logits) == ErrorCode::size_mismatch);
  CHECK(code(tile, {huge, 64, 64}, logits) == ErrorCode::size_overflow);
  CHECK(code(tile, {1, huge, huge}, logits) == ErrorCode::size_overflow);
  CHECK(code({static_cast<const std::uint8_t*>(nullptr), tile.size()}, {1, 64, 64}, logits) ==
        ErrorCode::invalid_argument);
  CHECK(code(tile, {1, 64, 64}, {logits.data(), 5}) == ErrorCode::size_mismatch);
  CHECK(code(tile, {1, 64, 64}, {static_cast<float*>(nullptr), 6}) == ErrorCode::invalid_argument);
  CHECK(logits == std::vector<float>(6, 5.0F));
  CHECK(code_of([&] { engine.warmup(0); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { engine.warmup(huge); }) == ErrorCode::size_overflow);

  CHECK(code_of([&] { Engine(model, {.crop = 128}); }) == ErrorCode::unsupported);
  Engine(model, {.threads = 1, .crop = 63});  // the same map
  CHECK(code_of([&] { Engine(model, {.precision = static_cast<histo::Precision>(7)}); }) ==
        ErrorCode::unsupported);
  CHECK(code_of([&] { Engine(model, {.isa = static_cast<Isa>(7)}); }) == ErrorCode::unsupported);
}

TEST_CASE("preprocess: the formula, for every byte, and torchvision's offsets") {
  const Model model = make_model(1, 32);
  const histo::ModelSpec& spec = model.spec();
  for (std::size_t side = 32; side <= 41; ++side) {
    const TileShape shape{.batch = 2, .height = side, .width = 41};
    const Bytes tiles = random_tiles(shape, 12);
    std::vector<float> out(2 * 3 * 32 * 32);
    histo::preprocess(tiles, shape, spec, 0, out);
    // Python's round((side - 32) / 2), which is nearbyint: halves go to the even number.
    const auto top = static_cast<std::size_t>(std::nearbyint(static_cast<double>(side - 32) / 2));
    const std::size_t left = 4;  // round(4.5)
    bool equal = true;
    for (std::size_t n = 0; n < 2; ++n) {
      for (std::size_t c = 0; c < 3; ++c) {
        for (std::size_t y = 0; y < 32; ++y) {
          for (std::size_t x = 0; x < 32; ++x) {
            const std::uint8_t byte = tiles[((n * side + top + y) * 41 + left + x) * 3 + c];
            const float expected = (static_cast<float>(byte) / 255.0F - spec.mean[c]) / spec.std[c];
            equal = equal && out[((n * 3 + c) * 32 + y) * 32 + x] == expected;
          }
        }
      }
    }
    CHECK(equal);
  }
  std::vector<float> out(3 * 32 * 32);
  const Bytes tile(31 * 32 * 3);
  CHECK(code_of([&] { histo::preprocess(tile, {1, 31, 32}, spec, 0, out); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { histo::preprocess(tile, {1, 31, 32}, spec, 31, out); }) == ErrorCode::size_mismatch);
}

// --- low precision -----------------------------------------------------------------------------------------

constexpr std::array low_precisions{Precision::bf16, Precision::bf16x3, Precision::int8};

// Two maps of layer3 are kept in bf16, one at each place of a block.
const Model& quantised_model() {
  static const Model model = Model::from_memory(make_model_file(2, 6, 33, 1, [](const std::string& reader) {
    return reader != "layer3.2.conv1" && reader != "layer3.3.conv2";
  }));
  return model;
}

// The instruction sets of this machine that have kernels of their own for `precision`.
std::vector<Isa> isas_for(Precision precision) {
  std::vector<Isa> found;
  for (const Isa isa : histo::usable_isas()) {
    if (executed_isa(precision, isa) == isa) {
      found.push_back(isa);
    }
  }
  if (found.empty()) {
    MESSAGE("this machine cannot run " << histo::name(precision) << ", which is not tested");
  }
  return found;
}

// Numbers as a map of `scale` holds them, or, without one, of bf16.
double stored(double x, std::optional<float> scale) {
  if (scale) {
    return static_cast<double>(*scale) *
           std::clamp(std::nearbyint(x / static_cast<double>(*scale)), 0.0, 255.0);
  }
  int exponent = 0;
  const double mantissa = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
}

void store(Planes& planes, std::optional<float> scale) {
  for (double& value : planes.data) {
    value = stored(value, scale);
  }
}

// The same in double, but for what int8 rounds: the maps, and the weights of the layers.
std::vector<std::vector<double>> int8_stages(const Model& model, const Bytes& tile, TileShape shape,
                                             std::size_t crop) {
  std::vector<float> input(3 * crop * crop);
  histo::preprocess(tile, shape, model.spec(), crop, input);
  histo::Network network = histo::read_network(model);
  std::vector<std::vector<float>> weights;
  network.for_each_layer([&](histo::ConvLayer& layer) {
    std::vector<float> rounded(layer.weight.begin(), layer.weight.end());
    for (std::size_t i = 0; i < rounded.size(); ++i) {
      const double w = static_cast<double>(rounded[i]);
      if (layer.scales) {
        const double scale = static_cast<double>(layer.scales->weight[i / (rounded.size() / layer.outputs)]);
        rounded[i] = static_cast<float>(scale * std::clamp(std::nearbyint(w / scale), -127.0, 127.0));
      } else {
        rounded[i] = static_cast<float>(stored(w, std::nullopt));
      }
    }
    layer.weight = weights.emplace_back(std::move(rounded));
  });
  const auto scale_of = [](const histo::ConvLayer& layer) {
    return layer.scales ? std::optional(layer.scales->input) : std::nullopt;
  };
  Planes x{3, crop, {input.begin(), input.end()}};
  store(x, std::nullopt);
  x = convolve(x, network.stem);
  relu(x);
  x = max_pool(x);
  std::vector<const histo::BasicBlock*> blocks;
  for (const auto& layer : network.layers) {
    for (const histo::BasicBlock& block : layer) {
      blocks.push_back(&block);
    }
  }
  store(x, scale_of(blocks.front()->conv1));
  std::vector<std::vector<double>> stages{x.data};
  std::size_t done = 0;
  for (const auto& layer : network.layers) {
    for (const histo::BasicBlock& block : layer) {
      Planes y = convolve(x, block.conv1);
      relu(y);
      store(y, scale_of(block.conv2));
      y = convolve(y, block.conv2);
      Planes shortcut = x;
      if (block.shortcut) {
        shortcut = convolve(x, *block.shortcut);
        store(shortcut, std::nullopt);
      }
      std::ranges::transform(y.data, shortcut.data, y.data.begin(), std::plus<>());
      relu(y);
      ++done;
      store(y, done < blocks.size() ? scale_of(blocks[done]->conv1) : std::nullopt);
      x = std::move(y);
    }
    stages.push_back(x.data);
  }
  return stages;
}

TEST_CASE("engine: low precisions compute the network, each as exactly as it can") {
  const Model& model = quantised_model();
  const TileShape shape{.batch = 1, .height = 40, .width = 43};
  const Bytes tile = random_tiles(shape, 2);
  const auto exact = reference_stages(model, tile, shape, 33);
  constexpr std::size_t maps = 5;  // of the stem and of four layers, the last one of 2 x 2 pixels
  // Root of a map's mean squared error over that of its values; a wrong scale, layout or layer is at 0.1 and
  // above. The head computes in float32, so its logits are compared with those of the engine's own last map:
  // the error that they inherit from it is a matter of chance for so few numbers (in bf16 0.3 % to 1.2 % of
  // theirs where the map has 0.8 %).
  for (const auto& [given, allowed] : {std::pair{Precision::bf16, 1e-2}, std::pair{Precision::bf16x3, 2e-5},
                                       std::pair{Precision::int8, 1.5e-2}}) {
    const Precision precision = given;  // Clang 14 captures no binding
    CAPTURE(histo::name(precision));
    const auto expected = precision == Precision::int8 ? int8_stages(model, tile, shape, 33) : exact;
    for (const Isa isa : isas_for(precision)) {
      for (const auto& [profile, algorithm] : {std::pair{Profile::throughput, AlgorithmPolicy::fastest},
                                               std::pair{Profile::latency, AlgorithmPolicy::fastest},
                                               std::pair{Profile::throughput, AlgorithmPolicy::direct}}) {
        const Engine engine(
            model,
            {.threads = 2, .precision = precision, .isa = isa, .profile = profile, .algorithm = algorithm});
        CHECK(engine.info().precision == precision);
        CHECK(engine.info().isa == isa);
        const auto stages = engine.stages(tile, shape);
        for (std::size_t s = 0; s < maps; ++s) {
          CAPTURE(stages[s].name);
          REQUIRE(stages[s].data.size() == expected[s].size());
          double error = 0, size = 0;
          for (std::size_t i = 0; i < expected[s].size(); ++i) {
            const double off = static_cast<double>(stages[s].data[i]) - expected[s][i];
            error += off * off;
            size += expected[s][i] * expected[s][i];
          }
          CHECK(std::sqrt(error / size) < allowed);
        }
        const auto logits = reference_head(model, stages[maps - 1].data, 2);
        REQUIRE(stages.back().data.size() == logits.size());
        float largest = 0, worst = 0;
        for (std::size_t i = 0; i < logits.size(); ++i) {
          largest = std::max(largest, std::abs(logits[i]));
          worst = std::max(worst, std::abs(stages.back().data[i] - logits[i]));
        }
        CHECK(worst / largest < 5e-6F);
        CHECK(stages.back().data == run(engine, tile, shape));
      }
    }
  }
}

TEST_CASE("engine: low precisions at crops of so few pixels that a row is shorter than a vector") {
  const Model model =
      Model::from_memory(make_model_file(1, 6, 33, 1, [](const std::string&) { return true; }));
  for (const auto& [given, allowed] : {std::pair{Precision::bf16, 1e-2}, std::pair{Precision::bf16x3, 2e-5},
                                       std::pair{Precision::int8, 5e-2}}) {
    const Precision precision = given;  // Clang 14 captures no binding
    CAPTURE(histo::name(precision));
    for (const Isa isa : isas_for(precision)) {
      for (const std::size_t crop : {1, 2, 5, 6}) {
        CAPTURE(crop);
        const TileShape shape{.batch = 3, .height = crop, .width = crop};
        const Bytes tiles = random_tiles(shape, 4);
        const auto exact = Engine(model, {.threads = 1, .crop = crop}).stages(tiles, shape);
        const auto stages = Engine(model, {.threads = 1, .precision = precision, .isa = isa, .crop = crop})
                                .stages(tiles, shape);
        double error = 0, size = 0;  // of the stem's output
        for (std::size_t i = 0; i < exact.front().data.size(); ++i) {
          const double off = static_cast<double>(stages.front().data[i] - exact.front().data[i]);
          error += off * off;
          size += static_cast<double>(exact.front().data[i]) * static_cast<double>(exact.front().data[i]);
        }
        CHECK(std::sqrt(error / size) < allowed);
      }
    }
  }
}

TEST_CASE("engine: low precisions, too, give bits that do not depend on batch, position or threads") {
  const Model& model = quantised_model();
  const TileShape all{.batch = 67, .height = 38, .width = 34};
  const Bytes tiles = random_tiles(all, 3);
  std::mt19937 generator(4);
  for (const Precision precision : low_precisions) {
    CAPTURE(histo::name(precision));
    for (const Isa isa : isas_for(precision)) {
      for (const Profile profile : {Profile::throughput, Profile::latency}) {
        const EngineOptions options{.threads = 1, .precision = precision, .isa = isa, .profile = profile};
        const auto expected = run(Engine(model, options), tiles, all);
        EngineOptions more = options;
        more.threads = 3;
        const Engine engine(model, more);
        CHECK(run_in_parts(engine, tiles, all, generator) == expected);
      }
    }
  }
}

TEST_CASE("engine: NaN and infinity stay in their tile's row in low precision, too") {
  const TileShape shape{.batch = 5, .height = 34, .width = 34};
  const Bytes bytes = random_tiles(shape, 6);
  for (const Precision precision : low_precisions) {
    CAPTURE(histo::name(precision));
    for (const Isa isa : isas_for(precision)) {
      const Engine engine(quantised_model(), {.threads = 2, .precision = precision, .isa = isa});
      check_that_nan_stays_in_its_row(engine, bytes, shape, 500);
    }
  }
}

TEST_CASE("engine: int8 by Winograd's algorithm is the definition to the bit") {
  // One image alone, several together and more than fit into one pass are cut into different tasks.
  const TileShape all{.batch = 67, .height = 38, .width = 34};
  const Bytes tiles = random_tiles(all, 5);
  for (const Isa isa : isas_for(Precision::int8)) {
    EngineOptions options{
        .threads = 2, .precision = Precision::int8, .isa = isa, .algorithm = AlgorithmPolicy::direct};
    const auto expected = run(Engine(quantised_model(), options), tiles, all);
    options.algorithm = AlgorithmPolicy::fastest;
    for (const Profile profile : {Profile::throughput, Profile::latency}) {
      options.profile = profile;
      const Engine engine(quantised_model(), options);
      CHECK(run(engine, tiles, all) == expected);
      const TileShape one{.batch = 1, .height = 38, .width = 34};
      const auto alone = run(engine, Bytes(tiles.begin(), tiles.begin() + 38 * 34 * 3), one);
      CHECK(std::ranges::equal(alone, std::span(expected).first(6)));
      const auto times = engine.layer_times(Bytes(38 * 34 * 3), one);
      // On AMX and NEON products of bytes are so much faster than those of words that nothing would be won.
      CHECK((isa != Isa::avx512) == std::ranges::none_of(times, [](const histo::LayerTime& layer) {
              return layer.algorithm == Algorithm::winograd4;
            }));
    }
  }
}

TEST_CASE("engine: int8 takes Winograd's algorithm only where no sum can leave its range") {
  const auto fits = [](std::size_t ones, float last) {
    std::vector<float> weight(256 * 9, 0.0F);
    std::fill_n(weight.begin(), ones, 127.0F);
    weight[ones] = last;
    const std::vector<float> scale{1.0F};
    return histo::fits_winograd({.name = "",
                                 .inputs = 256,
                                 .outputs = 1,
                                 .kernel = 3,
                                 .stride = 1,
                                 .weight = weight,
                                 .bias = {},
                                 .scales = histo::Scales{.input = 1, .weight = scale}});
  };
  // 2^25 / 255 is 131,586; 1036 * 127 is 131,572.
  CHECK(fits(1036, 13));
  CHECK_FALSE(fits(1036, 14));
  CHECK(fits(1036, -127));
}

TEST_CASE("engine: what each layer runs in is told") {
  const TileShape shape{.batch = 1, .height = 33, .width = 33};
  const Bytes tile = random_tiles(shape, 1);
  for (const Isa isa : isas_for(Precision::int8)) {
    const Engine engine(quantised_model(), {.threads = 1, .precision = Precision::int8, .isa = isa});
    for (const histo::LayerTime& layer : engine.layer_times(tile, shape)) {
      CAPTURE(layer.name);
      const bool kept =
          layer.name == "stem.conv" || layer.name == "layer3.2.conv1" || layer.name == "layer3.3.conv2";
      CHECK(layer.precision == (layer.name == "head" ? Precision::fp32
                                : kept               ? Precision::bf16
                                                     : Precision::int8));
    }
  }
}

TEST_CASE("engine: an unavailable precision is refused, and the message says why") {
  const auto complaint = [](const Model& model, const EngineOptions& options) -> std::string {
    try {
      const Engine engine(model, options);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::unsupported);
      return error.what();
    }
    return "none";
  };
  const auto names = [](const std::string& text, std::string_view part) {
    CAPTURE(text);
    CHECK(text.find(part) != std::string::npos);
  };
  for (const histo::PrecisionSupport& support : histo::precision_support(Isa::portable)) {
    if (support.precision != Precision::fp32) {
      CHECK(complaint(quantised_model(), {.precision = support.precision, .isa = Isa::portable}) ==
            support.reason + "; use fp32");
    }
  }
  for (const Isa isa : isas_for(Precision::int8)) {
    std::vector<Precision> others = histo::usable_precisions(isa);
    std::erase(others, Precision::int8);
    CHECK(complaint(make_model(1, 32), {.precision = Precision::int8, .isa = isa}) ==
          "the model has no scales for int8; export it with --precision int8, or use " +
              histo::name_list(std::span<const Precision>(others)));
  }
  if (!isas_for(Precision::int8).empty()) {
    names(complaint(quantised_model(), {.precision = Precision::int8, .isa = Isa::portable}),
          "portable was asked for");
  }
}

}  // namespace
