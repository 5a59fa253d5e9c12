#include "api/log.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <string>

#include "histo/error.h"

namespace histo {
namespace {

// Immutable, so that callback and user belong together without a lock, which a forked child might find taken.
// Never freed, because another thread may be about to call it; a process sets few.
struct Listener {
  LogCallback callback;
  void* user;
  const Listener* earlier;
};

std::atomic<const Listener*> listener{nullptr};

}  // namespace

void set_log(LogCallback callback, void* user) {
  auto* const added = new (std::nothrow) Listener{callback, user, listener.load(std::memory_order_relaxed)};
  if (added == nullptr) {
    throw Error(ErrorCode::out_of_memory, "there is not enough memory for a callback", "free some memory");
  }
  while (!listener.compare_exchange_weak(added->earlier, added, std::memory_order_acq_rel)) {
  }
}

bool log_is_on() noexcept {
  const Listener* const now = listener.load(std::memory_order_acquire);
  return now != nullptr && now->callback != nullptr;
}

void write_log(LogLevel level, std::string message) noexcept {
  const Listener* const now = listener.load(std::memory_order_acquire);
  // A text of the host, such as that of an exception, may have several lines, or control a terminal.
  std::ranges::replace_if(
      message, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7F'; }, ' ');
  if (now != nullptr && now->callback != nullptr) {
    now->callback(now->user, level, message.empty() ? "out of memory" : message.c_str());
  }
}

}  // namespace histo
