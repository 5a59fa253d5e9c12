// State that one thread at a time uses, also after a fork.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "platform/platform.h"

namespace histo {

// A mutex and what it guards. A child that is forked while another thread uses the state inherits a mutex
// that nobody will unlock, because the child has only the thread that forked, and a state that may be half
// changed. So the lock is the number of the process whose thread holds it: a child takes it from its parent,
// leaks the state and begins with a new one.
template <typename State>
class Exclusive {
 public:
  Exclusive() = default;
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;
  ~Exclusive() {
    if (const std::uint32_t holder = holder_.load(std::memory_order_relaxed);
        holder != 0 && holder != here()) {
      static_cast<void>(state_.release());
    }
  }

  // function(State&), while no other thread of this process is in here. Not from inside `function`.
  template <typename Function>
  void use(const Function& function) {
    const bool abandoned = acquire();
    const Release release{holder_};
    if (abandoned) {
      static_cast<void>(state_.release());
    }
    if (!state_) {
      state_ = std::make_unique<State>();
    }
    function(*state_);
  }

 private:
  struct Release {
    std::atomic<std::uint32_t>& holder;
    explicit Release(std::atomic<std::uint32_t>& held) : holder(held) {}
    Release(const Release&) = delete;
    Release& operator=(const Release&) = delete;
    ~Release() {
      // wake_one() returns early if no thread sleeps. It finds that out by a load, which must come after this
      // store: hence the strongest order.
      holder.store(0, std::memory_order_seq_cst);
      wake_one(holder);
    }
  };

  static std::uint32_t here() noexcept { return static_cast<std::uint32_t>(process_id()); }

  // True where it was taken from the parent of this process.
  bool acquire() noexcept {
    const std::uint32_t process = here();
    for (;;) {
      std::uint32_t holder = 0;
      if (holder_.compare_exchange_strong(holder, process, std::memory_order_acquire)) {
        return false;
      }
      if (holder == process) {
        sleep_while(holder_, holder);
      } else if (holder_.compare_exchange_strong(holder, process, std::memory_order_acquire)) {
        return true;
      }
    }
  }

  std::atomic<std::uint32_t> holder_{0};  // the process whose thread uses the state; 0: none
  std::unique_ptr<State> state_;
};

}  // namespace histo
