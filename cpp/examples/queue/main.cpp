// A service in small: threads submit tiles as they get them, and a queue runs them in batches.
// queue MODEL HEIGHT WIDTH TILE...   Tiles are raw RGB bytes; a thread reads and submits each.

#include <histo/build_config.h>
#include <histo/engine.h>
#include <histo/error.h>
#include <histo/estimate.h>
#include <histo/model_info.h>
#include <histo/thread_team.h>
#include <histo/tile_queue.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

std::vector<std::uint8_t> read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void classify(const std::string& path, std::size_t height, std::size_t width,
              const std::vector<std::string>& tiles) {
  // What the file says, and what an engine would take, before there is one.
  const histo::ModelInfo info = histo::read_model_info(path);
  const histo::Model model = histo::Model::open(path);
  const auto team = std::make_shared<histo::ThreadTeam>(histo::ThreadTeamOptions{.name = "queue-example"});
  const histo::EngineOptions options{.team = team};
  const histo::MemoryEstimate memory = histo::estimate(model, options, 8);
  std::fprintf(stderr, "%zu classes, crop %zu, %zu MB of weights, %zu MB of workspace\n",
               info.spec.classes.size(), info.spec.crop, memory.weight_bytes / 1000000,
               memory.workspace_bytes / 1000000);

  const histo::Engine engine(model, options);
  histo::TileQueue queue(engine, {.max_batch = 8, .max_wait = std::chrono::milliseconds(2)});
  std::vector<std::future<std::vector<float>>> answers;
  for (const std::string& tile : tiles) {
    answers.push_back(std::async(std::launch::async, [&queue, &tile, height, width] {
      return queue.submit(read_bytes(tile), height, width).logits.get();
    }));
  }
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    const std::vector<float> logits = answers[i].get();  // throws where the tile failed
    std::printf("%s", tiles[i].c_str());
    for (const float logit : logits) {
      std::printf("\t%.9g", static_cast<double>(logit));
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: %s MODEL HEIGHT WIDTH TILE...\n", argv[0]);
    return 2;
  }
  try {
    histo::require_version();
    classify(argv[1], std::stoul(argv[2]), std::stoul(argv[3]), {argv + 4, argv + argc});
  } catch (const histo::Error& error) {
    std::fprintf(stderr, "queue: %s (error %d)\n", error.what(), static_cast<int>(error.code()));
    return 1;
  }
}
