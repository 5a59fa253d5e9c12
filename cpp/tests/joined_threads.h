// Threads that are joined at the end of a scope: std::jthread is missing in the standard library of macOS.
#pragma once

#include <thread>
#include <utility>
#include <vector>

class JoinedThreads {
 public:
  JoinedThreads() = default;
  JoinedThreads(const JoinedThreads&) = delete;
  JoinedThreads& operator=(const JoinedThreads&) = delete;
  ~JoinedThreads() {
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  template <typename Function>
  void emplace_back(Function&& function) {
    threads_.emplace_back(std::forward<Function>(function));
  }

 private:
  std::vector<std::thread> threads_;
};
