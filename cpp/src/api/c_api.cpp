// The C interface. It only translates: handles to objects, pointers and sizes to spans, exceptions to status
// numbers. Shapes are checked by the C++ functions that it calls.

#include "histo/c_api.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/c_call.h"
#include "histo/batch_runner.h"
#include "histo/build_config.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/fused_head.h"
#include "histo/image_view.h"
#include "histo/model.h"
#include "histo/names.h"
#include "histo/self_test.h"
#include "platform/platform.h"

struct histo_head {
  histo::FusedHead head;
};

namespace {

// The last failure of this thread. Arrays, because a message must also be stored where memory has run out.
constexpr std::size_t longest_message = 1024;
thread_local char last_error[longest_message + 1] = "";
thread_local const char* last_remedy = "";  // points into last_error

}  // namespace

namespace histo::c_api {

static_assert(status_of(ErrorCode::invalid_argument) == HISTO_INVALID_ARGUMENT);
static_assert(status_of(ErrorCode::size_mismatch) == HISTO_SIZE_MISMATCH);
static_assert(status_of(ErrorCode::size_overflow) == HISTO_SIZE_OVERFLOW);
static_assert(status_of(ErrorCode::io) == HISTO_IO);
static_assert(status_of(ErrorCode::invalid_file) == HISTO_INVALID_FILE);
static_assert(status_of(ErrorCode::unsupported) == HISTO_UNSUPPORTED);
static_assert(status_of(ErrorCode::out_of_memory) == HISTO_OUT_OF_MEMORY);
static_assert(status_of(ErrorCode::cancelled) == HISTO_CANCELLED);
static_assert(status_of(ErrorCode::failed) == HISTO_FAILED);
static_assert(status_of(ErrorCode::busy) == HISTO_BUSY);
static_assert(static_cast<int>(histo::Layout::nchw) == HISTO_NCHW);
static_assert(static_cast<int>(histo::Layout::nhwc) == HISTO_NHWC);
static_assert(histo::name_table<ErrorCode>.size() == 10 && histo::name_table<histo::Layout>.size() == 2,
              "c_api.h lists them all");

histo_status fail(histo_status status, std::string_view sentence, std::string_view remedy) noexcept {
  std::size_t size = std::min(sentence.size(), longest_message);
  if (size < sentence.size()) {
    while (size > 0 && (static_cast<unsigned char>(sentence[size]) & 0xC0U) == 0x80U) {
      --size;  // do not cut inside a UTF-8 sequence
    }
  }
  std::ranges::replace_copy(sentence.substr(0, size), last_error, '\n', ' ');
  last_error[size] = '\0';
  last_remedy = last_error + std::min(size, sentence.size() - remedy.size());
  return status;
}

// Far more than any structure of any version will take: a size that was never set is refused, and not
// believed.
constexpr std::size_t largest_struct = 4096;

void check_struct_size(const char* name, std::size_t size, std::size_t smallest) {
  if (size < smallest || size > largest_struct) {
    const bool less = size < smallest;
    throw Error(ErrorCode::invalid_argument,
                std::string(name) + ".struct_size is " + std::to_string(size) +
                    (less ? ", less than " : ", more than ") +
                    std::to_string(less ? smallest : largest_struct),
                "set it to sizeof of the structure");
  }
}

EngineOptions engine_options(const histo_engine_options* options) {
  const auto given = read_options("options", options, HISTO_SIZE_UP_TO(histo_engine_options, algorithm));
  EngineOptions result;
  result.threads = given.threads;
  result.precision = named("precision", given.precision, result.precision);
  result.isa = isa_of(given.isa);
  result.crop = given.crop;
  result.profile = named("profile", given.profile, result.profile);
  result.algorithm = named("algorithm", given.algorithm, result.algorithm);
  result.team = given.team == nullptr ? nullptr : given.team->team;
  return result;
}

}  // namespace histo::c_api

namespace {

using histo::Error;
using histo::ErrorCode;
using histo::c_api::check_struct_size;
using histo::c_api::guarded;
using histo::c_api::isa_of;
using histo::c_api::make_handle;
using histo::c_api::named;
using histo::c_api::read_options;
using histo::c_api::require;
using histo::c_api::write_result;

template <typename Tile>
histo_status run(const histo_engine* engine, const Tile* tiles, std::size_t tiles_size,
                 histo::TileShape shape, float* logits, std::size_t logits_size) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(tiles, "tiles");
    require(logits, "logits");
    engine->engine.run(std::span(tiles, tiles_size), shape, std::span(logits, logits_size));
  });
}

template <typename Feature>
histo_status run(const histo_head* head, const Feature* features, std::size_t features_size,
                 std::size_t batch, std::size_t height, std::size_t width, int layout, int softmax,
                 float* out, std::size_t out_size) noexcept {
  return guarded([&] {
    require(head, "head");
    require(features, "features");
    require(out, "out");
    if (layout != HISTO_NCHW && layout != HISTO_NHWC) {
      throw Error(ErrorCode::invalid_argument, "layout is " + std::to_string(layout),
                  "it must be HISTO_NCHW or HISTO_NHWC");
    }
    head->head.run(
        std::span(features, features_size),
        {.batch = batch, .height = height, .width = width, .layout = static_cast<histo::Layout>(layout)},
        std::span(out, out_size), softmax != 0 ? histo::Softmax::yes : histo::Softmax::no);
  });
}

histo_batch_stats c_stats(const histo::BatchRunnerStats& stats) {
  histo_batch_stats result{};
  result.struct_size = sizeof(result);
  result.tiles = stats.tiles;
  result.failed = stats.failed;
  result.batches = stats.batches;
  result.seconds = stats.seconds;
  result.prepare_seconds = stats.prepare_seconds;
  result.infer_seconds = stats.infer_seconds;
  result.deliver_seconds = stats.deliver_seconds;
  return result;
}

histo::BatchRunnerOptions runner_options(const histo_batch_options& given) {
  histo::BatchRunnerOptions options;
  options.batch = given.batch == 0 ? options.batch : given.batch;
  options.queued = given.queued == 0 ? options.queued : given.queued;
  options.on_error = given.report_errors != 0 ? histo::OnError::report : histo::OnError::stop;
  return options;
}

histo::TileSource tile_source(histo_tile_source source, void* user) {
  return [source, user](std::span<std::uint8_t> tile) {
    const int outcome = source(user, tile.data(), tile.size());
    if (outcome < 0) {
      throw Error(ErrorCode::failed, "the source returned " + std::to_string(outcome));
    }
    return outcome > 0;
  };
}

histo::TileSink tile_sink(histo_tile_sink sink, void* user) {
  return [sink, user](const histo::TileResult& tile) {
    const bool failed = tile.error != nullptr;
    const histo_tile_result result{.index = tile.index,
                                   .logits = failed ? nullptr : tile.logits.data(),
                                   .classes = tile.logits.size(),
                                   .error = failed ? tile.error->c_str() : nullptr};
    if (const int outcome = sink(user, &result); outcome != 0) {
      throw Error(ErrorCode::failed,
                  "the sink returned " + std::to_string(outcome) + " for tile " + std::to_string(tile.index));
    }
  };
}

histo::Progress progress_of(histo_progress progress, void* user) {
  if (progress == nullptr) {
    return {};
  }
  return [progress, user](const histo::BatchRunnerStats& so_far) {
    const histo_batch_stats copy = c_stats(so_far);
    return progress(user, &copy) == 0;
  };
}

histo::ImageView view_of(const char* name, const histo_image_view* given) {
  const auto view = read_options(name, given, HISTO_SIZE_UP_TO(histo_image_view, plane_stride));
  return {.bytes = {view.bytes, view.bytes_size},
          .height = view.height,
          .width = view.width,
          .format = named("format", view.format, histo::PixelFormat::rgb),
          .row_stride = view.row_stride,
          .plane_stride = view.plane_stride};
}

// The first one says how far they lie apart: the caller may have been compiled with another structure.
std::vector<histo::ImageView> views_of(const histo_image_view* tiles, std::size_t batch) {
  std::vector<histo::ImageView> views;
  const std::size_t size = batch == 0 ? 0 : tiles->struct_size;  // without a tile, any pointer is given
  for (std::size_t i = 0; i < batch; ++i) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(tiles) + i * size;
    const auto* const tile = reinterpret_cast<const histo_image_view*>(bytes);
    if (tile->struct_size != size) {
      throw Error(ErrorCode::invalid_argument,
                  "struct_size of tile " + std::to_string(i) + " is " + std::to_string(tile->struct_size) +
                      ", and that of tile 0 is " + std::to_string(size),
                  "set it to sizeof of the structure");
    }
    views.push_back(view_of("tiles", tile));
  }
  return views;
}

histo::Outputs outputs_of(const histo_outputs* given) {
  const auto outputs = read_options("outputs", given, HISTO_SIZE_UP_TO(histo_outputs, contributions_size));
  return {.top = outputs.top,
          .logits = {outputs.logits, outputs.logits_size},
          .probabilities = {outputs.probabilities, outputs.probabilities_size},
          .top_classes = {outputs.top_classes, outputs.top_classes_size},
          .top_probabilities = {outputs.top_probabilities, outputs.top_probabilities_size},
          .embedding = {outputs.embedding, outputs.embedding_size},
          .contributions = {outputs.contributions, outputs.contributions_size}};
}

template <typename Tile>
histo_status run(const histo_engine* engine, const Tile* tiles, std::size_t tiles_size,
                 histo::TileShape shape, const histo_outputs* outputs) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(tiles, "tiles");
    require(outputs, "outputs");
    engine->engine.run(std::span(tiles, tiles_size), shape, outputs_of(outputs));
  });
}

}  // namespace

extern "C" {

const char* histo_last_error() noexcept { return last_error; }

const char* histo_last_remedy() noexcept { return last_remedy; }

const char* histo_version() noexcept { return histo::build_config().version.data(); }  // a literal

unsigned histo_usable_cpus() noexcept {
  unsigned cpus = 1;
  static_cast<void>(guarded([&cpus] { cpus = histo::usable_cpus(); }));
  return cpus;
}

histo_status histo_precision_support(const char* precision, const char* isa, const char** executed) noexcept {
  return guarded([&] {
    require(precision, "precision");
    const auto wanted = histo::from_name<histo::Precision>("precision", precision);
    for (const histo::PrecisionSupport& support : histo::precision_support(isa_of(isa))) {
      if (support.precision == wanted) {
        if (!support.isa) {
          throw Error(ErrorCode::unsupported, support.reason, "use fp32");
        }
        if (executed != nullptr) {
          *executed = histo::name(*support.isa).data();
        }
      }
    }
  });
}

histo_status histo_model_open(const char* path, histo_model** model) noexcept {
  return make_handle(model, "model", [path] {
    require(path, "path");
    return histo::Model::open(histo::path_from_utf8(path));
  });
}

histo_status histo_model_from_memory(const void* bytes, size_t size, histo_model** model) noexcept {
  return make_handle(model, "model", [bytes, size] {
    require(bytes, "bytes");
    return histo::Model::from_memory({static_cast<const std::byte*>(bytes), size});
  });
}

void histo_model_free(histo_model* model) noexcept { delete model; }

size_t histo_model_classes(const histo_model* model) noexcept {
  return model == nullptr ? 0 : model->model.spec().classes.size();
}

size_t histo_model_crop(const histo_model* model) noexcept {
  return model == nullptr ? 0 : model->model.spec().crop;
}

size_t histo_model_tile_size(const histo_model* model) noexcept {
  return model == nullptr ? 0 : model->model.spec().tile_size;
}

size_t histo_model_pool(const histo_model* model) noexcept {
  return model == nullptr ? 0 : model->model.spec().pool;
}

double histo_model_mpp(const histo_model* model) noexcept {
  return model == nullptr ? 0 : model->model.spec().mpp.value_or(0);
}

size_t histo_model_embedding_size(const histo_model* model) noexcept {
  std::size_t size = 0;
  if (model != nullptr) {
    static_cast<void>(guarded([&] { size = model->model.embedding_size(); }));
  }
  return size;
}

const char* histo_model_class_name(const histo_model* model, size_t index) noexcept {
  return index < histo_model_classes(model) ? model->model.spec().classes[index].c_str() : nullptr;
}

histo_status histo_engine_create(const histo_model* model, const histo_engine_options* options,
                                 histo_engine** engine) noexcept {
  return make_handle(engine, "engine", [model, options] {
    require(model, "model");
    return histo::Engine(model->model, histo::c_api::engine_options(options));
  });
}

histo_status histo_engine_copy(const histo_engine* engine, histo_engine** copy) noexcept {
  return make_handle(copy, "copy", [engine] {
    require(engine, "engine");
    return engine->engine;
  });
}

void histo_engine_free(histo_engine* engine) noexcept { delete engine; }

histo_status histo_engine_run_u8(const histo_engine* engine, const uint8_t* tiles, size_t tiles_size,
                                 size_t batch, size_t height, size_t width, float* logits,
                                 size_t logits_size) noexcept {
  return run(engine, tiles, tiles_size, {.batch = batch, .height = height, .width = width}, logits,
             logits_size);
}

histo_status histo_engine_run_f32(const histo_engine* engine, const float* tiles, size_t tiles_size,
                                  size_t batch, size_t height, size_t width, float* logits,
                                  size_t logits_size) noexcept {
  return run(engine, tiles, tiles_size, {.batch = batch, .height = height, .width = width}, logits,
             logits_size);
}

histo_status histo_image_view_region(const histo_image_view* image, size_t x, size_t y, size_t height,
                                     size_t width, histo_image_view* region) noexcept {
  return guarded([&] {
    require(image, "image");
    require(region, "region");
    check_struct_size("region", region->struct_size, HISTO_SIZE_UP_TO(histo_image_view, plane_stride));
    const histo::ImageView part =
        view_of("image", image).region({.x = x, .y = y, .height = height, .width = width});
    histo_image_view result{};
    result.bytes = part.bytes.data();
    result.bytes_size = part.bytes.size();
    result.height = part.height;
    result.width = part.width;
    result.format = histo::name(part.format).data();  // a literal
    result.row_stride = part.row_stride;
    result.plane_stride = part.plane_stride;
    write_result(region, result);
  });
}

histo_status histo_engine_run_views(const histo_engine* engine, const histo_image_view* tiles, size_t batch,
                                    const histo_outputs* outputs) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(tiles, "tiles");
    require(outputs, "outputs");
    engine->engine.run(views_of(tiles, batch), outputs_of(outputs));
  });
}

histo_status histo_engine_run_u8_outputs(const histo_engine* engine, const uint8_t* tiles, size_t tiles_size,
                                         size_t batch, size_t height, size_t width,
                                         const histo_outputs* outputs) noexcept {
  return run(engine, tiles, tiles_size, {.batch = batch, .height = height, .width = width}, outputs);
}

histo_status histo_engine_run_f32_outputs(const histo_engine* engine, const float* tiles, size_t tiles_size,
                                          size_t batch, size_t height, size_t width,
                                          const histo_outputs* outputs) noexcept {
  return run(engine, tiles, tiles_size, {.batch = batch, .height = height, .width = width}, outputs);
}

histo_status histo_engine_warmup(const histo_engine* engine, size_t batch) noexcept {
  return guarded([&] {
    require(engine, "engine");
    engine->engine.warmup(batch);
  });
}

histo_status histo_engine_get_info(const histo_engine* engine, histo_engine_info* info) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(info, "info");
    check_struct_size("info", info->struct_size, HISTO_SIZE_UP_TO(histo_engine_info, algorithm));
    const histo::EngineInfo known = engine->engine.info();
    histo_engine_info result{};
    result.isa = histo::name(known.isa).data();  // names are literals
    result.precision = histo::name(known.precision).data();
    result.threads = known.threads;
    result.crop = known.crop;
    result.classes = engine->engine.classes();
    result.weight_bytes = known.weight_bytes;
    result.workspace_bytes = known.workspace_bytes;
    result.embedding_size = known.embedding_size;
    result.map_side = known.map_side;
    result.profile = histo::name(known.profile).data();
    result.algorithm = histo::name(known.algorithm).data();
    write_result(info, result);
  });
}

histo_status histo_engine_self_test(const histo_engine* engine, const char* golden_path,
                                    histo_self_test_result* result) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(golden_path, "golden_path");
    require(result, "result");
    check_struct_size("result", result->struct_size, HISTO_SIZE_UP_TO(histo_self_test_result, passed));
    const histo::SelfTestResult found = histo::self_test(engine->engine, histo::path_from_utf8(golden_path));
    histo_self_test_result values{};
    values.tiles = found.tiles;
    values.max_abs = found.max_abs;
    values.max_relative = found.max_relative;
    values.tolerance = found.tolerance;
    values.passed = found.passed ? 1 : 0;
    write_result(result, values);
  });
}

histo_status histo_run_batches(const histo_engine* engine, size_t height, size_t width,
                               histo_tile_source source, histo_tile_sink sink, histo_progress progress,
                               void* user, const histo_batch_options* options,
                               histo_batch_stats* stats) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(source, "source");
    require(sink, "sink");
    const auto given = read_options("options", options, HISTO_SIZE_UP_TO(histo_batch_options, report_errors));
    if (stats != nullptr) {
      check_struct_size("stats", stats->struct_size, HISTO_SIZE_UP_TO(histo_batch_stats, deliver_seconds));
    }
    // The caller owns the engine.
    const std::shared_ptr<const histo::Engine> borrowed(std::shared_ptr<const void>(), &engine->engine);
    const histo::BatchRunner runner(borrowed, runner_options(given));
    const histo::BatchRunnerStats done = runner.run(height, width, tile_source(source, user),
                                                    tile_sink(sink, user), progress_of(progress, user));
    if (stats != nullptr) {
      write_result(stats, c_stats(done));
    }
  });
}

histo_status histo_head_create(size_t pool, size_t channels, size_t classes, const float* weight,
                               size_t weight_size, const float* bias, size_t bias_size,
                               const histo_head_options* options, histo_head** head) noexcept {
  return make_handle(head, "head", [&] {
    require(weight, "weight");
    require(bias, "bias");
    const auto given = read_options("options", options, HISTO_SIZE_UP_TO(histo_head_options, isa));
    histo::FusedHeadOptions head_options;
    head_options.threads = given.threads;
    head_options.isa = isa_of(given.isa);
    return histo::FusedHead(pool, channels, classes, {weight, weight_size}, {bias, bias_size}, head_options);
  });
}

void histo_head_free(histo_head* head) noexcept { delete head; }

histo_status histo_head_run_f32(const histo_head* head, const float* features, size_t features_size,
                                size_t batch, size_t height, size_t width, int layout, int softmax,
                                float* out, size_t out_size) noexcept {
  return run(head, features, features_size, batch, height, width, layout, softmax, out, out_size);
}

histo_status histo_head_run_bf16(const histo_head* head, const uint16_t* features, size_t features_size,
                                 size_t batch, size_t height, size_t width, int layout, int softmax,
                                 float* out, size_t out_size) noexcept {
  static_assert(sizeof(histo::Bfloat16) == sizeof(std::uint16_t));
  return run(head, reinterpret_cast<const histo::Bfloat16*>(features), features_size, batch, height, width,
             layout, softmax, out, out_size);
}

}  // extern "C"
