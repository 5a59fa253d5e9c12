#include "cpu/thread_pool.h"

#include <algorithm>
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

ThreadPool::ThreadPool(Options options)
    : options_(std::move(options)), process_(process_id()), workers_(std::make_unique<Workers>()) {
  if (const unsigned threads = options_.threads; threads == 0 || threads > most_threads) {
    throw Error(ErrorCode::invalid_argument, "threads is " + std::to_string(threads),
                "it must be between 1 and " + std::to_string(most_threads) + ", or 0 for usable_cpus()");
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

void ThreadPool::start_workers() {
  const unsigned threads = options_.threads;
  try {
    workers_->reserve(threads - 1);
    const SignalsBlocked in_workers;
    const ThreadAffinity of_workers(options_.cpus);
    while (workers_->size() < threads - 1) {
      workers_->emplace_back([this] { worker(); });
    }
  } catch (const std::system_error& error) {
    const std::size_t started = workers_->size() + 1;
    end_workers();
    throw Error(ErrorCode::unsupported,
                "only " + std::to_string(started) + " of " + std::to_string(threads) +
                    " threads can be started (" + error.what() + ")",
                "ask for fewer, or raise the limit (ulimit -u, pids.max)");
  } catch (...) {
    end_workers();
    throw;
  }
}

void ThreadPool::end_workers() noexcept {
  const CancellationDisabled until_the_end;  // join() is a cancellation point
  stop_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_seq_cst);
  wake_all(round_);
  for (std::thread& thread : *workers_) {
    thread.join();
  }
  workers_->clear();
  stop_.store(false, std::memory_order_relaxed);  // the next loop tries again to start them
}

void ThreadPool::run(std::size_t count, Call call, const void* context) {
  if (process_ != process_id() || taken_.exchange(true, std::memory_order_acquire)) {
    for (std::size_t i = 0; i < count; ++i) {
      call(context, i);
    }
    return;
  }
  // Given back whatever is thrown below.
  const struct Taken {
    std::atomic<bool>& taken;
    ~Taken() { taken.store(false, std::memory_order_release); }
  } until_the_end{taken_};
  if (!options_.host && workers_->empty()) {
    start_workers();
  }
  call_ = call;
  context_ = context;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  thrown_.store(false, std::memory_order_relaxed);
  inside_.fetch_and(~closed, std::memory_order_release);
  if (options_.host) {
    ask_for_help(count);
  } else {
    // wake_all() returns early if no thread sleeps. It finds that out by a load, which must come after this
    // store: hence the strongest order.
    round_.fetch_add(1, std::memory_order_seq_cst);
    wake_all(round_);
  }

  work();
  // From here on no worker begins. Those inside have taken their last iteration, or are about to see that
  // none is left. `inside_` is a single variable, so a worker either came before this store or sees it.
  std::uint32_t inside = inside_.fetch_or(closed, std::memory_order_acq_rel) | closed;
  while (inside != closed) {
    inside = wait_for_change(inside_, inside);
  }
  const std::exception_ptr error = std::exchange(error_, nullptr);
  if (error) {
    std::rethrow_exception(error);
  }
}

// An exception of the host ends the loop like one of a body.
void ThreadPool::ask_for_help(std::size_t count) {
  try {
    options_.host(std::min<std::size_t>(count, options_.threads), help_);
  } catch (...) {
    fail();
  }
}

// On a thread of the host, which gets back what the library changes in it.
void ThreadPool::help() noexcept {
  const CancellationDisabled until_the_end;
  const FloatEnvironment environment;
  take_part();
}

// A worker that is late for the loop that raised `round_` is refused, or helps with a later loop.
void ThreadPool::take_part() noexcept {
  if ((inside_.fetch_add(1, std::memory_order_acq_rel) & closed) == 0) {
    work();
  }
  if (inside_.fetch_sub(1, std::memory_order_seq_cst) == closed + 1) {
    wake_one(inside_);
  }
}

void ThreadPool::fail() noexcept {
  next_.store(count_, std::memory_order_relaxed);
  if (!thrown_.exchange(true, std::memory_order_relaxed)) {
    error_ = std::current_exception();
  }
}

void ThreadPool::work() noexcept {
  try {
    for (std::size_t i = next_.fetch_add(1, std::memory_order_relaxed); i < count_;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      call_(context_, i);
    }
  } catch (...) {
    fail();
  }
}

void ThreadPool::worker() noexcept {
  name_this_thread(options_.name);
  const FloatEnvironment environment;  // a new thread may inherit that of the thread that started it
  std::uint32_t seen = 0;
  while (true) {
    seen = wait_for_change(round_, seen);
    if (stop_.load(std::memory_order_relaxed)) {
      return;
    }
    take_part();
  }
}

}  // namespace histo
