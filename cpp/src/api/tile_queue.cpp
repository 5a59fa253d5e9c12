#include "histo/tile_queue.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "api/failure.h"
#include "api/log.h"
#include "checks.h"
#include "cpu/normaliser.h"
#include "histo/cancel_flag.h"
#include "platform/exclusive.h"
#include "platform/platform.h"

namespace histo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::hours longest_wait(1);

// What runs a batch, of tiles that are cropped already.
struct Runtime {
  std::function<void(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits,
                     const CancelFlag& cancel)>
      run;
  std::size_t classes, crop;
  bool is_engine;
};

struct Tile {
  std::span<const std::uint8_t> pixels;
  std::size_t height, width;
};

enum class WhenFull { wait, refuse };

struct Entry {
  std::uint64_t id;
  Clock::time_point arrived;
  std::uint8_t* pixels;   // its crop, in a slot of Line::slots_, until the batch has it
  TileCallback callback;  // empty when it was answered
};

// What a queue is in one process: the submissions that wait, and the thread that runs them.
//
// The lock is not held in callbacks, in the engine, and while pixels are copied.
class Line {
 public:
  Line(std::shared_ptr<const Runtime> runtime, const TileQueueOptions& options,
       std::shared_ptr<std::atomic<std::uint64_t>> last_id)
      : runtime_(std::move(runtime)),
        options_(options),
        last_id_(std::move(last_id)),
        crop_(runtime_->crop),
        tile_size_(crop_ * crop_ * 3),
        // Not initialised, so that the system provides memory only for what comes into use.
        slots_(std::make_unique_for_overwrite<std::uint8_t[]>(options.capacity * tile_size_)),
        batch_(std::make_unique_for_overwrite<std::uint8_t[]>(options.max_batch * tile_size_)),
        logits_(std::make_unique_for_overwrite<float[]>(options.max_batch * runtime_->classes)) {
    running_.reserve(options.max_batch);
    free_.reserve(options.capacity);
    for (std::size_t i = options.capacity; i-- > 0;) {
      free_.push_back(slots_.get() + i * tile_size_);
    }
  }
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;
  ~Line() = default;

  // `self` keeps this alive as long as the thread needs it. Nullopt where the queue is full.
  std::optional<std::uint64_t> add(const std::shared_ptr<Line>& self, const Tile& tile, TileCallback callback,
                                   WhenFull when_full);
  bool cancel(std::uint64_t id);
  std::size_t cancel_all();
  void drain();
  void end();
  [[nodiscard]] TileQueueStats stats();

 private:
  enum class Outcome { answered, failed, cancelled };

  std::uint8_t* take_slot(std::unique_lock<std::mutex>& lock, WhenFull when_full);
  void give_back(std::uint8_t* slot);
  void copy_crop(const Tile& tile, std::uint8_t* to) const;
  void start_thread(const std::shared_ptr<Line>& self);

  void work();
  bool wait_for_batch(std::unique_lock<std::mutex>& lock);
  void take_batch(std::unique_lock<std::mutex>& lock);
  std::shared_ptr<const Error> run_batch(FloatEnvironment& environment) noexcept;
  void answer_batch(std::unique_lock<std::mutex>& lock, const Error* error, FloatEnvironment& environment);

  TileCallback take_one(std::uint64_t id);
  void answer_cancelled(std::uint64_t id, TileCallback callback) noexcept;
  void answer(TileCallback callback, const TileAnswer& given) noexcept;
  void count(Outcome outcome, std::size_t answers);

  [[nodiscard]] std::size_t full_batch() const { return std::min(options_.max_batch, options_.capacity); }

  // The callbacks that this thread is in, from the innermost one: one queue's may call another queue.
  struct Callbacks {
    const Line* line;
    const Callbacks* outer;
  };
  static thread_local const Callbacks* callbacks;
  [[nodiscard]] bool in_callback() const;

  const std::shared_ptr<const Runtime> runtime_;
  const TileQueueOptions options_;
  const std::shared_ptr<std::atomic<std::uint64_t>> last_id_;
  const std::size_t crop_, tile_size_;
  const std::unique_ptr<std::uint8_t[]> slots_;  // (capacity, crop, crop, 3)
  const std::unique_ptr<std::uint8_t[]> batch_;  // (max_batch, crop, crop, 3)
  const std::unique_ptr<float[]> logits_;        // (max_batch, classes)

  // Made in time, for when there is no memory for an error.
  const std::shared_ptr<const Error> out_of_memory_ = std::make_shared<const Error>(
      ErrorCode::out_of_memory, "there is not enough memory for the batch", "use a smaller max_batch");
  const Error cancelled_{ErrorCode::cancelled, "the submission was cancelled", "submit the tile again"};

  std::mutex mutex_;
  std::condition_variable changed_;  // for the thread of the queue
  std::condition_variable room_;     // for those who submit
  std::condition_variable drained_;  // for drain()
  std::vector<std::uint8_t*> free_;  // slots; the last was used last, and may still be in the caches
  std::deque<Entry> waiting_;        // by their ids
  std::vector<Entry> running_;       // the batch, by their ids
  std::size_t wanted_ = 0;           // of running_, not yet cancelled
  CancelFlag stop_run_;              // none of running_ is wanted
  std::size_t draining_ = 0;         // threads in drain()
  std::uint64_t unanswered_ = 0;     // submissions whose callback has not returned
  TileQueueStats stats_;
  bool ended_ = false;
  std::thread thread_;
};

thread_local const Line::Callbacks* Line::callbacks = nullptr;

bool Line::in_callback() const {
  for (const Callbacks* one = callbacks; one != nullptr; one = one->outer) {
    if (one->line == this) {
      return true;
    }
  }
  return false;
}

// --- submitting --------------------------------------------------------------------------------------------

std::optional<std::uint64_t> Line::add(const std::shared_ptr<Line>& self, const Tile& tile,
                                       TileCallback callback, WhenFull when_full) {
  check_tiles(tile.pixels, {.batch = 1, .height = tile.height, .width = tile.width}, crop_);
  std::unique_lock lock(mutex_);
  std::uint8_t* const slot = take_slot(lock, when_full);
  if (slot == nullptr) {
    return std::nullopt;
  }
  try {
    start_thread(self);
    lock.unlock();
    copy_crop(tile, slot);
    lock.lock();
    if (ended_) {
      throw cancelled_;
    }
    waiting_.push_back({.id = *last_id_ + 1, .arrived = Clock::now(), .pixels = slot, .callback = {}});
  } catch (...) {
    if (!lock.owns_lock()) {
      lock.lock();
    }
    give_back(slot);
    throw;
  }
  waiting_.back().callback = std::move(callback);
  const std::uint64_t id = ++*last_id_;
  ++unanswered_;
  ++stats_.submitted;
  const bool notify = waiting_.size() == 1 || waiting_.size() == full_batch();
  lock.unlock();
  if (notify) {
    changed_.notify_one();
  }
  return id;
}

// Null where there is none and the caller does not wait.
std::uint8_t* Line::take_slot(std::unique_lock<std::mutex>& lock, WhenFull when_full) {
  if (free_.empty() && when_full == WhenFull::refuse) {
    return nullptr;
  }
  if (free_.empty() && in_callback()) {
    throw Error(ErrorCode::busy, "the queue is full, and its callback cannot wait for it",
                "submit from another thread, or make capacity larger");
  }
  room_.wait(lock, [this] { return !free_.empty() || ended_; });
  if (ended_) {
    throw cancelled_;
  }
  std::uint8_t* const slot = free_.back();
  free_.pop_back();
  return slot;
}

void Line::give_back(std::uint8_t* slot) {
  free_.push_back(slot);
  room_.notify_one();
}

void Line::copy_crop(const Tile& tile, std::uint8_t* to) const {
  const std::size_t top = crop_offset(tile.height, crop_), left = crop_offset(tile.width, crop_);
  for (std::size_t y = 0; y < crop_; ++y) {
    std::copy_n(tile.pixels.data() + ((top + y) * tile.width + left) * 3, crop_ * 3, to + y * crop_ * 3);
  }
}

void Line::start_thread(const std::shared_ptr<Line>& self) {
  if (thread_.joinable()) {
    return;
  }
  try {
    std::optional<SignalsBlocked> in_thread;
    if (runtime_->is_engine) {
      in_thread.emplace();
    }
    thread_ = std::thread([self] { self->work(); });
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::unsupported,
                std::string("the queue needs a thread and cannot start it (") + error.what() + ")",
                "end other threads, or raise the limit (ulimit -u, pids.max)");
  }
}

// --- running -----------------------------------------------------------------------------------------------

void Line::work() {
  name_this_thread("histo-queue");
  FloatEnvironment environment;
  std::unique_lock lock(mutex_);
  while (wait_for_batch(lock)) {
    take_batch(lock);
    lock.unlock();
    const std::shared_ptr<const Error> error = run_batch(environment);
    if (error != nullptr && error->code() != ErrorCode::cancelled) {
      log(LogLevel::warning, [&] { return std::string("queue: a batch failed: ") + error->what(); });
    }
    lock.lock();
    answer_batch(lock, error.get(), environment);
  }
}

// False at the end.
bool Line::wait_for_batch(std::unique_lock<std::mutex>& lock) {
  for (;;) {
    changed_.wait(lock, [this] { return ended_ || !waiting_.empty(); });
    if (ended_ || waiting_.empty()) {  // at the end, what waits is cancelled
      return false;
    }
    const Clock::time_point latest = waiting_.front().arrived + options_.max_wait;
    if (draining_ > 0 || waiting_.size() >= full_batch() || Clock::now() >= latest) {
      return true;
    }
    changed_.wait_until(lock, latest);
  }
}

// From here on the submissions are in the batch, and their slots are free.
void Line::take_batch(std::unique_lock<std::mutex>& lock) {
  const std::size_t tiles = std::min(waiting_.size(), options_.max_batch);
  for (std::size_t i = 0; i < tiles; ++i) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  wanted_ = tiles;
  stop_run_.reset();
  lock.unlock();
  for (std::size_t i = 0; i < tiles; ++i) {
    std::copy_n(running_[i].pixels, tile_size_, batch_.get() + i * tile_size_);
  }
  lock.lock();
  for (const Entry& entry : running_) {
    free_.push_back(entry.pixels);
  }
  room_.notify_all();
}

// Null where it did not fail. The size of the batch does not change meanwhile.
std::shared_ptr<const Error> Line::run_batch(FloatEnvironment& environment) noexcept {
  const std::size_t tiles = running_.size();
  try {
    const FloatEnvironment::Host in_runtime(environment);
    runtime_->run({batch_.get(), tiles * tile_size_}, {.batch = tiles, .height = crop_, .width = crop_},
                  {logits_.get(), tiles * runtime_->classes}, stop_run_);
    return nullptr;
  } catch (...) {
    const Failure failed = current_failure();
    try {
      return std::make_shared<const Error>(failed.code, failed.message, failed.remedy);
    } catch (...) {
      return out_of_memory_;
    }
  }
}

void Line::answer_batch(std::unique_lock<std::mutex>& lock, const Error* error,
                        FloatEnvironment& environment) {
  ++stats_.batches;
  std::size_t answers = 0;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Entry& entry = running_[i];
    if (!entry.callback) {  // cancelled
      continue;
    }
    // Taken, so that cancel() does not find it any more.
    TileCallback callback = std::exchange(entry.callback, {});
    lock.unlock();
    {
      const FloatEnvironment::Host in_callback(environment);
      std::span<const float> logits;
      if (error == nullptr) {
        logits = {logits_.get() + i * runtime_->classes, runtime_->classes};
      }
      answer(std::move(callback), {.id = entry.id, .logits = logits, .error = error});
    }
    lock.lock();
    ++answers;
  }
  running_.clear();
  count(error == nullptr ? Outcome::answered : Outcome::failed, answers);
}

// --- cancelling --------------------------------------------------------------------------------------------

// The callback of a submission that is to be cancelled; empty where it has its answer. With the lock.
TileCallback Line::take_one(std::uint64_t id) {
  const auto waits = std::ranges::lower_bound(waiting_, id, {}, &Entry::id);
  if (waits != waiting_.end() && waits->id == id) {
    TileCallback callback = std::move(waits->callback);
    give_back(waits->pixels);
    waiting_.erase(waits);
    return callback;
  }
  const auto runs = std::ranges::lower_bound(running_, id, {}, &Entry::id);
  if (runs == running_.end() || runs->id != id || !runs->callback) {
    return {};
  }
  if (--wanted_ == 0) {
    stop_run_.cancel();
  }
  return std::exchange(runs->callback, {});
}

void Line::answer_cancelled(std::uint64_t id, TileCallback callback) noexcept {
  answer(std::move(callback), {.id = id, .logits = {}, .error = &cancelled_});
  const std::lock_guard lock(mutex_);
  count(Outcome::cancelled, 1);
}

bool Line::cancel(std::uint64_t id) {
  TileCallback callback;
  {
    const std::lock_guard lock(mutex_);
    callback = take_one(id);
  }
  if (!callback) {
    return false;
  }
  answer_cancelled(id, std::move(callback));
  return true;
}

// One at a time, because a list of them would need memory.
std::size_t Line::cancel_all() {
  const std::uint64_t last = *last_id_;
  for (std::size_t cancelled = 0;; ++cancelled) {
    std::uint64_t id = 0;
    TileCallback callback;
    {
      const std::lock_guard lock(mutex_);
      const auto runs =
          std::ranges::find_if(running_, [](const Entry& entry) { return bool(entry.callback); });
      if (runs != running_.end()) {
        id = runs->id;
      } else if (!waiting_.empty()) {
        id = waiting_.front().id;
      }
      if (id == 0 || id > last) {
        return cancelled;
      }
      callback = take_one(id);
    }
    answer_cancelled(id, std::move(callback));
  }
}

// --- answering ---------------------------------------------------------------------------------------------

// Without the lock, which the callback may need, and the destructors of what it has captured.
void Line::answer(TileCallback callback, const TileAnswer& given) noexcept {
  const Callbacks here{.line = this, .outer = callbacks};
  callbacks = &here;
  try {
    std::exchange(callback, {})(given);
  } catch (...) {
    const Failure failed = current_failure();
    log(LogLevel::warning, [&] {
      return "queue: the callback of submission " + std::to_string(given.id) + " threw: " + failed.message;
    });
  }
  callbacks = here.outer;
}

void Line::count(Outcome outcome, std::size_t answers) {
  stats_.answered += answers;
  stats_.failed += outcome == Outcome::failed ? answers : 0;
  stats_.cancelled += outcome == Outcome::cancelled ? answers : 0;
  unanswered_ -= answers;
  if (unanswered_ == 0) {
    drained_.notify_all();
  }
}

void Line::drain() {
  if (in_callback()) {
    throw Error(ErrorCode::invalid_argument, "drain() was called from a callback of the queue",
                "call it from another thread");
  }
  std::unique_lock lock(mutex_);
  ++draining_;
  changed_.notify_one();
  drained_.wait(lock, [this] { return unanswered_ == 0; });
  --draining_;
}

void Line::end() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  room_.notify_all();
  cancel_all();
  changed_.notify_one();
  if (!thread_.joinable()) {
    return;
  }
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();  // a callback destroys its queue; the thread ends when it has returned
  } else {
    thread_.join();
    if (!in_callback()) {  // another thread may be inside cancel(), which calls a callback
      std::unique_lock lock(mutex_);
      drained_.wait(lock, [this] { return unanswered_ == 0; });
    }
  }
}

TileQueueStats Line::stats() {
  const std::lock_guard lock(mutex_);
  TileQueueStats now = stats_;
  now.waiting = waiting_.size();
  return now;
}

// --- the public class --------------------------------------------------------------------------------------

// What fails for want of memory, as an Error.
template <typename Function>
auto with_memory(const Function& function) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::out_of_memory, "there is not enough memory for the queue",
                "make capacity or max_batch smaller");
  }
}

void check(const TileQueueOptions& options, const Runtime& runtime) {
  for (const Extent& tiles : {Extent{"max_batch", options.max_batch}, Extent{"capacity", options.capacity}}) {
    checked_size("the tiles of the queue",
                 {tiles, {"crop", runtime.crop}, {"crop", runtime.crop}, {"channels", 3}});
  }
  checked_size("the logits of the queue",
               {{"max_batch", options.max_batch}, {"classes", runtime.classes}, {"bytes", sizeof(float)}});
  if (options.max_wait < options.max_wait.zero() || options.max_wait > longest_wait) {
    throw Error(ErrorCode::invalid_argument,
                "max_wait is " + std::to_string(options.max_wait.count()) + " microseconds",
                "it must be between 0 and an hour");
  }
}

std::shared_ptr<const Runtime> runtime_of(std::shared_ptr<const Engine> engine) {
  if (engine == nullptr) {
    throw Error(ErrorCode::invalid_argument, "engine is a null pointer", "give an engine");
  }
  const std::size_t classes = engine->classes(), crop = engine->info().crop;
  return std::make_shared<const Runtime>(
      Runtime{.run = [engine = std::move(engine)](
                         auto tiles, TileShape shape, auto logits,
                         const CancelFlag& cancel) { engine->run(tiles, shape, logits, cancel); },
              .classes = classes,
              .crop = crop,
              .is_engine = true});
}

std::shared_ptr<const Runtime> runtime_of(InferBatch infer, std::size_t classes, std::size_t crop) {
  if (!infer) {
    throw Error(ErrorCode::invalid_argument, "infer is empty", "give a function that runs a batch");
  }
  return std::make_shared<const Runtime>(
      Runtime{.run = [infer = std::move(infer)](auto tiles, TileShape shape, auto logits,
                                                const CancelFlag&) { infer(tiles, shape, logits); },
              .classes = classes,
              .crop = crop,
              .is_engine = false});
}

// Of a future: the promise, and memory for its value, which is there when the answer comes.
struct Promised {
  std::promise<std::vector<float>> promise;
  std::vector<float> logits;

  void set(const TileAnswer& answer) {
    if (answer.error != nullptr) {
      promise.set_exception(std::make_exception_ptr(*answer.error));
    } else {
      std::ranges::copy(answer.logits, logits.begin());
      promise.set_value(std::move(logits));
    }
  }
};

}  // namespace

struct TileQueue::State {
  std::shared_ptr<const Runtime> runtime;
  TileQueueOptions options;
  // Goes on in a forked child, so that no id means two submissions.
  std::shared_ptr<std::atomic<std::uint64_t>> last_id = std::make_shared<std::atomic<std::uint64_t>>(0);

  struct OfProcess {
    unsigned long process = 0;
    std::shared_ptr<Line> line;
  };
  Exclusive<OfProcess> of_process;

  State(std::shared_ptr<const Runtime> given, const TileQueueOptions& chosen)
      : runtime(std::move(given)), options(chosen) {
    check(options, *runtime);
    static_cast<void>(line());  // its memory
  }

  // That of this process: a forked child has not the thread of its parent's.
  std::shared_ptr<Line> line() {
    std::shared_ptr<Line> result;
    of_process.use([&](OfProcess& mine) {
      if (mine.process != process_id()) {
        auto made = std::make_shared<Line>(runtime, options, last_id);
        leak(mine);
        mine = {.process = process_id(), .line = std::move(made)};
      }
      result = mine.line;
    });
    return result;
  }

  // Of a parent: its lock may be taken, and its thread cannot be joined. The copy is never destroyed.
  static void leak(const OfProcess& other) noexcept {
    alignas(std::shared_ptr<Line>) unsigned char copy[sizeof(std::shared_ptr<Line>)];
    ::new (static_cast<void*>(copy)) std::shared_ptr<Line>(other.line);
  }

  std::optional<Submission> add(const Tile& tile, WhenFull when_full) {
    return with_memory([&]() -> std::optional<Submission> {
      const auto promised = std::make_shared<Promised>();
      promised->logits.resize(runtime->classes);
      std::future<std::vector<float>> logits = promised->promise.get_future();
      const std::shared_ptr<Line> mine = line();
      const std::optional<std::uint64_t> id =
          mine->add(mine, tile, [promised](const TileAnswer& answer) { promised->set(answer); }, when_full);
      return id ? std::optional(Submission{.id = *id, .logits = std::move(logits)}) : std::nullopt;
    });
  }

  std::optional<std::uint64_t> add(const Tile& tile, TileCallback callback, WhenFull when_full) {
    if (!callback) {
      throw Error(ErrorCode::invalid_argument, "callback is empty", "give a function that takes the answer");
    }
    return with_memory([&] {
      const std::shared_ptr<Line> mine = line();
      return mine->add(mine, tile, std::move(callback), when_full);
    });
  }
};

TileQueue::TileQueue(const Engine& engine, const TileQueueOptions& options)
    : TileQueue(std::make_shared<const Engine>(engine), options) {}

TileQueue::TileQueue(std::shared_ptr<const Engine> engine, const TileQueueOptions& options)
    : state_(with_memory([&] { return std::make_unique<State>(runtime_of(std::move(engine)), options); })) {}

TileQueue::TileQueue(InferBatch infer, std::size_t classes, std::size_t crop, const TileQueueOptions& options)
    : state_(with_memory(
          [&] { return std::make_unique<State>(runtime_of(std::move(infer), classes, crop), options); })) {}

TileQueue::~TileQueue() {
  const CancellationDisabled until_the_end;
  std::shared_ptr<Line> line;
  state_->of_process.use([&](State::OfProcess& last) {
    if (last.process == process_id()) {
      line = last.line;
    } else {
      State::leak(last);
    }
  });
  if (line) {
    line->end();
  }
}

Submission TileQueue::submit(std::span<const std::uint8_t> tile, std::size_t height, std::size_t width) {
  const CancellationDisabled until_the_end;
  return *state_->add({tile, height, width}, WhenFull::wait);
}

std::uint64_t TileQueue::submit(std::span<const std::uint8_t> tile, std::size_t height, std::size_t width,
                                TileCallback callback) {
  const CancellationDisabled until_the_end;
  return *state_->add({tile, height, width}, std::move(callback), WhenFull::wait);
}

std::optional<Submission> TileQueue::try_submit(std::span<const std::uint8_t> tile, std::size_t height,
                                                std::size_t width) {
  const CancellationDisabled until_the_end;
  return state_->add({tile, height, width}, WhenFull::refuse);
}

std::optional<std::uint64_t> TileQueue::try_submit(std::span<const std::uint8_t> tile, std::size_t height,
                                                   std::size_t width, TileCallback callback) {
  const CancellationDisabled until_the_end;
  return state_->add({tile, height, width}, std::move(callback), WhenFull::refuse);
}

bool TileQueue::cancel(std::uint64_t id) {
  const CancellationDisabled until_the_end;
  return state_->line()->cancel(id);
}

std::size_t TileQueue::cancel_all() {
  const CancellationDisabled until_the_end;
  return state_->line()->cancel_all();
}

void TileQueue::drain() {
  const CancellationDisabled until_the_end;
  state_->line()->drain();
}

TileQueueStats TileQueue::stats() const {
  const CancellationDisabled until_the_end;
  return state_->line()->stats();
}

}  // namespace histo
