/// \file
/// The batch inference loop: takes tiles and delivers logits in the same order. Preparing, inference and
/// delivery overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "histo/api.h"
#include "histo/engine.h"
#include "histo/names.h"

namespace histo {

struct BatchRunnerOptions {
  std::size_t batch = 32;  ///< tiles per call of the runtime; the last batch may be smaller
  std::size_t queued = 2;  ///< batches that may wait between two stages; bounds the memory
  OnError on_error = OnError::stop;
};

/// Fills `tile`, uint8 RGB `(height, width, 3)` with undefined contents, with the next tile and returns true,
/// or returns false at the end. An exception means that this tile is lost: see OnError. Under OnError::report
/// the source is called again after an exception, so a source that always throws would never end. Called from
/// one thread of the loop, in order.
using TileSource = std::function<bool(std::span<std::uint8_t> tile)>;

/// Runs a batch: uint8 RGB `(batch, height, width, 3)` to float32 logits `(batch, classes)`. It must write
/// all logits. Tiles that the source lost are not in the batch. Called from another thread of the loop, in
/// order. An exception loses every tile of the batch: see OnError.
using InferBatch =
    std::function<void(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits)>;

/// The result for tile `index`, counted from 0 in the order of the source.
struct TileResult {
  std::size_t index;
  std::span<const float> logits;  ///< float32 `(classes)`, valid during the call; empty where the tile failed
  const std::string* error;       ///< valid during the call; null where the tile did not fail
};

/// Receives the results, in order, in the thread that called run(). An exception ends the loop, and run()
/// throws it again.
using TileSink = std::function<void(const TileResult& result)>;

/// The progress of the loop, or its totals.
struct BatchRunnerStats {
  std::size_t tiles = 0;       ///< delivered, including the failed ones
  std::size_t failed = 0;      ///< delivered with an error
  std::size_t batches = 0;     ///< that the runtime ran for these tiles
  double seconds = 0;          ///< since run() was called
  double prepare_seconds = 0;  ///< in the source, for the batches delivered so far
  double infer_seconds = 0;    ///< in the runtime, for the batches delivered so far
  double deliver_seconds = 0;  ///< in the sink. The three stages overlap: their sum may exceed `seconds`

  [[nodiscard]] double tiles_per_second() const noexcept {
    return seconds > 0 ? static_cast<double>(tiles) / seconds : 0;
  }
};

/// Called in the thread that called run(): after each delivered batch, and at least every 100 ms unless one
/// call of the sink takes longer. Returning false cancels.
using Progress = std::function<bool(const BatchRunnerStats& stats)>;

/// Runs any number of tiles through a runtime: the native engine, TorchScript, or any other.
///
/// The source, the runtime and the sink work at the same time, each in its own thread (the sink in the
/// caller's), so data that two of them share must be protected. The threads end before run() returns.
///
/// Memory is bounded by `(2 * queued + 3) * batch` tiles and their logits, however many tiles the source has.
/// The addresses are reserved before the first tile; the system provides memory for the batches that are
/// used.
///
/// When `progress` cancels or the sink throws, no stage waits for another any longer, no more tiles are
/// delivered, and run() returns as soon as the running calls of the source and the runtime have returned. It
/// cannot interrupt these: a source that may block for long should watch for the same signal as `progress`.
///
/// The thread of an engine has signals blocked, so that the host's handlers do not run there. The threads of
/// the source and of any other runtime have the signal mask of the caller, which processes that they start
/// inherit. Callbacks run in the floating-point environment of the caller, as far as the system's new threads
/// inherit it. pthread_cancel() of the thread that called run() takes effect when run() has returned.
///
/// Several threads may call run() at the same time; `infer` is then called by several threads, too.
///
/// \code
/// histo::BatchRunner runner(engine, {.batch = 32});
/// runner.run(150, 150, next_tile,
///            [&](const histo::TileResult& tile) { save(tile.index, tile.logits); });
/// \endcode
class HISTO_API BatchRunner {
 public:
  /// \param classes  logits per tile
  /// \throws Error   invalid_argument where `batch`, `queued` or `classes` is 0 or `infer` is empty,
  ///                 size_overflow where the size of a batch's logits overflows
  BatchRunner(InferBatch infer, std::size_t classes, const BatchRunnerOptions& options = {});

  /// The same over a copy of `engine`, which shares its weights; copies of the runner share that copy.
  explicit BatchRunner(const Engine& engine, const BatchRunnerOptions& options = {});

  /// The same over `engine` itself: runs of it elsewhere and those of the runner wait for each other.
  explicit BatchRunner(std::shared_ptr<const Engine> engine, const BatchRunnerOptions& options = {});

  // Without moves: a copy costs little, and no object is ever left without its runtime.
  BatchRunner(const BatchRunner& other) = default;
  BatchRunner& operator=(const BatchRunner& other) = default;
  ~BatchRunner() = default;

  /// Runs until the source ends, and returns when every result has been delivered.
  ///
  /// \param height, width  of the tiles, in pixels
  /// \throws Error  invalid_argument for a zero height or width or an empty callback; size_overflow where the
  ///                size of the tiles in memory overflows; out_of_memory where there is not enough memory for
  ///                them; unsupported where the system cannot start two threads; cancelled where `progress`
  ///                returned false; and under OnError::stop the error of the first lost tile, its index
  ///                before the message: a histo::Error keeps its code and remedy, std::bad_alloc becomes
  ///                out_of_memory, any other exception becomes `failed`.
  /// An exception of the sink or of `progress` is thrown unchanged. All threads have ended by then.
  BatchRunnerStats run(std::size_t height, std::size_t width, const TileSource& source, const TileSink& sink,
                       const Progress& progress = {}) const;

 private:
  InferBatch infer_;
  std::size_t classes_;
  BatchRunnerOptions options_;
  bool over_engine_ = false;
};

}  // namespace histo
