/* The C interface from a C99 program: histo_c_api_test MODEL, where MODEL is a valid model.safetensors. */

#include "histo/c_api.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "c_check.h"

static void* allocate(size_t size) {
  void* memory = calloc(size, 1);
  if (memory == NULL) {
    fputs("out of memory\n", stderr);
    exit(1);
  }
  return memory;
}

static void fill(uint8_t* bytes, size_t size, unsigned seed) {
  size_t i;
  for (i = 0; i < size; ++i) {
    seed = seed * 1664525U + 1013904223U;
    bytes[i] = (uint8_t)(seed >> 24U);
  }
}

/* --- model -----------------------------------------------------------------------------------------------
 */

static void test_precision_support(void) {
  const char* executed = NULL;
  CHECK(histo_precision_support("fp32", "portable", &executed) == HISTO_OK);
  CHECK(executed != NULL && strcmp(executed, "portable") == 0);
  CHECK(histo_precision_support("fp32", NULL, NULL) == HISTO_OK);
  executed = NULL;
  CHECK_FAILS(histo_precision_support("int8", "portable", &executed), HISTO_UNSUPPORTED, "precision int8 ");
  CHECK_FAILS(histo_precision_support("fp64", NULL, &executed), HISTO_INVALID_ARGUMENT,
              "\"fp64\" is unknown");
  CHECK_FAILS(histo_precision_support("fp32", "sse9", &executed), HISTO_INVALID_ARGUMENT,
              "\"sse9\" is unknown");
  CHECK_FAILS(histo_precision_support(NULL, NULL, &executed), HISTO_INVALID_ARGUMENT, "precision");
  CHECK(executed == NULL);
}

static void test_model(const char* path) {
  histo_model* model = NULL;
  histo_model* copy = NULL;
  FILE* file = fopen(path, "rb");
  unsigned char* bytes;
  long size;
  size_t i;

  CHECK(strcmp(histo_version(), "") != 0);
  CHECK(histo_usable_cpus() >= 1);
  test_precision_support();
  CHECK(histo_model_open(path, &model) == HISTO_OK);
  if (model == NULL || file == NULL) {
    fprintf(stderr, "%s: cannot be used: %s\n", path, histo_last_error());
    exit(1);
  }
  CHECK(histo_model_classes(model) >= 1);
  CHECK(histo_model_crop(model) >= 1);
  CHECK(histo_model_tile_size(model) >= histo_model_crop(model));
  CHECK(histo_model_pool(model) >= 1);
  CHECK(histo_model_mpp(model) >= 0);
  for (i = 0; i < histo_model_classes(model); ++i) {
    CHECK(histo_model_class_name(model, i) != NULL && *histo_model_class_name(model, i) != '\0');
  }
  CHECK(histo_model_class_name(model, histo_model_classes(model)) == NULL);
  CHECK(histo_model_class_name(model, SIZE_MAX) == NULL);

  CHECK(histo_model_classes(NULL) == 0);
  CHECK(histo_model_crop(NULL) == 0);
  CHECK(histo_model_tile_size(NULL) == 0);
  CHECK(histo_model_pool(NULL) == 0);
  CHECK(histo_model_mpp(NULL) == 0);
  CHECK(histo_model_embedding_size(NULL) == 0);
  CHECK(histo_model_class_name(NULL, 0) == NULL);

  fseek(file, 0, SEEK_END);
  size = ftell(file);
  rewind(file);
  bytes = allocate((size_t)size);
  CHECK(fread(bytes, 1, (size_t)size, file) == (size_t)size);
  fclose(file);
  CHECK(histo_model_from_memory(bytes, (size_t)size, &copy) == HISTO_OK);
  CHECK(histo_model_classes(copy) == histo_model_classes(model));
  histo_model_free(copy);

  /* What cannot be made is null, whatever it was. */
  copy = model;
  CHECK_FAILS(histo_model_from_memory(bytes, (size_t)size - 1, &copy), HISTO_INVALID_FILE, "");
  CHECK(copy == NULL);
  CHECK_FAILS(histo_model_from_memory(bytes, 7, &copy), HISTO_INVALID_FILE, "");
  CHECK_FAILS(histo_model_from_memory(bytes, 0, &copy), HISTO_INVALID_ARGUMENT, "");
  CHECK_FAILS(histo_model_from_memory(NULL, (size_t)size, &copy), HISTO_INVALID_ARGUMENT, "bytes");
  CHECK_FAILS(histo_model_from_memory(bytes, (size_t)size, NULL), HISTO_INVALID_ARGUMENT, "model");
  free(bytes);

  copy = model;
  CHECK_FAILS(histo_model_open("/nowhere/at/all", &copy), HISTO_IO, "/nowhere/at/all");
  CHECK(copy == NULL);
  CHECK_FAILS(histo_model_open("", &copy), HISTO_IO, "");
  CHECK_FAILS(histo_model_open("/", &copy), HISTO_IO, "");
  CHECK_FAILS(histo_model_open(NULL, &copy), HISTO_INVALID_ARGUMENT, "path");
  CHECK_FAILS(histo_model_open(path, NULL), HISTO_INVALID_ARGUMENT, "model");
  histo_model_free(model);
  histo_model_free(NULL);
}

static void test_garbage_file(const char* path) {
  histo_model* model = NULL;
  uint8_t garbage[4096];
  char* name = allocate(strlen(path) + sizeof ".garbage");
  FILE* file;
  size_t size;

  strcpy(name, path);
  strcat(name, ".garbage");
  fill(garbage, sizeof garbage, 1);
  for (size = 0; size <= sizeof garbage; size = size == 0 ? 1 : size * 8) {
    file = fopen(name, "wb");
    CHECK(file != NULL);
    if (file != NULL) {
      CHECK(fwrite(garbage, 1, size, file) == size);
      fclose(file);
      CHECK_FAILS(histo_model_open(name, &model), HISTO_INVALID_FILE, "");
      CHECK(model == NULL);
    }
  }
  remove(name);
  free(name);
}

static void test_long_messages_are_cut(void) {
  histo_model* model = NULL;
  char path[4000];
  memset(path, 'x', sizeof path);
  path[0] = '/';
  path[sizeof path - 1] = '\0';
  CHECK(histo_model_open(path, &model) == HISTO_IO);
  CHECK(strlen(histo_last_error()) <= 1024);
}

/* --- engine ----------------------------------------------------------------------------------------------
 */

static void test_engine(const histo_model* model) {
  const size_t classes = histo_model_classes(model);
  const size_t side = histo_model_tile_size(model);
  const size_t tile = side * side * 3;
  const size_t channel = side * side;
  uint8_t* tiles = allocate(2 * tile);
  float* floats = allocate(2 * tile * sizeof *floats);
  float* logits = allocate(2 * classes * sizeof *logits);
  float* again = allocate(2 * classes * sizeof *again);
  histo_engine* engine = NULL;
  histo_engine* copy = NULL;
  histo_engine_options options = HISTO_ENGINE_OPTIONS_INIT;
  histo_engine_info info;
  histo_self_test_result result;
  size_t i;

  fill(tiles, 2 * tile, 2);
  options.threads = 2;
  options.isa = "portable";
  options.precision = "fp32";
  options.profile = "latency";
  options.algorithm = "direct";
  CHECK(histo_engine_create(model, &options, &engine) == HISTO_OK);
  if (engine == NULL) {
    exit(1);
  }

  memset(&info, 0xFF, sizeof info);
  info.struct_size = sizeof info;
  CHECK(histo_engine_get_info(engine, &info) == HISTO_OK);
  CHECK(info.struct_size == sizeof info);
  CHECK(strcmp(info.isa, "portable") == 0);
  CHECK(strcmp(info.precision, "fp32") == 0);
  CHECK(strcmp(info.profile, "latency") == 0);
  CHECK(strcmp(info.algorithm, "direct") == 0);
  CHECK(info.threads == 2);
  CHECK(info.classes == classes);
  CHECK(info.crop == histo_model_crop(model));
  CHECK(info.weight_bytes > 0);
  CHECK(info.embedding_size == histo_model_embedding_size(model));
  CHECK(info.map_side >= 1);
  info.struct_size = offsetof(histo_engine_info, algorithm);
  CHECK_FAILS(histo_engine_get_info(engine, &info), HISTO_INVALID_ARGUMENT, "struct_size");
  CHECK_FAILS(histo_engine_get_info(engine, NULL), HISTO_INVALID_ARGUMENT, "info");
  CHECK_FAILS(histo_engine_get_info(NULL, &info), HISTO_INVALID_ARGUMENT, "engine");

  /* A tile's logits are the same alone and in a batch, from the engine and from its copy. */
  CHECK(histo_engine_warmup(engine, 1) == HISTO_OK);
  CHECK(histo_engine_run_u8(engine, tiles, 2 * tile, 2, side, side, logits, 2 * classes) == HISTO_OK);
  for (i = 0; i < 2 * classes; ++i) {
    CHECK(isfinite(logits[i]));
  }
  CHECK(histo_engine_copy(engine, &copy) == HISTO_OK);
  for (i = 0; i < 2; ++i) {
    CHECK(histo_engine_run_u8(copy, tiles + i * tile, tile, 1, side, side, again + i * classes, classes) ==
          HISTO_OK);
  }
  CHECK(memcmp(logits, again, 2 * classes * sizeof *logits) == 0);
  CHECK(memcmp(logits, logits + classes, classes * sizeof *logits) != 0);
  histo_engine_free(copy);

  /* The same tiles as floats, channels first. */
  for (i = 0; i < 2 * tile; ++i) {
    floats[i / tile * tile + i % 3 * channel + i % tile / 3] = (float)tiles[i] / 255.0F;
  }
  CHECK(histo_engine_run_f32(engine, floats, 2 * tile, 2, side, side, again, 2 * classes) == HISTO_OK);
  for (i = 0; i < 2 * classes; ++i) {
    CHECK(fabsf(again[i] - logits[i]) <= 1e-4F * fmaxf(1.0F, fabsf(logits[i])));
  }

  /* Misuse, which leaves the logits alone. */
  memcpy(again, logits, 2 * classes * sizeof *logits);
#define RUN(tiles_size, batch, height, width, logits_size) \
  histo_engine_run_u8(engine, tiles, tiles_size, batch, height, width, logits, logits_size)
  CHECK_FAILS(RUN(2 * tile, 0, side, side, 2 * classes), HISTO_INVALID_ARGUMENT, "batch");
  CHECK_FAILS(RUN(2 * tile, 2, 0, side, 2 * classes), HISTO_INVALID_ARGUMENT, "height");
  CHECK_FAILS(RUN(2 * tile, 2, side, 0, 2 * classes), HISTO_INVALID_ARGUMENT, "width");
  CHECK_FAILS(RUN(3, 1, 1, 1, classes), HISTO_INVALID_ARGUMENT, "");
  CHECK_FAILS(RUN(2 * tile - 1, 2, side, side, 2 * classes), HISTO_SIZE_MISMATCH, "tiles");
  CHECK_FAILS(RUN(2 * tile + 1, 2, side, side, 2 * classes), HISTO_SIZE_MISMATCH, "tiles");
  CHECK_FAILS(RUN(2 * tile, 2, side, side, 2 * classes - 1), HISTO_SIZE_MISMATCH, "logits");
  CHECK_FAILS(RUN(2 * tile, 2, side, side, 2 * classes + 1), HISTO_SIZE_MISMATCH, "logits");
  CHECK_FAILS(RUN(2 * tile, SIZE_MAX, side, side, 2 * classes), HISTO_SIZE_OVERFLOW, "");
  CHECK_FAILS(RUN(2 * tile, 2, SIZE_MAX, side, 2 * classes), HISTO_SIZE_OVERFLOW, "");
  /* The number of bytes wraps around to what the buffer has. */
  CHECK_FAILS(RUN(0, SIZE_MAX / 4 + 1, 512, 512, 0), HISTO_SIZE_OVERFLOW, "");
#undef RUN
  CHECK_FAILS(histo_engine_run_u8(NULL, tiles, 2 * tile, 2, side, side, logits, 2 * classes),
              HISTO_INVALID_ARGUMENT, "engine");
  CHECK_FAILS(histo_engine_run_u8(engine, NULL, 2 * tile, 2, side, side, logits, 2 * classes),
              HISTO_INVALID_ARGUMENT, "tiles");
  CHECK_FAILS(histo_engine_run_u8(engine, tiles, 2 * tile, 2, side, side, NULL, 2 * classes),
              HISTO_INVALID_ARGUMENT, "logits");
  CHECK_FAILS(histo_engine_run_f32(NULL, floats, 2 * tile, 2, side, side, logits, 2 * classes),
              HISTO_INVALID_ARGUMENT, "engine");
  CHECK_FAILS(histo_engine_run_f32(engine, NULL, 2 * tile, 2, side, side, logits, 2 * classes),
              HISTO_INVALID_ARGUMENT, "tiles");
  CHECK_FAILS(histo_engine_run_f32(engine, floats, 2 * tile, 2, side, side, NULL, 2 * classes),
              HISTO_INVALID_ARGUMENT, "logits");
  CHECK_FAILS(histo_engine_run_f32(engine, floats, 2 * tile - 1, 2, side, side, logits, 2 * classes),
              HISTO_SIZE_MISMATCH, "tiles");
  CHECK_FAILS(histo_engine_run_f32(engine, floats, 2 * tile, SIZE_MAX, side, side, logits, 2 * classes),
              HISTO_SIZE_OVERFLOW, "");
  CHECK(memcmp(logits, again, 2 * classes * sizeof *logits) == 0);
  CHECK_FAILS(histo_engine_warmup(NULL, 1), HISTO_INVALID_ARGUMENT, "engine");
  CHECK_FAILS(histo_engine_warmup(engine, 0), HISTO_INVALID_ARGUMENT, "batch");
  CHECK_FAILS(histo_engine_warmup(engine, SIZE_MAX), HISTO_SIZE_OVERFLOW, "");
  CHECK_FAILS(histo_engine_copy(NULL, &copy), HISTO_INVALID_ARGUMENT, "engine");
  CHECK(copy == NULL);
  CHECK_FAILS(histo_engine_copy(engine, NULL), HISTO_INVALID_ARGUMENT, "copy");

  result.struct_size = sizeof result;
  CHECK_FAILS(histo_engine_self_test(engine, "/nowhere/golden", &result), HISTO_IO, "/nowhere/golden");
  CHECK_FAILS(histo_engine_self_test(NULL, "x", &result), HISTO_INVALID_ARGUMENT, "engine");
  CHECK_FAILS(histo_engine_self_test(engine, NULL, &result), HISTO_INVALID_ARGUMENT, "golden_path");
  CHECK_FAILS(histo_engine_self_test(engine, "x", NULL), HISTO_INVALID_ARGUMENT, "result");
  result.struct_size = SIZE_MAX;
  CHECK_FAILS(histo_engine_self_test(engine, "x", &result), HISTO_INVALID_ARGUMENT, "struct_size");
  info.struct_size = SIZE_MAX;
  CHECK_FAILS(histo_engine_get_info(engine, &info), HISTO_INVALID_ARGUMENT, "struct_size");
  result.struct_size = 0;
  CHECK_FAILS(histo_engine_self_test(engine, "x", &result), HISTO_INVALID_ARGUMENT, "struct_size");

  histo_engine_free(engine);
  histo_engine_free(NULL);
  free(tiles);
  free(floats);
  free(logits);
  free(again);
}

/* A tile as premultiplied BGRA with rows that lie apart, and as the RGB that it is worth. */
static void fill_views(uint8_t* bgra, size_t row, uint8_t* rgb, size_t side) {
  size_t x, y, c;
  fill(bgra, side * row, 5);
  for (y = 0; y < side; ++y) {
    for (x = 0; x < side; ++x) {
      for (c = 0; c < 3; ++c) {
        const unsigned white = bgra[y * row + x * 4 + 2 - c] + 255U - bgra[y * row + x * 4 + 3];
        rgb[(y * side + x) * 3 + c] = (uint8_t)(white > 255 ? 255 : white);
      }
    }
  }
}

static void test_views_of_a_later_version(const histo_engine* engine, const histo_image_view* tile,
                                          histo_outputs outputs, const float* logits, size_t classes) {
  struct {
    histo_image_view known;
    size_t unknown;
  } later[2];
  memset(later, 0, sizeof later);
  later[0].known = later[1].known = *tile;
  later[0].known.struct_size = later[1].known.struct_size = sizeof later[0];
  memset(outputs.logits, 0, outputs.logits_size * sizeof *outputs.logits);
  CHECK(histo_engine_run_views(engine, &later[0].known, 2, &outputs) == HISTO_OK);
  CHECK(memcmp(outputs.logits, logits, classes * sizeof *logits) == 0);
  CHECK(memcmp(outputs.logits + classes, logits, classes * sizeof *logits) == 0);
  later[1].unknown = 1;
  CHECK_FAILS(histo_engine_run_views(engine, &later[0].known, 2, &outputs), HISTO_UNSUPPORTED, "tiles");
  later[1].unknown = 0;
  later[1].known.struct_size = sizeof later[0].known;
  CHECK_FAILS(histo_engine_run_views(engine, &later[0].known, 2, &outputs), HISTO_INVALID_ARGUMENT,
              "struct_size of tile 1");
}

static void test_regions(void) {
  static const uint8_t pixels[20 * 30 * 4];
  histo_image_view image = HISTO_IMAGE_VIEW_INIT;
  histo_image_view region = HISTO_IMAGE_VIEW_INIT;
  image.bytes = pixels;
  image.bytes_size = sizeof pixels;
  image.height = 20;
  image.width = 30;
  image.format = "bgra";
  CHECK(histo_image_view_region(&image, 7, 3, 10, 20, &region) == HISTO_OK);
  CHECK(region.struct_size == sizeof region);
  CHECK(region.bytes == pixels + 3 * 120 + 7 * 4);
  CHECK(region.height == 10 && region.width == 20);
  CHECK(region.row_stride == 120 && region.plane_stride == 0);
  CHECK(strcmp(region.format, "bgra") == 0);
  CHECK_FAILS(histo_image_view_region(&image, 11, 3, 10, 20, &region), HISTO_INVALID_ARGUMENT,
              "at x 11, y 3");
  CHECK_FAILS(histo_image_view_region(&image, SIZE_MAX, 0, 1, 1, &region), HISTO_INVALID_ARGUMENT, "region");
  CHECK_FAILS(histo_image_view_region(NULL, 0, 0, 1, 1, &region), HISTO_INVALID_ARGUMENT, "image");
  CHECK_FAILS(histo_image_view_region(&image, 0, 0, 1, 1, NULL), HISTO_INVALID_ARGUMENT, "region");
  CHECK(region.width == 20);
  region.struct_size = 3;
  CHECK_FAILS(histo_image_view_region(&image, 0, 0, 1, 1, &region), HISTO_INVALID_ARGUMENT,
              "region.struct_size");
  region = image;
  CHECK(histo_image_view_region(&region, 1, 1, 2, 2, &region) == HISTO_OK && region.width == 2);
  image.format = "cmyk";
  CHECK_FAILS(histo_image_view_region(&image, 0, 0, 1, 1, &region), HISTO_INVALID_ARGUMENT, "\"cmyk\"");
}

static void test_outputs(const histo_model* model) {
  const size_t classes = histo_model_classes(model), side = histo_model_tile_size(model);
  const size_t row = side * 4 + 6, size = side * side * 3, embedding = histo_model_embedding_size(model);
  uint8_t* bgra = allocate(side * row);
  uint8_t* rgb = allocate(size);
  float* logits = allocate(classes * sizeof *logits);
  float* memory = allocate((4 * classes + embedding + 16 * classes) * sizeof *memory);
  uint32_t top[2] = {77, 77};
  histo_engine_options options = HISTO_ENGINE_OPTIONS_INIT;
  histo_engine_info info = HISTO_ENGINE_INFO_INIT;
  histo_outputs outputs = HISTO_OUTPUTS_INIT;
  histo_image_view tile = HISTO_IMAGE_VIEW_INIT;
  histo_engine* engine = NULL;
  size_t k, cell, cells;

  options.threads = 1;
  CHECK(histo_engine_create(model, &options, &engine) == HISTO_OK);
  CHECK(histo_engine_get_info(engine, &info) == HISTO_OK);
  cells = info.map_side * info.map_side;
  CHECK(cells <= 16);
  fill_views(bgra, row, rgb, side);
  CHECK(histo_engine_run_u8(engine, rgb, size, 1, side, side, logits, classes) == HISTO_OK);

  tile.bytes = bgra;
  tile.bytes_size = side * row;
  tile.height = tile.width = side;
  tile.format = "bgra_premultiplied";
  tile.row_stride = row;
  outputs.top = 2;
  outputs.top_classes = top;
  outputs.top_classes_size = 2;
  outputs.logits = memory;
  outputs.logits_size = classes;
  outputs.probabilities = memory + 2 * classes;
  outputs.probabilities_size = classes;
  outputs.embedding = memory + 4 * classes;
  outputs.embedding_size = embedding;
  outputs.contributions = outputs.embedding + embedding;
  outputs.contributions_size = classes * cells;
  CHECK(histo_engine_run_views(engine, &tile, 1, &outputs) == HISTO_OK);
  CHECK(memcmp(outputs.logits, logits, classes * sizeof *logits) == 0);
  for (k = 0; k < classes; ++k) {
    float difference = logits[k] - logits[0]; /* and so the bias of both is left */
    CHECK(outputs.probabilities[k] <= outputs.probabilities[top[0]]);
    CHECK(k == top[0] || outputs.probabilities[k] <= outputs.probabilities[top[1]]);
    for (cell = 0; cell < cells; ++cell) {
      difference -= outputs.contributions[k * cells + cell] - outputs.contributions[cell];
    }
    CHECK(fabsf(difference) < 0.4F); /* two biases, of at most 0.18 each */
  }
  memset(memory, 0, (4 * classes + embedding + 16 * classes) * sizeof *memory);
  CHECK(histo_engine_run_u8_outputs(engine, rgb, size, 1, side, side, &outputs) == HISTO_OK);
  CHECK(memcmp(outputs.logits, logits, classes * sizeof *logits) == 0);

  /* Misuse, which leaves all outputs alone. */
  memset(memory, 0, (4 * classes + embedding + 16 * classes) * sizeof *memory);
  outputs.embedding_size = embedding - 1;
  CHECK_FAILS(histo_engine_run_views(engine, &tile, 1, &outputs), HISTO_SIZE_MISMATCH, "embedding");
  outputs.embedding_size = 0; /* the pointer is not null: it was meant */
  CHECK_FAILS(histo_engine_run_views(engine, &tile, 1, &outputs), HISTO_SIZE_MISMATCH, "embedding");
  outputs.embedding_size = embedding;
  CHECK_FAILS(histo_engine_run_f32_outputs(engine, logits, classes, 1, side, side, &outputs),
              HISTO_SIZE_MISMATCH, "tiles");
  CHECK_FAILS(histo_engine_run_views(engine, &tile, 0, &outputs), HISTO_INVALID_ARGUMENT, "batch");
  CHECK_FAILS(histo_engine_run_views(engine, NULL, 1, &outputs), HISTO_INVALID_ARGUMENT, "tiles");
  CHECK_FAILS(histo_engine_run_views(engine, &tile, 1, NULL), HISTO_INVALID_ARGUMENT, "outputs");
  CHECK_FAILS(histo_engine_run_views(NULL, &tile, 1, &outputs), HISTO_INVALID_ARGUMENT, "engine");
  tile.bytes_size = side * row - 7;
  CHECK_FAILS(histo_engine_run_views(engine, &tile, 1, &outputs), HISTO_SIZE_MISMATCH, "tile 0");
  tile.bytes_size = side * row;
  outputs.struct_size = 3;
  CHECK_FAILS(histo_engine_run_views(engine, &tile, 1, &outputs), HISTO_INVALID_ARGUMENT,
              "outputs.struct_size");
  CHECK(memory[0] == 0.0F && outputs.contributions[0] == 0.0F);

  memset(&outputs, 0, sizeof outputs);
  outputs.struct_size = sizeof outputs;
  CHECK_FAILS(histo_engine_run_views(engine, &tile, 1, &outputs), HISTO_INVALID_ARGUMENT, "no output");
  outputs.logits = memory;
  outputs.logits_size = 2 * classes;
  test_views_of_a_later_version(engine, &tile, outputs, logits, classes);
  histo_engine_free(engine);
  free(bgra);
  free(rgb);
  free(logits);
  free(memory);
}

static void test_engine_options(const histo_model* model) {
  histo_engine* engine = NULL;
  /* What a program of a later version may pass. */
  struct {
    histo_engine_options known;
    size_t unknown;
  } later;
  histo_engine_options options;

  memset(&options, 0, sizeof options);
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "struct_size");
  options.struct_size = offsetof(histo_engine_options, team) - 1; /* less than the first version had */
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "struct_size");
  /* A size that was never set must not be believed: what lies behind the structure is not read or written. */
  options.struct_size = 4097;
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "struct_size");
  options.struct_size = SIZE_MAX;
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "struct_size");
  options.struct_size = sizeof options;
  options.crop = SIZE_MAX;
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_UNSUPPORTED, "crop");
  options.crop = 0;
  options.isa = "avx1024";
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "avx1024");
  options.isa = "";
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "isa");
  options.isa = NULL;
  options.precision = "fp64";
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "fp64");
  CHECK(strcmp(histo_last_remedy(), "choose from fp32, bf16x3, bf16, int8") == 0);
  options.precision = "int8";
  if (histo_precision_support("int8", NULL, NULL) == HISTO_OK) {
    CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_UNSUPPORTED, "no scales for int8");
  } else {
    CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_UNSUPPORTED, "precision int8 ");
  }
  options.precision = "bf16";
  options.isa = "portable";
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_UNSUPPORTED, "use fp32");
  options.isa = NULL;
  options.precision = NULL;
  options.profile = "speed";
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "throughput, latency");
  options.profile = NULL;
  options.algorithm = "magic";
  CHECK_FAILS(histo_engine_create(model, &options, &engine), HISTO_INVALID_ARGUMENT, "fastest, direct");
  options.algorithm = NULL;
  CHECK_FAILS(histo_engine_create(NULL, &options, &engine), HISTO_INVALID_ARGUMENT, "model");
  CHECK_FAILS(histo_engine_create(model, &options, NULL), HISTO_INVALID_ARGUMENT, "engine");
  CHECK(engine == NULL);

  memset(&later, 0, sizeof later);
  later.known.struct_size = sizeof later;
  later.known.threads = 1;
  later.known.algorithm = "direct"; /* whose weights are packed soonest */
  CHECK(histo_engine_create(model, &later.known, &engine) == HISTO_OK);
  histo_engine_free(engine);
  later.unknown = 1;
  CHECK_FAILS(histo_engine_create(model, &later.known, &engine), HISTO_UNSUPPORTED, "options");
  CHECK(engine == NULL);

  CHECK(histo_engine_create(model, NULL, &engine) == HISTO_OK);
  histo_engine_free(engine);
}

/* --- many tiles ------------------------------------------------------------------------------------------
 */

typedef struct loop {
  size_t tiles;     /* that the source has */
  size_t next;      /* that it gives next */
  size_t lost;      /* that it cannot give */
  size_t refused;   /* where the sink ends the loop */
  size_t delivered; /* so far */
  size_t failed;
  size_t classes;
  int cancel; /* at the first progress */
  float* logits;
} loop;

static int loop_source(void* user, uint8_t* tile, size_t tile_size) {
  loop* const state = user;
  if (state->next == state->tiles) {
    return 0;
  }
  fill(tile, tile_size, (unsigned)state->next);
  return state->next++ == state->lost ? -7 : 1;
}

static int loop_sink(void* user, const histo_tile_result* result) {
  loop* const state = user;
  CHECK(result->index == state->delivered);
  if (result->index == state->refused) {
    return 3;
  }
  ++state->delivered;
  if (result->error != NULL) {
    CHECK(result->logits == NULL && result->classes == 0);
    CHECK(strstr(result->error, "-7") != NULL);
    ++state->failed;
    return 0;
  }
  CHECK(result->logits != NULL && result->classes == state->classes);
  memcpy(state->logits + result->index * state->classes, result->logits,
         state->classes * sizeof *result->logits);
  return 0;
}

static int loop_progress(void* user, const histo_batch_stats* stats) {
  const loop* const state = user;
  CHECK(stats->struct_size == sizeof *stats);
  return state->cancel;
}

static loop new_loop(const histo_model* model, size_t tiles) {
  loop state;
  memset(&state, 0, sizeof state);
  state.tiles = tiles;
  state.lost = SIZE_MAX;
  state.refused = SIZE_MAX;
  state.classes = histo_model_classes(model);
  state.logits = allocate(tiles * state.classes * sizeof *state.logits);
  return state;
}

static void test_batches(const histo_model* model) {
  enum { tiles = 5 };
  const size_t side = histo_model_tile_size(model);
  const size_t size = side * side * 3;
  histo_engine_options engine_options = HISTO_ENGINE_OPTIONS_INIT;
  histo_batch_options options = {sizeof options, 2, 1, 0};
  histo_batch_stats stats;
  histo_engine* engine = NULL;
  loop state = new_loop(model, tiles);
  uint8_t* tile = allocate(size);
  float* logits = allocate(state.classes * sizeof *logits);
  size_t i;

  engine_options.threads = 2;
  engine_options.algorithm = "direct";
  stats.struct_size = sizeof stats;
  CHECK(histo_engine_create(model, &engine_options, &engine) == HISTO_OK);

#define LOOP() \
  histo_run_batches(engine, side, side, loop_source, loop_sink, loop_progress, &state, &options, &stats)
  CHECK(LOOP() == HISTO_OK);
  CHECK(state.delivered == tiles);
  CHECK(stats.struct_size == sizeof stats);
  CHECK(stats.tiles == tiles && stats.failed == 0 && stats.batches == 3);
  CHECK(stats.seconds > 0);
  for (i = 0; i < tiles; ++i) {
    fill(tile, size, (unsigned)i);
    CHECK(histo_engine_run_u8(engine, tile, size, 1, side, side, logits, state.classes) == HISTO_OK);
    CHECK(memcmp(logits, state.logits + i * state.classes, state.classes * sizeof *logits) == 0);
  }
  free(state.logits);

  /* No tile at all, and no options, progress or statistics. */
  state = new_loop(model, 1);
  state.tiles = 0;
  CHECK(histo_run_batches(engine, side, side, loop_source, loop_sink, NULL, &state, NULL, NULL) == HISTO_OK);
  CHECK(state.delivered == 0);
  free(state.logits);

  /* A lost tile ends the loop, or is reported. */
  state = new_loop(model, tiles);
  state.lost = 2;
  CHECK_FAILS(LOOP(), HISTO_FAILED, "-7");
  CHECK(state.delivered <= 2 && state.failed == 0);
  free(state.logits);
  state = new_loop(model, tiles);
  state.lost = 2;
  options.report_errors = 1;
  CHECK(LOOP() == HISTO_OK);
  CHECK(state.delivered == tiles && state.failed == 1 && stats.failed == 1);
  options.report_errors = 0;
  free(state.logits);

  /* The sink or the progress callback ends it. */
  state = new_loop(model, tiles);
  state.refused = 1;
  CHECK_FAILS(LOOP(), HISTO_FAILED, "sink");
  CHECK(state.delivered == 1);
  free(state.logits);
  state = new_loop(model, tiles);
  state.cancel = 1;
  CHECK(LOOP() == HISTO_CANCELLED);
  free(state.logits);

  /* Misuse. */
  state = new_loop(model, tiles);
  options.struct_size = 1;
  CHECK_FAILS(LOOP(), HISTO_INVALID_ARGUMENT, "options.struct_size");
  options.struct_size = sizeof options;
  stats.struct_size = 0;
  CHECK_FAILS(LOOP(), HISTO_INVALID_ARGUMENT, "stats.struct_size");
  stats.struct_size = sizeof stats;
  options.batch = SIZE_MAX;
  CHECK_FAILS(LOOP(), HISTO_SIZE_OVERFLOW, "");
#undef LOOP
#define LOOP(engine, height, width, source, sink) \
  histo_run_batches(engine, height, width, source, sink, NULL, &state, NULL, NULL)
  CHECK_FAILS(LOOP(NULL, side, side, loop_source, loop_sink), HISTO_INVALID_ARGUMENT, "engine");
  CHECK_FAILS(LOOP(engine, side, side, NULL, loop_sink), HISTO_INVALID_ARGUMENT, "source");
  CHECK_FAILS(LOOP(engine, side, side, loop_source, NULL), HISTO_INVALID_ARGUMENT, "sink");
  CHECK_FAILS(LOOP(engine, 0, side, loop_source, loop_sink), HISTO_INVALID_ARGUMENT, "height");
  CHECK_FAILS(LOOP(engine, side, 0, loop_source, loop_sink), HISTO_INVALID_ARGUMENT, "width");
  CHECK_FAILS(LOOP(engine, SIZE_MAX, SIZE_MAX, loop_source, loop_sink), HISTO_SIZE_OVERFLOW, "");
#undef LOOP
  CHECK(state.delivered == 0);
  free(state.logits);
  free(tile);
  free(logits);
  histo_engine_free(engine);
}

/* --- the head alone --------------------------------------------------------------------------------------
 */

static void test_head(void) {
  /* The example of fused_head.h: the mean of 1, 2, 3, 6 is 3. As bf16 these are exact, too. */
  const float weight[2] = {1.0F, -1.0F};
  const float bias[2] = {0.0F, 0.5F};
  const float features[4] = {1.0F, 2.0F, 3.0F, 6.0F};
  const uint16_t bf16[4] = {0x3F80, 0x4000, 0x4040, 0x40C0};
  float out[2] = {7.0F, 7.0F};
  histo_head* head = NULL;
  histo_head_options options = {sizeof options, 2, "portable"};

  CHECK(histo_head_create(1, 1, 2, weight, 2, bias, 2, &options, &head) == HISTO_OK);
  if (head == NULL) {
    return;
  }
  CHECK_FAILS(histo_head_run_f32(head, features, 4, 0, 2, 2, HISTO_NCHW, 0, out, 2), HISTO_INVALID_ARGUMENT,
              "batch");
  CHECK_FAILS(histo_head_run_f32(head, features, 3, 1, 2, 2, HISTO_NCHW, 0, out, 2), HISTO_SIZE_MISMATCH,
              "features");
  CHECK_FAILS(histo_head_run_f32(head, features, 4, 1, 2, 2, HISTO_NCHW, 0, out, 1), HISTO_SIZE_MISMATCH,
              "out");
  CHECK_FAILS(histo_head_run_f32(head, features, 4, SIZE_MAX, 2, 2, HISTO_NCHW, 0, out, 2),
              HISTO_SIZE_OVERFLOW, "");
  CHECK_FAILS(histo_head_run_f32(head, features, 4, 1, 2, 2, 2, 0, out, 2), HISTO_INVALID_ARGUMENT, "layout");
  CHECK_FAILS(histo_head_run_f32(head, features, 4, 1, 2, 2, -1, 0, out, 2), HISTO_INVALID_ARGUMENT,
              "layout");
  CHECK_FAILS(histo_head_run_f32(NULL, features, 4, 1, 2, 2, HISTO_NCHW, 0, out, 2), HISTO_INVALID_ARGUMENT,
              "head");
  CHECK_FAILS(histo_head_run_f32(head, NULL, 4, 1, 2, 2, HISTO_NCHW, 0, out, 2), HISTO_INVALID_ARGUMENT,
              "features");
  CHECK_FAILS(histo_head_run_bf16(head, NULL, 4, 1, 2, 2, HISTO_NCHW, 0, out, 2), HISTO_INVALID_ARGUMENT,
              "features");
  CHECK_FAILS(histo_head_run_f32(head, features, 4, 1, 2, 2, HISTO_NCHW, 0, NULL, 2), HISTO_INVALID_ARGUMENT,
              "out");
  CHECK(out[0] == 7.0F && out[1] == 7.0F);

  CHECK(histo_head_run_f32(head, features, 4, 1, 2, 2, HISTO_NCHW, 0, out, 2) == HISTO_OK);
  CHECK(out[0] == 3.0F && out[1] == -2.5F);
  out[0] = 7.0F;
  CHECK(histo_head_run_f32(head, features, 4, 1, 2, 2, HISTO_NHWC, 0, out, 2) == HISTO_OK);
  CHECK(out[0] == 3.0F && out[1] == -2.5F);
  out[0] = 7.0F;
  CHECK(histo_head_run_bf16(head, bf16, 4, 1, 2, 2, HISTO_NCHW, 0, out, 2) == HISTO_OK);
  CHECK(out[0] == 3.0F && out[1] == -2.5F);
  CHECK(histo_head_run_f32(head, features, 4, 1, 2, 2, HISTO_NCHW, 1, out, 2) == HISTO_OK);
  CHECK(fabsf(out[0] + out[1] - 1.0F) < 1e-6F && out[0] > out[1]);
  histo_head_free(head);
  histo_head_free(NULL);

  CHECK_FAILS(histo_head_create(0, 1, 2, weight, 2, bias, 2, NULL, &head), HISTO_INVALID_ARGUMENT, "pool");
  CHECK(head == NULL);
  CHECK_FAILS(histo_head_create(1, 1, 2, weight, 1, bias, 2, NULL, &head), HISTO_SIZE_MISMATCH, "weight");
  CHECK_FAILS(histo_head_create(1, 1, 2, weight, 2, bias, 1, NULL, &head), HISTO_SIZE_MISMATCH, "bias");
  CHECK_FAILS(histo_head_create(SIZE_MAX, 1, 2, weight, 2, bias, 2, NULL, &head), HISTO_SIZE_OVERFLOW, "");
  CHECK_FAILS(histo_head_create(1, 1, 2, NULL, 2, bias, 2, NULL, &head), HISTO_INVALID_ARGUMENT, "weight");
  CHECK_FAILS(histo_head_create(1, 1, 2, weight, 2, NULL, 2, NULL, &head), HISTO_INVALID_ARGUMENT, "bias");
  CHECK_FAILS(histo_head_create(1, 1, 2, weight, 2, bias, 2, NULL, NULL), HISTO_INVALID_ARGUMENT, "head");
  options.struct_size = 3;
  CHECK_FAILS(histo_head_create(1, 1, 2, weight, 2, bias, 2, &options, &head), HISTO_INVALID_ARGUMENT,
              "struct_size");
  CHECK(head == NULL);
}

int main(int argc, char** argv) {
  histo_model* model = NULL;
  if (argc != 2) {
    fprintf(stderr, "usage: %s MODEL\n", argv[0]);
    return 2;
  }
  CHECK(strcmp(histo_last_error(), "") == 0);
  CHECK(strcmp(histo_last_remedy(), "") == 0);
  test_model(argv[1]);
  test_garbage_file(argv[1]);
  test_long_messages_are_cut();
  if (histo_model_open(argv[1], &model) == HISTO_OK) {
    test_engine(model);
    test_engine_options(model);
    test_regions();
    test_outputs(model);
    test_batches(model);
  }
  histo_model_free(model);
  test_head();
  if (failures != 0) {
    fprintf(stderr, "%d checks failed\n", failures);
    return 1;
  }
  return 0;
}
