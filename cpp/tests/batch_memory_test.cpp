// A program of its own, because it counts every allocation of the process.

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <span>
#include <thread>

#include "histo/batch_runner.h"
#include "sanitizers.h"
#include "under_emulation.h"

#ifndef _WIN32
#include <sys/resource.h>
#endif

namespace {

std::atomic<std::size_t> allocations{0};

}  // namespace

void* operator new(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(std::max<std::size_t>(size, 1))) {
    return memory;
  }
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// The most that was ever resident, in bytes; 0 where the system does not tell.
std::size_t peak_memory() {
#ifndef _WIN32
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return static_cast<std::size_t>(usage.ru_maxrss);
#else
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
#endif
#else
  return 0;
#endif
}

TEST_CASE("batch loop: no allocation and no more memory from tile 1,000 to tile 200,000") {
  constexpr std::size_t tile_size = 32 * 32 * 3;  // 586 MiB in all
  constexpr histo::BatchRunnerOptions options{.batch = 32, .queued = 2};
  constexpr std::size_t in_flight = (2 * options.queued + 3) * options.batch;
  constexpr std::size_t count = 200000;

  const histo::BatchRunner runner(
      [](std::span<const std::uint8_t> tiles, histo::TileShape shape, std::span<float> logits) {
        for (std::size_t i = 0; i < shape.batch; ++i) {
          logits[i] = static_cast<float>(tiles[(i + 1) * tile_size - 1]);
        }
      },
      1, options);
  std::atomic<std::size_t> pulled{0};
  std::size_t wrong = 0;
  std::size_t early_allocations = 0;
  std::size_t early_memory = 0;
  std::size_t late_allocations = 0;
  runner.run(
      32, 32,
      [&](std::span<std::uint8_t> tile) {
        std::memset(tile.data(), static_cast<int>(pulled % 256), tile.size());
        return pulled++ < count;
      },
      [&](const histo::TileResult& tile) {
        while (pulled < in_flight) {  // all the memory that the loop may have comes into use at the start
          std::this_thread::yield();
        }
        wrong += tile.logits[0] == static_cast<float>(tile.index % 256) ? 0 : 1;
        if (tile.index == 1000) {
          early_allocations = allocations;
          early_memory = peak_memory();
        }
        if (tile.index == count - 1) {
          late_allocations = allocations;
        }
      });
  CHECK(wrong == 0);
  CHECK(early_allocations > 0);  // they are counted
  CHECK(late_allocations == early_allocations);
#if !HISTO_THREAD_SANITIZER  // which keeps a history of the accesses
  if (under_emulation) {
    MESSAGE("the emulator's memory is counted, too: only allocations are tested");
    return;
  }
  // Linux counts the pages of each thread in lumps. This is less than 11 bytes a tile, of 3,072.
  CHECK(peak_memory() - early_memory <= std::size_t{1} << 21U);
#endif
}

}  // namespace
