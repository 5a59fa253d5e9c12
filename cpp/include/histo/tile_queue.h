/// \file
/// A queue before an engine: many threads submit single tiles, which run in batches.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "histo/api.h"
#include "histo/batch_runner.h"
#include "histo/engine.h"
#include "histo/error.h"

namespace histo {

struct TileQueueOptions {
  std::size_t max_batch = 32;  ///< tiles per run of the engine, at most

  /// How long the oldest tile may wait for a full batch, at most an hour. 0: the engine never rests while a
  /// tile waits; tiles that arrive during a run make the next batch.
  std::chrono::microseconds max_wait{0};

  /// Tiles that may wait, besides the batch that runs. Memory is bounded by (capacity + max_batch) crops of
  /// crop x crop x 3 bytes; the system provides it for those that are used.
  std::size_t capacity = 1024;
};

/// The answer to a submission; valid during the call.
struct TileAnswer {
  std::uint64_t id;
  std::span<const float> logits;  ///< float32 `(classes)`; empty where the tile failed
  const Error* error;             ///< null where the tile did not fail
};

/// Receives an answer: in the thread of the queue, or where a submission is cancelled, in the thread that
/// cancels, before cancel() returns. It may call the queue, but drain() throws, and submit() does not wait.
/// The next batch begins when it has returned. An exception that leaves it is dropped, and logged.
using TileCallback = std::function<void(const TileAnswer& answer)>;

/// A tile that was submitted for a future.
struct Submission {
  std::uint64_t id;                        ///< for TileQueue::cancel()
  std::future<std::vector<float>> logits;  ///< float32 `(classes)`; get() throws the Error of a failure
};

/// What a queue has done so far, in this process.
struct TileQueueStats {
  std::uint64_t submitted = 0;
  std::uint64_t answered = 0;   ///< those below included
  std::uint64_t failed = 0;     ///< answered with an error other than by a cancellation
  std::uint64_t cancelled = 0;  ///< answered with ErrorCode::cancelled
  std::uint64_t batches = 0;    ///< that the engine ran
  std::size_t waiting = 0;      ///< tiles that wait for a batch
};

/// Tiles of any number of threads, run in batches by a thread of the queue, in the order of submission. Each
/// submission gets exactly one answer, with the logits that Engine::run() gives to the bit: a future, or the
/// call of a callback.
///
/// **Tiles are copied** when they are submitted, and only their crop (48 KiB for 128 pixels): the caller's
/// buffer is free when the call returns, whatever becomes of the submission, and tiles of different sizes
/// share a batch. The tiles of a batch lie in one piece of memory, so pixels would be copied in any case.
///
/// An error of a run reaches every submission of its batch, and no other.
///
/// The destructor cancels: what waits is answered with ErrorCode::cancelled, a run ends before its next
/// layer, and all callbacks have returned when it returns (but where one of them calls it, its own). Call
/// drain() before for the answers. A thread that waits in submit() gets an Error (cancelled) then.
///
/// The thread is started by the first submission and, over an engine, has signals blocked, in callbacks too:
/// a process that is started there inherits that mask. Callbacks run in the floating-point environment that
/// the thread of the first submission had. In a forked child a queue begins empty, with a thread of its own:
/// the tiles of the parent are answered in the parent alone; a child that is forked in a callback must not
/// return from it. A callback may call cancel() and cancel_all(), but each answer of these comes from within
/// the call: a callback that calls cancel_all() again for each of them needs stack for all that wait.
/// pthread_cancel() takes effect when a call has
/// returned.
///
/// \code
/// histo::TileQueue queue(engine, {.max_batch = 32, .max_wait = std::chrono::milliseconds(2)});
/// histo::Submission tile = queue.submit(rgb_bytes, 150, 150);          // any number of threads
/// const std::vector<float> logits = tile.logits.get();
/// \endcode
class HISTO_API TileQueue {
 public:
  /// Over a copy of `engine`, which shares its weights.
  /// \throws Error  invalid_argument where `max_batch` or `capacity` is 0, or `max_wait` is negative or more
  ///                than an hour; size_overflow; out_of_memory
  explicit TileQueue(const Engine& engine, const TileQueueOptions& options = {});

  /// Over `engine` itself: runs of it elsewhere and those of the queue wait for each other.
  explicit TileQueue(std::shared_ptr<const Engine> engine, const TileQueueOptions& options = {});

  /// Over any other runtime, as BatchRunner takes one. It gets the centre crop of each tile, runs in a thread
  /// with the signal mask of the first submission, and is not interrupted where its tiles are cancelled.
  /// \param classes  logits per tile
  /// \param crop     pixels along a side of the crop
  TileQueue(InferBatch infer, std::size_t classes, std::size_t crop, const TileQueueOptions& options = {});

  TileQueue(const TileQueue&) = delete;
  TileQueue& operator=(const TileQueue&) = delete;
  ~TileQueue();

  /// Waits until there is room.
  /// \param tile    uint8 RGB `(height, width, 3)`, as Engine::run() takes it
  /// \throws Error  as Engine::run() for the tile; unsupported where the thread cannot be started; busy where
  ///                the queue is full and the call comes from a callback, which would wait for itself;
  ///                cancelled where the queue is destroyed meanwhile; out_of_memory. Nothing is submitted
  ///                then
  [[nodiscard]] Submission submit(std::span<const std::uint8_t> tile, std::size_t height, std::size_t width);

  /// The same for a callback. Returns the submission's id, which its answer has, too. The answer may come
  /// before this returns.
  /// \throws Error  also invalid_argument where `callback` is empty
  std::uint64_t submit(std::span<const std::uint8_t> tile, std::size_t height, std::size_t width,
                       TileCallback callback);

  /// The same, but nullopt where the queue is full.
  [[nodiscard]] std::optional<Submission> try_submit(std::span<const std::uint8_t> tile, std::size_t height,
                                                     std::size_t width);
  [[nodiscard]] std::optional<std::uint64_t> try_submit(std::span<const std::uint8_t> tile,
                                                        std::size_t height, std::size_t width,
                                                        TileCallback callback);

  /// Answers a submission with ErrorCode::cancelled, waiting or in the batch that runs, and returns true. The
  /// run itself ends early where all of its tiles are cancelled. False where the submission has an answer, or
  /// is about to get one, and for an id that there never was.
  bool cancel(std::uint64_t id);

  /// The same for all submissions up to now; how many were cancelled.
  std::size_t cancel_all();

  /// Waits until every submission has its answer and the callbacks have returned; meanwhile batches do not
  /// wait until they are full. Submissions of other threads that come meanwhile count, too.
  /// \throws Error  invalid_argument where it is called from a callback, which would wait for itself
  void drain();

  [[nodiscard]] TileQueueStats stats() const;

 private:
  struct HISTO_HIDDEN State;
  std::unique_ptr<State> state_;
};

}  // namespace histo
