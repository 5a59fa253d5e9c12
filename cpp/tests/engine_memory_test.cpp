// A program of its own, because it measures the memory of the process: what earlier tests freed would be used
// again.

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "histo/engine.h"
#include "histo/estimate.h"
#include "histo/model.h"
#include "model_file.h"
#include "sanitizers.h"
#include "under_emulation.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

using histo::Engine;
using histo::EngineOptions;
using histo::Model;
using histo::Precision;

struct Case {
  EngineOptions options;
  std::size_t batch;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Precision precision : histo::usable_precisions()) {
    all.push_back({{.threads = 2, .precision = precision, .profile = histo::Profile::latency}, 5});
  }
  all.push_back(
      {{.threads = 1, .isa = histo::Isa::portable, .algorithm = histo::AlgorithmPolicy::direct}, 5});
  for (const std::size_t batch : {1, 5}) {  // weights that are transformed on the fly, and before
    all.push_back({{.threads = 2, .profile = histo::Profile::throughput}, batch});
  }
  return all;
}

// Memory of this process that is no file's, in bytes, without what was freed; nothing where it cannot be
// known. /proc/self/statm would be wrong by up to some 100 pages for each CPU of the machine: Linux sums
// counters of CPUs.
std::optional<double> private_bytes() {
#if defined(__GLIBC__) && !HISTO_ADDRESS_SANITIZER && !HISTO_THREAD_SANITIZER  // which keep what was freed
  if (under_emulation) {
    return std::nullopt;
  }
  malloc_trim(0);
  std::ifstream counts("/proc/self/smaps_rollup");
  for (std::string line; std::getline(counts, line);) {
    constexpr std::string_view name = "Anonymous:";
    if (line.starts_with(name)) {
      return 1024 * std::stod(line.substr(name.size()));
    }
  }
#endif
  return std::nullopt;
}

TEST_CASE("engine: it takes what is estimated, to 2 %") {
  const std::vector<std::byte> bytes = make_model_file(2, 6, 32, 1, [](const std::string&) { return true; });
  const Model model = Model::from_memory(bytes);
  for (const auto& [options, batch] : cases()) {
    CAPTURE(histo::name(options.precision));
    CAPTURE(batch);
    constexpr std::size_t side = 64;
    const histo::MemoryEstimate memory = histo::estimate(model, options, batch);
    const std::vector<std::uint8_t> tiles(batch * side * side * 3);
    std::vector<float> logits(batch * 6);
    const std::optional<double> before = private_bytes();
    const Engine engine(model, options);
    engine.run(std::span<const std::uint8_t>(tiles), {.batch = batch, .height = side, .width = side}, logits);
    const std::optional<double> after = private_bytes();
    CHECK(memory.model_bytes == bytes.size());
    CHECK(memory.weight_bytes == engine.info().weight_bytes);
    CHECK(memory.workspace_bytes == engine.info().workspace_bytes);
    CHECK(memory.thread_bytes * engine.info().threads < memory.workspace_bytes);
    if (!before || !after) {
      MESSAGE("the system does not tell the memory of the process: it is not compared");
      continue;
    }
    const double taken = *after - *before;
    const auto least = static_cast<double>(memory.weight_bytes + memory.workspace_bytes);
    CHECK(taken >= 0.98 * least);
    CHECK(taken <= 1.02 * (least + static_cast<double>(memory.huge_page_bytes)));
  }
}

}  // namespace
