#include "cpu/thread_pool.h"

#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "histo/error.h"
#include "platform/platform.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace histo {
namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Waits until `value` differs from `old`: spins first, then sleeps. Returns the new value.
std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::microseconds(50);
  do {
    for (int i = 0; i < 64; ++i) {
      if (const std::uint32_t now = value.load(std::memory_order_acquire); now != old) {
        return now;
      }
      relax();
    }
  } while (Clock::now() < end);
  sleep_while(value, old);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(unsigned threads) : process_(process_id()), workers_(std::make_unique<Workers>()) {
  if (threads == 0 || threads > most_threads) {
    throw Error(ErrorCode::invalid_argument, "threads is " + std::to_string(threads),
                "it must be between 1 and " + std::to_string(most_threads) + ", or 0 for usable_cpus()");
  }
  try {
    workers_->reserve(threads - 1);
    const SignalsBlocked in_workers;
    while (workers_->size() < threads - 1) {
      workers_->emplace_back([this] { worker(); });
    }
  } catch (const std::system_error& error) {
    end_workers();
    throw Error(ErrorCode::unsupported,
                "only " + std::to_string(workers_->size() + 1) + " of " + std::to_string(threads) +
                    " threads can be started (" + error.what() + ")",
                "ask for fewer, or raise the limit (ulimit -u, pids.max)");
  } catch (...) {
    end_workers();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (process_ != process_id()) {
    // A forked child has none of the threads, and their handles may belong to others by now. So they are
    // neither joined nor detached, but leaked.
    static_cast<void>(workers_.release());
    return;
  }
  end_workers();
}

void ThreadPool::end_workers() noexcept {
  const CancellationDisabled until_the_end;  // join() is a cancellation point
  stop_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_seq_cst);
  wake_all(round_);
  for (std::thread& thread : *workers_) {
    thread.join();
  }
}

void ThreadPool::run(std::size_t count, Call call, const void* context) {
  if (process_ != process_id() || taken_.exchange(true, std::memory_order_acquire)) {
    for (std::size_t i = 0; i < count; ++i) {
      call(context, i);
    }
    return;
  }
  call_ = call;
  context_ = context;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  thrown_.store(false, std::memory_order_relaxed);
  inside_.fetch_and(~closed, std::memory_order_release);
  // wake_all() returns early if no thread sleeps. It finds that out by a load, which must come after this
  // store: hence the strongest order.
  round_.fetch_add(1, std::memory_order_seq_cst);
  wake_all(round_);

  work();
  // From here on no worker begins. Those inside have taken their last iteration, or are about to see that
  // none is left. `inside_` is a single variable, so a worker either came before this store or sees it.
  std::uint32_t inside = inside_.fetch_or(closed, std::memory_order_acq_rel) | closed;
  while (inside != closed) {
    inside = wait_for_change(inside_, inside);
  }
  const std::exception_ptr error = std::exchange(error_, nullptr);
  taken_.store(false, std::memory_order_release);
  if (error) {
    std::rethrow_exception(error);
  }
}

void ThreadPool::work() noexcept {
  try {
    for (std::size_t i = next_.fetch_add(1, std::memory_order_relaxed); i < count_;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      call_(context_, i);
    }
  } catch (...) {
    next_.store(count_, std::memory_order_relaxed);
    if (!thrown_.exchange(true, std::memory_order_relaxed)) {
      error_ = std::current_exception();
    }
  }
}

void ThreadPool::worker() noexcept {
  const FloatEnvironment environment;  // a new thread may inherit that of the thread that started it
  std::uint32_t seen = 0;
  while (true) {
    seen = wait_for_change(round_, seen);
    if (stop_.load(std::memory_order_relaxed)) {
      return;
    }
    // A worker that is late for the loop that raised `round_` is refused, or helps with a later loop.
    if ((inside_.fetch_add(1, std::memory_order_acq_rel) & closed) == 0) {
      work();
    }
    if (inside_.fetch_sub(1, std::memory_order_seq_cst) == closed + 1) {
      wake_one(inside_);
    }
  }
}

}  // namespace histo
