/* The part of the C interface that is about the host, from a C89 program with <stdint.h>:
   histo_c_api_hosts_test MODEL, where MODEL is a valid model.safetensors. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "c_check.h"
#include "histo/c_api.h"

enum { SIDE = 40, TILE = SIDE * SIDE * 3, TILES = 6 };

static uint8_t tiles[TILES * TILE];
static float* expected; /* (TILES, classes) */
static size_t classes;

/* --- versions, names, messages ---------------------------------------------------------------------------
 */

static int messages = 0;

static void take_message(void* user, int level, const char* message) {
  CHECK(user == &messages);
  CHECK(level == HISTO_LOG_INFO || level == HISTO_LOG_WARNING);
  CHECK(*message != '\0');
  ++messages;
}

static void test_names(void) {
  CHECK(histo_version_number() == HISTO_VERSION_NUMBER);
  CHECK(histo_require_version(HISTO_VERSION_NUMBER) == HISTO_OK);
  CHECK_FAILS(histo_require_version(HISTO_VERSION_NUMBER + 1), HISTO_UNSUPPORTED, "headers");
  CHECK(strcmp(histo_status_name(HISTO_OK), "ok") == 0);
  CHECK(strcmp(histo_status_name(HISTO_INVALID_ARGUMENT), "invalid_argument") == 0);
  CHECK(strcmp(histo_status_name(HISTO_BUSY), "busy") == 0);
  CHECK(strcmp(histo_status_name(11), "unknown") == 0);
  CHECK(strcmp(histo_status_name(-1), "unknown") == 0);
}

/* --- before running ----------------------------------------------------------------------------------------
 */

static void test_info(const char* path, const histo_model* model) {
  histo_model_info* info = NULL;
  size_t i;
  CHECK(histo_model_info_read(path, &info) == HISTO_OK);
  CHECK(histo_model_info_classes(info) == histo_model_classes(model));
  CHECK(histo_model_info_crop(info) == histo_model_crop(model));
  CHECK(histo_model_info_tile_size(info) == histo_model_tile_size(model));
  CHECK(histo_model_info_pool(info) == histo_model_pool(model));
  CHECK(histo_model_info_mpp(info) == histo_model_mpp(model));
  CHECK(histo_model_info_file_bytes(info) > 80000000);
  CHECK(histo_model_info_int8(info) == 0 || histo_model_info_int8(info) == 1);
  for (i = 0; i < classes; ++i) {
    CHECK(strcmp(histo_model_info_class_name(info, i), histo_model_class_name(model, i)) == 0);
  }
  CHECK(histo_model_info_class_name(info, classes) == NULL);
  CHECK(histo_model_info_metadata(info, "histo.format") != NULL);
  CHECK(histo_model_info_metadata(info, "histo.none") == NULL);
  CHECK(histo_model_info_metadata(info, NULL) == NULL);
  histo_model_info_free(info);
  CHECK_FAILS(histo_model_info_read("/nowhere", &info), HISTO_IO, "/nowhere");
  CHECK(info == NULL);
  CHECK_FAILS(histo_model_info_read(NULL, &info), HISTO_INVALID_ARGUMENT, "path");
  CHECK_FAILS(histo_model_info_read(path, NULL), HISTO_INVALID_ARGUMENT, "info");
  CHECK(histo_model_info_classes(NULL) == 0);
  CHECK(histo_model_info_crop(NULL) + histo_model_info_tile_size(NULL) + histo_model_info_pool(NULL) == 0);
  CHECK(histo_model_info_mpp(NULL) == 0);
  CHECK(histo_model_info_file_bytes(NULL) == 0);
  CHECK(histo_model_info_int8(NULL) == 0);
  CHECK(histo_model_info_class_name(NULL, 0) == NULL);
  CHECK(histo_model_info_metadata(NULL, "histo.format") == NULL);
  histo_model_info_free(NULL);
}

static void test_estimate(const histo_model* model, const histo_engine* engine,
                          const histo_engine_options* options) {
  histo_memory_estimate memory = HISTO_MEMORY_ESTIMATE_INIT;
  histo_engine_info info = HISTO_ENGINE_INFO_INIT;
  CHECK(histo_engine_get_info(engine, &info) == HISTO_OK);
  CHECK(histo_estimate(model, options, TILES, &memory) == HISTO_OK);
  CHECK(memory.weight_bytes == info.weight_bytes);
  CHECK(memory.workspace_bytes == info.workspace_bytes);
  CHECK(memory.model_bytes > 80000000);
  CHECK(memory.thread_bytes > 0);
  CHECK_FAILS(histo_estimate(model, NULL, 0, &memory), HISTO_INVALID_ARGUMENT, "batch");
  CHECK_FAILS(histo_estimate(NULL, NULL, 1, &memory), HISTO_INVALID_ARGUMENT, "model");
  CHECK_FAILS(histo_estimate(model, NULL, 1, NULL), HISTO_INVALID_ARGUMENT, "estimate");
  memory.struct_size = 3;
  CHECK_FAILS(histo_estimate(model, NULL, 1, &memory), HISTO_INVALID_ARGUMENT, "struct_size");
}

/* --- threads that engines share
 * ------------------------------------------------------------------------------ */

struct loop {
  int calls;
  int result;
};

static int in_a_row(void* user, size_t threads, void (*body)(void* context), void* context) {
  struct loop* mine = user;
  size_t i;
  for (i = 0; i < threads; ++i) {
    body(context);
  }
  ++mine->calls;
  return mine->result;
}

static void check_logits(const histo_engine* engine) {
  float* logits = calloc(TILES * classes, sizeof(float));
  CHECK(histo_engine_run_u8(engine, tiles, sizeof tiles, TILES, SIDE, SIDE, logits, TILES * classes) ==
        HISTO_OK);
  CHECK(memcmp(logits, expected, TILES * classes * sizeof(float)) == 0);
  free(logits);
}

static void test_team(const histo_model* model) {
  histo_engine_options options = HISTO_ENGINE_OPTIONS_INIT;
  histo_team_options team_options = HISTO_TEAM_OPTIONS_INIT;
  histo_engine* engine = NULL;
  histo_team* team = NULL;
  struct loop loop = {0, 0};
  float logits[64];
  unsigned far_away = 4000000000U;

  team_options.threads = 2;
  team_options.name = "viewer";
  CHECK(histo_team_create(&team_options, &team) == HISTO_OK);
  CHECK(histo_team_threads(team) == 2);
  options.team = team;
  options.algorithm = "direct";
  CHECK(histo_engine_create(model, &options, &engine) == HISTO_OK);
  histo_team_free(team); /* the engine keeps it */
  check_logits(engine);
  histo_engine_free(engine);

  CHECK(histo_team_create_on(3, in_a_row, &loop, &team) == HISTO_OK);
  options.team = team;
  CHECK(histo_engine_create(model, &options, &engine) == HISTO_OK);
  check_logits(engine);
  CHECK(loop.calls > 30);
  loop.result = 7;
  logits[0] = -1;
  CHECK_FAILS(histo_engine_run_u8(engine, tiles, TILE, 1, SIDE, SIDE, logits, classes), HISTO_FAILED,
              "returned 7");
  CHECK(logits[0] == -1);
  loop.result = 0;
  check_logits(engine);
  histo_engine_free(engine);
  options.threads = 2;
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "team has 3");
  histo_team_free(team);

  CHECK(histo_team_create(NULL, &team) == HISTO_OK);
  CHECK(histo_team_threads(team) == histo_usable_cpus());
  histo_team_free(team);
  CHECK_FAILS(histo_team_create_on(2, NULL, NULL, &team), HISTO_INVALID_ARGUMENT, "parallel_for");
  CHECK(team == NULL);
  team_options.threads = 5000;
  CHECK_FAILS(histo_team_create(&team_options, &team), HISTO_INVALID_ARGUMENT, "threads");
  team_options.threads = 2;
  team_options.cpus_size = 1;
  CHECK_FAILS(histo_team_create(&team_options, &team), HISTO_INVALID_ARGUMENT, "cpus");
  team_options.cpus = &far_away;
  CHECK(histo_team_create(&team_options, &team) == HISTO_OK); /* found out where they are started */
  options.threads = 0;
  options.team = team;
  engine = NULL;
  CHECK(histo_engine_create(model, &options, &engine) != HISTO_OK);
  CHECK(engine == NULL);
  histo_team_free(team);
  histo_team_free(NULL);
  CHECK(histo_team_threads(NULL) == 0);
}

/* --- stopping a run
 * ------------------------------------------------------------------------------------------ */

static void test_cancel(const histo_engine* engine) {
  histo_cancel_flag* flag = NULL;
  float* logits = calloc(classes, sizeof(float));
  float* pixels = calloc(TILE, sizeof(float));
  CHECK(histo_cancel_flag_create(&flag) == HISTO_OK);
  CHECK(histo_cancel_flag_cancelled(flag) == 0);
  CHECK(histo_engine_run_u8_until(engine, tiles, TILE, 1, SIDE, SIDE, logits, classes, flag) == HISTO_OK);
  CHECK(memcmp(logits, expected, classes * sizeof(float)) == 0);
  CHECK(histo_engine_run_f32_until(engine, pixels, TILE, 1, SIDE, SIDE, logits, classes, flag) == HISTO_OK);
  histo_cancel_flag_cancel(flag);
  CHECK(histo_cancel_flag_cancelled(flag) == 1);
  logits[0] = -1;
  CHECK_FAILS(histo_engine_run_u8_until(engine, tiles, TILE, 1, SIDE, SIDE, logits, classes, flag),
              HISTO_CANCELLED, "cancelled");
  CHECK_FAILS(histo_engine_run_f32_until(engine, pixels, TILE, 1, SIDE, SIDE, logits, classes, flag),
              HISTO_CANCELLED, "cancelled");
  CHECK(logits[0] == -1);
  histo_cancel_flag_reset(flag);
  CHECK(histo_engine_run_u8_until(engine, tiles, TILE, 1, SIDE, SIDE, logits, classes, flag) == HISTO_OK);
  CHECK_FAILS(histo_engine_run_u8_until(engine, tiles, TILE, 1, SIDE, SIDE, logits, classes, NULL),
              HISTO_INVALID_ARGUMENT, "cancel");
  histo_cancel_flag_free(flag);
  histo_cancel_flag_free(NULL);
  histo_cancel_flag_cancel(NULL);
  histo_cancel_flag_reset(NULL);
  CHECK(histo_cancel_flag_cancelled(NULL) == 0);
  CHECK_FAILS(histo_cancel_flag_create(NULL), HISTO_INVALID_ARGUMENT, "flag");
  free(pixels);
  free(logits);
}

/* --- the queue
 * ----------------------------------------------------------------------------------------------- */

struct given {
  size_t tile;
  int answers;
  histo_status status;
  uint64_t id;
};

static void take_answer(void* user, const histo_answer* answer) {
  struct given* mine = user;
  ++mine->answers;
  mine->id = answer->id;
  mine->status = answer->status;
  if (answer->status == HISTO_OK) {
    CHECK(answer->classes == classes);
    CHECK(answer->error == NULL);
    CHECK(memcmp(answer->logits, expected + mine->tile * classes, classes * sizeof(float)) == 0);
  } else {
    CHECK(answer->logits == NULL);
    CHECK(answer->classes == 0);
    CHECK(strstr(answer->error, "cancelled") != NULL);
  }
}

static void test_queue_arguments(histo_queue* queue, const histo_engine* engine) {
  struct given given = {0, 0, HISTO_OK, 0};
  histo_queue_options options = HISTO_QUEUE_OPTIONS_INIT;
  histo_queue_stats stats = HISTO_QUEUE_STATS_INIT;
  histo_queue* other = queue;
  uint64_t id = 7;
  CHECK_FAILS(histo_queue_submit(queue, tiles, TILE, SIDE, SIDE + 1, take_answer, &given, &id),
              HISTO_SIZE_MISMATCH, "tiles");
  CHECK_FAILS(histo_queue_try_submit(queue, tiles, TILE, 0, SIDE, take_answer, &given, &id),
              HISTO_INVALID_ARGUMENT, "height");
  CHECK_FAILS(histo_queue_submit(queue, NULL, TILE, SIDE, SIDE, take_answer, &given, &id),
              HISTO_INVALID_ARGUMENT, "tile");
  CHECK_FAILS(histo_queue_submit(queue, tiles, TILE, SIDE, SIDE, NULL, &given, &id), HISTO_INVALID_ARGUMENT,
              "callback");
  CHECK_FAILS(histo_queue_submit(NULL, tiles, TILE, SIDE, SIDE, take_answer, &given, &id),
              HISTO_INVALID_ARGUMENT, "queue");
  CHECK(id == 7);
  CHECK(given.answers == 0);
  CHECK_FAILS(histo_queue_cancel(NULL, 1, NULL), HISTO_INVALID_ARGUMENT, "queue");
  CHECK_FAILS(histo_queue_cancel_all(NULL, NULL), HISTO_INVALID_ARGUMENT, "queue");
  CHECK_FAILS(histo_queue_drain(NULL), HISTO_INVALID_ARGUMENT, "queue");
  CHECK_FAILS(histo_queue_get_stats(NULL, &stats), HISTO_INVALID_ARGUMENT, "queue");
  CHECK_FAILS(histo_queue_get_stats(queue, NULL), HISTO_INVALID_ARGUMENT, "stats");
  CHECK_FAILS(histo_queue_create(NULL, NULL, &other), HISTO_INVALID_ARGUMENT, "engine");
  CHECK(other == NULL);
  CHECK_FAILS(histo_queue_create(engine, NULL, NULL), HISTO_INVALID_ARGUMENT, "queue");
  options.max_wait_us = (size_t)-1;
  CHECK_FAILS(histo_queue_create(engine, &options, &other), HISTO_INVALID_ARGUMENT, "max_wait");
  histo_queue_free(NULL);
}

static void test_queue(const histo_model* model) {
  histo_engine_options engine_options = HISTO_ENGINE_OPTIONS_INIT;
  histo_queue_options options = HISTO_QUEUE_OPTIONS_INIT;
  histo_queue_stats stats = HISTO_QUEUE_STATS_INIT;
  struct given given[TILES + 2];
  uint64_t ids[TILES + 2];
  histo_engine* engine = NULL;
  histo_queue* queue = NULL;
  size_t i, all = 9;
  int cancelled = 9;

  engine_options.threads = 1;
  engine_options.algorithm = "direct";
  CHECK(histo_engine_create(model, &engine_options, &engine) == HISTO_OK);
  options.max_batch = TILES + 2;
  options.capacity = TILES + 1;
  options.max_wait_us = 600000000; /* ten minutes: a batch waits until it is drained */
  CHECK(histo_queue_create(engine, &options, &queue) == HISTO_OK);
  test_queue_arguments(queue, engine);
  histo_engine_free(engine); /* the queue has a copy */
  for (i = 0; i < TILES; ++i) {
    given[i].tile = i;
    given[i].answers = 0;
    CHECK((i % 2 ? histo_queue_submit : histo_queue_try_submit)(queue, tiles + i * TILE, TILE, SIDE, SIDE,
                                                                take_answer, &given[i], &ids[i]) == HISTO_OK);
  }
  CHECK(histo_queue_get_stats(queue, &stats) == HISTO_OK);
  CHECK(stats.submitted == TILES && stats.waiting == TILES && stats.answered == 0);
  CHECK(histo_queue_cancel(queue, ids[2], &cancelled) == HISTO_OK);
  CHECK(cancelled == 1);
  CHECK(given[2].answers == 1 && given[2].status == HISTO_CANCELLED && given[2].id == ids[2]);
  CHECK(histo_queue_cancel(queue, ids[2], &cancelled) == HISTO_OK);
  CHECK(cancelled == 0);
  CHECK(histo_queue_drain(queue) == HISTO_OK);
  for (i = 0; i < TILES; ++i) {
    CHECK(given[i].answers == 1);
    CHECK(given[i].id == ids[i]);
    CHECK(given[i].status == (i == 2 ? HISTO_CANCELLED : HISTO_OK));
  }
  CHECK(histo_queue_get_stats(queue, &stats) == HISTO_OK);
  CHECK(stats.answered == TILES && stats.cancelled == 1 && stats.failed == 0 && stats.batches == 1);
  CHECK(histo_queue_cancel_all(queue, &all) == HISTO_OK);
  CHECK(all == 0);
  /* What waits when a queue is freed gets an answer. */
  CHECK(histo_queue_submit(queue, tiles, TILE, SIDE, SIDE, take_answer, &given[0], NULL) == HISTO_OK);
  histo_queue_free(queue);
  CHECK(given[0].answers == 2 && given[0].status == HISTO_CANCELLED);
}

struct filler {
  histo_queue* queue;
  struct given inner;
  int called;
};

/* In the thread of the queue, which runs nothing meanwhile. */
static void fill_queue(void* user, const histo_answer* answer) {
  struct filler* mine = user;
  uint64_t id = 7;
  CHECK(answer->status == HISTO_OK);
  CHECK(histo_queue_submit(mine->queue, tiles, TILE, SIDE, SIDE, take_answer, &mine->inner, NULL) ==
        HISTO_OK);
  CHECK_FAILS(histo_queue_try_submit(mine->queue, tiles, TILE, SIDE, SIDE, take_answer, &mine->inner, &id),
              HISTO_BUSY, "full");
  CHECK_FAILS(histo_queue_submit(mine->queue, tiles, TILE, SIDE, SIDE, take_answer, &mine->inner, &id),
              HISTO_BUSY, "callback");
  CHECK_FAILS(histo_queue_drain(mine->queue), HISTO_INVALID_ARGUMENT, "callback");
  CHECK(id == 7);
  ++mine->called;
}

static void test_full_queue(const histo_engine* engine) {
  histo_queue_options options = HISTO_QUEUE_OPTIONS_INIT;
  struct filler filler = {NULL, {0, 0, HISTO_OK, 0}, 0};
  options.capacity = 1;
  CHECK(histo_queue_create(engine, &options, &filler.queue) == HISTO_OK);
  CHECK(histo_queue_submit(filler.queue, tiles, TILE, SIDE, SIDE, fill_queue, &filler, NULL) == HISTO_OK);
  CHECK(histo_queue_drain(filler.queue) == HISTO_OK);
  CHECK(filler.called == 1);
  CHECK(filler.inner.answers == 1 && filler.inner.status == HISTO_OK);
  histo_queue_free(filler.queue);
}

int main(int argc, char** argv) {
  histo_engine_options options = HISTO_ENGINE_OPTIONS_INIT;
  histo_model* model = NULL;
  histo_engine* engine = NULL;
  unsigned seed = 1;
  size_t i;
  if (argc != 2 || histo_model_open(argv[1], &model) != HISTO_OK) {
    fprintf(stderr, "usage: %s MODEL; %s\n", argv[0], histo_last_error());
    return 2;
  }
  for (i = 0; i < sizeof tiles; ++i) {
    seed = seed * 1664525U + 1013904223U;
    tiles[i] = (uint8_t)(seed >> 24U);
  }
  classes = histo_model_classes(model);
  expected = calloc(TILES * classes, sizeof(float));
  CHECK(histo_set_log(take_message, &messages) == HISTO_OK);
  options.threads = 1;
  options.algorithm = "direct";
  CHECK(histo_engine_create(model, &options, &engine) == HISTO_OK);
  CHECK(messages == 1);
  CHECK(histo_set_log(NULL, NULL) == HISTO_OK);
  CHECK(histo_engine_run_u8(engine, tiles, sizeof tiles, TILES, SIDE, SIDE, expected, TILES * classes) ==
        HISTO_OK);
  test_names();
  test_info(argv[1], model);
  test_estimate(model, engine, &options);
  test_cancel(engine);
  test_full_queue(engine);
  histo_engine_free(engine);
  test_team(model);
  test_queue(model);
  CHECK(messages == 1);
  histo_model_free(model);
  free(expected);
  if (failures > 0) {
    fprintf(stderr, "%d checks failed\n", failures);
    return 1;
  }
  puts("all checks passed");
  return 0;
}
