// The part of the C interface that is about the host: versions, messages, what there is to know before
// running, shared threads, the queue. Like the rest, it only translates.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "api/c_call.h"
#include "histo/build_config.h"
#include "histo/c_api.h"
#include "histo/cancel_flag.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/estimate.h"
#include "histo/log.h"
#include "histo/model_info.h"
#include "histo/names.h"
#include "histo/thread_team.h"
#include "histo/tile_queue.h"

struct histo_model_info {
  histo::ModelInfo info;
};

struct histo_cancel_flag {
  histo::CancelFlag flag;
};

struct histo_queue {
  histo::TileQueue queue;
};

namespace {

using histo::Error;
using histo::ErrorCode;
using histo::c_api::check_struct_size;
using histo::c_api::guarded;
using histo::c_api::make_handle;
using histo::c_api::read_options;
using histo::c_api::require;
using histo::c_api::status_of;
using histo::c_api::write_result;

static_assert(static_cast<int>(histo::LogLevel::info) == HISTO_LOG_INFO);
static_assert(static_cast<int>(histo::LogLevel::warning) == HISTO_LOG_WARNING);
static_assert(histo::name_table<histo::LogLevel>.size() == 2, "c_api.h lists them all");

// The two kinds of function pointer, which differ in the type of the level.
struct CLog {
  histo_log_callback callback;
  void* user;
};

template <typename Tile>
histo_status run_until(const histo_engine* engine, const Tile* tiles, std::size_t tiles_size,
                       histo::TileShape shape, float* logits, std::size_t logits_size,
                       const histo_cancel_flag* cancel) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(tiles, "tiles");
    require(logits, "logits");
    require(cancel, "cancel");
    engine->engine.run(std::span(tiles, tiles_size), shape, std::span(logits, logits_size), cancel->flag);
  });
}

histo::ThreadTeamOptions team_options(const histo_team_options* options) {
  const auto given = read_options("options", options, HISTO_SIZE_UP_TO(histo_team_options, name));
  histo::ThreadTeamOptions result;
  result.threads = given.threads;
  if (given.cpus_size > 0) {
    require(given.cpus, "options.cpus");
    result.cpus.assign(given.cpus, given.cpus + given.cpus_size);
  }
  if (given.name != nullptr) {
    result.name = given.name;
  }
  return result;
}

histo::ParallelFor parallel_for_of(histo_parallel_for parallel_for, void* user) {
  require(parallel_for, "parallel_for");
  return [parallel_for, user](std::size_t threads, const std::function<void()>& body) {
    const auto call = [](void* context) { (*static_cast<const std::function<void()>*>(context))(); };
    const int outcome = parallel_for(user, threads, call, const_cast<std::function<void()>*>(&body));
    if (outcome != 0) {
      throw Error(ErrorCode::failed, "the parallel_for returned " + std::to_string(outcome));
    }
  };
}

histo::TileQueueOptions queue_options(const histo_queue_options* options) {
  const auto given = read_options("options", options, HISTO_SIZE_UP_TO(histo_queue_options, capacity));
  histo::TileQueueOptions result;
  result.max_batch = given.max_batch == 0 ? result.max_batch : given.max_batch;
  result.capacity = given.capacity == 0 ? result.capacity : given.capacity;
  // A number that does not fit is too long in any case.
  result.max_wait = std::in_range<std::chrono::microseconds::rep>(given.max_wait_us)
                        ? std::chrono::microseconds(given.max_wait_us)
                        : std::chrono::microseconds::max();
  return result;
}

histo::TileCallback callback_of(histo_answer_callback callback, void* user) {
  return [callback, user](const histo::TileAnswer& given) {
    const bool failed = given.error != nullptr;
    const histo_answer answer{.id = given.id,
                              .status = failed ? status_of(given.error->code()) : HISTO_OK,
                              .logits = failed ? nullptr : given.logits.data(),
                              .classes = given.logits.size(),
                              .error = failed ? given.error->what() : nullptr};
    callback(user, &answer);
  };
}

enum class WhenFull { wait, refuse };

// A submission of C, as it was given.
struct CTile {
  const uint8_t* pixels;
  std::size_t size, height, width;
};

histo_status submit(histo_queue* queue, const CTile& tile, histo_answer_callback callback, void* user,
                    WhenFull when_full, std::uint64_t* id) noexcept {
  return guarded([&] {
    require(queue, "queue");
    require(tile.pixels, "tile");
    require(callback, "callback");
    const std::span<const std::uint8_t> pixels(tile.pixels, tile.size);
    const histo::TileCallback answer = callback_of(callback, user);
    const std::optional<std::uint64_t> submitted =
        when_full == WhenFull::wait ? queue->queue.submit(pixels, tile.height, tile.width, answer)
                                    : queue->queue.try_submit(pixels, tile.height, tile.width, answer);
    if (!submitted) {
      throw Error(ErrorCode::busy, "the queue is full", "try again later, or make capacity larger");
    }
    if (id != nullptr) {
      *id = *submitted;
    }
  });
}

}  // namespace

extern "C" {

int histo_version_number() noexcept { return histo::version_number(); }

histo_status histo_require_version(int headers) noexcept {
  return guarded([headers] { histo::require_version(headers); });
}

const char* histo_status_name(int status) noexcept {
  return status == HISTO_OK ? "ok" : histo::name(static_cast<ErrorCode>(status)).data();  // literals
}

histo_status histo_set_log(histo_log_callback callback, void* user) noexcept {
  return guarded([callback, user] {
    if (callback == nullptr) {
      histo::set_log(nullptr);
      return;
    }
    // Never freed, like what histo::set_log() keeps: a call may be in progress.
    auto* const kept = new CLog{callback, user};
    histo::set_log(
        [](void* given, histo::LogLevel level, const char* message) {
          const auto* const log = static_cast<const CLog*>(given);
          log->callback(log->user, static_cast<int>(level), message);
        },
        kept);
  });
}

histo_status histo_model_info_read(const char* path, histo_model_info** info) noexcept {
  return make_handle(info, "info", [path] {
    require(path, "path");
    return histo::read_model_info(histo::path_from_utf8(path));
  });
}

void histo_model_info_free(histo_model_info* info) noexcept { delete info; }

size_t histo_model_info_classes(const histo_model_info* info) noexcept {
  return info == nullptr ? 0 : info->info.spec.classes.size();
}

size_t histo_model_info_crop(const histo_model_info* info) noexcept {
  return info == nullptr ? 0 : info->info.spec.crop;
}

size_t histo_model_info_tile_size(const histo_model_info* info) noexcept {
  return info == nullptr ? 0 : info->info.spec.tile_size;
}

size_t histo_model_info_pool(const histo_model_info* info) noexcept {
  return info == nullptr ? 0 : info->info.spec.pool;
}

double histo_model_info_mpp(const histo_model_info* info) noexcept {
  return info == nullptr ? 0 : info->info.spec.mpp.value_or(0);
}

size_t histo_model_info_file_bytes(const histo_model_info* info) noexcept {
  return info == nullptr ? 0 : info->info.file_bytes;
}

int histo_model_info_int8(const histo_model_info* info) noexcept {
  return info != nullptr && info->info.int8 ? 1 : 0;
}

const char* histo_model_info_class_name(const histo_model_info* info, size_t index) noexcept {
  return index < histo_model_info_classes(info) ? info->info.spec.classes[index].c_str() : nullptr;
}

const char* histo_model_info_metadata(const histo_model_info* info, const char* key) noexcept {
  if (info != nullptr && key != nullptr) {
    for (const auto& [name, value] : info->info.metadata) {
      if (name == key) {
        return value.c_str();
      }
    }
  }
  return nullptr;
}

histo_status histo_estimate(const histo_model* model, const histo_engine_options* options, size_t batch,
                            histo_memory_estimate* estimate) noexcept {
  return guarded([&] {
    require(model, "model");
    require(estimate, "estimate");
    check_struct_size("estimate", estimate->struct_size,
                      HISTO_SIZE_UP_TO(histo_memory_estimate, huge_page_bytes));
    const histo::MemoryEstimate found =
        histo::estimate(model->model, histo::c_api::engine_options(options), batch);
    histo_memory_estimate values{};
    values.model_bytes = found.model_bytes;
    values.weight_bytes = found.weight_bytes;
    values.workspace_bytes = found.workspace_bytes;
    values.thread_bytes = found.thread_bytes;
    values.huge_page_bytes = found.huge_page_bytes;
    write_result(estimate, values);
  });
}

histo_status histo_team_create(const histo_team_options* options, histo_team** team) noexcept {
  return make_handle(team, "team",
                     [options] { return std::make_shared<histo::ThreadTeam>(team_options(options)); });
}

histo_status histo_team_create_on(unsigned threads, histo_parallel_for parallel_for, void* user,
                                  histo_team** team) noexcept {
  return make_handle(team, "team", [&] {
    return std::make_shared<histo::ThreadTeam>(threads, parallel_for_of(parallel_for, user));
  });
}

void histo_team_free(histo_team* team) noexcept { delete team; }

unsigned histo_team_threads(const histo_team* team) noexcept {
  return team == nullptr ? 0 : team->team->threads();
}

histo_status histo_cancel_flag_create(histo_cancel_flag** flag) noexcept {
  return make_handle(flag, "flag", [] { return histo::CancelFlag(); });
}

void histo_cancel_flag_free(histo_cancel_flag* flag) noexcept { delete flag; }

void histo_cancel_flag_cancel(histo_cancel_flag* flag) noexcept {
  if (flag != nullptr) {
    flag->flag.cancel();
  }
}

void histo_cancel_flag_reset(histo_cancel_flag* flag) noexcept {
  if (flag != nullptr) {
    flag->flag.reset();
  }
}

int histo_cancel_flag_cancelled(const histo_cancel_flag* flag) noexcept {
  return flag != nullptr && flag->flag.cancelled() ? 1 : 0;
}

histo_status histo_engine_run_u8_until(const histo_engine* engine, const uint8_t* tiles, size_t tiles_size,
                                       size_t batch, size_t height, size_t width, float* logits,
                                       size_t logits_size, const histo_cancel_flag* cancel) noexcept {
  return run_until(engine, tiles, tiles_size, {.batch = batch, .height = height, .width = width}, logits,
                   logits_size, cancel);
}

histo_status histo_engine_run_f32_until(const histo_engine* engine, const float* tiles, size_t tiles_size,
                                        size_t batch, size_t height, size_t width, float* logits,
                                        size_t logits_size, const histo_cancel_flag* cancel) noexcept {
  return run_until(engine, tiles, tiles_size, {.batch = batch, .height = height, .width = width}, logits,
                   logits_size, cancel);
}

histo_status histo_queue_create(const histo_engine* engine, const histo_queue_options* options,
                                histo_queue** queue) noexcept {
  return make_handle(queue, "queue", [&] {
    require(engine, "engine");
    return histo::TileQueue(engine->engine, queue_options(options));
  });
}

void histo_queue_free(histo_queue* queue) noexcept { delete queue; }

histo_status histo_queue_submit(histo_queue* queue, const uint8_t* tile, size_t tile_size, size_t height,
                                size_t width, histo_answer_callback callback, void* user,
                                uint64_t* id) noexcept {
  return submit(queue, {tile, tile_size, height, width}, callback, user, WhenFull::wait, id);
}

histo_status histo_queue_try_submit(histo_queue* queue, const uint8_t* tile, size_t tile_size, size_t height,
                                    size_t width, histo_answer_callback callback, void* user,
                                    uint64_t* id) noexcept {
  return submit(queue, {tile, tile_size, height, width}, callback, user, WhenFull::refuse, id);
}

histo_status histo_queue_cancel(histo_queue* queue, uint64_t id, int* cancelled) noexcept {
  return guarded([&] {
    require(queue, "queue");
    const bool done = queue->queue.cancel(id);
    if (cancelled != nullptr) {
      *cancelled = done ? 1 : 0;
    }
  });
}

histo_status histo_queue_cancel_all(histo_queue* queue, size_t* cancelled) noexcept {
  return guarded([&] {
    require(queue, "queue");
    const std::size_t done = queue->queue.cancel_all();
    if (cancelled != nullptr) {
      *cancelled = done;
    }
  });
}

histo_status histo_queue_drain(histo_queue* queue) noexcept {
  return guarded([&] {
    require(queue, "queue");
    queue->queue.drain();
  });
}

histo_status histo_queue_get_stats(const histo_queue* queue, histo_queue_stats* stats) noexcept {
  return guarded([&] {
    require(queue, "queue");
    require(stats, "stats");
    check_struct_size("stats", stats->struct_size, HISTO_SIZE_UP_TO(histo_queue_stats, waiting));
    const histo::TileQueueStats now = queue->queue.stats();
    histo_queue_stats values{};
    values.submitted = now.submitted;
    values.answered = now.answered;
    values.failed = now.failed;
    values.cancelled = now.cancelled;
    values.batches = now.batches;
    values.waiting = now.waiting;
    write_result(stats, values);
  });
}

}  // extern "C"
