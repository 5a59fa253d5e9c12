#include "histo/engine.h"

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "api/log.h"
#include "checks.h"
#include "cpu/executor.h"
#include "cpu/isa_selection.h"
#include "cpu/normaliser.h"
#include "histo/cancel_flag.h"
#include "histo/cpu.h"
#include "histo/error.h"
#include "histo/estimate.h"
#include "histo/thread_team.h"
#include "plan/backend.h"
#include "platform/platform.h"
#include "tiles.h"

namespace histo {
namespace {

// The precisions that this machine runs up to `highest` without scales, as in "fp32, bf16".
std::string precisions_without_scales(Isa highest) {
  std::vector<Precision> precisions = usable_precisions(highest);
  std::erase(precisions, Precision::int8);
  return name_list(std::span<const Precision>(precisions));
}

void check_options(const Model& model, const EngineOptions& options) {
  const ModelSpec& spec = model.spec();
  if (name(options.precision) == "unknown") {
    throw Error(ErrorCode::unsupported, "the precision is not a value of histo::Precision",
                "use " + name_list<Precision>());
  }
  if (const std::size_t crop = options.crop == 0 ? spec.crop : options.crop; crop > largest_crop) {
    throw Error(ErrorCode::unsupported, "crop " + std::to_string(crop) + " is larger than any tile",
                "use at most " + std::to_string(largest_crop));
  }
  if (options.crop != 0 && spec.head_pool != spec.pool && map_size(options.crop) != map_size(spec.crop)) {
    throw Error(ErrorCode::unsupported,
                "crop " + std::to_string(options.crop) + " gives another feature map than crop " +
                    std::to_string(spec.crop) + ", for which the head of this model was folded",
                "export the model for this crop");
  }
}

std::shared_ptr<const Program> make_program(Model model, const EngineOptions& options, const IsaRecord& isa) {
  auto program =
      std::make_shared<const Program>(std::move(model), PlanOptions{.crop = options.crop,
                                                                    .precision = options.precision,
                                                                    .profile = options.profile,
                                                                    .algorithm = options.algorithm,
                                                                    .kernels = algorithm_support(isa),
                                                                    .interleaved = isa.kernels->interleaved});
  const std::vector<Step>& steps = program->plan.steps;
  if (options.precision == Precision::int8 &&
      std::ranges::find(steps, Precision::int8, &Step::precision) == steps.end()) {
    throw Error(ErrorCode::unsupported, "the model has no scales for int8",
                "export it with --precision int8, or use " + precisions_without_scales(*options.isa));
  }
  return program;
}

unsigned threads_of(const EngineOptions& options) {
  if (!options.team) {
    return options.threads == 0 ? usable_cpus() : options.threads;
  }
  if (options.threads != 0 && options.threads != options.team->threads()) {
    throw Error(ErrorCode::invalid_argument,
                "threads is " + std::to_string(options.threads) + ", and the team has " +
                    std::to_string(options.team->threads()),
                "leave threads 0 where there is a team");
  }
  return options.team->threads();
}

// `options` with the values that defaults stand for, but for the threads.
const IsaRecord& resolve(const Model& model, EngineOptions& options) {
  check_options(model, options);
  const IsaRecord& isa = require_record(options.precision, options.isa ? *options.isa : default_isa());
  options.isa = isa.isa;
  options.crop = options.crop == 0 ? model.spec().crop : options.crop;
  return isa;
}

}  // namespace

struct Engine::State {
  EngineOptions options;  // with the values that defaults stand for
  std::shared_ptr<const Program> program;
  std::unique_ptr<Backend> backend;

  State(Model model, const EngineOptions& given) : options(given) {
    const IsaRecord& isa = resolve(model, options);
    options.threads = threads_of(given);
    program = make_program(std::move(model), options, isa);
    backend = std::make_unique<Executor>(program, isa, options.threads,
                                         options.team ? options.team->pool_ : nullptr);
    log(LogLevel::info, [this] {
      return "engine: " + std::string(name(options.precision)) + " on " + std::string(name(*options.isa)) +
             ", " + std::to_string(options.threads) + " threads, crop " + std::to_string(options.crop);
    });
  }
  State(const State& other)
      : options(other.options), program(other.program), backend(other.backend->copy()) {}
  State& operator=(const State&) = delete;

  [[nodiscard]] std::size_t classes() const { return program->model.spec().classes.size(); }

  // Packed tiles.
  template <typename Tiles, typename Value>
  void run(std::span<const Value> tiles, TileShape shape, const Outputs& outputs,
           const RunRecord& record = {}) const {
    const FloatEnvironment environment;
    check_tiles(tiles, shape, options.crop);
    check_outputs(outputs, shape.batch);
    backend->run(Tiles(tiles, shape), outputs, record);
  }

  // The logits alone, which are wanted even where the span is empty: it is too short then.
  template <typename Tiles, typename Value>
  void run_for_logits(std::span<const Value> tiles, TileShape shape, std::span<float> logits,
                      const RunRecord& record = {}) const {
    const FloatEnvironment environment;
    check_tiles(tiles, shape, options.crop);
    check_buffer("logits", logits, checked_size("logits", {{"batch", shape.batch}, {"classes", classes()}}));
    backend->run(Tiles(tiles, shape), {.logits = logits}, record);
  }

  void run(std::span<const ImageView> tiles, const Outputs& outputs) const {
    const FloatEnvironment environment;
    check_tiles(tiles, options.crop);
    check_outputs(outputs, tiles.size());
    backend->run(ByteTiles(tiles), outputs, {});
  }

  void check_outputs(const Outputs& outputs, std::size_t batch) const;
};

void Engine::State::check_outputs(const Outputs& outputs, std::size_t batch) const {
  bool wanted = false;
  const auto check = [&](const char* what, auto output, std::initializer_list<Extent> of_tile) {
    if (output.data() != nullptr || !output.empty()) {
      const std::size_t size = checked_size(what, of_tile);
      check_buffer(what, output, checked_size(what, {{"batch", batch}, {what, size}}));
      wanted = true;
    }
  };
  const std::size_t side = map_size(options.crop);
  if (outputs.top > classes()) {
    throw Error(ErrorCode::invalid_argument, "top is " + std::to_string(outputs.top),
                "the model has " + std::to_string(classes()) + " classes");
  }
  check("logits", outputs.logits, {{"classes", classes()}});
  check("probabilities", outputs.probabilities, {{"classes", classes()}});
  check("top_classes", outputs.top_classes, {{"top", outputs.top}});
  check("top_probabilities", outputs.top_probabilities, {{"top", outputs.top}});
  check("contributions", outputs.contributions, {{"classes", classes()}, {"map", side}, {"map", side}});
  if (outputs.embedding.data() != nullptr || !outputs.embedding.empty()) {
    check("embedding", outputs.embedding, {{"embedding", program->model.embedding_size()}});
  }
  if (!wanted) {
    throw Error(ErrorCode::invalid_argument, "no output is wanted", "give a buffer for at least one");
  }
}

Engine::Engine(Model model, const EngineOptions& options) {
  const FloatEnvironment environment;
  state_ = std::make_unique<State>(std::move(model), options);
}
Engine::Engine(const Engine& other) : state_(std::make_unique<State>(other.state())) {}
Engine& Engine::operator=(const Engine& other) {
  if (this != &other) {
    state_ = std::make_unique<State>(other.state());
  }
  return *this;
}
Engine::Engine(Engine&& other) noexcept = default;
Engine& Engine::operator=(Engine&& other) noexcept = default;
Engine::~Engine() = default;

const Engine::State& Engine::state() const {
  if (state_ == nullptr) {
    throw Error(ErrorCode::invalid_argument, "this engine was moved from", "use the one it was moved to");
  }
  return *state_;
}

void Engine::run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits) const {
  state().run_for_logits<ByteTiles>(tiles, shape, logits);
}

void Engine::run(std::span<const float> tiles, TileShape shape, std::span<float> logits) const {
  state().run_for_logits<FloatTiles>(tiles, shape, logits);
}

void Engine::run(std::span<const ImageView> tiles, const Outputs& outputs) const {
  state().run(tiles, outputs);
}

void Engine::run(std::span<const std::uint8_t> tiles, TileShape shape, const Outputs& outputs) const {
  state().run<ByteTiles>(tiles, shape, outputs);
}

void Engine::run(std::span<const float> tiles, TileShape shape, const Outputs& outputs) const {
  state().run<FloatTiles>(tiles, shape, outputs);
}

void Engine::run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits,
                 const CancelFlag& cancel) const {
  state().run_for_logits<ByteTiles>(tiles, shape, logits,
                                    {.stages = nullptr, .times = nullptr, .cancel = &cancel});
}

void Engine::run(std::span<const float> tiles, TileShape shape, std::span<float> logits,
                 const CancelFlag& cancel) const {
  state().run_for_logits<FloatTiles>(tiles, shape, logits,
                                     {.stages = nullptr, .times = nullptr, .cancel = &cancel});
}

void Engine::warmup(std::size_t batch) const {
  const State& state = this->state();
  const std::size_t crop = state.options.crop;
  checked_size("tiles", {{"batch", batch}, {"height", crop}, {"width", crop}, {"channels", 3}});
  // A larger batch runs in parts of this size.
  const std::size_t part = std::min(batch, state.program->plan.deep_images);
  const std::vector<std::uint8_t> tiles(part * crop * crop * 3);
  std::vector<float> logits(part * classes());
  run(tiles, {.batch = part, .height = crop, .width = crop}, logits);
}

std::vector<Stage> Engine::stages(std::span<const std::uint8_t> tiles, TileShape shape) const {
  std::vector<Stage> stages;
  for (const std::string_view stage : stage_names) {
    stages.push_back({.name = std::string(stage), .shape = {0, 0, 0, 0}, .data = {}});
  }
  check_tiles(tiles, shape, state().options.crop);
  Stage& head = stages.back();
  head.shape = {shape.batch, classes()};
  head.data.resize(checked_size("logits", {{"batch", shape.batch}, {"classes", classes()}}));
  state().run_for_logits<ByteTiles>(tiles, shape, head.data,
                                    {.stages = &stages, .times = nullptr, .cancel = nullptr});
  return stages;
}

std::vector<LayerTime> Engine::layer_times(std::span<const std::uint8_t> tiles, TileShape shape) const {
  const FloatEnvironment environment;
  check_tiles(tiles, shape, state().options.crop);
  std::vector<LayerTime> times = describe_layers(state().program->network, state().program->plan, classes());
  std::vector<float> logits(checked_size("logits", {{"batch", shape.batch}, {"classes", classes()}}));
  state().run_for_logits<ByteTiles>(tiles, shape, logits,
                                    {.stages = nullptr, .times = &times, .cancel = nullptr});
  return times;
}

EngineInfo Engine::info() const {
  const EngineOptions& options = state().options;
  const Backend::Info backend = state().backend->info();
  return {.isa = *options.isa,
          .precision = options.precision,
          .profile = options.profile,
          .algorithm = options.algorithm,
          .threads = backend.threads,
          .crop = options.crop,
          .weight_bytes = backend.weight_bytes,
          .workspace_bytes = backend.workspace_bytes,
          .embedding_size = model().embedding_size(),
          .map_side = map_size(options.crop)};
}

const Model& Engine::model() const { return state().program->model; }

std::size_t Engine::classes() const { return state().classes(); }

MemoryEstimate estimate(const Model& model, const EngineOptions& given, std::size_t batch) {
  const FloatEnvironment environment;
  if (batch == 0) {
    throw Error(ErrorCode::invalid_argument, "batch is 0", "it must be at least 1");
  }
  EngineOptions options = given;
  const IsaRecord& isa = resolve(model, options);
  options.threads = threads_of(given);
  return Executor::estimate(make_program(model, options, isa), isa, options.threads, batch);
}

}  // namespace histo
