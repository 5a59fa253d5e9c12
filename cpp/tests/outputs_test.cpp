// What a run gives besides logits: probabilities, the top classes, the embedding and the contributions.

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/executor.h"
#include "cpu/isa_records.h"
#include "cpu/map_outputs.h"
#include "emulated_kernels.h"
#include "error_code.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/fused_head.h"
#include "histo/model.h"
#include "model_file.h"
#include "pixel_cases.h"
#include "plan/backend.h"
#include "under_emulation.h"

namespace {

using histo::Engine;
using histo::ErrorCode;
using histo::Isa;
using histo::Model;
using histo::Outputs;
using histo::Precision;
using histo::TileShape;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// The cells of bin `i` of `pool`, by the rule in histo/fused_head.h.
bool in_bin(std::size_t cell, std::size_t i, std::size_t pool, std::size_t size) {
  return i * size / pool <= cell && cell < ((i + 1) * size + pool - 1) / pool;
}

double cells_in_bin(std::size_t i, std::size_t pool, std::size_t size) {
  double cells = 0;
  for (std::size_t cell = 0; cell < size; ++cell) {
    cells += in_bin(cell, i, pool, size) ? 1 : 0;
  }
  return cells;
}

struct Head {
  std::size_t pool, channels, classes;
  std::vector<float> weight, bias;

  // What a feature of cell (y, x) is multiplied with, by the definition of the adaptive pool.
  [[nodiscard]] double weight_of(std::size_t k, std::size_t c, std::size_t y, std::size_t height,
                                 std::size_t x, std::size_t width) const {
    double sum = 0;
    for (std::size_t p = 0; p < pool; ++p) {
      for (std::size_t q = 0; q < pool; ++q) {
        if (in_bin(y, p, pool, height) && in_bin(x, q, pool, width)) {
          sum += static_cast<double>(weight[((k * channels + c) * pool + p) * pool + q]) /
                 (cells_in_bin(p, pool, height) * cells_in_bin(q, pool, width));
        }
      }
    }
    return sum;
  }
};

// Checks the shares of one map (height, width, channels) of the classes' logits, as histo/engine.h states the
// bound.
void check_shares(const Head& head, const std::vector<float>& map, std::size_t height, std::size_t width,
                  std::span<const float> shares, std::span<const float> logits) {
  const std::size_t cells = height * width;
  REQUIRE(map.size() == cells * head.channels);
  REQUIRE(shares.size() == cells * head.classes);
  const double bound = (static_cast<double>(map.size()) / 4 + 192) * 0x1p-24;
  for (std::size_t k = 0; k < head.classes; ++k) {
    CAPTURE(k);
    double sum = static_cast<double>(head.bias[k]), products = std::abs(sum);
    for (std::size_t cell = 0; cell < cells; ++cell) {
      double share = 0, size = 0;
      for (std::size_t c = 0; c < head.channels; ++c) {
        const double product = static_cast<double>(map[cell * head.channels + c]) *
                               head.weight_of(k, c, cell / width, height, cell % width, width);
        share += product;
        size += std::abs(product);
      }
      const auto found = static_cast<double>(shares[k * cells + cell]);
      // One cell alone: its products, the weights and their sum are rounded.
      CHECK(std::abs(found - share) <= (static_cast<double>(head.channels) / 4 + 16) * 0x1p-24 * size);
      sum += found;
      products += size;
    }
    CHECK(std::abs(sum - static_cast<double>(logits[k])) <= bound * products);
  }
}

// (channels, pool, pool), of one map (height, width, channels).
void check_embedding(std::size_t pool, const std::vector<float>& map, std::size_t height, std::size_t width,
                     std::span<const float> embedding) {
  const std::size_t channels = map.size() / (height * width);
  REQUIRE(embedding.size() == channels * pool * pool);
  bool close = true;
  for (std::size_t i = 0; i < embedding.size(); ++i) {
    const std::size_t c = i / (pool * pool), p = i / pool % pool, q = i % pool;
    double sum = 0, size = 0, count = 0;
    for (std::size_t cell = 0; cell < height * width; ++cell) {
      if (in_bin(cell / width, p, pool, height) && in_bin(cell % width, q, pool, width)) {
        const auto feature = static_cast<double>(map[cell * channels + c]);
        sum += feature;
        size += std::abs(feature);
        ++count;
      }
    }
    close = close &&
            std::abs(static_cast<double>(embedding[i]) - sum / count) <= 0x1p-24 * (count + 1) * size / count;
  }
  CHECK(close);
}

// --- the arithmetic alone
// -----------------------------------------------------------------------------------

TEST_CASE("outputs: shares and bias add up to the logit, for every pool, map, instruction set and format") {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  const auto at_most = [&](std::size_t most) { return 1 + generator() % most; };
  for (int round = 0; round < 60; ++round) {
    Head head{.pool = round < 10 ? static_cast<std::size_t>(round) + 1 : at_most(9),
              .channels = round == 0 ? 512 : at_most(40),
              .classes = round == 1 ? 300 : at_most(7),
              .weight = {},
              .bias = {}};
    const std::size_t height = at_most(8), width = at_most(8);
    CAPTURE(head.pool);
    CAPTURE(height);
    CAPTURE(width);
    head.weight.resize(head.classes * head.channels * head.pool * head.pool);
    head.bias.resize(head.classes);
    std::ranges::generate(head.weight, [&] { return normal(generator); });
    std::ranges::generate(head.bias, [&] { return normal(generator); });
    // Numbers of bf16, so that both formats hold the same.
    std::vector<float> map(height * width * head.channels);
    std::vector<std::uint16_t> halves;
    for (float& feature : map) {
      halves.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(normal(generator)) >> 16U));
      feature = std::bit_cast<float>(std::uint32_t{halves.back()} << 16U);
    }
    for (const Isa isa : histo::usable_isas()) {
      CAPTURE(histo::name(isa));
      const histo::FusedHead fused(head.pool, head.channels, head.classes, head.weight, head.bias,
                                   {.threads = 1, .isa = isa});
      std::vector<float> logits(head.classes);
      fused.run(map, {1, height, width, histo::Layout::nhwc}, logits);
      const histo::MapOutputs outputs({.trained_pool = head.pool,
                                       .pool = head.pool,
                                       .channels = head.channels,
                                       .classes = head.classes,
                                       .weight = head.weight},
                                      isa);
      const auto weights = outputs.weights(height, width);
      std::vector<float> shares(head.classes * height * width), same(shares.size());
      outputs.contributions(histo::FeatureMap<float>{map.data(), height, width}, *weights, shares.data());
      outputs.contributions(histo::FeatureMap<std::uint16_t>{halves.data(), height, width}, *weights,
                            same.data());
      CHECK(shares == same);
      check_shares(head, map, height, width, shares, logits);
      std::vector<float> embedding(head.channels * head.pool * head.pool), again(embedding.size());
      outputs.embedding(histo::FeatureMap<float>{map.data(), height, width}, embedding.data());
      outputs.embedding(histo::FeatureMap<std::uint16_t>{halves.data(), height, width}, again.data());
      CHECK(embedding == again);
      check_embedding(head.pool, map, height, width, embedding);
    }
  }
}

// --- whole networks
// -----------------------------------------------------------------------------------------

constexpr std::size_t classes = 6;

constexpr std::size_t crop_side = 33;  // whose last map is 2 x 2

// With scales for int8. Pool 3 is folded.
const Model& model_of(std::size_t pool) {
  const auto make = [](std::size_t n) {
    return Model::from_memory(
        make_model_file(n, classes, crop_side, 1, [](const std::string&) { return true; }));
  };
  static const Model pool2 = make(2);
  static const Model pool3 = make(3);
  return pool == 2 ? pool2 : pool3;
}

// Of model_of(2), one for all tests, because packing takes time.
const Engine& engine_of(Precision precision) {
  static std::map<Precision, Engine> engines;
  const auto found = engines.find(precision);
  return found != engines.end()
             ? found->second
             : engines.emplace(precision, Engine(model_of(2), {.threads = 3, .precision = precision}))
                   .first->second;
}

std::vector<std::uint8_t> random_tiles(TileShape shape, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::uint8_t> tiles(shape.batch * shape.height * shape.width * 3);
  std::ranges::generate(tiles, [&] { return static_cast<std::uint8_t>(generator()); });
  return tiles;
}

// Memory for all outputs of a batch.
struct Everything {
  std::size_t top;
  std::vector<float> logits, probabilities;
  std::vector<std::uint32_t> top_classes;
  std::vector<float> top_probabilities, embedding, contributions;

  Everything(std::size_t batch, std::size_t of_embedding, std::size_t side, std::size_t most = 3)
      : top(most),
        logits(batch * classes, -7.0F),
        probabilities(batch * classes, -7.0F),
        top_classes(batch * top, 77),
        top_probabilities(batch * top, -7.0F),
        embedding(batch * of_embedding, -7.0F),
        contributions(batch * classes * side * side, -7.0F) {}
  Everything(std::size_t batch, const Engine& engine)
      : Everything(batch, engine.info().embedding_size, engine.info().map_side) {}

  Outputs outputs() {
    return {.top = top,
            .logits = logits,
            .probabilities = probabilities,
            .top_classes = top_classes,
            .top_probabilities = top_probabilities,
            .embedding = embedding,
            .contributions = contributions};
  }
  friend bool operator==(const Everything&, const Everything&) = default;
};

// Bits, because NaN is not equal to itself.
std::vector<std::uint32_t> bits(std::span<const float> values) {
  std::vector<std::uint32_t> bits(values.size());
  std::ranges::transform(values, bits.begin(),
                         [](float value) { return std::bit_cast<std::uint32_t>(value); });
  return bits;
}

Head head_of(const Model& model) {
  const auto weight = model.tensor("head.linear.weight").data, bias = model.tensor("head.linear.bias").data;
  const std::size_t pool = model.spec().head_pool;
  return {.pool = pool,
          .channels = weight.size() / classes / (pool * pool),
          .classes = classes,
          .weight = {weight.begin(), weight.end()},
          .bias = {bias.begin(), bias.end()}};
}

// `found` is of one tile, whose last map is `features` (channels, side, side).
void check_everything(const Model& model, const Everything& found, const std::vector<float>& features) {
  const Head head = head_of(model);
  const std::size_t cells = features.size() / head.channels;
  const auto side = static_cast<std::size_t>(std::sqrt(static_cast<double>(cells)));
  std::vector<float> map(features.size());
  for (std::size_t i = 0; i < map.size(); ++i) {
    map[i] = features[i % head.channels * cells + i / head.channels];
  }
  check_shares(head, map, side, side, found.contributions, found.logits);
  check_embedding(model.spec().pool, map, side, side, found.embedding);

  const float largest = std::ranges::max(found.logits);
  double sum = 0;
  for (const float logit : found.logits) {
    sum += std::exp(static_cast<double>(logit) - static_cast<double>(largest));
  }
  std::vector<std::uint32_t> order(classes);
  std::iota(order.begin(), order.end(), 0U);
  std::ranges::stable_sort(order, std::greater(), [&](std::uint32_t k) { return found.logits[k]; });
  for (std::size_t k = 0; k < classes; ++k) {
    const double expected =
        std::exp(static_cast<double>(found.logits[k]) - static_cast<double>(largest)) / sum;
    CHECK(found.probabilities[k] == static_cast<float>(expected));
  }
  for (std::size_t i = 0; i < found.top; ++i) {
    CHECK(found.top_classes[i] == order[i]);
    CHECK(found.top_probabilities[i] == found.probabilities[order[i]]);
  }
}

TEST_CASE("engine: the outputs of a tile belong to its last map and to its logits") {
  for (const std::size_t pool : {2, 3}) {
    CAPTURE(pool);
    const Model& model = model_of(pool);
    const TileShape shape{.batch = 1, .height = crop_side + 3, .width = crop_side};
    const auto tile = random_tiles(shape, 2);
    for (const Precision precision : histo::usable_precisions()) {
      CAPTURE(histo::name(precision));
      const Engine engine =
          pool == 2 ? engine_of(precision) : Engine(model, {.threads = 2, .precision = precision});
      CHECK(engine.info().embedding_size == 512 * pool * pool);
      CHECK(model.embedding_size() == 512 * pool * pool);
      CHECK(engine.info().map_side == histo::map_size(crop_side));
      Everything found(1, engine);
      engine.run(tile, shape, found.outputs());
      const auto stages = engine.stages(tile, shape);
      CHECK(found.logits == stages[5].data);
      check_everything(model, found, stages[4].data);

      Everything of_floats(1, engine);  // any subset, and any way to the pixels, gives the same
      std::vector<float> floats(tile.size());
      for (std::size_t i = 0; i < tile.size(); ++i) {
        floats[i % 3 * (tile.size() / 3) + i / 3] = static_cast<float>(tile[i]) / 255.0F;
      }
      engine.run(floats, shape, of_floats.outputs());
      CHECK(of_floats == found);
      std::vector<float> embedding(found.embedding.size());
      const histo::ImageView view{.bytes = tile, .height = shape.height, .width = shape.width};
      engine.run(std::span(&view, 1), {.embedding = embedding});
      CHECK(embedding == found.embedding);
    }
  }
}

TEST_CASE("engine: the bits of outputs do not depend on batch, position or threads") {
  const Model& model = model_of(2);
  const TileShape all{.batch = 70, .height = 33, .width = 36};  // more than run at a time
  const auto tiles = random_tiles(all, 3);
  for (const Precision precision : histo::usable_precisions()) {
    CAPTURE(histo::name(precision));
    const Engine& engine = engine_of(precision);
    const Engine alone(model, {.threads = 1, .precision = precision});
    Everything together(all.batch, engine);
    engine.run(tiles, all, together.outputs());
    const auto part = [&](const auto& values, std::size_t i) {
      const std::size_t size = values.size() / all.batch;
      return std::vector(values.begin() + static_cast<std::ptrdiff_t>(i * size),
                         values.begin() + static_cast<std::ptrdiff_t>((i + 1) * size));
    };
    for (const std::size_t i : {0, 1, 33, 63, 64, 69}) {
      CAPTURE(i);
      Everything one(1, alone);
      alone.run(part(tiles, i), {1, all.height, all.width}, one.outputs());
      CHECK(one.logits == part(together.logits, i));
      CHECK(one.probabilities == part(together.probabilities, i));
      CHECK(one.top_classes == part(together.top_classes, i));
      CHECK(one.top_probabilities == part(together.top_probabilities, i));
      CHECK(one.embedding == part(together.embedding, i));
      CHECK(one.contributions == part(together.contributions, i));
    }
  }
}

// The part of the first of `count` tiles.
template <typename Value>
std::vector<Value> first_of(const std::vector<Value>& values, std::size_t count) {
  return {values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / count)};
}

// The program of model_of(2) for `record`.
std::shared_ptr<histo::Program> program_of(const histo::IsaRecord& record, Precision precision,
                                           std::size_t crop) {
  return std::make_shared<histo::Program>(model_of(2),
                                          histo::PlanOptions{.crop = crop,
                                                             .precision = precision,
                                                             .profile = histo::Profile::throughput,
                                                             .algorithm = histo::AlgorithmPolicy::direct,
                                                             .kernels = histo::algorithm_support(record),
                                                             .interleaved = record.kernels->interleaved});
}

// The precisions that this machine may lack, on a network of few pixels. What differs between instruction
// sets of low precision is in the convolutions alone.
TEST_CASE("engine: emulated precisions give all outputs, and read all layouts alike") {
  constexpr std::size_t crop = 8;
  const Model& model = model_of(2);
  std::mt19937 generator(4);
  std::vector<HostImage> images;
  std::vector<histo::ImageView> views;
  std::vector<std::uint8_t> packed;
  for (const HostLayout& layout :
       {HostLayout{.format = histo::PixelFormat::bgra_premultiplied, .planar = false, .row_gap = 3},
        HostLayout{.format = histo::PixelFormat::bgr, .planar = true}}) {
    auto [image, rgb] = random_image(crop, crop, layout, generator);
    images.push_back(std::move(image));
    views.push_back(images.back().view);
    packed.insert(packed.end(), rgb.bytes.begin(), rgb.bytes.end());
  }
  const histo::IsaRecord record{.isa = Isa::portable,
                                .description = "emulated",
                                .needs = {},
                                .executes = {},
                                .kernels = &histo::kernels::emulated_vectors};
  for (const Precision precision : {Precision::bf16, Precision::bf16x3, Precision::int8}) {
    CAPTURE(histo::name(precision));
    histo::Executor executor(program_of(record, precision, crop), record, 1, nullptr);
    std::vector<histo::Stage> stages(histo::stage_names.size(),
                                     {.name = "", .shape = {0, 0, 0, 0}, .data = {}});
    Everything found(2, model.embedding_size(), 1), again = found;
    executor.run(histo::ByteTiles(packed, {2, crop, crop}), found.outputs(),
                 {.stages = &stages, .times = nullptr});
    executor.run(histo::ByteTiles(views), again.outputs(), {});
    CHECK(found == again);
    found.logits = first_of(found.logits, 2);
    found.embedding = first_of(found.embedding, 2);
    found.contributions = first_of(found.contributions, 2);
    check_everything(model, found, first_of(stages[4].data, 2));
  }
}

// All outputs of the tiles, and what each stage stored.
struct Run {
  Everything outputs;
  std::vector<histo::Stage> stages{histo::stage_names.size(),
                                   {.name = "", .shape = {0, 0, 0, 0}, .data = {}}};

  Run(histo::Backend& executor, std::span<const std::uint8_t> tiles, std::size_t crop)
      : outputs(tiles.size() / (crop * crop * 3), model_of(2).embedding_size(), 1) {
    const std::size_t count = tiles.size() / (crop * crop * 3);
    executor.run(histo::ByteTiles(tiles, {count, crop, crop}), outputs.outputs(),
                 {.stages = &stages, .times = nullptr});
  }
};

// On every machine: AMX's instructions are emulated. An emulation alone is tested where it is fast.
TEST_CASE("engine: interleaved images have the bits of single ones, and AMX's stem is that of the others") {
  if (under_emulation) {
    return;
  }
  constexpr std::size_t crop = 24, tile = crop * crop * 3, most = 7;
  std::mt19937 generator(5);
  std::vector<std::uint8_t> tiles(most * tile);
  std::ranges::generate(tiles, [&] { return static_cast<std::uint8_t>(generator()); });
  const auto first = [&tiles](std::size_t begin, std::size_t count) {
    return std::span<const std::uint8_t>(tiles).subspan(begin * tile, count * tile);
  };
  const histo::IsaRecord amx{.isa = Isa::portable,
                             .description = "emulated AMX",
                             .needs = {},
                             .executes = {},
                             .kernels = &histo::kernels::emulated_amx};
  const histo::IsaRecord vectors{.isa = Isa::portable,
                                 .description = "emulated vectors",
                                 .needs = {},
                                 .executes = {},
                                 .kernels = &histo::kernels::emulated_vectors};
  for (const Precision precision : {Precision::bf16, Precision::bf16x3, Precision::int8}) {
    CAPTURE(histo::name(precision));
    // Seven images are six and one for the deep layers, and of the six four and two for the shallow ones,
    // each of which are a group. Then fewer run in the same maps.
    const auto program = program_of(amx, precision, crop);
    program->plan.shallow_images = 4;
    program->plan.deep_images = 6;
    histo::Executor fresh(program, amx, 3, nullptr);
    std::map<std::size_t, Run> singles;
    for (const std::size_t i : {0U, 1U, 4U, 6U}) {
      singles.try_emplace(i, fresh, first(i, 1), crop);
    }
    const std::unique_ptr<histo::Backend> copy = fresh.copy();
    for (const std::size_t count : {7U, 2U}) {
      CAPTURE(count);
      const Run together(*copy, first(0, count), crop);
      for (const auto& [number, single] : singles) {
        const std::size_t i = number;  // Clang 14 captures no binding
        if (i >= count) {
          continue;
        }
        CAPTURE(i);
        const auto part = [&]<typename Value>(const std::vector<Value>& values) {
          const auto size = static_cast<std::ptrdiff_t>(values.size() / count);
          const auto begin = values.begin() + static_cast<std::ptrdiff_t>(i) * size;
          return std::vector<Value>(begin, begin + size);
        };
        CHECK(part(together.outputs.logits) == single.outputs.logits);
        CHECK(part(together.outputs.embedding) == single.outputs.embedding);
        CHECK(part(together.outputs.contributions) == single.outputs.contributions);
        for (std::size_t stage = 0; stage <= 4; ++stage) {
          CAPTURE(stage);
          CHECK(part(together.stages[stage].data) == single.stages[stage].data);
        }
      }
    }
    // Sums in another order differ by a rounding of the format that the stem writes.
    histo::Executor other(program_of(vectors, precision, crop), vectors, 1, nullptr);
    const Run of_vectors(other, first(0, 1), crop);
    const std::vector<float>&stem = singles.at(0).stages[0].data, &expected = of_vectors.stages[0].data;
    REQUIRE(stem.size() == expected.size());
    const float largest = std::ranges::max(expected);
    REQUIRE(largest > 0);
    const float step = precision == Precision::bf16x3 ? 0x1p-15F
                       : precision == Precision::bf16 ? 0x1p-7F
                                                      : 0.01F;
    std::size_t equal = 0;
    for (std::size_t i = 0; i < stem.size(); ++i) {
      CHECK(std::abs(stem[i] - expected[i]) <= step * largest);
      equal += stem[i] == expected[i] ? 1 : 0;
    }
    CHECK((precision == Precision::bf16x3 || equal * 10 > stem.size() * 9));
  }
}

TEST_CASE("engine: images are interleaved where as many run at a time, and their groups are whole") {
  const histo::Network network = histo::read_network(model_of(2));
  for (const std::size_t crop : {32U, 64U, 96U, 128U, 160U, 224U, 256U, 512U, 1024U}) {
    CAPTURE(crop);
    histo::PlanOptions options{.crop = crop,
                               .precision = Precision::bf16,
                               .profile = histo::Profile::throughput,
                               .algorithm = histo::AlgorithmPolicy::fastest,
                               .kernels = {}};
    const histo::Plan apart = histo::make_plan(network, options);
    CHECK(apart.interleaved == 1);
    options.interleaved = 4;
    const histo::Plan plan = histo::make_plan(network, options);
    CHECK(plan.interleaved == (apart.shallow_images < 4 ? 1 : 4));
    CHECK(plan.shallow_images % plan.interleaved == 0);
    CHECK(plan.shallow_images <= apart.shallow_images);
    CHECK(apart.shallow_images - plan.shallow_images < 4);
    CHECK(plan.deep_images == apart.deep_images);
  }
}

TEST_CASE("engine: of a tile with NaN all outputs are NaN, and of its neighbours none") {
  const TileShape shape{.batch = 3, .height = 34, .width = 34};
  std::vector<float> tiles(3 * 34 * 34 * 3, 0.25F);
  for (const Precision precision : histo::usable_precisions()) {
    CAPTURE(histo::name(precision));
    const Engine& engine = engine_of(precision);
    Everything clean(3, engine), found(3, engine);
    engine.run(tiles, shape, clean.outputs());
    tiles[tiles.size() / 2] = nan;
    engine.run(tiles, shape, found.outputs());
    tiles[tiles.size() / 2] = 0.25F;
    const auto check = [](const std::vector<float>& with, const std::vector<float>& without) {
      const std::size_t size = with.size() / 3;
      for (std::size_t i = 0; i < with.size(); ++i) {
        if (i / size != 1) {
          REQUIRE(with[i] == without[i]);
        }
      }
      return std::all_of(with.begin() + static_cast<std::ptrdiff_t>(size),
                         with.begin() + static_cast<std::ptrdiff_t>(2 * size),
                         [](float value) { return std::isnan(value); });
    };
    CHECK(check(found.logits, clean.logits));
    CHECK(check(found.probabilities, clean.probabilities));
    CHECK(check(found.top_probabilities, clean.top_probabilities));
    CHECK(check(found.embedding, clean.embedding));
    CHECK(check(found.contributions, clean.contributions));
    CHECK(std::vector(found.top_classes.begin() + 3, found.top_classes.begin() + 6) ==
          std::vector{0U, 1U, 2U});
    Everything after(3, engine);
    engine.run(tiles, shape, after.outputs());
    CHECK(after == clean);
  }
}

TEST_CASE("outputs: equal logits are in the order of their classes, and NaN is last") {
  // Through what an executor hands its logits to.
  const auto top = [](std::vector<float> logits) {
    histo::Results results;
    std::vector<std::uint32_t> order(logits.size());
    const Outputs outputs{.top = logits.size(), .top_classes = order};
    results.begin(outputs, 1, logits.size());
    std::ranges::copy(logits, results.logits(0, 1).begin());
    results.deliver(outputs);
    return order;
  };
  constexpr float inf = std::numeric_limits<float>::infinity();
  using Order = std::vector<std::uint32_t>;
  CHECK(top({1, 3, 2, 3}) == Order{1, 3, 2, 0});
  CHECK(top({nan, 1, nan, inf, -inf, 1}) == Order{3, 1, 5, 4, 0, 2});
  CHECK(top({0.0F, -0.0F}) == Order{0, 1});
}

TEST_CASE("engine: an output that does not fit is refused by name, and all stay as they were") {
  const Engine& engine = engine_of(Precision::fp32);
  const TileShape shape{.batch = 2, .height = 33, .width = 33};
  const auto tiles = random_tiles(shape, 1);
  Everything memory(2, engine);
  const Everything untouched = memory;
  const auto refused = [&](ErrorCode code, std::string_view word, auto change) {
    Outputs outputs = memory.outputs();
    change(outputs);
    CHECK(code_of([&] { engine.run(tiles, shape, outputs); }) == code);
    try {
      engine.run(tiles, shape, outputs);
    } catch (const histo::Error& error) {
      CAPTURE(error.what());
      CHECK(error.message().find(word) != std::string_view::npos);
    }
  };
  const auto shorter = [](auto& span) { span = span.first(span.size() - 1); };
  const auto null = [](auto& span) { span = {static_cast<decltype(span.data())>(nullptr), span.size()}; };
  const auto mismatch = ErrorCode::size_mismatch, argument = ErrorCode::invalid_argument;
  refused(mismatch, "logits", [&](Outputs& o) { shorter(o.logits); });
  refused(mismatch, "probabilities", [&](Outputs& o) { shorter(o.probabilities); });
  refused(mismatch, "top_classes", [&](Outputs& o) { shorter(o.top_classes); });
  refused(mismatch, "top_probabilities", [&](Outputs& o) { shorter(o.top_probabilities); });
  refused(mismatch, "embedding", [&](Outputs& o) { shorter(o.embedding); });
  refused(mismatch, "contributions", [&](Outputs& o) { shorter(o.contributions); });
  refused(mismatch, "embedding",
          [&](Outputs& o) { o.embedding = o.embedding.first(0); });  // not null: wanted
  refused(argument, "contributions", [&](Outputs& o) { null(o.contributions); });
  refused(argument, "top_classes", [&](Outputs& o) { null(o.top_classes); });
  refused(argument, "top is 7", [](Outputs& o) { o.top = 7; });
  refused(argument, "top is 0", [](Outputs& o) { o.top = 0; });
  refused(mismatch, "top_classes", [](Outputs& o) { o.top = 2; });
  refused(argument, "no output", [](Outputs& o) { o = {}; });
  refused(argument, "no output", [](Outputs& o) { o = {.top = 3}; });
  CHECK(code_of([&] { engine.run(std::span(tiles).first(5), shape, memory.outputs()); }) == mismatch);
  CHECK(code_of([&] { engine.run(std::span<const histo::ImageView>(), memory.outputs()); }) == argument);
  CHECK(memory == untouched);
  engine.run(tiles, shape, memory.outputs());
  CHECK(bits(memory.embedding) != bits(untouched.embedding));
}

}  // namespace
