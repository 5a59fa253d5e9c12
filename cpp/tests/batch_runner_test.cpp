#include "histo/batch_runner.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "error_code.h"
#include "histo/error.h"
#include "joined_threads.h"
#include "sanitizers.h"
#include "under_emulation.h"

#ifdef __GLIBC__
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

using histo::BatchRunner;
using histo::BatchRunnerOptions;
using histo::BatchRunnerStats;
using histo::Error;
using histo::ErrorCode;
using histo::OnError;
using histo::TileResult;
using histo::TileShape;
using std::chrono::milliseconds;

constexpr std::size_t height = 2;
constexpr std::size_t width = 5;
constexpr std::size_t tile_size = height * width * 3;
constexpr std::size_t classes = 2;

// A tile that knows its number: in its first bytes, and in what the others are filled with.
void write_tile(std::span<std::uint8_t> tile, std::size_t index) {
  std::memset(tile.data(), static_cast<int>(index % 251), tile.size());
  std::memcpy(tile.data(), &index, sizeof index);
}

// The logits of tile i are (i, -i), and NaN where the tile is not as write_tile() left it.
std::vector<float> expected_logits(std::size_t index) {
  return {static_cast<float>(index), -static_cast<float>(index)};
}

void read_tiles(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits) {
  const bool sizes = shape.height == height && shape.width == width &&
                     tiles.size() == shape.batch * tile_size && logits.size() == shape.batch * classes;
  for (std::size_t i = 0; i < shape.batch; ++i) {
    std::size_t index = 0;
    std::memcpy(&index, tiles.data() + i * tile_size, sizeof index);
    std::vector<std::uint8_t> intact(tile_size);
    write_tile(intact, index);
    const bool same = std::ranges::equal(intact, tiles.subspan(i * tile_size, tile_size));
    const float value = sizes && same ? static_cast<float>(index) : std::numeric_limits<float>::quiet_NaN();
    logits[i * classes] = value;
    logits[i * classes + 1] = -value;
  }
}

// What a callback may throw, and what is to become of it.
struct Thrown {
  std::function<void()> raise;
  ErrorCode code;
  std::string message;
  std::string remedy = {};
};

const std::vector<Thrown>& all_kinds() {
  static const std::vector<Thrown> kinds = {
      {[] { throw std::runtime_error("a slide that ends here"); }, ErrorCode::failed,
       "a slide that ends here"},
      {[] { throw Error(ErrorCode::io, "no such slide", "check the path"); }, ErrorCode::io,
       "no such slide; check the path", "check the path"},
      {[] { throw std::bad_alloc(); }, ErrorCode::out_of_memory, "not enough memory", "use a smaller batch"},
      {[] { throw 7; }, ErrorCode::failed, "unknown exception"},
      {[] { throw std::runtime_error(""); }, ErrorCode::failed, ""},
  };
  return kinds;
}

// `count` tiles; those in `lost` throw what `raise` throws.
histo::TileSource numbered(
    std::size_t count, std::set<std::size_t> lost = {},
    std::function<void()> raise = [] { throw std::runtime_error("lost"); }) {
  return [count, lost = std::move(lost), raise = std::move(raise),
          next = std::size_t{0}](std::span<std::uint8_t> tile) mutable {
    if (next == count) {
      return false;
    }
    const std::size_t index = next++;
    if (lost.contains(index)) {
      std::ranges::fill(tile, std::uint8_t{255});  // half-read tiles are allowed
      raise();
    }
    write_tile(tile, index);
    return true;
  };
}

struct Delivered {
  std::vector<float> logits;
  std::optional<std::string> error;
};

// What a run delivered, its numbers checked on the way, and how it ended.
struct Outcome {
  std::vector<Delivered> tiles;
  BatchRunnerStats stats;
  std::optional<ErrorCode> code;
  std::string message;
  std::string remedy;

  // All of the tiles there are, or those before the loop ended, except those in `lost`.
  [[nodiscard]] bool right(const std::set<std::size_t>& lost = {}) const {
    for (std::size_t i = 0; i < tiles.size(); ++i) {
      if (lost.contains(i) ? !tiles[i].error || !tiles[i].logits.empty()
                           : tiles[i].error || tiles[i].logits != expected_logits(i)) {
        return false;
      }
    }
    return true;
  }
};

Outcome run(const BatchRunner& runner, const histo::TileSource& source,
            const histo::Progress& progress = {}) {
  Outcome outcome;
  const std::thread::id me = std::this_thread::get_id();
  try {
    outcome.stats = runner.run(
        height, width, source,
        [&](const TileResult& tile) {
          CHECK(std::this_thread::get_id() == me);
          CHECK(tile.index == outcome.tiles.size());
          outcome.tiles.push_back({{tile.logits.begin(), tile.logits.end()},
                                   tile.error != nullptr ? std::optional(*tile.error) : std::nullopt});
        },
        progress);
  } catch (const Error& error) {
    outcome.code = error.code();
    outcome.message = error.what();
    outcome.remedy = error.remedy();
  }
  return outcome;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("batch runner: order, and odd ends") {
  for (const std::size_t batch : {1, 2, 3, 8}) {
    for (const std::size_t queued : {1, 2, 5}) {
      for (const std::size_t count :
           std::set<std::size_t>{0, 1, batch - 1, batch, batch + 1, 2 * batch, 20 * batch + 1}) {
        CAPTURE(batch);
        CAPTURE(queued);
        CAPTURE(count);
        std::vector<std::size_t> sizes;
        const BatchRunner runner(
            [&](auto tiles, auto shape, auto logits) {
              sizes.push_back(shape.batch);
              read_tiles(tiles, shape, logits);
            },
            classes, {.batch = batch, .queued = queued});
        const Outcome outcome = run(runner, numbered(count));
        CHECK_FALSE(outcome.code);
        CHECK(outcome.tiles.size() == count);
        CHECK(outcome.right());

        std::vector<std::size_t> expected(count / batch, batch);
        if (count % batch != 0) {
          expected.push_back(count % batch);
        }
        CHECK(sizes == expected);
        CHECK(outcome.stats.tiles == count);
        CHECK(outcome.stats.failed == 0);
        CHECK(outcome.stats.batches == expected.size());
        CHECK(outcome.stats.seconds > 0);
        CHECK(outcome.stats.tiles_per_second() == static_cast<double>(count) / outcome.stats.seconds);
      }
    }
  }
}

TEST_CASE("batch runner: a tile that the source loses") {
  constexpr std::size_t count = 11;
  for (const Thrown& thrown : all_kinds()) {
    for (const std::size_t lost : {0, 1, 3, 4, 5, 7, 10}) {
      CAPTURE(thrown.message);
      CAPTURE(lost);
      const BatchRunner reporting(read_tiles, classes, {.batch = 4, .on_error = OnError::report});
      const Outcome all = run(reporting, numbered(count, {lost}, thrown.raise));
      CHECK_FALSE(all.code);
      CHECK(all.tiles.size() == count);
      CHECK(all.right({lost}));
      CHECK(contains(all.tiles[lost].error.value_or("none"), thrown.message));
      CHECK(all.stats.tiles == count);
      CHECK(all.stats.failed == 1);
      CHECK(all.stats.batches == 3);

      const BatchRunner stopping(read_tiles, classes, {.batch = 4});
      const Outcome before = run(stopping, numbered(count, {lost}, thrown.raise));
      CHECK(before.code == thrown.code);
      CHECK(contains(before.message, "tile " + std::to_string(lost) + ": "));
      CHECK(contains(before.message, thrown.message));
      CHECK(before.remedy == thrown.remedy);
      CHECK(before.tiles.size() == lost);
      CHECK(before.right());
    }
  }
}

TEST_CASE("batch runner: several lost tiles, whole batches of them, and nothing else") {
  const BatchRunner runner(read_tiles, classes, {.batch = 3, .on_error = OnError::report});
  const std::vector<std::set<std::size_t>> cases = {
      {0, 1, 2}, {3, 4, 5}, {1, 2, 3, 4, 5, 6, 7}, {0, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}};
  for (const std::set<std::size_t>& lost : cases) {
    const Outcome outcome = run(runner, numbered(10, lost));
    CHECK(outcome.tiles.size() == 10);
    CHECK(outcome.right(lost));
    CHECK(outcome.stats.failed == lost.size());
    CHECK(outcome.stats.batches <= 4);
  }
  CHECK(run(runner, numbered(10, cases.back())).stats.batches == 0);
}

TEST_CASE("batch runner: a batch that cannot be run") {
  constexpr std::size_t count = 11;  // batches of 4, 4 and 3
  for (const Thrown& thrown : all_kinds()) {
    for (const std::size_t bad : {0, 1, 2}) {
      CAPTURE(thrown.message);
      CAPTURE(bad);
      const auto infer = [&thrown, bad](auto tiles, auto shape, auto logits) {
        std::size_t first = 0;
        std::memcpy(&first, tiles.data(), sizeof first);
        if (first == 4 * bad) {
          thrown.raise();
        }
        read_tiles(tiles, shape, logits);
      };
      std::set<std::size_t> lost;
      for (std::size_t i = 4 * bad; i < std::min(count, 4 * bad + 4); ++i) {
        lost.insert(i);
      }

      const Outcome all =
          run(BatchRunner(infer, classes, {.batch = 4, .on_error = OnError::report}), numbered(count));
      CHECK_FALSE(all.code);
      CHECK(all.tiles.size() == count);
      CHECK(all.right(lost));
      for (const std::size_t i : lost) {
        CHECK(contains(all.tiles[i].error.value_or("none"), thrown.message));
      }
      CHECK(all.stats.failed == lost.size());
      CHECK(all.stats.batches == 3);

      const Outcome before = run(BatchRunner(infer, classes, {.batch = 4}), numbered(count));
      CHECK(before.code == thrown.code);
      CHECK(contains(before.message, "tiles " + std::to_string(*lost.begin()) + " to " +
                                         std::to_string(*lost.rbegin()) + ": "));
      CHECK(contains(before.message, thrown.message));
      CHECK(before.remedy == thrown.remedy);
      CHECK(before.tiles.size() == 4 * bad);
      CHECK(before.right());
    }
  }
}

TEST_CASE("batch runner: a failure stays in its batch, whose buffers are used again") {
  constexpr std::size_t count = 34 * 9;
  std::set<std::size_t> lost;
  for (std::size_t i = 0; i < count; i += 9) {
    lost.insert({i, i + 1, i + 2, i + 4});
  }
  const BatchRunner runner(
      [](auto tiles, auto shape, auto logits) {
        std::size_t first = 0;
        std::memcpy(&first, tiles.data(), sizeof first);
        if (first % 9 == 0) {
          throw std::runtime_error("not this batch");
        }
        read_tiles(tiles, shape, logits);
      },
      classes, {.batch = 3, .queued = 1, .on_error = OnError::report});
  std::set<std::size_t> by_source;
  for (std::size_t i = 4; i < count; i += 9) {
    by_source.insert(i);
  }
  const Outcome outcome = run(runner, numbered(count, by_source));
  CHECK(outcome.tiles.size() == count);
  CHECK(outcome.right(lost));
  CHECK(outcome.stats.failed == lost.size());
}

TEST_CASE("batch runner: in a batch that cannot be run, a tile that the source lost keeps its own error") {
  const auto infer = [](auto, auto, auto) { throw std::runtime_error("no batch"); };
  const Outcome all =
      run(BatchRunner(infer, classes, {.batch = 4, .on_error = OnError::report}), numbered(4, {2}));
  REQUIRE(all.tiles.size() == 4);
  CHECK(all.tiles[1].error == "no batch");
  CHECK(all.tiles[2].error == "lost");
  CHECK(all.tiles[3].error == "no batch");

  // The tiles before the lost one come first, and so does their error.
  CHECK(run(BatchRunner(infer, classes, {.batch = 4}), numbered(4, {2})).message == "tiles 0 to 1: no batch");
  CHECK(run(BatchRunner(infer, classes, {.batch = 4}), numbered(4, {1})).message == "tile 0: no batch");
  CHECK(run(BatchRunner(infer, classes, {.batch = 4}), numbered(4, {0})).message == "tile 0: lost");
}

TEST_CASE("batch runner: what the sink throws comes through, and nothing is delivered after it") {
  struct Mine {
    std::size_t index;
  };
  const BatchRunner runner(read_tiles, classes, {.batch = 4, .on_error = OnError::report});
  for (const std::size_t bad : {0, 1, 3, 4, 10}) {
    std::size_t delivered = 0;
    const auto sink = [&](const TileResult& tile) {
      if (tile.index == bad) {
        throw Mine{bad};
      }
      ++delivered;
    };
    std::optional<std::size_t> caught;
    try {
      runner.run(height, width, numbered(11), sink);
    } catch (const Mine& mine) {
      caught = mine.index;
    }
    CHECK(caught == bad);
    CHECK(delivered == bad);
  }
  CHECK_THROWS_WITH_AS(
      runner.run(height, width, numbered(11), [](const TileResult&) { throw std::out_of_range("full"); }),
      "full", std::out_of_range);
}

TEST_CASE(
    "batch runner: progress is told after each batch and at the end, and what it throws comes through") {
  const BatchRunner runner(read_tiles, classes, {.batch = 4});
  for (const std::size_t count : {0, 4, 11, 12}) {
    std::vector<std::size_t> tiles;
    const Outcome outcome = run(runner, numbered(count), [&](const BatchRunnerStats& stats) {
      CHECK(stats.tiles >= (tiles.empty() ? 0 : tiles.back()));
      CHECK(stats.failed == 0);
      CHECK(stats.prepare_seconds >= 0);
      CHECK(stats.seconds > 0);
      tiles.push_back(stats.tiles);
      return true;
    });
    REQUIRE_FALSE(tiles.empty());
    CHECK(tiles.back() == count);
    for (std::size_t end = 4; end < count; end += 4) {
      CHECK(std::ranges::count(tiles, end) >= 1);
    }
    CHECK(outcome.tiles.size() == count);
  }
  CHECK_THROWS_WITH_AS(runner.run(
                           height, width, numbered(11), [](const TileResult&) {},
                           [](const BatchRunnerStats&) -> bool { throw std::logic_error("interrupted"); }),
                       "interrupted", std::logic_error);
  CHECK_THROWS_AS(runner.run(
                      height, width, numbered(11), [](const TileResult&) {},
                      [](const BatchRunnerStats&) -> bool { throw 7; }),
                  int);
}

TEST_CASE("batch runner: progress is told while the source waits, the runtime computes or the sink is slow") {
  // Each stage in turn does not go on until progress was told twice in it.
  std::atomic<int> told{0};
  const auto wait = [&told] {
    for (const int before = told; told < before + 2;) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  };
  const auto progress = [&told](const BatchRunnerStats&) {
    ++told;
    return true;
  };
  const BatchRunner runner(read_tiles, classes, {.batch = 2});
  auto source = [&wait, inner = numbered(1)](std::span<std::uint8_t> tile) {
    wait();
    return inner(tile);
  };
  CHECK(run(runner, source, progress).tiles.size() == 1);

  const BatchRunner slow(
      [&wait](auto tiles, auto shape, auto logits) {
        wait();
        read_tiles(tiles, shape, logits);
      },
      classes, {.batch = 2});
  CHECK(run(slow, numbered(1), progress).tiles.size() == 1);

  // A sink is in the same thread: between two of its tiles.
  const BatchRunner large(read_tiles, classes, {.batch = 8});
  std::vector<std::size_t> within_batch;
  large.run(
      height, width, numbered(8), [](const TileResult&) { std::this_thread::sleep_for(milliseconds(60)); },
      [&](const BatchRunnerStats& stats) {
        within_batch.push_back(stats.tiles);
        return true;
      });
  CHECK(std::ranges::count_if(within_batch, [](std::size_t tiles) { return tiles > 0 && tiles < 8; }) >= 3);
}

TEST_CASE("batch runner: cancelled at any point, the tiles before that are right and nothing hangs") {
  std::mt19937 random(1);
  const auto pause = [](std::uint_fast32_t microseconds) {
    std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
  };
  for (int round = 0; round < 60; ++round) {
    const auto slow_source = random() % 3 * 30;  // microseconds
    const auto slow_infer = random() % 3 * 100;
    const auto slow_sink = random() % 3 * 30;
    const std::size_t batch = 1 + random() % 5;
    const std::size_t calls = random() % 20;
    CAPTURE(round);
    const BatchRunner runner(
        [&](auto tiles, auto shape, auto logits) {
          pause(slow_infer);
          read_tiles(tiles, shape, logits);
        },
        classes, {.batch = batch, .queued = 1 + random() % 3});
    const auto source = [&, inner = numbered(1000000)](std::span<std::uint8_t> tile) {
      pause(slow_source);
      return inner(tile);
    };
    std::size_t called = 0;
    std::size_t at_cancel = 0;
    const Outcome outcome = run(runner, source, [&](const BatchRunnerStats& stats) {
      pause(slow_sink);
      at_cancel = stats.tiles;
      return called++ < calls;
    });
    CHECK(outcome.code == ErrorCode::cancelled);
    CHECK(outcome.tiles.size() == at_cancel);
    CHECK(outcome.tiles.size() <= (calls + 1) * batch);
    CHECK(outcome.right());
    CHECK(called == calls + 1);
  }
}

TEST_CASE("batch runner: cancelled while full queues make source and runtime wait") {
  std::atomic<std::size_t> pulled{0};
  const BatchRunner runner(read_tiles, classes, {.batch = 2, .queued = 1});
  const auto source = [&pulled, inner = numbered(1000000)](std::span<std::uint8_t> tile) {
    ++pulled;
    return inner(tile);
  };
  std::size_t delivered = 0;
  const auto cancelled = [&] {
    runner.run(
        height, width, source, [&](const TileResult&) { ++delivered; },
        [&](const BatchRunnerStats&) {
          while (pulled < 10) {
            std::this_thread::sleep_for(milliseconds(1));
          }
          return false;
        });
  };
  CHECK_THROWS_AS(cancelled(), Error);
  CHECK(delivered == 2);
}

TEST_CASE("batch runner: cancelling waits for the call of the source that is under way, and for no more") {
  std::atomic<bool> cancelled{false};
  std::atomic<std::size_t> calls_after{0};
  const auto source = [&](std::span<std::uint8_t>) {
    calls_after += cancelled ? 1 : 0;
    while (!cancelled) {  // as a source should that may block for long
      std::this_thread::sleep_for(milliseconds(1));
    }
    std::this_thread::sleep_for(milliseconds(20));
    return true;
  };
  const Outcome outcome = run(BatchRunner(read_tiles, classes, {.batch = 1000}), source, [&](const auto&) {
    cancelled = true;
    return false;
  });
  CHECK(outcome.code == ErrorCode::cancelled);
  CHECK(outcome.tiles.empty());
  CHECK(calls_after < 100);  // not all 1000 of the batch; 0 where the loop is told within 20 ms
}

TEST_CASE("batch runner: once cancelled, no tile is pulled while the runtime finishes its batch") {
  constexpr std::size_t batch = 1000;
  std::atomic<bool> cancelled{false};
  std::atomic<std::size_t> pulled{0};
  const auto source = [&, inner = numbered(10 * batch)](auto tile) {
    if (pulled++ >= batch) {  // the first batch is with the runtime
      std::this_thread::sleep_for(milliseconds(1));
    }
    return inner(tile);
  };
  std::atomic<std::size_t> pulled_before{0};
  const BatchRunner runner(
      [&](auto, auto, auto) {
        while (!cancelled) {
          std::this_thread::sleep_for(milliseconds(1));
        }
        // The runtime finishes its batch when no tile has been pulled for a while.
        for (std::size_t now = 0, last = 1; now != last;) {
          last = pulled;
          std::this_thread::sleep_for(milliseconds(60));
          now = pulled;
        }
      },
      classes, {.batch = batch});
  const Outcome outcome = run(runner, source, [&](const BatchRunnerStats&) {
    pulled_before = pulled.load();
    cancelled = true;
    return false;
  });
  CHECK(outcome.code == ErrorCode::cancelled);
  CHECK(pulled - pulled_before < batch / 2);  // a few on an idle machine; without an end, five batches
}

TEST_CASE("batch runner: no more tiles are pulled or run once the loop has to stop") {
  std::atomic<std::size_t> pulled{0};
  std::atomic<std::size_t> batches{0};
  const BatchRunner runner(
      [&](auto, auto, auto) {
        ++batches;
        throw std::runtime_error("broken");
      },
      classes, {.batch = 2, .queued = 1});
  const auto source = [&](std::span<std::uint8_t> tile) {
    write_tile(tile, pulled++);
    return true;
  };
  CHECK(run(runner, source).message == "tiles 0 to 1: broken");
  CHECK(batches == 1);
  CHECK(pulled <= 5 * 2);
}

// A place where several threads wait for each other.
class Meeting {
 public:
  explicit Meeting(int expected) : missing_(expected) {}

  // Waits until all have come; false where one of them has not after a minute.
  bool come() {
    std::unique_lock lock(mutex_);
    --missing_;
    changed_.notify_all();
    return changed_.wait_for(lock, std::chrono::minutes(1), [this] { return missing_ <= 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int missing_;
};

TEST_CASE("batch runner: the stages overlap") {
  // The source of tile 2, the runtime of tile 1 and the sink of tile 0 wait until all three are at work.
  Meeting meeting(3);
  std::atomic<int> met{0};
  const BatchRunner runner(
      [&, batch = 0](auto tiles, auto shape, auto logits) mutable {
        if (batch++ == 1) {
          met += meeting.come() ? 1 : 0;
        }
        read_tiles(tiles, shape, logits);
      },
      classes, {.batch = 1});
  const auto source = [&, inner = numbered(4), tile = 0](std::span<std::uint8_t> pixels) mutable {
    if (tile++ == 2) {
      met += meeting.come() ? 1 : 0;
    }
    return inner(pixels);
  };
  const BatchRunnerStats stats = runner.run(height, width, source, [&](const TileResult& tile) {
    if (tile.index == 0) {
      met += meeting.come() ? 1 : 0;
    }
  });
  CHECK(met == 3);
  CHECK(stats.tiles == 4);
  CHECK(stats.seconds >= std::max({stats.prepare_seconds, stats.infer_seconds, stats.deliver_seconds}));
}

TEST_CASE("batch runner: the seconds of a slow stage are counted in that stage") {
  static constexpr int count = 20, pause = 4;  // tiles, milliseconds
  constexpr double slept = 1e-3 * count * pause;
  const auto slow = [](std::size_t stage) {
    const auto sleep = [stage](std::size_t own) {
      if (own == stage) {
        std::this_thread::sleep_for(milliseconds(pause));
      }
    };
    const BatchRunner runner(
        [=](auto tiles, auto shape, auto logits) {
          sleep(1);
          read_tiles(tiles, shape, logits);
        },
        classes, {.batch = 1});
    const BatchRunnerStats stats = runner.run(
        height, width,
        [=, inner = numbered(count)](std::span<std::uint8_t> tile) {
          sleep(0);
          return inner(tile);
        },
        [=](const TileResult&) { sleep(2); });
    return std::array{stats.prepare_seconds, stats.infer_seconds, stats.deliver_seconds};
  };
  for (std::size_t stage = 0; stage < 3; ++stage) {
    CAPTURE(stage);
    // On a busy machine another stage may take as long; not each time.
    bool alone = false;
    for (int round = 0; round < 20 && !alone; ++round) {
      const std::array seconds = slow(stage);
      CHECK(seconds[stage] >= slept);
      alone = std::ranges::count_if(seconds, [](double s) { return s >= slept / 2; }) == 1;
    }
    CHECK(alone);
  }
}

TEST_CASE("batch runner: exactly the documented number of tiles is in flight when the sink stands still") {
  for (const std::size_t batch : {1, 4}) {
    for (const std::size_t queued : {1, 3}) {
      const std::size_t bound = (2 * queued + 3) * batch;
      std::atomic<std::size_t> pulled{0};
      std::mutex lock;
      std::set<const std::uint8_t*> places;
      const BatchRunner runner(read_tiles, classes, {.batch = batch, .queued = queued});
      const auto source = [&, inner = numbered(20 * bound)](std::span<std::uint8_t> tile) {
        const std::lock_guard guard(lock);
        places.insert(tile.data());
        const bool more = inner(tile);
        pulled += more ? 1 : 0;
        return more;
      };
      std::size_t delivered = 0;
      runner.run(height, width, source, [&](const TileResult& tile) {
        if (tile.index == 0) {
          while (pulled < bound) {
            std::this_thread::sleep_for(milliseconds(1));
          }
          std::this_thread::sleep_for(milliseconds(20));
        }
        CHECK(pulled <= tile.index / batch * batch + bound);  // a batch counts until it is delivered whole
        CHECK((tile.index != 0 || pulled == bound));
        ++delivered;
      });
      CHECK(delivered == 20 * bound);
      CHECK(places.size() == bound);  // the same ones, over and over
    }
  }
}

TEST_CASE("batch runner: where tiles do not pile up, few buffers are touched") {
  constexpr std::size_t batch = 4;
  std::atomic<std::size_t> delivered{0};
  std::set<const std::uint8_t*> places;
  const auto source = [&, inner = numbered(40 * batch),
                       next = std::size_t{0}](std::span<std::uint8_t> tile) mutable {
    if (next % batch == 0) {
      while (delivered < next) {
        std::this_thread::yield();
      }
    }
    ++next;
    places.insert(tile.data());
    return inner(tile);
  };
  const BatchRunner runner(read_tiles, classes, {.batch = batch, .queued = 4});
  runner.run(height, width, source, [&](const TileResult&) { ++delivered; });
  CHECK(delivered == 40 * batch);
  CHECK(places.size() <= 2 * batch);
}

TEST_CASE("batch runner: one runner, several runs at the same time") {
  const BatchRunner runner(read_tiles, classes, {.batch = 3, .on_error = OnError::report});
  std::vector<Outcome> outcomes(4);
  {
    JoinedThreads threads;
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      threads.emplace_back(
          [&runner, &outcomes, i] { outcomes[i] = run(runner, numbered(200 + i, {i, 50 * i})); });
    }
  }
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    CHECK(outcomes[i].tiles.size() == 200 + i);
    CHECK(outcomes[i].right({i, 50 * i}));
  }
}

TEST_CASE("batch runner: a sink may run the same runner") {
  const BatchRunner runner(read_tiles, classes, {.batch = 2});
  std::size_t inner = 0;
  runner.run(height, width, numbered(5), [&](const TileResult& tile) {
    const Outcome outcome = run(runner, numbered(tile.index));
    CHECK(outcome.right());
    inner += outcome.tiles.size();
  });
  CHECK(inner == 0 + 1 + 2 + 3 + 4);
}

TEST_CASE("batch runner: misuse") {
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
  const auto make = [](std::size_t count, const BatchRunnerOptions& options) {
    return code_of([&] { BatchRunner(read_tiles, count, options); });
  };
  CHECK(make(0, {}) == ErrorCode::invalid_argument);
  CHECK(make(2, {.batch = 0}) == ErrorCode::invalid_argument);
  CHECK(make(2, {.queued = 0}) == ErrorCode::invalid_argument);
  CHECK(make(2, {.batch = huge}) == ErrorCode::size_overflow);
  CHECK(make(2, {.queued = huge}) == ErrorCode::size_overflow);
  CHECK(make(huge, {}) == ErrorCode::size_overflow);
  CHECK(code_of([] { BatchRunner({}, 2); }) == ErrorCode::invalid_argument);

  const BatchRunner runner(read_tiles, classes);
  const auto start = [&runner](std::size_t h, std::size_t w, const histo::TileSource& source,
                               const histo::TileSink& sink) {
    return code_of([&] { runner.run(h, w, source, sink); });
  };
  const auto sink = [](const TileResult&) {};
  CHECK(start(0, width, numbered(1), sink) == ErrorCode::invalid_argument);
  CHECK(start(height, 0, numbered(1), sink) == ErrorCode::invalid_argument);
  CHECK(start(height, width, {}, sink) == ErrorCode::invalid_argument);
  CHECK(start(height, width, numbered(1), {}) == ErrorCode::invalid_argument);
  CHECK(start(huge, huge, numbered(1), sink) == ErrorCode::size_overflow);
  CHECK(start(huge / 96, 1, numbered(1), sink) == ErrorCode::size_overflow);
}

#if !HISTO_ADDRESS_SANITIZER && !HISTO_THREAD_SANITIZER  // which end the process instead
TEST_CASE("batch runner: no room for the tiles in flight") {
  constexpr std::size_t too_large = std::size_t{1} << 56U;
  const auto sink = [](const TileResult&) {};
  CHECK(code_of([&] { BatchRunner(read_tiles, 1, {.batch = 1}).run(too_large, 1, numbered(1), sink); }) ==
        ErrorCode::out_of_memory);
  CHECK(code_of([&] { BatchRunner(read_tiles, 1, {.batch = too_large}).run(1, 1, numbered(1), sink); }) ==
        ErrorCode::out_of_memory);
  CHECK(code_of([&] {
          BatchRunner(read_tiles, 1, {.batch = 1, .queued = too_large}).run(1, 1, numbered(1), sink);
        }) == ErrorCode::out_of_memory);
}

#ifdef __GLIBC__
TEST_CASE("batch runner: the system gives one thread of the two") {
  if (under_emulation) {
    MESSAGE("not tested: the limit of address space would be that of the emulator");
    return;
  }
  const BatchRunner runner(read_tiles, classes, {.batch = 2, .queued = 1});
  const pid_t child = fork();  // since the limits that are set stay
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(60);  // a hang is a failure, too
    pthread_attr_t large;
    pthread_attr_init(&large);
    pthread_attr_setstacksize(&large, std::size_t{1} << 31U);  // of address space, not of memory
    pthread_setattr_default_np(&large);
    const rlimit room_for_one{3 * (std::size_t{1} << 30U), 3 * (std::size_t{1} << 30U)};
    setrlimit(RLIMIT_AS, &room_for_one);
    const Outcome outcome = run(runner, numbered(1000));
    _exit(outcome.code == ErrorCode::unsupported && outcome.tiles.empty() ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
#endif
#endif

}  // namespace
