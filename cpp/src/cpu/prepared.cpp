#include "cpu/prepared.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <span>
#include <utility>

namespace histo {
namespace {

StoredHead stored_head(const Model& model) {
  const TensorView weight = model.tensor("head.linear.weight");
  const std::size_t pool = model.spec().head_pool;
  return {.trained_pool = model.spec().pool,
          .pool = pool,
          .channels = weight.shape[1] / (pool * pool),
          .classes = model.spec().classes.size(),
          .weight = weight.data};
}

// On one thread: the Executor divides a batch between its own.
FusedHead make_head(const Model& model, Isa isa) {
  const StoredHead head = stored_head(model);
  const std::span<const float> bias = model.tensor("head.linear.bias").data;
  return {head.pool, head.channels, head.classes, head.weight, bias, {.threads = 1, .isa = isa}};
}

}  // namespace

Packing stem_packing(const Program& program, const kernels::KernelSet& kernels) {
  const Precision precision = program.plan.stem_precision;
  const kernels::ConvKernels& stem = *kernels.stem[precision];
  return {.layer = program.network.stem,
          .algorithm = Algorithm::direct,
          .precision = precision,
          .block = stem.block,
          .pair = stem.pair,
          .run = stem.run};
}

Packing Prepared::packing_of(const Step& step) const {
  const kernels::ConvKernels& of_step = kernels_of(step);
  return {.layer = *step.layer,
          .algorithm = step.algorithm,
          .precision = step.precision,
          .block = of_step.block,
          .pair = of_step.pair,
          .run = of_step.run,
          .lanes = kernels.lanes,
          .plain = step.weights_on_the_fly,
          .transform = of_step.winograd4.weights};
}

std::vector<Packing> Prepared::packings() const {
  std::vector<Packing> packings{stem_packing(*program, kernels)};
  for (const Step& step : plan().steps) {
    packings.push_back(packing_of(step));
  }
  return packings;
}

std::shared_ptr<const AlignedBuffer> Prepared::transformed(std::size_t index, ThreadPool& threads) const {
  std::shared_ptr<const AlignedBuffer> weight;
  transformed_.use([&](Transformed& known) { weight = known[index]; });
  if (weight != nullptr) {
    return weight;
  }
  // Not while the state is held: a loop of the host may wait for a thread that runs a copy, and so would wait
  // here. Two that come at once make it twice, and one of them is kept.
  const auto made = std::make_shared<const AlignedBuffer>(
      transform(packing_of(plan().steps[index]), layers[index], threads));
  transformed_.use([&](Transformed& known) {
    std::shared_ptr<const AlignedBuffer>& kept = known[index];
    if (kept == nullptr) {
      kept = made;
      transformed_units_ += made->size();
    }
    weight = kept;
  });
  return weight;
}

Prepared::Prepared(std::shared_ptr<const Program> given, const IsaRecord& isa)
    : program(std::move(given)),
      kernels(*isa.kernels),
      head(make_head(program->model, isa.isa)),
      map_outputs(stored_head(program->model), isa.isa),
      normaliser(program->model.spec(), plan().crop) {}

Prepared::Prepared(std::shared_ptr<const Program> given, const IsaRecord& isa, ThreadPool& threads)
    : Prepared(std::move(given), isa) {
  layers = pack(packings(), threads);
  stem = std::move(layers.front());
  layers.erase(layers.begin());
}

std::vector<std::size_t> Prepared::buffers() const {
  std::vector<std::size_t> units;
  for (const Packing& packing : packings()) {
    std::ranges::copy(packing.buffers(), std::back_inserter(units));
  }
  return units;
}

std::size_t Prepared::weight_bytes() const {
  const std::vector<std::size_t> packed = buffers();
  const std::size_t of_head = program->model.tensor("head.linear.weight").data.size() + head.classes();
  return std::accumulate(packed.begin(), packed.end(), of_head + transformed_units_) * sizeof(float);
}

}  // namespace histo
