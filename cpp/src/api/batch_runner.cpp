#include "histo/batch_runner.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "api/failure.h"
#include "checks.h"
#include "histo/error.h"
#include "platform/platform.h"

namespace histo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds progress_interval(100);

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Batch {
  std::size_t first = 0;  // index of its first tile
  std::size_t tiles = 0;  // lost ones included
  std::size_t valid = 0;  // not lost by the source; these lie in `pixels` and `logits` without gaps

  std::unique_ptr<std::uint8_t[]> pixels;    // (batch, height, width, 3)
  std::unique_ptr<float[]> logits;           // (batch, classes)
  std::vector<std::optional<Failure>> lost;  // (batch): set where the source lost the tile
  std::optional<Failure> not_run;            // set where the runtime failed: all valid tiles are lost

  double prepare_seconds = 0;
  double infer_seconds = 0;
};

// Batches on their way from one stage to the next. One thread pushes, one pops.
class Queue {
 public:
  explicit Queue(std::size_t capacity) : slots_(capacity) {}

  // Waits for room. False if the queue was closed, so that nobody will take the batch.
  bool push(Batch* batch) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return size_ < slots_.size() || state_ != State::open; });
    if (state_ != State::open) {
      return false;
    }
    slots_[(head_ + size_++) % slots_.size()] = batch;
    changed_.notify_one();
    return true;
  }

  // Waits for a batch; null at the end.
  Batch* pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return can_pop(); });
    return take();
  }

  // The same, up to a deadline: nullopt where no batch came in time.
  std::optional<Batch*> pop_until(Clock::time_point deadline) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [this] { return can_pop(); })) {
      return std::nullopt;
    }
    return take();
  }

  // The batches in the queue are still handed out; after them, pop() returns null.
  void finish() { end(State::finished); }

  // No more batches are handed out, and no call waits any longer.
  void close() { end(State::closed); }

 private:
  enum class State { open, finished, closed };

  [[nodiscard]] bool can_pop() const { return size_ > 0 || state_ != State::open; }

  Batch* take() {
    if (size_ == 0 || state_ == State::closed) {
      return nullptr;
    }
    Batch* const batch = slots_[head_];
    head_ = (head_ + 1) % slots_.size();
    --size_;
    changed_.notify_one();
    return batch;
  }

  void end(State state) {
    const std::lock_guard lock(mutex_);
    state_ = std::max(state_, state);
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Batch*> slots_;  // a ring
  std::size_t head_ = 0;
  std::size_t size_ = 0;
  State state_ = State::open;
};

// What one call of BatchRunner::run() computes, and the host's code that it calls for it.
struct Setup {
  std::size_t height, width, classes;
  BatchRunnerOptions options;
  bool over_engine;
};
struct Callbacks {
  const TileSource& source;
  const InferBatch& infer;
  const TileSink& sink;
  const Progress& progress;
};

// One call of BatchRunner::run(). Batches circulate: prepare() takes a free one, fills it and pushes it to
// infer(), which pushes it to deliver(), which frees it.
//
// A failure travels with its batch: it is reported after all earlier batches.
//
// The host's callbacks run in the host's floating-point environment, the rest in the library's.
class Loop {
 public:
  Loop(const Setup& setup, const Callbacks& callbacks, FloatEnvironment& environment)
      : setup_(setup),
        tile_size_(setup.height * setup.width * 3),
        callbacks_(callbacks),
        environment_(environment),
        prepared_(setup.options.queued),
        inferred_(setup.options.queued),
        // Two full queues and one batch in each of the three stages: prepare() always finds a free one.
        batches_(2 * setup.options.queued + 3) {
    for (Batch& batch : batches_) {
      // Not initialised, so that the system provides memory only for the batches that come into use.
      batch.pixels = std::make_unique_for_overwrite<std::uint8_t[]>(setup.options.batch * tile_size_);
      batch.logits = std::make_unique_for_overwrite<float[]>(setup.options.batch * setup.classes);
      batch.lost.resize(setup.options.batch);
      free_.push_back(&batch);
    }
  }

  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  ~Loop() {
    prepared_.close();
    inferred_.close();
    stopped_ = true;
    for (std::thread* const thread : {&preparing_, &inferring_}) {
      if (thread->joinable()) {
        thread->join();
      }
    }
  }

  BatchRunnerStats run() {
    try {
      start();
    } catch (const std::system_error& error) {
      throw Error(
          ErrorCode::unsupported,
          std::string("the batch loop needs two threads and cannot start them (") + error.what() + ")",
          "end other threads, or raise the limit (ulimit -u, pids.max)");
    }
    for (bool more = true; more;) {
      if (const std::optional<Batch*> batch = inferred_.pop_until(next_report_); !batch) {
        report();
      } else if (*batch == nullptr) {
        more = false;
      } else {
        deliver(**batch);
        report();
        const std::lock_guard lock(free_mutex_);
        free_.push_back(*batch);
      }
    }
    stats_.seconds = seconds_since(begin_);
    return stats_;
  }

 private:
  // Threads inherit the floating-point environment and the signal mask of the thread that starts them. The
  // source and a runtime of the host are its code, which may start processes: their threads keep its signals.
  void start() {
    const FloatEnvironment::Host inherited(environment_);
    preparing_ = std::thread([this] { prepare(); });
    std::optional<SignalsBlocked> in_thread;
    if (setup_.over_engine) {
      in_thread.emplace();
    }
    inferring_ = std::thread([this] { infer(); });
  }

  void prepare() {
    FloatEnvironment environment;
    std::size_t index = 0;
    bool more = true;
    while (more) {
      Batch& batch = free_batch();
      more = fill(batch, index, environment);
      index += batch.tiles;
      more = prepared_.push(&batch) && more;
    }
    prepared_.finish();
  }

  // The batch that was freed last: its memory may still be in the caches, and batches that are never needed
  // take no memory.
  Batch& free_batch() {
    const std::lock_guard lock(free_mutex_);
    Batch* const batch = free_.back();
    free_.pop_back();
    return *batch;
  }

  // False where this is the last batch.
  bool fill(Batch& batch, std::size_t first, FloatEnvironment& environment) {
    const Clock::time_point begin = Clock::now();
    batch.first = first;
    batch.tiles = 0;
    batch.valid = 0;
    bool more = true;
    while (more && batch.tiles < setup_.options.batch && !stopped_) {
      std::optional<Failure>& lost = batch.lost[batch.tiles];
      lost.reset();
      try {
        const FloatEnvironment::Host in_source(environment);
        if (!callbacks_.source({batch.pixels.get() + batch.valid * tile_size_, tile_size_})) {
          more = false;
          break;
        }
        ++batch.valid;
      } catch (...) {
        lost = current_failure();
        more = setup_.options.on_error == OnError::report;
      }
      ++batch.tiles;
    }
    batch.prepare_seconds = seconds_since(begin);
    return more;
  }

  void infer() {
    FloatEnvironment environment;
    bool more = true;
    while (more) {
      Batch* const batch = prepared_.pop();
      if (batch == nullptr) {
        break;
      }
      const Clock::time_point begin = Clock::now();
      batch->not_run.reset();
      if (batch->valid > 0) {
        try {
          const FloatEnvironment::Host in_runtime(environment);
          callbacks_.infer({batch->pixels.get(), batch->valid * tile_size_},
                           {.batch = batch->valid, .height = setup_.height, .width = setup_.width},
                           {batch->logits.get(), batch->valid * setup_.classes});
        } catch (...) {
          batch->not_run = current_failure();
          more = setup_.options.on_error == OnError::report;
        }
      }
      batch->infer_seconds = seconds_since(begin);
      more = inferred_.push(batch) && more;
    }
    prepared_.close();
    inferred_.finish();
  }

  void deliver(const Batch& batch) {
    stats_.batches += batch.valid > 0 ? 1 : 0;
    stats_.prepare_seconds += batch.prepare_seconds;
    stats_.infer_seconds += batch.infer_seconds;
    const float* logits = batch.logits.get();
    for (std::size_t i = 0; i < batch.tiles; ++i) {
      const std::optional<Failure>& lost = batch.lost[i] ? batch.lost[i] : batch.not_run;
      if (lost && setup_.options.on_error == OnError::stop) {
        throw Error(lost->code, name(batch, i) + ": " + lost->message, lost->remedy);
      }
      TileResult result{.index = batch.first + i, .logits = {}, .error = nullptr};
      std::string error;
      if (lost) {
        error = Error(lost->code, lost->message, lost->remedy).what();
        result.error = &error;
      } else {
        result.logits = {logits, setup_.classes};
        logits += setup_.classes;
      }
      const Clock::time_point begin = Clock::now();
      deliver(result);
      const Clock::time_point end = Clock::now();
      stats_.deliver_seconds += std::chrono::duration<double>(end - begin).count();
      ++stats_.tiles;
      stats_.failed += lost ? 1 : 0;
      if (end >= next_report_) {
        report();
      }
    }
  }

  void deliver(const TileResult& result) {
    const FloatEnvironment::Host in_sink(environment_);
    callbacks_.sink(result);
  }

  // The name of tile `i` in a message. Where the runtime failed, any tile of the batch may be the cause; all
  // of them come before a tile whose loss ends the loop.
  static std::string name(const Batch& batch, std::size_t i) {
    const std::string tile = std::to_string(batch.first + i);
    return batch.lost[i] || batch.valid == 1
               ? "tile " + tile
               : "tiles " + tile + " to " + std::to_string(batch.first + batch.valid - 1);
  }

  void report() {
    next_report_ = Clock::now() + progress_interval;
    stats_.seconds = seconds_since(begin_);
    if (!callbacks_.progress) {
      return;
    }
    bool goes_on = true;
    {
      const FloatEnvironment::Host in_progress(environment_);
      goes_on = callbacks_.progress(stats_);
    }
    if (!goes_on) {
      throw Error(ErrorCode::cancelled, "cancelled after " + std::to_string(stats_.tiles) + " tiles",
                  "start again for the rest");
    }
  }

  const Setup& setup_;
  const std::size_t tile_size_;
  const Callbacks& callbacks_;
  FloatEnvironment& environment_;  // of the thread that called run()

  const Clock::time_point begin_ = Clock::now();
  Clock::time_point next_report_ = begin_ + progress_interval;
  BatchRunnerStats stats_;

  Queue prepared_;
  Queue inferred_;
  std::vector<Batch> batches_;
  std::mutex free_mutex_;
  std::vector<Batch*> free_;

  // Not std::jthread, which the standard library of macOS does not have yet.
  std::atomic<bool> stopped_ = false;
  std::thread preparing_;
  std::thread inferring_;
};

InferBatch runtime_of(const std::shared_ptr<const Engine>& engine) {
  if (engine == nullptr) {
    throw Error(ErrorCode::invalid_argument, "engine is a null pointer", "give an engine");
  }
  return [engine](auto tiles, auto shape, auto logits) { engine->run(tiles, shape, logits); };
}

}  // namespace

BatchRunner::BatchRunner(InferBatch infer, std::size_t classes, const BatchRunnerOptions& options)
    : infer_(std::move(infer)), classes_(classes), options_(options) {
  if (!infer_) {
    throw Error(ErrorCode::invalid_argument, "infer is empty", "give a function that runs a batch");
  }
  checked_size("the logits of a batch",
               {{"batch", options.batch}, {"queued", options.queued}, {"classes", classes}});
}

BatchRunner::BatchRunner(const Engine& engine, const BatchRunnerOptions& options)
    : BatchRunner(std::make_shared<const Engine>(engine), options) {}

BatchRunner::BatchRunner(std::shared_ptr<const Engine> engine, const BatchRunnerOptions& options)
    : BatchRunner(runtime_of(engine), engine == nullptr ? 0 : engine->classes(), options) {
  over_engine_ = true;
}

BatchRunnerStats BatchRunner::run(std::size_t height, std::size_t width, const TileSource& source,
                                  const TileSink& sink, const Progress& progress) const {
  const CancellationDisabled until_the_end;
  FloatEnvironment environment;
  if (!source) {
    throw Error(ErrorCode::invalid_argument, "source is empty", "give a function that returns the tiles");
  }
  if (!sink) {
    throw Error(ErrorCode::invalid_argument, "sink is empty", "give a function that takes the logits");
  }
  // 2 * queued + 3 batches are at most five times `queued`.
  const std::size_t bytes = checked_size("the tiles of the batch loop", {{"height", height},
                                                                         {"width", width},
                                                                         {"channels", 3},
                                                                         {"batch", options_.batch},
                                                                         {"queued", options_.queued},
                                                                         {"batches", 5}});
  checked_size("the logits of the batch loop", {{"classes", classes_},
                                                {"bytes", sizeof(float)},
                                                {"batch", options_.batch},
                                                {"queued", options_.queued},
                                                {"batches", 5}});
  const Setup setup{.height = height,
                    .width = width,
                    .classes = classes_,
                    .options = options_,
                    .over_engine = over_engine_};
  const Callbacks callbacks{.source = source, .infer = infer_, .sink = sink, .progress = progress};
  std::unique_ptr<Loop> loop;
  try {
    loop = std::make_unique<Loop>(setup, callbacks, environment);
  } catch (const std::exception&) {  // bad_alloc, or length_error where even the address space is too small
    throw Error(ErrorCode::out_of_memory,
                "there is not enough memory for the " + std::to_string(bytes >> 20U) +
                    " MiB of tiles of the batch loop",
                "make batch or queued smaller");
  }
  return loop->run();
}

}  // namespace histo
