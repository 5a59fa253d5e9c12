/* Submits tiles to a queue and prints the answers as they come: queue_c MODEL HEIGHT WIDTH TILE...
   Tiles are raw RGB bytes. */

#include <histo/c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Called by the thread of the queue, one answer after the other. */
static void print_answer(void* user, const histo_answer* answer) {
  size_t k;
  printf("%s", (const char*)user);
  if (answer->status != HISTO_OK) {
    printf("\t%s: %s\n", histo_status_name(answer->status), answer->error);
    return;
  }
  for (k = 0; k < answer->classes; ++k) {
    printf("\t%.9g", (double)answer->logits[k]);
  }
  printf("\n");
}

static histo_status submit_file(histo_queue* queue, const char* path, size_t height, size_t width) {
  const size_t size = height * width * 3;
  uint8_t* tile = malloc(size);
  FILE* file = fopen(path, "rb");
  const size_t count = tile != NULL && file != NULL ? fread(tile, 1, size, file) : 0;
  /* A file that is too short is refused like any other tile of the wrong size. The tile is copied. */
  const histo_status status =
      histo_queue_submit(queue, tile, count, height, width, print_answer, (void*)path, NULL);
  if (file != NULL) {
    fclose(file);
  }
  free(tile);
  return status;
}

int main(int argc, char** argv) {
  histo_queue_options options = HISTO_QUEUE_OPTIONS_INIT;
  histo_model* model = NULL;
  histo_engine* engine = NULL;
  histo_queue* queue = NULL;
  histo_status status;
  int i;
  if (argc < 5) {
    fprintf(stderr, "usage: %s MODEL HEIGHT WIDTH TILE...\n", argv[0]);
    return 2;
  }
  options.max_batch = 8;
  options.max_wait_us = 2000;
  status = histo_require_version(HISTO_VERSION_NUMBER);
  if (status == HISTO_OK) status = histo_model_open(argv[1], &model);
  if (status == HISTO_OK) status = histo_engine_create(model, NULL, &engine);
  if (status == HISTO_OK) status = histo_queue_create(engine, &options, &queue);
  for (i = 4; i < argc && status == HISTO_OK; ++i) {
    status = submit_file(queue, argv[i], strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10));
  }
  if (status == HISTO_OK) status = histo_queue_drain(queue);
  if (status != HISTO_OK) {
    fprintf(stderr, "queue_c: %s (error %d)\n", histo_last_error(), (int)status);
  }
  histo_queue_free(queue);
  histo_engine_free(engine);
  histo_model_free(model);
  return status == HISTO_OK ? 0 : 1;
}
