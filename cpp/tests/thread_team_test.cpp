#include "histo/thread_team.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/thread_pool.h"
#include "error_code.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/tile_queue.h"
#include "in_child.h"
#include "joined_threads.h"
#include "model_file.h"
#include "under_emulation.h"

namespace {

using histo::Engine;
using histo::EngineOptions;
using histo::ErrorCode;
using histo::Model;
using histo::ParallelFor;
using histo::ThreadPool;
using histo::ThreadTeam;
using histo::ThreadTeamOptions;
using histo::TileShape;

constexpr TileShape shape{.batch = 3, .height = 40, .width = 43};
constexpr std::size_t classes = 6;

const Model& model() {
  static const Model opened = Model::from_memory(make_model_file(2, classes, 32, 1));
  return opened;
}

std::vector<float> run(const Engine& engine) {
  std::vector<std::uint8_t> tiles(shape.batch * shape.height * shape.width * 3);
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    tiles[i] = static_cast<std::uint8_t>(i * 2654435761U >> 13U);
  }
  std::vector<float> logits(shape.batch * classes);
  engine.run(std::span<const std::uint8_t>(tiles), shape, logits);
  return logits;
}

// With the algorithm whose weights are packed soonest.
EngineOptions with(std::shared_ptr<ThreadTeam> team, unsigned threads = 0) {
  return {.threads = threads, .algorithm = histo::AlgorithmPolicy::direct, .team = std::move(team)};
}

const std::vector<float>& expected() {
  static const std::vector<float> logits = run(Engine(model(), with(nullptr, 1)));
  return logits;
}

// Loops of a host, some of which do less or more than they are asked for.
struct HostLoop {
  std::string name;
  ParallelFor loop;
};

std::vector<HostLoop> host_loops() {
  return {
      {"in a row",
       [](std::size_t threads, const std::function<void()>& body) {
         for (std::size_t i = 0; i < threads; ++i) {
           body();
         }
       }},
      {"threads of its own",
       [](std::size_t threads, const std::function<void()>& body) {
         JoinedThreads started;
         for (std::size_t i = 0; i < threads; ++i) {
           started.emplace_back([&body] { body(); });
         }
       }},
      {"not at all", [](std::size_t, const std::function<void()>&) {}},
      {"once", [](std::size_t, const std::function<void()>& body) { body(); }},
      {"more often",
       [](std::size_t threads, const std::function<void()>& body) {
         JoinedThreads started;
         for (std::size_t i = 0; i < 3 * threads; ++i) {
           started.emplace_back([&body] { body(); });
         }
       }},
  };
}

TEST_CASE("engine: threads of the host, whatever they do, change no bit") {
  for (const HostLoop& host : host_loops()) {
    CAPTURE(host.name);
    std::atomic<int> loops{0};
    const auto team = std::make_shared<ThreadTeam>(3, [&](std::size_t threads, const auto& body) {
      CHECK(threads >= 2);
      CHECK(threads <= 3);
      ++loops;
      host.loop(threads, body);
    });
    CHECK(team->threads() == 3);
    const Engine engine(model(), with(team));
    CHECK(engine.info().threads == 3);
    CHECK(run(engine) == expected());
    CHECK(run(Engine(engine)) == expected());
    CHECK(loops > 30);
  }
}

// The first large batch transforms weights that copies share.
TEST_CASE("engine: a thread of the host that runs a copy before it helps is not waited for in vain") {
  constexpr TileShape large{.batch = 6, .height = 32, .width = 32};
  const std::vector<std::uint8_t> tiles(large.batch * 32 * 32 * 3, 100);
  const auto run_large = [&](const Engine& engine) {
    std::vector<float> logits(large.batch * classes);
    engine.run(std::span<const std::uint8_t>(tiles), large, logits);
    return logits;
  };
  std::unique_ptr<Engine> copy;
  std::vector<float> of_copy;
  std::atomic<bool> begun{false};
  const auto team = std::make_shared<ThreadTeam>(2, [&](std::size_t, const std::function<void()>& body) {
    JoinedThreads worker;
    worker.emplace_back([&] {
      if (copy != nullptr && !begun.exchange(true)) {
        of_copy = run_large(*copy);
      }
      body();
    });
  });
  const Engine engine(model(), {.team = team});
  copy = std::make_unique<Engine>(engine);
  const std::vector<float> logits = run_large(engine);
  CHECK(begun);
  CHECK(logits == run_large(Engine(model(), {.threads = 1})));
  CHECK(of_copy == logits);
  CHECK(engine.info().weight_bytes == copy->info().weight_bytes);
}

TEST_CASE("thread team: a call of the host that comes too late does nothing") {
  std::function<void()> late;
  ThreadPool pool(ThreadPool::Options{
      .threads = 2, .cpus = {}, .host = [&](std::size_t, const auto& help) { late = help; }});
  std::vector<int> visits(7);
  const auto visit = [&](std::size_t i) { ++visits[i]; };
  pool.for_each(7, visit);
  late();
  CHECK(visits == std::vector<int>(7, 1));
  pool.for_each(7, visit);
  CHECK(visits == std::vector<int>(7, 2));
}

TEST_CASE("engine: an exception of the host's threads comes out, and the next run is right") {
  std::atomic<bool> fails{false};
  const auto team = std::make_shared<ThreadTeam>(2, [&](std::size_t, const std::function<void()>& body) {
    body();
    if (fails) {
      throw std::runtime_error("no threads today");
    }
  });
  const Engine engine(model(), with(team));
  fails = true;
  CHECK_THROWS_WITH_AS((void)run(engine), "no threads today", std::runtime_error);
  CHECK_THROWS_AS(Engine(model(), with(team)), std::runtime_error);
  fails = false;
  CHECK(run(engine) == expected());
}

TEST_CASE("engine: threads of the host get their floating-point environment back") {
  std::atomic<int> wrong{0};
  const auto team = std::make_shared<ThreadTeam>(2, [&](std::size_t, const std::function<void()>& body) {
    std::thread([&] {
      std::fesetround(FE_UPWARD);
      body();
      wrong += std::fegetround() == FE_UPWARD ? 0 : 1;
    }).join();
  });
  CHECK(run(Engine(model(), with(team))) == expected());
  CHECK(wrong == 0);
}

TEST_CASE("engine: engines, copies and queues share a team, also at the same time") {
  const auto team = std::make_shared<ThreadTeam>(ThreadTeamOptions{.threads = 3});
  const Engine first(model(), with(team));
  const Engine second(
      model(), {.isa = histo::Isa::portable, .algorithm = histo::AlgorithmPolicy::direct, .team = team});
  const std::vector<float> of_second = run(second);
  const Engine copy(first);
  std::atomic<int> wrong{0};
  {
    JoinedThreads threads;
    for (const Engine* const engine : {&first, &second, &copy}) {
      threads.emplace_back([&, engine] {
        for (int round = 0; round < 5; ++round) {
          wrong += run(*engine) == (engine == &second ? of_second : expected()) ? 0 : 1;
        }
      });
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("thread team: what cannot be made") {
  const auto team = std::make_shared<ThreadTeam>(ThreadTeamOptions{.threads = 2});
  CHECK(code_of([&] { const Engine engine(model(), with(team, 3)); }) == ErrorCode::invalid_argument);
  CHECK(code_of([] { const ThreadTeam made(ThreadTeamOptions{.threads = 5000}); }) ==
        ErrorCode::invalid_argument);
  CHECK(code_of([] { const ThreadTeam made(2, ParallelFor()); }) == ErrorCode::invalid_argument);
  CHECK(ThreadTeam().threads() == histo::usable_cpus());
}

#ifdef __linux__

// The names of this process's threads.
std::vector<std::string> thread_names() {
  std::vector<std::string> names;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(thread.path() / "comm"), name);
    names.push_back(name);
  }
  return names;
}

std::size_t threads_called(const std::string& name) {
  return static_cast<std::size_t>(std::ranges::count(thread_names(), name));
}

TEST_CASE("engine: no thread before first use, and the names of a team's") {
  if (under_emulation) {
    return;
  }
  const std::size_t before = thread_names().size();
  {
    const auto team =
        std::make_shared<ThreadTeam>(ThreadTeamOptions{.threads = 3, .name = "viewer-histology"});
    ThreadPool pool(4);
    histo::TileQueue queue([](auto, TileShape, auto) {}, 1, 1);
    CHECK(thread_names().size() == before);
    pool.for_each(1, [](std::size_t) {});  // for which there is nothing to share
    CHECK(thread_names().size() == before);
    const Engine engine(model(), with(team));
    CHECK(threads_called("viewer-histolog") == 2);  // 15 bytes of it
    const Engine single(model(), with(nullptr, 2));
    const std::size_t used = thread_names().size();
    const Engine copy(single);  // shares what is packed, and has not run
    CHECK(thread_names().size() == used);
    CHECK(run(copy) == expected());
    CHECK(thread_names().size() == used + 1);
    (void)queue.submit(std::vector<std::uint8_t>(3), 1, 1).logits.get();
    CHECK(threads_called("histo-queue") == 1);
  }
  CHECK(thread_names().size() == before);
}

TEST_CASE("engine: the CPUs that a team's threads may run on") {
  if (under_emulation) {
    return;
  }
  const unsigned cpus = histo::usable_cpus();
  // The last of those that this thread may use: found by asking for each.
  unsigned last = 0;
  bool found = false;
  for (unsigned cpu = 0; cpu < 4096; ++cpu) {
    ThreadPool pool(ThreadPool::Options{.threads = 2, .cpus = {cpu}, .host = {}});
    try {
      std::atomic<int> here{0};
      std::atomic<unsigned> allowed{0};
      const std::thread::id caller = std::this_thread::get_id();
      pool.for_each(2, [&](std::size_t) {
        ++here;
        while (here < 2) {  // until the worker takes part
          std::this_thread::yield();
        }
        if (std::this_thread::get_id() != caller) {
          allowed = histo::usable_cpus();
        }
      });
      CHECK(allowed == 1);
      last = cpu;
      found = true;
    } catch (const histo::Error& error) {
      CHECK(error.code() == ErrorCode::invalid_argument);
      if (found) {
        break;
      }
    }
  }
  CHECK(found);
  CHECK(histo::usable_cpus() == cpus);  // the caller's are as before
  const auto team = std::make_shared<ThreadTeam>(ThreadTeamOptions{.threads = 2, .cpus = {last}});
  CHECK(run(Engine(model(), with(team))) == expected());
  const auto nowhere =
      std::make_shared<ThreadTeam>(ThreadTeamOptions{.threads = 2, .cpus = {4'000'000'000U}});
  CHECK(code_of([&] { const Engine engine(model(), with(nowhere)); }) == ErrorCode::invalid_argument);
}

#endif

#ifndef _WIN32
TEST_CASE("thread team: in a forked child the caller works alone") {
  if (under_emulation) {
    return;
  }
  std::atomic<int> loops{0};
  const auto of_host = std::make_shared<ThreadTeam>(2, [&](std::size_t, const std::function<void()>& body) {
    ++loops;
    body();
  });
  const auto shared = std::make_shared<ThreadTeam>(ThreadTeamOptions{.threads = 2});
  const Engine on_host(model(), with(of_host)), on_shared(model(), with(shared));
  CHECK(run(on_shared) == expected());
  CHECK(passes_in_child([&] {
    loops = 0;
    return run(on_host) == expected() && run(on_shared) == expected() && loops == 0;
  }));
}
#endif

}  // namespace
