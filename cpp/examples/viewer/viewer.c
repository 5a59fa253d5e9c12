/* The program of viewer.cpp in C: viewer_c MODEL IMAGE HEIGHT WIDTH */

#include <histo/c_api.h>
#include <stdio.h>
#include <stdlib.h>

static void* array(size_t count, size_t size) {
  void* const memory = calloc(count == 0 ? 1 : count, size);
  if (memory == NULL) {
    fputs("viewer: out of memory\n", stderr);
    exit(1);
  }
  return memory;
}

static void* read_file(const char* path, size_t* size) {
  FILE* const file = fopen(path, "rb");
  void* bytes = NULL;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
    *size = (size_t)ftell(file);
    rewind(file);
    bytes = array(*size, 1);
    if (fread(bytes, 1, *size, file) != *size) {
      free(bytes);
      bytes = NULL;
    }
  }
  if (file != NULL) {
    fclose(file);
  }
  return bytes;
}

static void print(const histo_model* model, const histo_outputs* outputs, size_t tile, size_t map, size_t x,
                  size_t y) {
  const size_t cells = map * map, classes = histo_model_classes(model);
  const size_t class_ = outputs->top_classes[tile];
  const float* const shares = outputs->contributions + (tile * classes + class_) * cells;
  size_t best = 0, cell;
  for (cell = 1; cell < cells; ++cell) {
    best = shares[cell] > shares[best] ? cell : best;
  }
  printf("%zu\t%zu\t%s\t%.9g\t%zu\t%zu\t%.9g\n", x, y, histo_model_class_name(model, class_),
         (double)outputs->top_probabilities[tile], best / map, best % map, (double)shares[best]);
}

/* The tiles are regions of the image: no pixel is copied. */
static histo_status classify(const histo_model* model, const histo_engine* engine,
                             const histo_image_view* image) {
  const histo_image_view empty = HISTO_IMAGE_VIEW_INIT;
  const size_t side = histo_model_tile_size(model), columns = image->width / side;
  const size_t count = image->height / side * columns;
  histo_image_view* const tiles = array(count, sizeof *tiles);
  histo_engine_info info = HISTO_ENGINE_INFO_INIT;
  histo_outputs outputs = HISTO_OUTPUTS_INIT;
  histo_status status = histo_engine_get_info(engine, &info);
  size_t i;
  for (i = 0; status == HISTO_OK && i < count; ++i) {
    tiles[i] = empty;
    status = histo_image_view_region(image, i % columns * side, i / columns * side, side, side, &tiles[i]);
  }
  outputs.top = 1;
  outputs.top_classes_size = outputs.top_probabilities_size = count;
  outputs.top_classes = array(count, sizeof *outputs.top_classes);
  outputs.top_probabilities = array(count, sizeof *outputs.top_probabilities);
  outputs.contributions_size = count * info.classes * info.map_side * info.map_side;
  outputs.contributions = array(outputs.contributions_size, sizeof *outputs.contributions);
  if (status == HISTO_OK) {
    status = histo_engine_run_views(engine, tiles, count, &outputs);
  }
  for (i = 0; status == HISTO_OK && i < count; ++i) {
    print(model, &outputs, i, info.map_side, i % columns * side, i / columns * side);
  }
  free(outputs.contributions);
  free(outputs.top_probabilities);
  free(outputs.top_classes);
  free(tiles);
  return status;
}

int main(int argc, char** argv) {
  histo_model* model = NULL;
  histo_engine* engine = NULL;
  histo_image_view image = HISTO_IMAGE_VIEW_INIT;
  histo_status status;
  void* pixels;
  if (argc != 5) {
    fprintf(stderr, "usage: %s MODEL IMAGE HEIGHT WIDTH\n", argv[0]);
    return 2;
  }
  image.bytes = pixels = read_file(argv[2], &image.bytes_size);
  image.height = strtoul(argv[3], NULL, 10);
  image.width = strtoul(argv[4], NULL, 10);
  image.format = "bgra_premultiplied";
  status = histo_model_open(argv[1], &model);
  if (status == HISTO_OK) {
    status = histo_engine_create(model, NULL, &engine);
  }
  if (status == HISTO_OK) {
    status = classify(model, engine, &image);
  }
  if (status != HISTO_OK) {
    fprintf(stderr, "viewer: %s (error %d)\n", histo_last_error(), (int)status);
  }
  histo_engine_free(engine);
  histo_model_free(model);
  free(pixels);
  return status == HISTO_OK ? 0 : 1;
}
