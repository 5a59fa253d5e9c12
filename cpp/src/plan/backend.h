// What executes a plan: the seam between an Engine, which knows the network, and the hardware.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "histo/engine.h"
#include "histo/model.h"
#include "model/network.h"
#include "plan/plan.h"
#include "tiles.h"

namespace histo {

// All that a backend needs to know. Never changes once made, and is shared between copies of an Engine.
struct Program {
  Model model;
  Network network;  // whose weights are those of `model`
  Plan plan;        // whose steps point into `network`

  Program(Model m, const PlanOptions& options)
      : model(std::move(m)), network(read_network(model)), plan(make_plan(network, options)) {}
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
};

// What a run leaves behind besides its outputs, for callers who ask. Entries of `stages` have four extents
// and are appended to, the head's excepted; entries of `times` are those of the layers, and their seconds
// grow.
struct RunRecord {
  std::vector<Stage>* stages = nullptr;
  std::vector<LayerTime>* times = nullptr;
};

// A program made ready to run. Concurrent calls of run() are allowed and may take turns.
class Backend {
 public:
  struct Info {
    unsigned threads;
    std::size_t weight_bytes, workspace_bytes;  // see EngineInfo
  };

  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // Another one that shares the weights, and can run at the same time as this.
  [[nodiscard]] virtual std::unique_ptr<Backend> copy() const = 0;

  // As Engine::run(), which they implement: arguments have been checked, nothing is left to fail but
  // allocations.
  virtual void run(const ByteTiles& tiles, const Outputs& outputs, const RunRecord& record) = 0;
  virtual void run(const FloatTiles& tiles, const Outputs& outputs, const RunRecord& record) = 0;

  [[nodiscard]] virtual Info info() const = 0;
};

}  // namespace histo
