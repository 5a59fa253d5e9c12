// A fixed set of threads that share the iterations of a loop.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace histo {

// The caller works too, so a pool of n threads starts n - 1 workers, at the first loop that can use them.
// Between loops the workers spin for 50 microseconds, longer than the gap between two layers, and then sleep:
// idle threads that spin would slow the rest of the process. The caller waits only for workers that have
// begun, so a loop that ends before a worker wakes does not wait for it.
//
// In a forked child, which has no workers, the caller works alone. The workers have all signals blocked, and
// compute in the floating-point environment of the library.
//
// A pool may also be without workers, and ask the host for help: see HostLoop.
class ThreadPool {
 public:
  // Calls `help` up to `threads` times, on threads of the host. Calls may be left out, repeated or come too
  // late: whoever helps takes iterations that nobody has begun, and the caller of the loop does the rest.
  using HostLoop = std::function<void(std::size_t threads, const std::function<void()>& help)>;

  struct Options {
    unsigned threads = 1;        // the caller's included
    std::vector<unsigned> cpus;  // that the workers may run on; empty: those of the thread that starts them
    std::string name = "histo";  // of the workers
    HostLoop host;               // empty: the pool has workers
  };

  // Starts no thread. Throws Error: invalid_argument for 0 and for more than `most_threads`.
  explicit ThreadPool(unsigned threads) : ThreadPool(Options{.threads = threads, .cpus = {}, .host = {}}) {}
  explicit ThreadPool(Options options);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();  // not while a loop runs

  // More than any machine has CPUs. A number that was meant as -1 must not start threads until none is left.
  static constexpr unsigned most_threads = 4096;

  [[nodiscard]] unsigned threads() const noexcept { return options_.threads; }

  // body(i) for 0 <= i < count, in any order, on any of the threads; returns when all are done. While one
  // thread is in this function, a call by another thread or from inside a body does all of its work alone. An
  // exception of a body is rethrown here when all threads have stopped; iterations that have not begun by
  // then are skipped. Throws Error (unsupported) where the system refuses to start the workers.
  template <typename Body>
  void for_each(std::size_t count, const Body& body) {
    if (count <= 1 || options_.threads == 1) {
      for (std::size_t i = 0; i < count; ++i) {
        body(i);
      }
      return;
    }
    run(count, [](const void* context, std::size_t i) { (*static_cast<const Body*>(context))(i); }, &body);
  }

 private:
  using Workers = std::vector<std::thread>;
  using Call = void (*)(const void* context, std::size_t i);

  void run(std::size_t count, Call call, const void* context);
  void ask_for_help(std::size_t count);
  void help() noexcept;
  void take_part() noexcept;
  void work() noexcept;
  void fail() noexcept;
  void worker() noexcept;
  void start_workers();
  void end_workers() noexcept;

  // The highest bit of `inside_`; below it is the number of workers that may touch the current loop.
  static constexpr std::uint32_t closed = std::uint32_t{1} << 31U;

  const Options options_;
  const std::function<void()> help_ = [this] { help(); };  // what the host calls

  // Separate cache lines, against false sharing with spinning readers.

  // The current loop, written only while `inside_` equals `closed`.
  alignas(64) Call call_ = nullptr;
  const void* context_ = nullptr;
  std::size_t count_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> thrown_{false};
  std::exception_ptr error_;  // written by whoever raised `thrown_`

  alignas(64) std::atomic<std::uint32_t> inside_{closed};

  alignas(64) std::atomic<std::uint32_t> round_{0};  // raised for each loop, and at the end
  std::atomic<bool> stop_{false};

  alignas(64) std::atomic<bool> taken_{false};  // by a caller; not a mutex, because a body may call again
  unsigned long process_;                       // that starts the workers
  std::unique_ptr<Workers> workers_;            // changed by who has taken the pool; joined by end_workers()
};

}  // namespace histo
