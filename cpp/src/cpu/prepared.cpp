#include "cpu/prepared.h"

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
  return {program.network.stem, Algorithm::direct, precision, stem.block, stem.pair};
}

Prepared::Prepared(std::shared_ptr<const Program> given, const IsaRecord& isa, ThreadPool& threads)
    : program(std::move(given)),
      kernels(*isa.kernels),
      head(make_head(program->model, isa.isa)),
      map_outputs(stored_head(program->model), isa.isa),
      normaliser(program->model.spec(), plan().crop) {
  std::vector<Packing> packings{stem_packing(*program, kernels)};
  for (const Step& step : plan().steps) {
    const kernels::ConvKernels& of_step = kernels_of(step);
    packings.push_back({*step.layer, step.algorithm, step.precision, of_step.block, of_step.pair});
  }
  layers = pack(packings, threads);
  stem = std::move(layers.front());
  layers.erase(layers.begin());
}

std::size_t Prepared::weight_bytes() const {
  const auto size = [](const PackedLayer& layer) {
    return layer.weight.size() + layer.bias.size() + layer.scale.size();
  };
  std::size_t floats = size(stem) + program->model.tensor("head.linear.weight").data.size() + head.classes();
  for (const PackedLayer& layer : layers) {
    floats += size(layer);
  }
  return floats * sizeof(float);
}

}  // namespace histo
