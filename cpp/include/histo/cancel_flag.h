/// \file
/// Stops a run of an Engine from another thread.
#pragma once

#include <atomic>

namespace histo {

/// Set by one thread to stop what others do: see Engine::run(). It must outlive the runs that it was given
/// to. All functions may be called by any thread at any time, and in a signal handler.
///
/// Not std::stop_token, which the standard library of macOS does not have yet.
///
/// \code
/// histo::CancelFlag stop;
/// std::thread user([&] { stop.cancel(); });
/// engine.run(tiles, shape, logits, stop);  // throws Error (cancelled) where it was stopped
/// \endcode
class CancelFlag {
 public:
  CancelFlag() = default;
  CancelFlag(const CancelFlag&) = delete;
  CancelFlag& operator=(const CancelFlag&) = delete;
  ~CancelFlag() = default;

  void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }

  /// For the next run.
  void reset() noexcept { cancelled_.store(false, std::memory_order_relaxed); }

  [[nodiscard]] bool cancelled() const noexcept { return cancelled_.load(std::memory_order_relaxed); }

 private:
  static_assert(std::atomic<bool>::is_always_lock_free);
  std::atomic<bool> cancelled_{false};
};

}  // namespace histo
