#include "histo/tile_queue.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "error_code.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "in_child.h"
#include "joined_threads.h"
#include "model_file.h"
#include "sanitizers.h"
#include "under_emulation.h"

#ifndef _WIN32
#include <pthread.h>
#include <signal.h>
#endif

#if HISTO_THREAD_SANITIZER
// The count of references to an exception is atomic, but in a part of the standard library that the sanitizer
// does not see: a future's error, which one thread reads and another destroys, looks like a race.
// NOLINTNEXTLINE(bugprone-reserved-identifier)
extern "C" [[gnu::visibility("default")]] const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "race:std::__exception_ptr::exception_ptr::_M_release\n";
}
#endif

namespace {

using histo::Engine;
using histo::Error;
using histo::ErrorCode;
using histo::Model;
using histo::Submission;
using histo::TileAnswer;
using histo::TileQueue;
using histo::TileQueueOptions;
using histo::TileShape;

constexpr std::size_t classes = 2, side = 4;

// A tile of which the centre holds a number, and the rest what must not be read.
std::vector<std::uint8_t> tile_of(std::uint32_t number, std::size_t height = side, std::size_t width = side) {
  std::vector<std::uint8_t> tile(height * width * 3, 0xEE);
  const std::size_t top = (height - side) / 2, left = (width - side) / 2;
  for (std::size_t byte = 0; byte < 4; ++byte) {
    tile[(top * width + left) * 3 + byte] = static_cast<std::uint8_t>(number >> (8 * byte));
  }
  return tile;
}

std::uint32_t number_of(const std::uint8_t* tile) {
  return static_cast<std::uint32_t>(tile[0] | tile[1] << 8 | tile[2] << 16) |
         static_cast<std::uint32_t>(tile[3]) << 24U;
}

// A runtime whose logits are the number of the tile and the size of the batch; below 2^24 floats hold both.
void echo(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits) {
  for (std::size_t i = 0; i < shape.batch; ++i) {
    logits[i * classes] = static_cast<float>(number_of(tiles.data() + i * side * side * 3));
    logits[i * classes + 1] = static_cast<float>(shape.batch);
  }
}

// A runtime that waits until it is opened.
class Gate {
 public:
  void open() { open_ = true; }
  void wait_until_entered(int times = 1) const {
    while (entered_ < times) {
      std::this_thread::yield();
    }
  }
  auto runtime() {
    return [this](auto tiles, TileShape shape, auto logits) {
      ++entered_;
      while (!open_) {
        std::this_thread::yield();
      }
      echo(tiles, shape, logits);
    };
  }

 private:
  std::atomic<bool> open_{false};
  std::atomic<int> entered_{0};
};

ErrorCode error_of(Submission& submission) {
  return code_of([&] { (void)submission.logits.get(); });
}

TEST_CASE("tile queue: each submission gets the answer to its own tile, whatever its size") {
  TileQueue queue(echo, classes, side, {.max_batch = 4});
  std::vector<Submission> submissions;
  for (std::uint32_t i = 0; i < 50; ++i) {
    submissions.push_back(queue.submit(tile_of(i, side + 2 * (i % 3), side + 4 * (i % 2)), side + 2 * (i % 3),
                                       side + 4 * (i % 2)));
  }
  std::uint64_t last = 0;
  for (std::uint32_t i = 0; i < 50; ++i) {
    const std::vector<float> logits = submissions[i].logits.get();
    REQUIRE(logits.size() == classes);
    CHECK(logits[0] == static_cast<float>(i));
    CHECK(logits[1] <= 4);
    CHECK(submissions[i].id > last);
    last = submissions[i].id;
  }
  queue.drain();
  const histo::TileQueueStats stats = queue.stats();
  CHECK(stats.submitted == 50);
  CHECK(stats.answered == 50);
  CHECK(stats.failed + stats.cancelled + stats.waiting == 0);
  CHECK(stats.batches >= 13);
}

TEST_CASE("tile queue: a callback gets the id that submit() returned") {
  TileQueue queue(echo, classes, side);
  std::map<std::uint64_t, float> answers;  // of the thread of the queue until drain() has returned
  std::map<std::uint64_t, float> expected;
  for (std::uint32_t i = 0; i < 20; ++i) {
    const std::uint64_t id = queue.submit(tile_of(i), side, side, [&](const TileAnswer& answer) {
      CHECK(answer.error == nullptr);
      answers[answer.id] = answer.logits[0];
    });
    expected[id] = static_cast<float>(i);
  }
  queue.drain();
  CHECK(answers == expected);
}

TEST_CASE("tile queue: batches are as large as what waits, up to max_batch") {
  Gate gate;
  TileQueue queue(gate.runtime(), classes, side, {.max_batch = 8});
  std::vector<Submission> submissions;
  submissions.push_back(queue.submit(tile_of(0), side, side));
  gate.wait_until_entered();
  for (std::uint32_t i = 1; i < 13; ++i) {
    submissions.push_back(queue.submit(tile_of(i), side, side));
  }
  CHECK(queue.stats().waiting == 12);
  gate.open();
  std::vector<float> sizes;
  for (Submission& submission : submissions) {
    sizes.push_back(submission.logits.get()[1]);
  }
  CHECK(sizes == std::vector<float>{1, 8, 8, 8, 8, 8, 8, 8, 8, 4, 4, 4, 4});
}

TEST_CASE("tile queue: a batch waits until it is full, for max_wait, or for drain()") {
  using std::chrono::steady_clock;
  TileQueue patient(echo, classes, side, {.max_batch = 3, .max_wait = std::chrono::minutes(30)});
  std::vector<Submission> submissions;
  for (std::uint32_t i = 0; i < 3; ++i) {  // full
    submissions.push_back(patient.submit(tile_of(i), side, side));
  }
  for (Submission& submission : submissions) {
    CHECK(submission.logits.get()[1] == 3);
  }
  Submission alone = patient.submit(tile_of(9), side, side);
  CHECK(alone.logits.wait_for(std::chrono::milliseconds(20)) == std::future_status::timeout);
  patient.drain();
  CHECK(alone.logits.get()[1] == 1);

  // The largest batch is what the capacity lets wait.
  TileQueue narrow(echo, classes, side,
                   {.max_batch = 10, .max_wait = std::chrono::minutes(30), .capacity = 2});
  Submission one = narrow.submit(tile_of(1), side, side), two = narrow.submit(tile_of(2), side, side);
  CHECK(one.logits.get()[1] == 2);
  CHECK(two.logits.get()[1] == 2);

  TileQueue brief(echo, classes, side, {.max_batch = 3, .max_wait = std::chrono::milliseconds(30)});
  const auto begin = steady_clock::now();
  CHECK(brief.submit(tile_of(9), side, side).logits.get()[1] == 1);
  CHECK(steady_clock::now() - begin >= std::chrono::milliseconds(30));
}

TEST_CASE("tile queue: submit() waits for room, and try_submit() refuses") {
  Gate gate;
  TileQueue queue(gate.runtime(), classes, side, {.max_batch = 1, .capacity = 2});
  std::vector<Submission> submissions;
  submissions.push_back(queue.submit(tile_of(0), side, side));
  gate.wait_until_entered();
  for (std::uint32_t i = 1; i < 3; ++i) {
    std::optional<Submission> accepted = queue.try_submit(tile_of(i), side, side);
    REQUIRE(accepted);
    submissions.push_back(std::move(*accepted));
  }
  CHECK_FALSE(queue.try_submit(tile_of(9), side, side));
  CHECK_FALSE(queue.try_submit(tile_of(9), side, side, [](const TileAnswer&) { FAIL("not submitted"); }));
  std::atomic<bool> submitted{false};
  JoinedThreads threads;
  threads.emplace_back([&] {
    CHECK(queue.submit(tile_of(3), side, side).logits.get()[0] == 3);
    submitted = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK_FALSE(submitted);
  gate.open();
  for (std::uint32_t i = 0; i < 3; ++i) {
    CHECK(submissions[i].logits.get()[0] == static_cast<float>(i));
  }
}

TEST_CASE("tile queue: an error reaches every submission of its batch, and no other") {
  std::atomic<int> kind{0};
  TileQueue queue(
      [&](auto tiles, TileShape shape, auto logits) {
        switch (kind) {
          case 1:
            throw Error(ErrorCode::io, "the runtime is gone", "restart it");
          case 2:
            throw std::bad_alloc();
          case 3:
            throw std::runtime_error("odd");
          case 4:
            throw 5;
          default:
            echo(tiles, shape, logits);
        }
      },
      classes, side, {.max_batch = 3, .max_wait = std::chrono::minutes(30)});
  const ErrorCode expected[] = {
      {}, ErrorCode::io, ErrorCode::out_of_memory, ErrorCode::failed, ErrorCode::failed};
  for (int round = 0; round < 10; ++round) {
    kind = round % 5;
    std::vector<Submission> batch;
    int failures = 0;
    for (std::uint32_t i = 0; i < 2; ++i) {
      batch.push_back(queue.submit(tile_of(i), side, side));
    }
    queue.submit(tile_of(2), side, side, [&](const TileAnswer& answer) {
      failures += answer.error != nullptr && answer.error->code() == expected[kind] && answer.logits.empty();
    });
    queue.drain();
    CHECK(failures == (kind == 0 ? 0 : 1));
    for (Submission& submission : batch) {
      if (kind == 0) {
        CHECK(submission.logits.get().size() == classes);
      } else {
        CHECK(error_of(submission) == expected[kind]);
      }
    }
  }
  CHECK(queue.stats().failed == 24);
}

TEST_CASE("tile queue: a submission is cancelled while it waits, or while its batch runs") {
  Gate gate;
  auto queue = std::make_unique<TileQueue>(gate.runtime(), classes, side,
                                           TileQueueOptions{.max_batch = 2, .capacity = 3});
  Submission first = queue->submit(tile_of(0), side, side);
  gate.wait_until_entered();
  Submission second = queue->submit(tile_of(1), side, side);
  int cancelled = 0;
  const std::thread::id here = std::this_thread::get_id();
  const std::uint64_t third = queue->submit(tile_of(2), side, side, [&](const TileAnswer& answer) {
    CHECK(answer.error->code() == ErrorCode::cancelled);
    CHECK(std::this_thread::get_id() == here);
    ++cancelled;
  });
  Submission fourth = queue->submit(tile_of(3), side, side);
  CHECK_FALSE(queue->try_submit(tile_of(4), side, side));
  CHECK(queue->cancel(third));
  CHECK(cancelled == 1);
  CHECK_FALSE(queue->cancel(third));
  CHECK_FALSE(queue->cancel(0));
  CHECK_FALSE(queue->cancel(12345));
  std::optional<Submission> fifth = queue->try_submit(tile_of(4), side, side);  // there is room again
  REQUIRE(fifth);
  CHECK(queue->cancel(first.id));  // which runs
  CHECK(error_of(first) == ErrorCode::cancelled);
  CHECK(queue->stats().cancelled == 2);
  gate.open();
  CHECK(second.logits.get() == std::vector<float>{1, 2});
  CHECK(fourth.logits.get() == std::vector<float>{3, 2});
  CHECK(fifth->logits.get() == std::vector<float>{4, 1});
  queue->drain();
  CHECK_FALSE(queue->cancel(second.id));
  CHECK(queue->cancel_all() == 0);
}

TEST_CASE("tile queue: the destructor cancels, and lets nobody wait") {
  Gate gate;
  auto queue = std::make_unique<TileQueue>(gate.runtime(), classes, side,
                                           TileQueueOptions{.max_batch = 1, .capacity = 2});
  std::vector<Submission> submissions;
  submissions.push_back(queue->submit(tile_of(0), side, side));
  gate.wait_until_entered();
  submissions.push_back(queue->submit(tile_of(1), side, side));
  submissions.push_back(queue->submit(tile_of(2), side, side));
  {
    JoinedThreads threads;
    threads.emplace_back([&] {
      while (submissions[2].logits.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
        std::this_thread::yield();
      }
      gate.open();  // the destructor has to wait for a runtime that cannot be interrupted
    });
    queue.reset();
  }
  for (Submission& submission : submissions) {
    CHECK(error_of(submission) == ErrorCode::cancelled);
  }
  const TileQueue unused(echo, classes, side);
}

TEST_CASE("tile queue: what a callback may do") {
  std::unique_ptr<TileQueue> queue;
  std::atomic<int> answers{0};
  ErrorCode drained{}, full{};
  Gate gate;
  queue = std::make_unique<TileQueue>(gate.runtime(), classes, side,
                                      TileQueueOptions{.max_batch = 1, .capacity = 1});
  queue->submit(tile_of(1), side, side, [&](const TileAnswer&) {
    drained = code_of([&] { queue->drain(); });
    ++answers;
    throw std::runtime_error("dropped");
  });
  gate.wait_until_entered();
  queue->submit(tile_of(2), side, side, [&](const TileAnswer&) {
    queue->submit(tile_of(3), side, side, [&](const TileAnswer& third) {
      CHECK(third.logits[0] == 3);
      ++answers;
      queue.reset();  // the last reference to it
      ++answers;
    });
    full = code_of([&] { (void)queue->submit(tile_of(4), side, side); });
    ++answers;
  });
  gate.open();
  while (answers < 4) {
    std::this_thread::yield();
  }
  CHECK(queue == nullptr);
  CHECK(drained == ErrorCode::invalid_argument);
  CHECK(full == ErrorCode::busy);
}

TEST_CASE("tile queue: what cannot be submitted or made") {
  TileQueue queue(echo, classes, side);
  const std::vector<std::uint8_t> tile = tile_of(1);
  CHECK(code_of([&] { (void)queue.submit(tile, side, side + 1); }) == ErrorCode::size_mismatch);
  CHECK(code_of([&] { (void)queue.submit(tile, 0, side); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)queue.submit(tile, side - 1, side); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)queue.try_submit({}, side, side); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { (void)queue.submit(tile, SIZE_MAX, SIZE_MAX); }) == ErrorCode::size_overflow);
  CHECK(code_of([&] { queue.submit(tile, side, side, {}); }) == ErrorCode::invalid_argument);
  CHECK(queue.stats().submitted == 0);

  const auto code_with = [](const TileQueueOptions& options) {
    return code_of([&] { const TileQueue made(echo, classes, side, options); });
  };
  CHECK(code_with({.max_batch = 0}) == ErrorCode::invalid_argument);
  CHECK(code_with({.capacity = 0}) == ErrorCode::invalid_argument);
  CHECK(code_with({.max_wait = std::chrono::microseconds(-1)}) == ErrorCode::invalid_argument);
  CHECK(code_with({.max_wait = std::chrono::microseconds::max()}) == ErrorCode::invalid_argument);
  CHECK(code_with({.max_batch = SIZE_MAX}) == ErrorCode::size_overflow);
  CHECK(code_with({.capacity = SIZE_MAX / 2}) == ErrorCode::size_overflow);
#if !HISTO_ADDRESS_SANITIZER && !HISTO_THREAD_SANITIZER  // which end the process instead
  CHECK(code_with({.capacity = SIZE_MAX / 200}) == ErrorCode::out_of_memory);
#endif
  CHECK(code_of([] { const TileQueue made({}, classes, side); }) == ErrorCode::invalid_argument);
  CHECK(code_of([] { const TileQueue made(echo, 0, side); }) == ErrorCode::invalid_argument);
  CHECK(code_of([] { const TileQueue made(echo, classes, 0); }) == ErrorCode::invalid_argument);
  CHECK(code_of([] { const TileQueue made(std::shared_ptr<const Engine>{}); }) ==
        ErrorCode::invalid_argument);
}

// --- over an engine ----------------------------------------------------------------------------------------

const Model& model() {
  static const Model opened = Model::from_memory(make_model_file(2, 6, 32, 1));
  return opened;
}

struct Sized {
  std::size_t height, width;
  std::vector<std::uint8_t> pixels;
};

std::vector<Sized> random_tiles(std::size_t count) {
  std::mt19937 generator(11);
  std::vector<Sized> tiles;
  for (std::size_t i = 0; i < count; ++i) {
    Sized tile{.height = 32 + generator() % 9, .width = 32 + generator() % 9, .pixels = {}};
    tile.pixels.resize(tile.height * tile.width * 3);
    std::ranges::generate(tile.pixels, [&] { return static_cast<std::uint8_t>(generator()); });
    tiles.push_back(std::move(tile));
  }
  return tiles;
}

TEST_CASE("engine: a queue gives the bits of run(), from any number of threads") {
  const std::vector<Sized> tiles = random_tiles(12);
  for (const histo::Precision precision : histo::usable_precisions()) {
    if (precision == histo::Precision::int8) {  // the model has no scales
      continue;
    }
    CAPTURE(histo::name(precision));
    const auto engine = std::make_shared<const Engine>(
        model(), histo::EngineOptions{
                     .threads = 2, .precision = precision, .algorithm = histo::AlgorithmPolicy::direct});
    std::vector<std::vector<float>> expected;
    for (const Sized& tile : tiles) {
      expected.emplace_back(6);
      engine->run(std::span<const std::uint8_t>(tile.pixels),
                  {.batch = 1, .height = tile.height, .width = tile.width}, expected.back());
    }
    for (const std::size_t batch : {1, 3, 8}) {
      TileQueue over_copy(*engine, {.max_batch = batch}), over_itself(engine, {.max_batch = batch});
      std::atomic<int> wrong{0};
      {
        JoinedThreads threads;
        for (std::size_t thread = 0; thread < 3; ++thread) {
          threads.emplace_back([&, thread] {
            for (std::size_t i = thread; i < tiles.size(); i += 3) {
              for (TileQueue* const queue : {&over_copy, &over_itself}) {
                wrong += queue->submit(tiles[i].pixels, tiles[i].height, tiles[i].width).logits.get() !=
                         expected[i];
              }
            }
          });
        }
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("engine: a queue's run ends early when all of its tiles are cancelled, and the queue goes on") {
  const Engine engine(model(), {.threads = 1, .algorithm = histo::AlgorithmPolicy::direct});
  const Sized tile = random_tiles(1).front();
  TileQueue queue(engine, {.max_batch = 64, .capacity = 64});
  Submission before = queue.submit(tile.pixels, tile.height, tile.width);
  const std::vector<float> expected = before.logits.get();
  for (int round = 0; round < 3; ++round) {
    std::vector<Submission> submissions;
    for (int i = 0; i < 20; ++i) {
      submissions.push_back(queue.submit(tile.pixels, tile.height, tile.width));
    }
    CHECK(queue.cancel_all() <= 20);
    std::size_t answered = 0;
    for (Submission& submission : submissions) {
      try {
        const std::vector<float> logits = submission.logits.get();  // not in CHECK(), which may catch
        CHECK(logits == expected);
        ++answered;
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::cancelled);
      }
    }
    CHECK(answered < 20);
  }
  CHECK(queue.submit(tile.pixels, tile.height, tile.width).logits.get() == expected);
}

// --- the host ----------------------------------------------------------------------------------------------

#ifndef _WIN32

TEST_CASE("engine: the signals of a queue are the host's") {
  const auto blocks = [](int signal) {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    return sigismember(&mask, signal) == 1;
  };
  const Engine engine(model(), {.threads = 1, .algorithm = histo::AlgorithmPolicy::direct});
  const Sized tile = random_tiles(1).front();
  TileQueue over_engine(engine), over_infer(echo, classes, side);
  bool in_engines = false, in_infers = true;
  over_engine.submit(tile.pixels, tile.height, tile.width,
                     [&](const TileAnswer&) { in_engines = blocks(SIGINT) && !blocks(SIGSEGV); });
  over_infer.submit(tile_of(1), side, side, [&](const TileAnswer&) { in_infers = blocks(SIGINT); });
  over_engine.drain();
  over_infer.drain();
  CHECK(in_engines);
  CHECK_FALSE(in_infers);
  CHECK_FALSE(blocks(SIGINT));
}

TEST_CASE("tile queue: in a forked child it begins empty") {
  if (under_emulation || !child_may_start_threads) {
    MESSAGE("not tested: the child would have to start a thread");
    return;
  }
  Gate gate;
  auto queue = std::make_unique<TileQueue>(gate.runtime(), classes, side,
                                           TileQueueOptions{.max_batch = 1, .capacity = 2});
  std::atomic<int> answers{0};
  const auto count = [&](const TileAnswer&) { ++answers; };
  queue->submit(tile_of(1), side, side, count);
  gate.wait_until_entered();
  const std::uint64_t waiting = queue->submit(tile_of(2), side, side, count);
  const auto works_in_child = [&] {
    gate.open();
    const bool empty = queue->stats().submitted == 0 && !queue->cancel(waiting) && queue->cancel_all() == 0;
    Submission mine = queue->submit(tile_of(7), side, side);
    const bool right = mine.id > waiting && mine.logits.get()[0] == 7;
    queue->drain();
    queue.reset();
    return empty && right && answers == 0;
  };
  CHECK(passes_in_child(works_in_child));
  CHECK(passes_in_child([&] { return passes_in_child(works_in_child); }));
  // A child may free it unused.
  CHECK(passes_in_child([&] {
    queue.reset();
    return true;
  }));
  CHECK(answers == 0);
  gate.open();
  queue->drain();
  CHECK(answers == 2);
}

#endif

#if defined(__GLIBC__) && !HISTO_THREAD_SANITIZER

TEST_CASE("tile queue: pthread_cancel takes effect when submit() has returned") {
  if (under_emulation) {
    return;
  }
  const bool passed = passes_in_child([] {
    struct Shared {
      Gate gate;
      TileQueue queue{gate.runtime(), classes, side, {.max_batch = 1, .capacity = 1}};
      std::atomic<int> submitted{0};

      // Apart from where the thread is ended, so that the address sanitizer finds nothing of it on the stack.
      [[gnu::noinline]] void submit() {
        for (std::uint32_t i = 0; i < 3; ++i) {  // the last has to wait
          queue.submit(tile_of(i), side, side, [](const TileAnswer&) {});
          ++submitted;
          if (i == 0) {
            gate.wait_until_entered();
          }
        }
      }
    } shared;
    const auto work = [](void* user) -> void* {
      static_cast<Shared*>(user)->submit();
      pthread_testcancel();
      return nullptr;
    };
    pthread_t thread;
    pthread_create(&thread, nullptr, work, &shared);
    while (shared.submitted < 2) {
      std::this_thread::yield();
    }
    pthread_cancel(thread);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    shared.gate.open();
    void* result = nullptr;
    pthread_join(thread, &result);
    shared.queue.drain();
    return result == PTHREAD_CANCELED && shared.submitted == 3 && shared.queue.stats().answered == 3;
  });
  CHECK(passed);
}

#endif

// --- load --------------------------------------------------------------------------------------------------

// What 8 threads do to a queue: submit, wait, cancel and go on, over a runtime that fails now and then. Every
// submission must get one answer, and it must be its own.
struct Load {
  static constexpr std::size_t threads = 8;

  explicit Load(std::size_t all) : tiles(all / threads * threads), answers(tiles) {}

  void submit_some(TileQueue& queue, std::size_t thread) {
    std::mt19937 generator(static_cast<unsigned>(thread));
    std::vector<std::uint64_t> recent;
    for (std::size_t i = thread; i < tiles; i += threads) {
      const auto number = static_cast<std::uint32_t>(i);
      const std::size_t height = side + 2 * (generator() % 3);
      const std::vector<std::uint8_t> tile = tile_of(number, height, side);
      if (generator() % 4 == 0) {
        wait_for(queue.submit(tile, height, side), i);
        continue;
      }
      const auto callback = [this, i](const TileAnswer& answer) { take(i, answer.logits, answer.error); };
      std::optional<std::uint64_t> id = queue.try_submit(tile, height, side, callback);
      while (!id) {
        id = generator() % 2 == 0 ? queue.submit(tile, height, side, callback)
                                  : queue.try_submit(tile, height, side, callback);
      }
      recent.push_back(*id);
      if (generator() % 8 == 0) {
        confirmed += queue.cancel(recent[generator() % recent.size()]) ? 1 : 0;
      }
      if (generator() % 4096 == 0) {
        queue.drain();
      }
      if (recent.size() > 32) {
        recent.clear();
      }
    }
  }

  void wait_for(Submission submission, std::size_t i) {
    try {
      const std::vector<float> logits = submission.logits.get();
      take(i, logits, nullptr);
    } catch (const Error& error) {
      take(i, {}, &error);
    }
  }

  void take(std::size_t i, std::span<const float> logits, const Error* error) {
    ++answers[i];
    if (error == nullptr) {
      mixed += logits.size() != classes || logits[0] != static_cast<float>(i) ? 1 : 0;
    } else if (error->code() == ErrorCode::cancelled) {
      ++cancelled;
    } else {
      failed += error->code() == ErrorCode::io ? 1 : 0;
      mixed += error->code() == ErrorCode::io ? 0 : 1;
    }
  }

  const std::size_t tiles;
  std::vector<std::atomic<int>> answers;
  std::atomic<std::size_t> mixed{0}, cancelled{0}, confirmed{0}, failed{0};
};

TEST_CASE("tile queue: 8 threads, random cancellations and errors; nothing is lost or mixed") {
  Load load(100'000);
  std::atomic<std::size_t> runs{0};
  TileQueue queue(
      [&](auto tiles, TileShape shape, auto logits) {
        if (++runs % 13 == 0) {
          throw Error(ErrorCode::io, "a batch that fails", "none");
        }
        echo(tiles, shape, logits);
      },
      classes, side, {.max_batch = 16, .max_wait = std::chrono::microseconds(50), .capacity = 64});
  {
    JoinedThreads threads;
    for (std::size_t thread = 0; thread < Load::threads; ++thread) {
      threads.emplace_back([&, thread] { load.submit_some(queue, thread); });
    }
  }
  queue.drain();
  CHECK(std::ranges::all_of(load.answers, [](const auto& count) { return count == 1; }));
  CHECK(load.mixed == 0);
  CHECK(load.cancelled == load.confirmed);
  const histo::TileQueueStats stats = queue.stats();
  CHECK(stats.submitted == load.tiles);
  CHECK(stats.answered == load.tiles);
  CHECK(stats.cancelled == load.cancelled);
  CHECK(stats.failed == load.failed);
  CHECK(stats.batches == runs);
  CHECK(stats.waiting == 0);
  CHECK(load.failed > 0);
}

}  // namespace
