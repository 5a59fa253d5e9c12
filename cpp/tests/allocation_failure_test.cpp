// A program of its own, because it replaces the allocators of the process: each allocation of a call fails
// once. Whatever fails, the error is the documented one, the output is untouched, and the next call is right.

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "histo/batch_runner.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/fused_head.h"
#include "histo/model.h"
#include "histo/tile_queue.h"
#include "model_file.h"
#include "sanitizers.h"

namespace {

std::atomic<long> until_failure{-1};  // allocations that succeed before one fails; -1: all do
std::atomic<long> counted{0};
std::atomic<std::size_t> largest{0};  // bytes that were asked for at once

bool fails(std::size_t size) {
  ++counted;
  largest = std::max<std::size_t>(largest, size);
  return until_failure >= 0 && until_failure-- == 0;
}

}  // namespace

// Not inlined: GCC would see malloc() and delete in one function, and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (void* const memory = fails(size) ? nullptr : std::malloc(std::max<std::size_t>(size, 1))) {
    return memory;
  }
  throw std::bad_alloc();
}

[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

// Of weights and maps, on systems where the program's own function is taken for that of the C library.
#ifdef __GLIBC__
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  void* memory = nullptr;
  return fails(size) || posix_memalign(&memory, alignment, size) != 0 ? nullptr : memory;
}
#endif

namespace {

using histo::Engine;
using histo::EngineOptions;
using histo::ErrorCode;
using histo::Model;
using histo::Precision;
using histo::TileShape;

// Whether `function` reports that memory is exhausted.
template <typename Function>
bool runs_out_of_memory(const Function& function) {
  try {
    function();
    return false;
  } catch (const histo::Error& error) {
    return error.code() == ErrorCode::out_of_memory;
  } catch (const std::bad_alloc&) {
    return true;
  }
}

// Calls `call(i)`, in which allocation i fails, for every allocation of a call, or for about `most` of them.
// `prepare` comes before each, and none of its own fails.
template <typename Prepare, typename Call>
void fail_each_allocation(const Prepare& prepare, const Call& call, long most = 200) {
  prepare();
  counted = 0;
  call();
  const long allocations = counted;
  REQUIRE(allocations > 0);
#if HISTO_ADDRESS_SANITIZER  // with which an engine takes seconds to make
  most = (most + 3) / 4;
#endif
  long succeeded = 0;
  for (long i = 0; i < allocations; i += std::max(1L, allocations / most)) {
    CAPTURE(i);
    prepare();
    until_failure = i;
    succeeded += runs_out_of_memory(call) ? 0 : 1;
    until_failure = -1;
  }
  // Those that a thread may leave out. A standard library may also live without a buffer that it asks for.
  CHECK(succeeded <= allocations / 10);
}

constexpr TileShape shape{.batch = 2, .height = 40, .width = 43};
constexpr std::size_t tile_size = 40 * 43 * 3, classes = 6;

const std::vector<std::byte>& model_bytes() {
  static const std::vector<std::byte> bytes =
      make_model_file(2, classes, 32, 1, [](const std::string&) { return true; });
  return bytes;
}

std::vector<EngineOptions> options() {
  std::vector<EngineOptions> all;
  for (const Precision precision : histo::usable_precisions()) {
    all.push_back({.threads = 2, .precision = precision, .algorithm = histo::AlgorithmPolicy::direct});
  }
  return all;
}

TEST_CASE("memory runs out while a model is opened or an engine is made") {
  fail_each_allocation([] {}, [] { (void)Model::from_memory(model_bytes()); }, 12);
  const Model model = Model::from_memory(model_bytes());
  for (const EngineOptions& given : options()) {
    fail_each_allocation([] {}, [&] { const Engine engine(model, given); }, 10);
  }
  const Engine engine(model, options().front());
  fail_each_allocation([] {}, [&] { const Engine copy(engine); });
}

TEST_CASE("memory runs out in a run: the logits are untouched, and the next run is right") {
  const Model model = Model::from_memory(model_bytes());
  std::vector<float> clean(2 * tile_size, 0.5F);
  std::vector<float> with_nan = clean;
  std::fill_n(with_nan.begin(), tile_size, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> untouched(2 * classes, -7.0F);
  for (const EngineOptions& given : options()) {
    CAPTURE(histo::name(given.precision));
    std::vector<float> expected(2 * classes);
    Engine(model, given).run(clean, shape, expected);
    CHECK(std::isfinite(expected[0]));
    std::optional<Engine> engine;
    std::vector<float> logits = untouched;
    fail_each_allocation(
        [&] {
          if (engine && logits == untouched) {  // after a failure
            engine->run(clean, shape, logits);
            CHECK(logits == expected);
          }
          engine.emplace(model, given);  // without a workspace, and without a head for this map
          logits = untouched;
        },
        [&] {
          try {
            engine->run(with_nan, shape, logits);
          } catch (...) {
            CHECK(logits == untouched);
            throw;
          }
        },
        30);
  }
}

TEST_CASE("memory runs out while the first large batch transforms weights: the next one goes on") {
  const Model model = Model::from_memory(model_bytes());
  constexpr TileShape large{.batch = 6, .height = 40, .width = 43},
      one{.batch = 1, .height = 40, .width = 43};
  const std::vector<float> tiles(large.batch * tile_size, 0.5F);
  std::vector<float> expected(classes), logits(large.batch * classes);
  const std::vector<float> untouched(large.batch * classes, -7.0F);
  const Engine single(model, {.threads = 2});
  single.run(std::span(tiles).first(tile_size), one, expected);
  std::optional<Engine> engine;
  fail_each_allocation(
      [&] {
        if (engine && logits == untouched) {  // after a failure
          engine->run(tiles, large, logits);
          CHECK(std::ranges::equal(std::span(logits).last(classes), expected));
        }
        engine.emplace(model, EngineOptions{.threads = 2});
        CHECK(engine->info().weight_bytes == single.info().weight_bytes);
        logits = untouched;
      },
      [&] {
        try {
          engine->run(tiles, large, logits);
        } catch (...) {
          CHECK(logits == untouched);
          throw;
        }
      },
      15);
  CHECK(engine->info().weight_bytes > single.info().weight_bytes);
}

TEST_CASE("memory runs out in a run with all outputs: they are untouched, and the next run is right") {
  const Model model = Model::from_memory(model_bytes());
  const std::vector<std::uint8_t> bytes(tile_size, 127);
  const histo::ImageView tile{.bytes = bytes, .height = 40, .width = 43};
  const std::vector<histo::ImageView> tiles(2, tile);
  constexpr std::size_t embedding = 512 * 4, shares = classes;
  struct Memory {
    std::vector<float> logits = std::vector(2 * classes, -7.0F), embedded = std::vector(2 * embedding, -7.0F),
                       contributions = std::vector(2 * shares, -7.0F);
    std::vector<std::uint32_t> top = std::vector(2, 77U);
    histo::Outputs outputs() {
      return {.top = 1,
              .logits = logits,
              .top_classes = top,
              .embedding = embedded,
              .contributions = contributions};
    }
    bool operator==(const Memory&) const = default;
  };
  const Memory untouched;
  Memory expected, memory;
  Engine(model, options().front()).run(tiles, expected.outputs());
  CHECK(expected.contributions != untouched.contributions);
  std::optional<Engine> engine;
  fail_each_allocation(
      [&] {
        if (engine && memory == untouched) {  // after a failure
          engine->run(tiles, memory.outputs());
          CHECK(memory == expected);
        }
        engine.emplace(model, options().front());
        memory = untouched;
      },
      [&] {
        try {
          engine->run(tiles, memory.outputs());
        } catch (...) {
          CHECK(memory == untouched);
          throw;
        }
      },
      10);
  engine->run(tiles, memory.outputs());
  counted = 0;
  engine->run(tiles, memory.outputs());
  CHECK(counted == 0);
}

TEST_CASE("memory runs out in a head: the output is untouched, and the next run is right") {
  const std::vector<float> weight(512 * 9 * 3, 0.1F), bias(3), features(4 * 512 * 25, 1.0F);
  const histo::FeatureShape map{.batch = 4, .height = 5, .width = 5};
  std::vector<float> expected(4 * 3);
  const std::vector<float> untouched(4 * 3, -7.0F);
  histo::FusedHead(3, 512, 3, weight, bias).run(features, map, expected);
  std::optional<histo::FusedHead> head;
  std::vector<float> out = untouched;
  fail_each_allocation(
      [&] {
        if (head && out == untouched) {
          head->run(features, map, out);
          CHECK(out == expected);
        }
        head.emplace(3, 512, 3, weight, bias);
        out = untouched;
      },
      [&] {
        try {
          head->run(features, map, out);
        } catch (...) {
          CHECK(out == untouched);
          throw;
        }
      });
}

TEST_CASE("memory runs out in the batch loop, which ends") {
  const histo::BatchRunner runner([](auto, TileShape, std::span<float> logits) { logits[0] = 0; }, 1,
                                  {.batch = 1});
  int pulled = 0;
  fail_each_allocation([&] { pulled = 0; },
                       [&] { runner.run(8, 8, [&](auto) { return pulled++ < 3; }, [](const auto&) {}); });
}

TEST_CASE("a run allocates nothing once an engine has a workspace") {
  const Model model = Model::from_memory(model_bytes());
  const std::vector<float> tiles(2 * tile_size, 0.5F);
  std::vector<float> logits(2 * classes);
  for (const EngineOptions& given : options()) {
    CAPTURE(histo::name(given.precision));
    const Engine engine(model, given);
    engine.run(tiles, shape, logits);
    counted = 0;
    engine.run(tiles, shape, logits);
    CHECK(counted == 0);
  }
}

#ifdef __GLIBC__
TEST_CASE("what is not a model is refused before memory for it is allocated") {
  std::vector<std::byte> bytes = model_bytes();
  bytes.push_back(std::byte{0});  // behind the last tensor
  largest = 0;
  CHECK_THROWS_AS((void)Model::from_memory(bytes), histo::Error);
  CHECK(largest < std::size_t{4} << 20U);
}
#endif

TEST_CASE("memory runs out while a tile is submitted to a queue") {
  const auto infer = [](auto, TileShape given, std::span<float> logits) {
    std::fill_n(logits.begin(), given.batch, 7.0F);
  };
  histo::TileQueue queue(infer, 1, 1, {.max_batch = 1, .capacity = 2});
  const std::vector<std::uint8_t> tile(3);
  bool right = queue.submit(tile, 1, 1).logits.get().front() == 7;  // starts the thread
  fail_each_allocation([] {}, [&] { right = queue.submit(tile, 1, 1).logits.get().front() == 7 && right; });
  CHECK(right);
  // No place was lost, and every tile that was submitted has its answer.
  std::vector<histo::Submission> both;
  both.push_back(queue.submit(tile, 1, 1));
  both.push_back(queue.submit(tile, 1, 1));
  queue.drain();
  CHECK(queue.stats().submitted == queue.stats().answered);
  CHECK(queue.stats().failed + queue.stats().cancelled == 0);
}

TEST_CASE("memory runs out while a queue is made") {
  const auto infer = [](auto, TileShape, std::span<float>) {};
  fail_each_allocation([] {}, [&] { const histo::TileQueue queue(infer, 2, 32, {.capacity = 8}); });
}

}  // namespace
