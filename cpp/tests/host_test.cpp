// What a host does with its threads and its process, and must not break a result by: rounding modes, forks,
// signals, cancellation, stacks, objects that were moved from.

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/thread_pool.h"
#include "error_code.h"
#include "histo/batch_runner.h"
#include "histo/c_api.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/fused_head.h"
#include "histo/preprocess.h"
#include "histo/self_test.h"
#include "in_child.h"
#include "joined_threads.h"
#include "model_file.h"
#include "platform/platform.h"
#include "sanitizers.h"
#include "under_emulation.h"

#ifdef __x86_64__
#include <xmmintrin.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#include <signal.h>
#include <time.h>
#endif

namespace {

using histo::AlgorithmPolicy;
using histo::Engine;
using histo::ErrorCode;
using histo::Model;
using histo::TileShape;

constexpr TileShape shape{.batch = 3, .height = 40, .width = 43};
constexpr std::size_t classes = 6;

const std::vector<std::byte>& model_bytes() {
  static const std::vector<std::byte> bytes = make_model_file(2, classes, 32, 1);
  return bytes;
}

const Model& model() {
  static const Model opened = Model::from_memory(model_bytes());
  return opened;
}

std::vector<std::uint8_t> random_tiles() {
  std::mt19937 generator(7);
  std::vector<std::uint8_t> tiles(shape.batch * shape.height * shape.width * 3);
  std::ranges::generate(tiles, [&] { return static_cast<std::uint8_t>(generator()); });
  return tiles;
}

std::vector<float> run(const Engine& engine) {
  static const std::vector<std::uint8_t> tiles = random_tiles();
  std::vector<float> logits(shape.batch * classes);
  engine.run(tiles, shape, logits);
  return logits;
}

// --- the floating-point environment -----------------------------------------------------------------------

// A way to set the environment of this thread, and to see whether it is still set.
struct Environment {
  std::string name;
  std::function<void()> set;
  std::function<bool()> is_set;
};

#ifdef __x86_64__

// Of the two units, whose bits for rounding and traps are alike.
void set_registers(unsigned mxcsr, unsigned short x87) {
  __asm__ volatile("fldcw %0" ::"m"(x87));
  _mm_setcsr(mxcsr);
}

unsigned short x87_control() {
  unsigned short control = 0;
  __asm__ volatile("fnstcw %0" : "=m"(control));
  return control;
}

// Whether rounding, flush-to-zero and traps are those of the library, whatever the flags.
bool is_the_librarys() { return (_mm_getcsr() & 0xFFC0U) == 0x1F80 && x87_control() == 0x037F; }

#else

bool is_the_librarys() { return std::fegetround() == FE_TONEAREST; }

#endif

std::vector<Environment> environments() {
  std::vector<Environment> all;
#ifdef __x86_64__
  struct Control {
    const char* name;
    unsigned mxcsr;
    unsigned short x87;
  };
  for (const Control& control :
       {Control{"to nearest", 0x1F80, 0x037F}, Control{"downward", 0x3F80, 0x077F},
        Control{"upward", 0x5F80, 0x0B7F}, Control{"toward zero", 0x7F80, 0x0F7F},
        Control{"flush to zero", 0x9FC0, 0x037F}, Control{"traps", 0x0000, 0x0340},
        Control{"flags", 0x1FBF, 0x037F}, Control{"x87 in single precision", 0x1F80, 0x007F}}) {
    all.push_back({control.name, [control] { set_registers(control.mxcsr, control.x87); },
                   [control] { return _mm_getcsr() == control.mxcsr && x87_control() == control.x87; }});
  }
#else
  for (const int mode : {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO}) {
    all.push_back({"mode " + std::to_string(mode), [mode] { std::fesetround(mode); },
                   [mode] { return std::fegetround() == mode; }});
  }
#endif
  return all;
}

// Whether `environment` is still set after `function` ran in it.
template <typename Function>
bool survives(const Environment& environment, const Function& function) {
  std::fenv_t before;
  std::fegetenv(&before);
  environment.set();
  function();
  const bool unchanged = environment.is_set();
  std::fesetenv(&before);
  return unchanged;
}

TEST_CASE("host: the caller's floating-point environment changes no bit, and is as before") {
  const std::vector<float> expected = run(Engine(model(), {.threads = 2}));
  const std::vector<float> weight(512 * 4 * 3, 1.0F / 3.0F), bias(3, 0.1F), features(2 * 512 * 9, 0.7F);
  const histo::FeatureShape map{.batch = 2, .height = 3, .width = 3};
  std::vector<float> head_expected(2 * 3), out(2 * 3);
  const histo::FusedHead head(2, 512, 3, weight, bias, {.threads = 2});
  head.run(features, map, head_expected, histo::Softmax::yes);
  const std::vector<std::uint8_t> tiles = random_tiles();
  std::vector<float> pixels_expected(3 * 3 * 32 * 32), pixels(pixels_expected.size());
  histo::preprocess(tiles, shape, model().spec(), 0, pixels_expected);

  for (const Environment& environment : environments()) {
    CAPTURE(environment.name);
    std::vector<float> logits, later;
    CHECK(survives(environment, [&] {
      const Model opened = Model::from_memory(model_bytes());  // which compares numbers that it reads
      const Engine engine(opened, {.threads = 2});
      logits = run(engine);
      later = run(Engine(engine));
    }));
    CHECK(logits == expected);
    CHECK(later == expected);
    // A failure restores it, too.
    CHECK(survives(environment, [&] {
      try {
        (void)Model::from_memory(std::span(model_bytes()).first(100));
      } catch (const histo::Error&) {
      }
    }));
    CHECK(survives(environment, [&] { head.run(features, map, out, histo::Softmax::yes); }));
    CHECK(out == head_expected);
    CHECK(survives(environment, [&] { histo::preprocess(tiles, shape, model().spec(), 0, pixels); }));
    CHECK(pixels == pixels_expected);
  }
}

TEST_CASE("host: numbers of the machine are read in the library's environment") {
  const std::vector<float> weight{1.0F, -1.0F}, bias{0.0F, 0.5F};
  for (const Environment& environment : environments()) {
    CAPTURE(environment.name);
    CHECK(survives(environment, [] {
      const histo::FloatEnvironment library;
      CHECK(is_the_librarys());
    }));
    CHECK(survives(environment, [&] {
      (void)histo::usable_cpus();
      (void)histo_usable_cpus();
      const histo::FusedHead head(1, 1, 2, weight, bias);
    }));
  }
}

// Whether the callbacks of a batch loop that was started in `environment` find it as it was.
struct LoopCallbacks {
  const Environment& environment;
  std::atomic<int> wrong{0};
  std::size_t pulled = 0;
  std::vector<float> logits{};

  bool pull(std::span<std::uint8_t> tile) {
    check_in_new_thread();
    static const std::vector<std::uint8_t> tiles = random_tiles();
    if (pulled == shape.batch) {
      return false;
    }
    std::copy_n(tiles.begin() + static_cast<std::ptrdiff_t>(pulled++ * tile.size()), tile.size(),
                tile.begin());
    return true;
  }
  void deliver(std::span<const float> of_tile) {
    check();
    logits.insert(logits.end(), of_tile.begin(), of_tile.end());
  }
  void check() { wrong += environment.is_set() ? 0 : 1; }
  void check_in_new_thread() {
#ifdef __linux__  // where it inherits it
    check();
#endif
  }
};

TEST_CASE("host: the batch loop runs in the library's environment, and its callbacks in the host's") {
  const Engine engine(model(), {.threads = 2});
  const std::vector<float> expected = run(engine);
  histo_model* opened = nullptr;
  histo_engine* made = nullptr;
  REQUIRE(histo_model_from_memory(model_bytes().data(), model_bytes().size(), &opened) == HISTO_OK);
  REQUIRE(histo_engine_create(opened, nullptr, &made) == HISTO_OK);
  for (const Environment& environment : environments()) {
    CAPTURE(environment.name);
    LoopCallbacks over_engine{environment}, over_infer{environment}, in_c{environment};
    const auto loop = [](const histo::BatchRunner& runner, LoopCallbacks& callbacks) {
      runner.run(
          shape.height, shape.width, [&](auto tile) { return callbacks.pull(tile); },
          [&](const histo::TileResult& tile) { callbacks.deliver(tile.logits); },
          [&](const auto&) {
            callbacks.check();
            return true;
          });
    };
    CHECK(survives(environment, [&] { loop(histo::BatchRunner(engine, {.batch = 2}), over_engine); }));
    CHECK(survives(environment, [&] {
      const auto infer = [&](auto tiles, TileShape given, auto logits) {
        over_infer.check_in_new_thread();
        engine.run(tiles, given, logits);
      };
      loop(histo::BatchRunner(infer, classes, {.batch = 2}), over_infer);
    }));
    CHECK(survives(environment, [&] {
      histo_run_batches(
          made, shape.height, shape.width,
          [](void* user, std::uint8_t* tile, std::size_t size) {
            return static_cast<LoopCallbacks*>(user)->pull({tile, size}) ? 1 : 0;
          },
          [](void* user, const histo_tile_result* result) {
            static_cast<LoopCallbacks*>(user)->deliver({result->logits, result->classes});
            return 0;
          },
          nullptr, &in_c, nullptr, nullptr);
    }));
    for (const LoopCallbacks* const callbacks : {&over_engine, &over_infer, &in_c}) {
      CHECK(callbacks->wrong == 0);
      CHECK(callbacks->logits == expected);
    }
  }
  histo_engine_free(made);
  histo_model_free(opened);
}

TEST_CASE("host: what a callback changes in its environment stays changed") {
  const Environment nearest = environments().front(), other = environments()[1];
  bool set = false;
  CHECK(survives(nearest, [&] {
    int pulled = 0;
    const histo::BatchRunner runner([](auto, TileShape, auto logits) { logits[0] = 0; }, 1);
    runner.run(1, 1, [&](auto) { return pulled++ < 2; }, [&](const auto&) { other.set(); });
    set = other.is_set();
    nearest.set();
  }));
  CHECK(set);
}

TEST_CASE("host: a pool computes in the library's environment whoever started it") {
  for (const Environment& environment : environments()) {
    CAPTURE(environment.name);
    std::atomic<int> wrong{0};
    CHECK(survives(environment, [&] {
      histo::ThreadPool pool(3);
      const std::thread::id caller = std::this_thread::get_id();
      std::atomic<int> here{0};
      pool.for_each(3, [&](std::size_t) {
        ++here;
        while (here < 3) {  // until both workers take part
          std::this_thread::yield();
        }
        if (std::this_thread::get_id() != caller && !is_the_librarys()) {
          ++wrong;
        }
      });
    }));
    CHECK(wrong == 0);
  }
}

// --- objects ----------------------------------------------------------------------------------------------

TEST_CASE("host: an engine that was moved from says so") {
  Engine engine(model(), {.threads = 1, .algorithm = AlgorithmPolicy::direct});
  const std::vector<float> expected = run(engine);
  Engine moved(std::move(engine));
  CHECK(run(moved) == expected);
  // NOLINTBEGIN(bugprone-use-after-move)
  CHECK(code_of([&] { (void)run(engine); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { engine.warmup(); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)engine.info(); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)engine.model(); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)engine.classes(); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)engine.stages(random_tiles(), shape); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)engine.layer_times(random_tiles(), shape); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { const Engine copy(engine); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { moved = engine; }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { const histo::BatchRunner runner(engine); }) == ErrorCode::invalid_argument);
  CHECK(code_of([] { const histo::BatchRunner runner(std::shared_ptr<const Engine>{}); }) ==
        ErrorCode::invalid_argument);
  CHECK(run(moved) == expected);
  engine = std::move(moved);
  CHECK(run(engine) == expected);
  // NOLINTEND(bugprone-use-after-move)
}

TEST_CASE("host: models, heads and loops are copied where they are moved, and stay usable") {
  Model first = model();
  const Model second(std::move(first));
  histo::FusedHead head(1, 1, 2, std::vector{1.0F, -1.0F}, std::vector{0.0F, 0.5F});
  const histo::FusedHead other(std::move(head));
  histo::BatchRunner runner([](auto, TileShape, auto) {}, 1);
  const histo::BatchRunner another(std::move(runner));
  // NOLINTBEGIN(bugprone-use-after-move)
  CHECK(first.spec().classes.size() == classes);
  CHECK(head.classes() == 2);
  CHECK(runner.run(1, 1, [](auto) { return false; }, [](const auto&) {}).tiles == 0);
  // NOLINTEND(bugprone-use-after-move)
}

TEST_CASE("host: a crop that no machine can run is refused") {
  for (const std::size_t crop : {histo::largest_crop + 1, SIZE_MAX, SIZE_MAX / 2 + 1}) {
    CHECK(code_of([&] { const Engine engine(model(), {.threads = 1, .crop = crop}); }) ==
          ErrorCode::unsupported);
  }
  const Model hostile = Model::from_memory(make_model_file(1, 2, 65520, 1));
  CHECK(code_of([&] { const Engine engine(hostile); }) == ErrorCode::unsupported);
}

#ifndef _WIN32

void write(const std::filesystem::path& file, std::span<const std::byte> bytes) {
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

TEST_CASE("host: a model is independent of its file") {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("histo-host-" + std::to_string(getpid()));
  write(file, model_bytes());
  const std::vector<float> expected = run(Engine(model(), {.threads = 1}));
  const bool truncated = passes_in_child([&] {  // which SIGBUS would end
    const Model opened = Model::open(file);
    std::filesystem::resize_file(file, 1000);
    return run(Engine(opened, {.threads = 1})) == expected;
  });
  CHECK(truncated);
  std::filesystem::remove(file);
}

// --- forks ------------------------------------------------------------------------------------------------

// `work(stop)` runs in a thread that is inside the library nearly always; `test` in children that are forked
// meanwhile.
template <typename Work, typename Test>
bool passes_in_children_of_a_busy_process(const Work& work, const Test& test) {
  std::atomic<bool> stop{false};
  std::atomic<int> rounds{0};
  bool passed = true;
  JoinedThreads threads;
  threads.emplace_back([&] {
    while (!stop) {
      work();
      ++rounds;
    }
  });
  for (int child = 0; child < 4; ++child) {
    for (const int before = rounds; rounds < before + 2;) {
      std::this_thread::yield();
    }
    std::this_thread::sleep_for(std::chrono::microseconds(300 * child));
    passed = passes_in_child(test) && passed;
  }
  stop = true;
  return passed;
}

TEST_CASE("host: fork while another thread runs an engine") {
  if (under_emulation) {
    MESSAGE("not tested: qemu-user does not emulate a fork of a process with threads");
    return;
  }
  const Engine engine(model(), {.threads = 2, .algorithm = AlgorithmPolicy::direct});
  const std::vector<float> expected = run(engine);
  const auto twice = [&] { return run(engine) == expected && run(engine) == expected; };
  CHECK(passes_in_children_of_a_busy_process([&] { (void)run(engine); }, twice));
  CHECK(run(engine) == expected);

  // A child may free what it never used, and a grandchild is a child, too.
  CHECK(passes_in_children_of_a_busy_process([&] { (void)run(engine); },
                                             [&] {
                                               if (child_may_start_threads) {
                                                 const Engine copy(engine);
                                                 if (run(copy) != expected) {
                                                   return false;
                                                 }
                                               }
                                               return twice() && passes_in_child(twice);
                                             }));
}

TEST_CASE("host: fork while another thread prepares a head") {
  if (under_emulation) {
    return;
  }
  const std::vector<float> weight(512 * 9 * 8, 0.1F), bias(8);
  const histo::FusedHead head(3, 512, 8, weight, bias);
  const std::vector<float> features(512 * 40 * 40, 1.0F);
  const auto run_sizes = [&] {  // more than the head keeps, so that each is prepared again
    std::vector<float> out(8);
    for (std::size_t side = 10; side < 22; ++side) {
      head.run(std::span(features).first(512 * side * side), {.batch = 1, .height = side, .width = side},
               out);
    }
    return out;
  };
  const std::vector<float> expected = run_sizes();
  CHECK(passes_in_children_of_a_busy_process([&] { (void)run_sizes(); },
                                             [&] { return run_sizes() == expected; }));
}

TEST_CASE("host: an engine that another thread was using may be freed in the child") {
  if (under_emulation) {
    return;
  }
  auto engine = std::make_unique<Engine>(model(), histo::EngineOptions{.threads = 2});
  CHECK(passes_in_children_of_a_busy_process([&] { (void)run(*engine); },
                                             [&] {
                                               engine.reset();
                                               return true;
                                             }));
}

// --- signals ----------------------------------------------------------------------------------------------

bool blocks(int signal) {
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  return sigismember(&mask, signal) == 1;
}

TEST_CASE("host: its signals are handled in its threads") {
  constexpr int handled[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD, SIGPROF};
  constexpr int raised[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};  // by the thread itself
  std::atomic<int> wrong{0};
  const std::thread::id caller = std::this_thread::get_id();
  const auto check_here = [&] {
    wrong += !std::ranges::all_of(handled, blocks) || std::ranges::any_of(raised, blocks) ? 1 : 0;
  };
  histo::ThreadPool pool(3);
  std::atomic<int> seen{0};
  for (int round = 0; round < 1000 && seen < 10; ++round) {
    pool.for_each(3, [&](std::size_t) {
      if (std::this_thread::get_id() != caller) {
        ++seen;
        check_here();
      } else {
        std::this_thread::yield();
      }
    });
  }
  CHECK(seen > 0);
  CHECK(std::ranges::none_of(handled, blocks));  // the caller's mask is as before

  // The host's own code, which may start a process.
  const auto is_the_hosts = [&] { wrong += std::ranges::any_of(handled, blocks) ? 1 : 0; };
  int tiles = 0;
  const histo::BatchRunner runner(
      [&](auto, TileShape, std::span<float> logits) {
        is_the_hosts();
        logits[0] = 0;
      },
      1, {.batch = 1});
  const auto source = [&](auto) {
    is_the_hosts();
    return ++tiles <= 3;
  };
  runner.run(1, 1, source, [](const auto&) {});
  CHECK(wrong == 0);
  CHECK(std::ranges::none_of(handled, blocks));
}

#ifdef __linux__

// The threads of this process that have `signal` blocked, as the system tells.
std::ptrdiff_t threads_that_block(int signal) {
  std::ptrdiff_t count = 0;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream status(thread.path() / "status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("SigBlk:")) {
        count += std::stoull(line.substr(7), nullptr, 16) >> (signal - 1) & 1U ? 1 : 0;
      }
    }
  }
  return count;
}

TEST_CASE("host: its signals do not reach the thread that runs an engine in a batch loop") {
  if (under_emulation) {
    return;
  }
  // At most tiles: a thread that is just being started, or ends, has all signals blocked for a moment.
  const auto blocking = [](const histo::BatchRunner& runner) {
    std::vector<std::ptrdiff_t> counts;
    int tiles = 0;
    runner.run(
        shape.height, shape.width,
        [&](auto tile) {
          std::ranges::fill(tile, std::uint8_t{1});
          return ++tiles <= 25;
        },
        [&](const auto&) { counts.push_back(threads_that_block(SIGINT)); });
    std::ranges::sort(counts);
    return counts.at(counts.size() / 2);
  };
  const auto engine = std::make_shared<const Engine>(model(), histo::EngineOptions{.threads = 1});
  const std::ptrdiff_t before = threads_that_block(SIGINT);
  CHECK(blocking(histo::BatchRunner([](auto, TileShape, auto logits) { std::ranges::fill(logits, 0.0F); },
                                    classes, {.batch = 1})) == before);
  CHECK(blocking(histo::BatchRunner(*engine, {.batch = 1})) == before + 1);
  CHECK(blocking(histo::BatchRunner(engine, {.batch = 1})) == before + 1);
}

#endif

// --- threads of the host ----------------------------------------------------------------------------------

// A cancelled thread leaves its frames without a word to AddressSanitizer, which then takes the stack of the
// thread's own destructors for poisoned; ThreadSanitizer does not know cancelled threads either.
#if defined(__GLIBC__) && !HISTO_ADDRESS_SANITIZER && !HISTO_THREAD_SANITIZER

struct Cancelled {
  const histo_engine* engine;
  int delivered = 0;
};

TEST_CASE("host: pthread_cancel takes effect when the call has returned") {
  if (under_emulation) {
    return;
  }
  histo_model* opened = nullptr;
  histo_engine* engine = nullptr;
  const std::vector<std::byte>& bytes = model_bytes();
  REQUIRE(histo_model_from_memory(bytes.data(), bytes.size(), &opened) == HISTO_OK);
  const bool passed = passes_in_child([&] {
    histo_engine_options options = HISTO_ENGINE_OPTIONS_INIT;
    options.threads = 1;
    options.algorithm = "direct";
    if (histo_engine_create(opened, &options, &engine) != HISTO_OK) {
      return false;
    }
    Cancelled state{.engine = engine};
    pthread_t thread;
    const auto work = [](void* user) -> void* {
      static int pulled = 0;
      const auto source = [](void*, uint8_t* tile, std::size_t size) {
        std::fill_n(tile, size, std::uint8_t{1});
        return pulled++ < 20 ? 1 : 0;
      };
      const auto sink = [](void* sink_user, const histo_tile_result*) {
        const timespec while_cancelled{0, 5'000'000};
        nanosleep(&while_cancelled, nullptr);
        ++static_cast<Cancelled*>(sink_user)->delivered;
        return 0;
      };
      histo_batch_options batch = HISTO_BATCH_OPTIONS_INIT;
      batch.batch = 2;
      histo_run_batches(static_cast<Cancelled*>(user)->engine, 32, 32, source, sink, nullptr, user, &batch,
                        nullptr);
      pthread_testcancel();
      return nullptr;
    };
    pthread_create(&thread, nullptr, work, &state);
    const timespec meanwhile{0, 30'000'000};
    nanosleep(&meanwhile, nullptr);
    pthread_cancel(thread);
    void* result = nullptr;
    pthread_join(thread, &result);
    return result == PTHREAD_CANCELED && state.delivered == 20;
  });
  CHECK(passed);
  histo_model_free(opened);
}

TEST_CASE("host: pthread_cancel does not end the process where objects with threads are freed") {
  if (under_emulation) {
    return;
  }
  const bool passed = passes_in_child([] {
    struct Objects {
      histo_model* model = nullptr;
      histo_engine* engine = nullptr;
      histo_head* head = nullptr;
      bool freed = false;
    } objects;
    const float weight = 1, bias = 0;
    histo_engine_options engine_options = HISTO_ENGINE_OPTIONS_INIT;
    engine_options.threads = 3;
    histo_head_options head_options = HISTO_HEAD_OPTIONS_INIT;
    head_options.threads = 3;
    if (histo_model_from_memory(model_bytes().data(), model_bytes().size(), &objects.model) != HISTO_OK ||
        histo_engine_create(objects.model, &engine_options, &objects.engine) != HISTO_OK ||
        histo_head_create(1, 1, 1, &weight, 1, &bias, 1, &head_options, &objects.head) != HISTO_OK) {
      return false;
    }
    pthread_t thread;
    const auto work = [](void* user) -> void* {
      auto& mine = *static_cast<Objects*>(user);
      pthread_cancel(pthread_self());
      histo_engine_free(mine.engine);
      histo_head_free(mine.head);
      histo_model_free(mine.model);
      mine.freed = true;
      pthread_testcancel();
      return nullptr;
    };
    pthread_create(&thread, nullptr, work, &objects);
    void* result = nullptr;
    pthread_join(thread, &result);
    return result == PTHREAD_CANCELED && objects.freed;
  });
  CHECK(passed);
}

#endif

#if !HISTO_ADDRESS_SANITIZER && !HISTO_THREAD_SANITIZER  // which need more

// docs/cpp.md promises it. A stack that is too small ends the process, hence the child.
TEST_CASE("host: threads with a stack of 128 KiB may call everything") {
  if (under_emulation) {
    return;
  }
  const std::filesystem::path given =
      std::filesystem::temp_directory_path() / ("histo-stack-" + std::to_string(getpid()));
  std::filesystem::create_directory(given);
  write(given / "model.safetensors",
        make_model_file(2, classes, 32, 1, [](const std::string&) { return true; }));
  const std::size_t side = model().spec().tile_size;
  SafetensorsWriter golden("{}");
  golden.add<double>("logits", "F64", {1, classes}, std::vector<double>(classes));
  golden.add<std::uint8_t>("tiles", "U8", {1, side, side, 3}, std::vector<std::uint8_t>(side * side * 3));
  write(given / "golden.safetensors", golden.file());
  const bool passed = passes_in_child([&] {
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, std::size_t{128} << 10U);
    const auto work = [](void* user) -> void* {
      const auto& folder = *static_cast<const std::filesystem::path*>(user);
      const Model opened = Model::open(folder / "model.safetensors");
      for (const histo::Precision precision : histo::usable_precisions()) {
        const Engine engine(opened, {.threads = 2, .precision = precision});
        (void)run(engine);
        (void)engine.layer_times(random_tiles(), shape);
        (void)histo::self_test(engine, folder / "golden.safetensors");
        int tiles = 0;
        histo::BatchRunner(engine, {.batch = 2})
            .run(shape.height, shape.width, [&](auto) { return ++tiles <= 3; }, [](const auto&) {});
      }
      std::vector<float> pixels(shape.batch * 3 * 32 * 32);
      histo::preprocess(random_tiles(), shape, opened.spec(), 0, pixels);
      const std::vector<float> weight(512 * 9 * 8, 0.1F), bias(8), features(512 * 40 * 40, 1.0F);
      std::vector<float> out(8);
      for (const histo::Layout layout : {histo::Layout::nchw, histo::Layout::nhwc}) {
        const histo::FusedHead head(3, 512, 8, weight, bias, {.threads = 2});
        head.run(features, {.batch = 1, .height = 40, .width = 40, .layout = layout}, out);
      }
      return nullptr;
    };
    pthread_t thread;
    std::filesystem::path folder = given;
    if (pthread_create(&thread, &small, work, &folder) != 0) {
      return false;
    }
    void* error = nullptr;
    pthread_join(thread, &error);
    return error == nullptr;
  });
  std::filesystem::remove_all(given);
  CHECK(passed);
}

#endif

#endif  // _WIN32

}  // namespace
