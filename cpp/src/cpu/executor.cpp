#include "cpu/executor.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "cpu/record.h"
#include "histo/error.h"
#include "platform/platform.h"

namespace histo {
namespace {

std::size_t bytes_of(std::span<const std::size_t> buffers) {
  return std::accumulate(buffers.begin(), buffers.end(), std::size_t{0}) * sizeof(std::uint32_t);
}

// What whole pages add to buffers.
std::size_t rounding_bytes(std::span<const std::size_t> buffers) {
  std::size_t bytes = 0;
  for (const std::size_t units : buffers) {
    bytes += in_pages(units * sizeof(std::uint32_t)) - units * sizeof(std::uint32_t);
  }
  return bytes;
}

void check_cancelled(const RunRecord& record) {
  if (record.cancel != nullptr && record.cancel->cancelled()) {
    throw Error(ErrorCode::cancelled, "the run was cancelled", "run it again for its logits");
  }
}

}  // namespace

Executor::Executor(std::shared_ptr<const Program> program, const IsaRecord& isa, unsigned threads,
                   std::shared_ptr<ThreadPool> team)
    : threads_(team ? team : std::make_shared<ThreadPool>(threads)),
      shares_threads_(team != nullptr),
      prepared_(std::make_shared<const Prepared>(std::move(program), isa, *threads_)),
      stem_(*prepared_) {}

Executor::Executor(std::shared_ptr<const Prepared> prepared, std::shared_ptr<ThreadPool> threads,
                   bool shares_threads)
    : threads_(std::move(threads)),
      shares_threads_(shares_threads),
      prepared_(std::move(prepared)),
      stem_(*prepared_) {}

std::unique_ptr<Backend> Executor::copy() const {
  return std::unique_ptr<Backend>(
      new Executor(prepared_, shares_threads_ ? threads_ : std::make_shared<ThreadPool>(threads_->threads()),
                   shares_threads_));
}

MemoryEstimate Executor::estimate(std::shared_ptr<const Program> program, const IsaRecord& isa,
                                  unsigned threads, std::size_t batch) {
  const auto unpacked = std::make_shared<const Prepared>(std::move(program), isa);
  const Executor executor(unpacked, std::make_shared<ThreadPool>(threads), false);
  const std::size_t images = std::min(batch, unpacked->plan().deep_images);
  std::vector<std::size_t> of_weights = unpacked->buffers();
  const std::size_t packed = of_weights.size();
  for (const Step& step : unpacked->plan().steps) {
    if (executor.needs_transformed(step, images)) {
      const Packing packing = unpacked->packing_of(step);
      of_weights.push_back(packing.blocks() * packing.transformed_units());
    }
  }
  const std::vector<std::size_t> of_workspace = executor.buffers(images);
  return {.model_bytes = unpacked->program->model.size_bytes(),
          .weight_bytes = unpacked->weight_bytes() + bytes_of(std::span(of_weights).subspan(packed)),
          .workspace_bytes = bytes_of(of_workspace),
          .thread_bytes = executor.scratch_for(images).of_thread * sizeof(std::uint32_t),
          .huge_page_bytes = rounding_bytes(of_weights) + rounding_bytes(of_workspace)};
}

Backend::Info Executor::info() const {
  return {.threads = threads_->threads(),
          .weight_bytes = prepared_->weight_bytes(),
          .workspace_bytes = workspace_bytes_};
}

// --- memory ------------------------------------------------------------------------------------------------

std::size_t Executor::interleaved(std::size_t images) const {
  const std::size_t most = prepared_->plan().interleaved;
  return images >= most ? most : 1;
}

kernels::Strides Executor::strides(const Workspace& workspace, std::size_t map) const {
  const Map& m = prepared_->plan().maps[map];
  const std::size_t n = workspace.interleaved;
  if (n == 1 || map == prepared_->plan().features) {  // the head reads one image after the other
    return {.column = m.pixel(), .row = m.row(), .image = m.image(), .group = n * m.image()};
  }
  return {.column = n * m.pixel(), .row = n * m.row(), .image = m.pixel(), .group = n * m.image()};
}

std::uint32_t* Executor::pixels(Workspace& workspace, std::size_t map, std::size_t image) const {
  const Map& m = prepared_->plan().maps[map];
  const kernels::Strides s = strides(workspace, map);
  const std::size_t at = m.deep ? image : image % prepared_->plan().shallow_images;
  return workspace.maps[map].units() + at / workspace.interleaved * s.group +
         at % workspace.interleaved * s.image + m.border * (s.row + s.column);
}

WinogradTasks Executor::tasks_of(const Step& step, std::size_t count) const {
  return winograd_tasks(step, prepared_->plan().maps[step.output], count, prepared_->kernels_of(step).block,
                        threads_->threads());
}

bool Executor::needs_transformed(const Step& step, std::size_t images) const {
  return step.weights_on_the_fly && tasks_of(step, images).tiles > kernels::most_tiles_on_the_fly;
}

std::size_t Executor::weight_bytes_of(const Workspace& workspace, std::size_t index,
                                      std::size_t images) const {
  const bool transformed = needs_transformed(prepared_->plan().steps[index], images);
  const AlignedBuffer& weight = transformed ? *workspace.transformed[index] : prepared_->layers[index].weight;
  return weight.size() * sizeof(float);
}

// The division into tasks, and with it the scratch, depends on the number of images, but not monotonically.
Executor::Scratch Executor::scratch_for(std::size_t images) const {
  const Plan& plan = prepared_->plan();
  Scratch scratch{.of_thread = stem_.scratch_units(), .shared = 0};
  for (std::size_t n = 1; n <= images; ++n) {
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      if (plan.steps[i].algorithm != Algorithm::direct &&
          (i >= plan.shallow_steps || n <= plan.shallow_images)) {
        const WinogradTasks tasks = tasks_of(plan.steps[i], n);
        scratch.of_thread = std::max(scratch.of_thread, tasks.private_units());
        scratch.shared = std::max(scratch.shared, tasks.shared_units());
      }
    }
  }
  return scratch;
}

std::size_t Executor::map_units(const Map& map, std::size_t images) const {
  const std::size_t held = map.deep ? images : std::min(images, prepared_->plan().shallow_images);
  const std::size_t group = interleaved(images);
  return ceil_div(held, group) * group * map.image();
}

std::vector<std::size_t> Executor::buffers(std::size_t images) const {
  const Scratch scratch = scratch_for(images);
  std::vector<std::size_t> units(threads_->threads(), scratch.of_thread);
  units.push_back(scratch.shared);
  for (const Map& map : prepared_->plan().maps) {
    units.push_back(map_units(map, images));
  }
  return units;
}

void Executor::reserve(Workspace& workspace, std::size_t count) {
  const Plan& plan = prepared_->plan();
  const std::size_t wanted = std::min(count, plan.deep_images);
  if (wanted <= workspace.images) {
    return;
  }
  const Scratch scratch = scratch_for(wanted);
  // The old buffers are freed first: if an allocation fails, the Engine can still run a smaller batch.
  workspace = Workspace();
  for (const Map& map : plan.maps) {
    workspace.maps.emplace_back(map_units(map, wanted));
  }
  workspace.transformed.resize(plan.steps.size());
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    if (needs_transformed(plan.steps[i], wanted)) {
      workspace.transformed[i] = prepared_->transformed(i, *threads_);
    }
  }
  workspace.not_finite = std::vector<std::atomic<bool>>(wanted);
  workspace.shared_scratch = AlignedBuffer(scratch.shared);
  for (unsigned i = 0; i < threads_->threads(); ++i) {
    workspace.private_scratch.emplace_back(scratch.of_thread);
  }
  workspace_bytes_ = bytes_of(buffers(wanted));
  workspace.images = wanted;
  workspace.interleaved = interleaved(wanted);
}

// --- the network -------------------------------------------------------------------------------------------

void Executor::run(const ByteTiles& tiles, const Outputs& outputs, const RunRecord& record) {
  run_all(tiles, outputs, record);
}

void Executor::run(const FloatTiles& tiles, const Outputs& outputs, const RunRecord& record) {
  run_all(tiles, outputs, record);
}

template <typename Tiles>
void Executor::run_all(const Tiles& tiles, const Outputs& outputs, const RunRecord& record) {
  workspace_.use([&](Workspace& workspace) {
    reserve(workspace, tiles.size());
    workspace.results.begin(outputs, tiles.size(), prepared_->head.classes());
    for (std::size_t first = 0; first < tiles.size(); first += workspace.images) {
      run_images(workspace, tiles, {first, std::min(first + workspace.images, tiles.size())}, record);
    }
    workspace.results.deliver(outputs);
  });
}

template <typename Tiles>
void Executor::run_images(Workspace& workspace, const Tiles& tiles, Range images, const RunRecord& record) {
  const Plan& plan = prepared_->plan();
  const std::size_t count = images.end - images.begin;
  if (record.times != nullptr) {
    record.times->front().weight_bytes = prepared_->stem.weight.size() * sizeof(float);
    record.times->back().weight_bytes =
        prepared_->program->model.tensor("head.linear.weight").data.size() * sizeof(float);
  }
  for (std::size_t image = 0; image < count; ++image) {  // of a run that failed, something may be left
    workspace.not_finite[image].store(false, std::memory_order_relaxed);
  }
  for (std::size_t first = 0; first < count; first += plan.shallow_images) {
    const std::size_t n = std::min(plan.shallow_images, count - first);
    check_cancelled(record);
    {
      const Timer timer(record, 0);
      run_stem(workspace, tiles, images.begin + first, first, n);
    }
    for (std::size_t image = first; image < first + n; ++image) {
      record_stage(record, 0, plan.maps[plan.stem_output], plan.stem_format,
                   pixels(workspace, plan.stem_output, image), strides(workspace, plan.stem_output));
    }
    run_steps(workspace, {0, plan.shallow_steps}, first, n, record);
  }
  run_steps(workspace, {plan.shallow_steps, plan.steps.size()}, 0, count, record);
  const Timer timer(record, plan.steps.size() + 1);
  run_head(workspace, images);
  run_map_outputs(workspace, images);
  // int8 cannot carry NaN through its maps, so the results of such an image are set to it here.
  for (std::size_t image = 0; image < count; ++image) {
    if (workspace.not_finite[image].load(std::memory_order_relaxed)) {
      workspace.results.set_to_nan(images.begin + image);
    }
  }
}

template <typename Tiles>
void Executor::run_stem(Workspace& workspace, const Tiles& tiles, std::size_t tile, std::size_t first,
                        std::size_t count) {
  const std::size_t output = prepared_->plan().stem_output;
  for_each(count * stem_.bands(), [&](std::size_t task, std::size_t slot) {
    const std::size_t image = task / stem_.bands();
    std::uint32_t* const to = pixels(workspace, output, first + image);
    if (!stem_.run(tiles[tile + image], task % stem_.bands(), to, strides(workspace, output),
                   workspace.private_scratch[slot].units())) {
      workspace.not_finite[first + image].store(true, std::memory_order_relaxed);
    }
  });
}

void Executor::run_steps(Workspace& workspace, Range steps, std::size_t first, std::size_t count,
                         const RunRecord& record) {
  const Plan& plan = prepared_->plan();
  for (std::size_t i = steps.begin; i < steps.end; ++i) {
    check_cancelled(record);
    {
      const Timer timer(record, i + 1);
      run_step(workspace, i, first, count);
    }
    if (record.times != nullptr) {
      (*record.times)[i + 1].weight_bytes = weight_bytes_of(workspace, i, count);
    }
    const Step& step = plan.steps[i];
    if (i + 1 == plan.steps.size() || plan.steps[i + 1].stage != step.stage) {
      for (std::size_t image = first; image < first + count; ++image) {
        record_stage(record, step.stage, plan.maps[step.output], step.output_format,
                     pixels(workspace, step.output, image), strides(workspace, step.output));
      }
    }
  }
}

void Executor::run_step(Workspace& workspace, std::size_t index, std::size_t first, std::size_t count) {
  const Step& step = prepared_->plan().steps[index];
  const PackedLayer& packed = prepared_->layers[index];
  const kernels::Epilogue epilogue = epilogue_of(workspace, step, packed, first);
  if (step.algorithm == Algorithm::direct) {
    run_direct(workspace, step, packed, epilogue, first, count);
  } else {
    run_winograd(workspace, index, epilogue, first, count);
  }
}

kernels::Epilogue Executor::epilogue_of(Workspace& workspace, const Step& step, const PackedLayer& packed,
                                        std::size_t first) const {
  const Map& output = prepared_->plan().maps[step.output];
  kernels::Epilogue epilogue{.bias = packed.bias.data(),
                             .scale = packed.scale.data(),
                             .channels = step.layer->outputs,
                             .residual = nullptr,
                             .residual_strides = {},
                             .residual_format = step.residual_format,
                             .output = pixels(workspace, step.output, first),
                             .output_strides = strides(workspace, step.output),
                             .output_format = step.output_format,
                             .height = output.height,
                             .width = output.width,
                             .relu = step.relu};
  if (step.residual) {
    epilogue.residual = pixels(workspace, *step.residual, first);
    epilogue.residual_strides = strides(workspace, *step.residual);
  }
  return epilogue;
}

void Executor::run_direct(Workspace& workspace, const Step& step, const PackedLayer& packed,
                          const kernels::Epilogue& epilogue, std::size_t first, std::size_t count) {
  const ConvLayer& layer = *step.layer;
  const kernels::ConvKernels& kernels = prepared_->kernels_of(step);
  const kernels::Strides input = strides(workspace, step.input);
  const bool gaps = workspace.interleaved > 1;
  const kernels::Conv conv{
      .input = pixels(workspace, step.input, first) - layer.kernel / 2 * (input.row + input.column),
      .input_strides = {.column = layer.stride * input.column,
                        .row = layer.stride * input.row,
                        .image = input.image,
                        .group = input.group},
      .window_rows = layer.kernel,
      .window_run =
          gaps ? prepared_->plan().maps[step.input].pixel() : prepared_->packing_of(step).window_run(),
      .window_row = input.row,
      .weight = packed.weight.units(),
      .epilogue = epilogue,
      .interleaved = workspace.interleaved,
      .images = count,
      .window_parts = gaps ? layer.kernel : 1,
      .window_part = input.column};
  const DirectTasks tasks =
      direct_tasks(count * epilogue.height * epilogue.width, packed.blocks, threads_->threads(), kernels);
  for_each(tasks.count(), [&](std::size_t task, std::size_t) {
    kernels.direct(conv, tasks.pixels_of(task), tasks.blocks_of(task));
  });
}

void Executor::run_winograd(Workspace& workspace, std::size_t index, const kernels::Epilogue& epilogue,
                            std::size_t first, std::size_t count) {
  const Step& step = prepared_->plan().steps[index];
  const PackedLayer& packed = prepared_->layers[index];
  const bool on_the_fly = step.weights_on_the_fly && !needs_transformed(step, count);
  const AlignedBuffer& weight =
      step.weights_on_the_fly && !on_the_fly ? *workspace.transformed[index] : packed.weight;
  const kernels::Strides input = strides(workspace, step.input);
  const std::size_t m = winograd_tile(step.algorithm);
  const kernels::ConvKernels& of_precision = prepared_->kernels_of(step);
  const kernels::WinogradKernels& kernel =
      step.algorithm == Algorithm::winograd4 ? of_precision.winograd4 : of_precision.winograd2;
  const kernels::Winograd w{.input = pixels(workspace, step.input, first) - input.row - input.column,
                            .input_strides = input,
                            .channels = step.layer->inputs,
                            .tile_rows = ceil_div(epilogue.height, m),
                            .tile_columns = ceil_div(epilogue.width, m),
                            .weight = weight.units(),
                            .plain_weight = on_the_fly ? packed.weight.units() : nullptr,
                            .epilogue = epilogue};
  const WinogradTasks t = tasks_of(step, count);
  if (t.fused) {
    for_each(t.parts(), [&](std::size_t i, std::size_t slot) {
      AlignedBuffer& scratch = workspace.private_scratch[slot];
      std::uint32_t* const transformed = scratch.units() + t.points * t.products_plane;
      kernel.input(w, t.range(i), transformed, t.plane);
      kernel.output(w, t.range(i), {0, packed.blocks}, transformed, t.plane, scratch.data(),
                    t.products_plane);
    });
    return;
  }
  std::uint32_t* const transformed = workspace.shared_scratch.units();
  const std::size_t few = ceil_div(t.tiles, 4 * threads_->threads());
  for_each(ceil_div(t.tiles, few), [&](std::size_t i, std::size_t) {
    kernel.input(w, {i * few, std::min((i + 1) * few, t.tiles)}, transformed + i * few * t.units, t.plane);
  });
  // Neighbouring tasks read the same weights.
  for_each(packed.blocks * t.parts(), [&](std::size_t i, std::size_t slot) {
    const std::size_t block = i / t.parts();
    const Range tiles = t.range(i % t.parts());
    kernel.output(w, tiles, {block, block + 1}, transformed + tiles.begin * t.units, t.plane,
                  workspace.private_scratch[slot].data(), t.products_plane);
  });
}

void Executor::run_head(Workspace& workspace, Range images) {
  const Map& features = prepared_->plan().maps[prepared_->plan().features];
  const std::size_t count = images.end - images.begin;
  const std::size_t part = ceil_div(count, threads_->threads());
  for_each(ceil_div(count, part), [&](std::size_t task, std::size_t) {
    const std::size_t first = task * part;
    const std::size_t n = std::min(part, count - first);
    const FeatureShape shape{
        .batch = n, .height = features.height, .width = features.width, .layout = Layout::nhwc};
    const std::span<float> out = workspace.results.logits(images.begin + first, n);
    const std::uint32_t* const begin = pixels(workspace, prepared_->plan().features, first);
    if (features.storage == Storage::bf16) {
      prepared_->head.run({reinterpret_cast<const Bfloat16*>(begin), 2 * n * features.image()}, shape, out);
    } else {
      prepared_->head.run({reinterpret_cast<const float*>(begin), n * features.image()}, shape, out);
    }
  });
}

void Executor::run_map_outputs(Workspace& workspace, Range images) {
  Results& results = workspace.results;
  if (!results.wants_embedding() && !results.wants_contributions()) {
    return;
  }
  const Map& features = prepared_->plan().maps[prepared_->plan().features];
  const MapOutputs& outputs = prepared_->map_outputs;
  const auto weights =
      results.wants_contributions() ? outputs.weights(features.height, features.width) : nullptr;
  for_each(images.end - images.begin, [&](std::size_t image, std::size_t) {
    const auto compute = [&]<typename Feature>(const Feature* first) {
      const FeatureMap<Feature> map{first, features.height, features.width};
      if (results.wants_embedding()) {
        outputs.embedding(map, results.embedding(images.begin + image));
      }
      if (weights != nullptr) {
        outputs.contributions(map, *weights, results.contributions(images.begin + image));
      }
    };
    const std::uint32_t* const first = pixels(workspace, prepared_->plan().features, image);
    if (features.storage == Storage::bf16) {
      compute(reinterpret_cast<const std::uint16_t*>(first));
    } else {
      compute(reinterpret_cast<const float*>(first));
    }
  });
}

PerPrecision<AlgorithmSupport> algorithm_support(const IsaRecord& isa) {
  const auto support = [](const kernels::ConvKernels* kernels) {
    return kernels == nullptr ? AlgorithmSupport{}
                              : AlgorithmSupport{.winograd2 = kernels->winograd2.input != nullptr,
                                                 .winograd4 = kernels->winograd4.input != nullptr,
                                                 .weights_on_the_fly = kernels->winograd4.weights != nullptr};
  };
  const auto& of = isa.kernels->of;
  return {.fp32 = support(of.fp32),
          .bf16 = support(of.bf16),
          .bf16x3 = support(of.bf16x3),
          .int8 = support(of.int8)};
}

}  // namespace histo
