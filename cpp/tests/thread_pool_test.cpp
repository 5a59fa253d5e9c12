#include "cpu/thread_pool.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "histo/error.h"
#include "in_child.h"
#include "joined_threads.h"
#include "sanitizers.h"
#include "under_emulation.h"

#ifndef _WIN32
#include <sys/resource.h>
#endif

#ifdef __GLIBC__
#include <pthread.h>
#endif

namespace {

using histo::Error;
using histo::ErrorCode;
using histo::ThreadPool;

// How often each iteration ran.
std::vector<std::size_t> visits(ThreadPool& pool, std::size_t count) {
  std::vector<std::atomic<std::size_t>> counted(count);
  pool.for_each(count, [&](std::size_t i) { ++counted[i]; });
  return {counted.begin(), counted.end()};
}

TEST_CASE("thread pool: each iteration runs once") {
  for (const unsigned threads : {1U, 2U, 3U, 8U}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const std::size_t count : {0, 1, 2, 3, 7, 1000}) {
      CHECK(visits(pool, count) == std::vector<std::size_t>(count, 1));
    }
  }
}

TEST_CASE("thread pool: loops that follow at once, and others that find the workers asleep") {
  ThreadPool pool(4);
  std::vector<std::size_t> sums(8);
  for (std::size_t round = 0; round < 5000; ++round) {
    pool.for_each(sums.size(),
                  [&](std::size_t i) { sums[i] += round; });  // races if a round outlives its loop
    if (round % 100 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  CHECK(sums == std::vector<std::size_t>(8, 4999 * 5000 / 2));
}

TEST_CASE("thread pool: all threads work at the same time, also after a sleep") {
  ThreadPool pool(4);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> here{0};
    pool.for_each(4, [&](std::size_t) {
      ++here;
      while (here < 4) {  // not std::barrier, which sleeps like std::atomic (see sleep_while())
        std::this_thread::yield();
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 2));
  }
}

TEST_CASE("thread pool: a body may loop itself, and several threads may share a pool") {
  ThreadPool pool(3);
  std::vector<std::atomic<std::size_t>> counted(20);
  pool.for_each(20, [&](std::size_t i) { pool.for_each(10, [&](std::size_t) { ++counted[i]; }); });
  CHECK(std::ranges::all_of(counted, [](const auto& count) { return count == 10; }));

  std::vector<std::size_t> wrong(4);
  {
    JoinedThreads callers;
    for (std::size_t& mine : wrong) {
      callers.emplace_back([&pool, &mine] {
        for (int round = 0; round < 500; ++round) {
          mine += visits(pool, 9) == std::vector<std::size_t>(9, 1) ? 0 : 1;
        }
      });
    }
  }
  CHECK(wrong == std::vector<std::size_t>(4, 0));
}

TEST_CASE("thread pool: an error comes out when nobody works any more, and leaves the pool as it was") {
  for (const unsigned threads : {1U, 4U}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      for (const std::size_t bad : {0, 1, 15}) {
        std::atomic<int> inside{0};
        CHECK_THROWS_WITH_AS(pool.for_each(16,
                                           [&](std::size_t i) {
                                             ++inside;
                                             if (i == bad) {
                                               --inside;
                                               throw std::runtime_error("iteration " + std::to_string(i));
                                             }
                                             --inside;
                                           }),
                             ("iteration " + std::to_string(bad)).c_str(), std::runtime_error);
        CHECK(inside == 0);
      }
      CHECK_THROWS_AS(pool.for_each(16, [](std::size_t i) { throw i; }), std::size_t);
      CHECK(visits(pool, 16) == std::vector<std::size_t>(16, 1));
    }
  }
}

TEST_CASE("thread pool: comes and goes, used or not") {
  for (int round = 0; round < 200; ++round) {
    ThreadPool unused(4);
    ThreadPool used(4);
    used.for_each(static_cast<std::size_t>(round % 4), [](std::size_t) {});
  }
}

ErrorCode code_of_starting(unsigned threads) {
  try {
    ThreadPool pool(threads);
    pool.for_each(2, [](std::size_t) {});  // which starts them
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find(std::to_string(threads)) != std::string::npos);
    return error.code();
  }
  FAIL("no histo::Error was thrown");
  return {};
}

TEST_CASE("thread pool: a number of threads that cannot be meant") {
  CHECK(code_of_starting(0) == ErrorCode::invalid_argument);
  CHECK(code_of_starting(ThreadPool::most_threads + 1) == ErrorCode::invalid_argument);
  CHECK(code_of_starting(static_cast<unsigned>(-1)) == ErrorCode::invalid_argument);
}

#ifndef _WIN32
TEST_CASE("thread pool: in a forked child the caller works alone") {
  if (under_emulation) {
    MESSAGE("not tested: qemu-user does not emulate a fork of a process with threads");
    return;
  }
  const std::vector<std::size_t> once(9, 1);
  auto pool = std::make_unique<ThreadPool>(3);
  CHECK(visits(*pool, 9) == once);
  const bool passed = passes_in_child([&] {
    bool right = visits(*pool, 9) == once;
    const std::thread::id me = std::this_thread::get_id();
    pool->for_each(9, [&](std::size_t) { right = right && std::this_thread::get_id() == me; });
    if (child_may_start_threads) {
      ThreadPool another(3);  // whose threads may get the handles of those that are missing
      pool.reset();           // must not wait for these
      right = right && visits(another, 9) == once;
    }
    return right;
  });
  CHECK(passed);
  CHECK(visits(*pool, 9) == once);
}
#endif

#if defined(__GLIBC__) && !HISTO_ADDRESS_SANITIZER && !HISTO_THREAD_SANITIZER
// The sanitizers replace what sets a thread's stack, and reserve terabytes besides.
TEST_CASE("thread pool: the system does not give that many threads") {
  if (under_emulation) {
    MESSAGE("not tested: the limit of address space would be that of the emulator");
    return;
  }
  const bool passed = passes_in_child([] {
    pthread_attr_t large;
    pthread_attr_init(&large);
    // A stack that is not touched takes no memory, but counts as address space: 16 GiB are the stacks of 7.
    pthread_attr_setstacksize(&large, std::size_t{1} << 31U);
    pthread_setattr_default_np(&large);
    const rlimit limit{std::size_t{1} << 34U, std::size_t{1} << 34U};
    setrlimit(RLIMIT_AS, &limit);
    const bool right =
        code_of_starting(64) == ErrorCode::unsupported;  // some threads run by then, and must end
    ThreadPool few(3);
    return right && visits(few, 9) == std::vector<std::size_t>(9, 1);
  });
  CHECK(passed);
}
#endif

}  // namespace
