// What a queue costs beside plain runs of the engine: queue_bench MODEL BATCH THREADS ROUNDS CALLS
//
// Prints a line for each round: seconds per tile of Engine::run() with BATCH tiles at once; of a TileQueue
// whose caller submits BATCH tiles and waits for all of them; and of one whose caller keeps two batches on
// their way. The three run after one another in an order that rotates. queue_table.py compiles and reads it.

#include <histo/engine.h>
#include <histo/error.h>
#include <histo/tile_queue.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace {

struct Job {
  std::shared_ptr<const histo::Engine> engine;
  std::size_t batch, side, calls;
  std::vector<std::uint8_t> tiles;
  std::vector<float> expected;

  [[nodiscard]] std::span<const std::uint8_t> tile(std::size_t i) const {
    return std::span(tiles).subspan(i * side * side * 3, side * side * 3);
  }
  void run(std::span<float> logits) const {
    engine->run(std::span<const std::uint8_t>(tiles), {.batch = batch, .height = side, .width = side},
                logits);
  }
};

using Answer = std::future<std::vector<float>>;

void check(const Job& job, std::size_t i, const std::vector<float>& logits) {
  if (!std::ranges::equal(logits, std::span(job.expected).subspan(i * logits.size(), logits.size()))) {
    throw histo::Error(histo::ErrorCode::failed, "the queue gives other logits");
  }
}

void plain(const Job& job) {
  std::vector<float> logits(job.expected.size());
  for (std::size_t call = 0; call < job.calls; ++call) {
    job.run(logits);
  }
}

void submit_and_wait(const Job& job, histo::TileQueue& queue) {
  std::vector<Answer> answers(job.batch);
  for (std::size_t call = 0; call < job.calls; ++call) {
    for (std::size_t i = 0; i < job.batch; ++i) {
      answers[i] = queue.submit(job.tile(i), job.side, job.side).logits;
    }
    for (std::size_t i = 0; i < job.batch; ++i) {
      check(job, i, answers[i].get());
    }
  }
}

void stream(const Job& job, histo::TileQueue& queue) {
  std::deque<Answer> answers;
  for (std::size_t i = 0; i < job.calls * job.batch; ++i) {
    answers.push_back(queue.submit(job.tile(i % job.batch), job.side, job.side).logits);
    if (answers.size() == 2 * job.batch) {
      check(job, (i + 1) % job.batch, answers.front().get());  // 2 * batch - 1 before i
      answers.pop_front();
    }
  }
  queue.drain();
}

double seconds_per_tile(const Job& job, const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return seconds.count() / static_cast<double>(job.calls * job.batch);
}

void measure(const Job& job, std::size_t rounds) {
  // A batch waits until it is full, as that of a plain run is.
  histo::TileQueue queue(job.engine, {.max_batch = job.batch, .max_wait = std::chrono::seconds(1)});
  const std::vector<std::function<void()>> works{[&] { plain(job); }, [&] { submit_and_wait(job, queue); },
                                                 [&] { stream(job, queue); }};
  for (const auto& work : works) {  // warm
    work();
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    std::vector<double> seconds(works.size());
    for (std::size_t i = 0; i < works.size(); ++i) {
      const std::size_t turn = (round + i) % works.size();
      seconds[turn] = seconds_per_tile(job, works[turn]);
    }
    std::printf("%.9g %.9g %.9g\n", seconds[0], seconds[1], seconds[2]);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: %s MODEL BATCH THREADS ROUNDS CALLS\n", argv[0]);
    return 2;
  }
  try {
    const auto threads = static_cast<unsigned>(std::stoul(argv[3]));
    const auto engine = std::make_shared<const histo::Engine>(histo::Model::open(argv[1]),
                                                              histo::EngineOptions{.threads = threads});
    Job job{.engine = engine,
            .batch = std::stoul(argv[2]),
            .side = engine->info().crop,
            .calls = std::stoul(argv[5]),
            .tiles = {},
            .expected = {}};
    std::mt19937 generator(1);
    job.tiles.resize(job.batch * job.side * job.side * 3);
    std::ranges::generate(job.tiles, [&] { return static_cast<std::uint8_t>(generator()); });
    job.expected.resize(job.batch * engine->classes());
    job.run(job.expected);
    measure(job, std::stoul(argv[4]));
  } catch (const histo::Error& error) {
    std::fprintf(stderr, "queue_bench: %s\n", error.what());
    return 1;
  }
}
