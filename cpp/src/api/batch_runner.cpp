#include "histo/batch_runner.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "checks.h"
#include "histo/error.h"

namespace histo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds progress_interval(100);

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// What a callback threw, as text: the exception itself may be one that only its own thread can handle.
struct Failure {
  ErrorCode code;
  std::string message;
};

Failure failure(ErrorCode code, const char* message) noexcept {
  try {
    return {code, message};
  } catch (...) {
    return {ErrorCode::out_of_memory, "out of memory"};  // short enough to be kept in the string itself
  }
}

// Of the exception being handled.
Failure current_failure() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return failure(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return failure(ErrorCode::out_of_memory, "there is not enough memory");
  } catch (const std::exception& error) {
    return failure(ErrorCode::failed, error.what());
  } catch (...) {
    return failure(ErrorCode::failed, "something was thrown that is no std::exception");
  }
}

struct Batch {
  std::size_t first = 0;  // index of its first tile
  std::size_t tiles = 0;  // lost ones included
  std::size_t whole = 0;  // not lost by the source; these lie in `pixels` and `logits` without gaps

  std::unique_ptr<std::uint8_t[]> pixels;    // (batch, height, width, 3)
  std::unique_ptr<float[]> logits;           // (batch, classes)
  std::vector<std::optional<Failure>> lost;  // (batch): by the source
  std::optional<Failure> not_run;            // all that the source had not lost

  double prepare_seconds = 0;
  double infer_seconds = 0;
};

// Batches on their way from one stage to the next. One thread pushes, one pops.
class Queue {
 public:
  explicit Queue(std::size_t capacity) : slots_(capacity) {}

  // Waits for room. False if the queue was closed, where nobody will take the batch.
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

  // The same; nothing if there is none by then.
  std::optional<Batch*> pop_until(Clock::time_point deadline) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [this] { return can_pop(); })) {
      return std::nullopt;
    }
    return take();
  }

  // What is in the queue is still handed out, and then the end.
  void finish() { end(State::finished); }

  // Nothing is handed out any more, and nobody waits.
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

// One call of BatchRunner::run(). Batches go round: prepare() takes a free one, fills it and pushes it to
// infer(), that to deliver(), and that frees it.
//
// A failure travels with its batch and becomes known to the caller when all tiles before it are delivered,
// so that none is lost for being quick to fail.
class Loop {
 public:
  Loop(std::size_t height, std::size_t width, const TileSource& source, const InferBatch& infer,
       std::size_t classes, const TileSink& sink, const Progress& progress, const BatchRunnerOptions& options)
      : height_(height),
        width_(width),
        classes_(classes),
        tile_size_(height * width * 3),
        options_(options),
        source_(source),
        infer_(infer),
        sink_(sink),
        progress_(progress),
        prepared_(options.queued),
        inferred_(options.queued),
        // Full queues, and one batch in each stage: there is always a free one for prepare().
        batches_(2 * options.queued + 3) {
    for (Batch& batch : batches_) {
      // Not initialised, so the system gives pages only to those that come into use.
      batch.pixels = std::make_unique_for_overwrite<std::uint8_t[]>(options.batch * tile_size_);
      batch.logits = std::make_unique_for_overwrite<float[]>(options.batch * classes);
      batch.lost.resize(options.batch);
      free_.push_back(&batch);
    }
  }

  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  ~Loop() {
    prepared_.close();
    inferred_.close();
    preparing_.request_stop();  // and now the threads are joined
  }

  BatchRunnerStats run() {
    try {
      preparing_ = std::jthread([this](const std::stop_token& stop) { prepare(stop); });
      inferring_ = std::jthread([this] { infer(); });
    } catch (const std::system_error& error) {
      throw Error(ErrorCode::unsupported,
                  std::string("the batch loop needs two threads and cannot start them (") + error.what() +
                      "); end others, or raise the limit (ulimit -u, pids.max)");
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
  void prepare(const std::stop_token& stop) {
    std::size_t index = 0;
    bool more = true;
    while (more) {
      Batch& batch = free_batch();
      more = fill(batch, index, stop);
      index += batch.tiles;
      more = prepared_.push(&batch) && more;
    }
    prepared_.finish();
  }

  // Used last, used next: what is still in the caches, and no more memory than the slowest stage asks for.
  Batch& free_batch() {
    const std::lock_guard lock(free_mutex_);
    Batch* const batch = free_.back();
    free_.pop_back();
    return *batch;
  }

  // False where no tile comes after this batch.
  bool fill(Batch& batch, std::size_t first, const std::stop_token& stop) {
    const Clock::time_point begin = Clock::now();
    batch.first = first;
    batch.tiles = 0;
    batch.whole = 0;
    bool more = true;
    while (more && batch.tiles < options_.batch && !stop.stop_requested()) {
      std::optional<Failure>& lost = batch.lost[batch.tiles];
      lost.reset();
      try {
        if (!source_({batch.pixels.get() + batch.whole * tile_size_, tile_size_})) {
          more = false;
          break;
        }
        ++batch.whole;
      } catch (...) {
        lost = current_failure();
        more = options_.on_error == OnError::report;
      }
      ++batch.tiles;
    }
    batch.prepare_seconds = seconds_since(begin);
    return more;
  }

  void infer() {
    bool more = true;
    while (more) {
      Batch* const batch = prepared_.pop();
      if (batch == nullptr) {
        break;
      }
      const Clock::time_point begin = Clock::now();
      batch->not_run.reset();
      if (batch->whole > 0) {
        try {
          infer_({batch->pixels.get(), batch->whole * tile_size_},
                 {.batch = batch->whole, .height = height_, .width = width_},
                 {batch->logits.get(), batch->whole * classes_});
        } catch (...) {
          batch->not_run = current_failure();
          more = options_.on_error == OnError::report;
        }
      }
      batch->infer_seconds = seconds_since(begin);
      more = inferred_.push(batch) && more;
    }
    prepared_.close();
    inferred_.finish();
  }

  void deliver(const Batch& batch) {
    stats_.batches += batch.whole > 0 ? 1 : 0;
    stats_.prepare_seconds += batch.prepare_seconds;
    stats_.infer_seconds += batch.infer_seconds;
    const float* logits = batch.logits.get();
    for (std::size_t i = 0; i < batch.tiles; ++i) {
      const std::optional<Failure>& lost = batch.lost[i] ? batch.lost[i] : batch.not_run;
      if (lost && options_.on_error == OnError::stop) {
        throw Error(lost->code, name(batch, i) + ": " + lost->message);
      }
      TileResult result{.index = batch.first + i, .logits = {}, .error = nullptr};
      if (lost) {
        result.error = &lost->message;
      } else {
        result.logits = {logits, classes_};
        logits += classes_;
      }
      const Clock::time_point begin = Clock::now();
      sink_(result);
      const Clock::time_point end = Clock::now();
      stats_.deliver_seconds += std::chrono::duration<double>(end - begin).count();
      ++stats_.tiles;
      stats_.failed += lost ? 1 : 0;
      if (end >= next_report_) {
        report();
      }
    }
  }

  // Of a tile in a message. Where the batch was not run any of its tiles may be the cause; they all come
  // before the one that the source lost, if that ends the loop.
  static std::string name(const Batch& batch, std::size_t i) {
    const std::string tile = std::to_string(batch.first + i);
    return batch.lost[i] || batch.whole == 1
               ? "tile " + tile
               : "tiles " + tile + " to " + std::to_string(batch.first + batch.whole - 1);
  }

  void report() {
    next_report_ = Clock::now() + progress_interval;
    stats_.seconds = seconds_since(begin_);
    if (progress_ && !progress_(stats_)) {
      throw Error(ErrorCode::cancelled, "cancelled after " + std::to_string(stats_.tiles) + " tiles");
    }
  }

  const std::size_t height_;
  const std::size_t width_;
  const std::size_t classes_;
  const std::size_t tile_size_;
  const BatchRunnerOptions& options_;
  const TileSource& source_;
  const InferBatch& infer_;
  const TileSink& sink_;
  const Progress& progress_;

  const Clock::time_point begin_ = Clock::now();
  Clock::time_point next_report_ = begin_ + progress_interval;
  BatchRunnerStats stats_;

  Queue prepared_;
  Queue inferred_;
  std::vector<Batch> batches_;
  std::mutex free_mutex_;
  std::vector<Batch*> free_;

  std::jthread preparing_;
  std::jthread inferring_;
};

}  // namespace

BatchRunner::BatchRunner(InferBatch infer, std::size_t classes, const BatchRunnerOptions& options)
    : infer_(std::move(infer)), classes_(classes), options_(options) {
  if (!infer_) {
    throw Error(ErrorCode::invalid_argument, "infer is empty; it must run a batch");
  }
  checked_size("the logits of a batch",
               {{"batch", options.batch}, {"queued", options.queued}, {"classes", classes}});
}

BatchRunner::BatchRunner(const Engine& engine, const BatchRunnerOptions& options)
    : BatchRunner([own = std::make_shared<const Engine>(engine)](
                      auto tiles, auto shape, auto logits) { own->run(tiles, shape, logits); },
                  engine.classes(), options) {}

BatchRunnerStats BatchRunner::run(std::size_t height, std::size_t width, const TileSource& source,
                                  const TileSink& sink, const Progress& progress) const {
  if (!source) {
    throw Error(ErrorCode::invalid_argument, "source is empty; it must give the tiles");
  }
  if (!sink) {
    throw Error(ErrorCode::invalid_argument, "sink is empty; it must take the logits");
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
  std::unique_ptr<Loop> loop;
  try {
    loop = std::make_unique<Loop>(height, width, source, infer_, classes_, sink, progress, options_);
  } catch (const std::exception&) {  // bad_alloc, or length_error where even the address space is too small
    throw Error(ErrorCode::out_of_memory,
                "there is no memory for the " + std::to_string(bytes >> 20U) +
                    " MiB of tiles of the batch loop; make batch or queued smaller");
  }
  return loop->run();
}

}  // namespace histo
