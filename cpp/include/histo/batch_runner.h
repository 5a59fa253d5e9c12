/// \file
/// The batch inference loop: tiles in, logits out in order, with preparing, inference and delivery
/// overlapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

/// Fills `tile`, uint8 RGB `(height, width, 3)` and holding anything before, with the next tile and returns
/// true, or returns false at the end. Throwing means that this tile is lost: see OnError; a source that can
/// give no more must not throw for ever. Called from one thread of the loop, in order.
using TileSource = std::function<bool(std::span<std::uint8_t> tile)>;

/// Runs a batch: uint8 RGB `(batch, height, width, 3)` to float32 logits `(batch, classes)`, all of which it
/// writes. Tiles that the source lost are not in the batch. Called from another thread of the loop, in order.
/// Throwing loses the whole batch: see OnError.
using InferBatch =
    std::function<void(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits)>;

/// What becomes of tile `index` (counted from 0 in the order of the source).
struct TileResult {
  std::size_t index;
  std::span<const float> logits;  ///< float32 `(classes)`, valid during the call; empty where the tile failed
  const std::string* error;       ///< null where the tile did not fail
};

/// Takes the results, in order, in the thread that called run(). Throwing ends the loop; run() rethrows.
using TileSink = std::function<void(const TileResult& result)>;

/// Where the loop stands, or what it did.
struct BatchRunnerStats {
  std::size_t tiles = 0;       ///< delivered, failed ones included
  std::size_t failed = 0;      ///< of these
  std::size_t batches = 0;     ///< given to the runtime for these tiles
  double seconds = 0;          ///< since run() was called
  double prepare_seconds = 0;  ///< spent in the source; the stages overlap, so the three may exceed `seconds`
  double infer_seconds = 0;    ///< spent in the runtime; like the above, counted as a batch is delivered
  double deliver_seconds = 0;  ///< spent in the sink

  [[nodiscard]] double tiles_per_second() const noexcept {
    return seconds > 0 ? static_cast<double>(tiles) / seconds : 0;
  }
};

/// Called in the thread that called run(): after each delivered batch, at least every 100 ms unless the sink
/// takes longer over one tile, and at the end. Returning false cancels.
using Progress = std::function<bool(const BatchRunnerStats& stats)>;

/// Runs any number of tiles through a runtime: the native engine, TorchScript, or any other.
///
/// The source, the runtime and the sink work at the same time, each in its own thread (the sink in the
/// caller's), so whatever two of them share must be guarded. Nothing of the loop outlives run().
///
/// Memory is bounded by `(2 * queued + 3) * batch` tiles and their logits, however many there are; it is
/// allocated before the first tile, and touched only as far as the slowest stage lets tiles pile up.
///
/// Cancelling, or throwing from the sink, takes effect at once: no stage waits for another any more, nothing
/// is delivered any more, and run() returns as soon as the calls of the source and the runtime that are under
/// way have returned. These it cannot interrupt: a source that may block for long should watch for the same
/// signal as `progress`.
///
/// run() may be called by several threads at the same time; `infer` then is, too.
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
  ///                 size_overflow where the logits of a batch have no size
  BatchRunner(InferBatch infer, std::size_t classes, const BatchRunnerOptions& options = {});

  /// The same over a copy of `engine`, which shares its weights; copies of the runner share that copy.
  explicit BatchRunner(const Engine& engine, const BatchRunnerOptions& options = {});

  /// Runs until the source ends, and returns when every result has been delivered.
  ///
  /// \param height, width  of the tiles, in pixels
  /// \throws Error  invalid_argument for a zero extent or an empty callback; size_overflow where the tiles in
  ///                flight have no size; out_of_memory where there is no room for them; unsupported where the
  ///                system does not give two threads; cancelled where `progress` returned false; and under
  ///                OnError::stop the first lost tile's error with its index before its message: a
  ///                histo::Error keeps its code, std::bad_alloc is out_of_memory, anything else is `failed`.
  /// Whatever the sink or `progress` throws comes through as it is. All threads have ended by then.
  BatchRunnerStats run(std::size_t height, std::size_t width, const TileSource& source, const TileSink& sink,
                       const Progress& progress = {}) const;

 private:
  InferBatch infer_;
  std::size_t classes_;
  BatchRunnerOptions options_;
};

}  // namespace histo
