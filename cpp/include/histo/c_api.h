/** \file
 * The C interface: everything that this library can do, for C and for every language that can call C.
 *
 * Plain C89 with the integers of <stdint.h>, for compilers and binding generators alike: no // comments, no
 * commas at the end of lists, no code but declarations. No function throws, and none ends the process.
 *
 * - Functions that can fail return a histo_status. Where it is not HISTO_OK, histo_last_error() tells what
 *   was wrong and what to do about it. Output arguments are then unchanged, except that a handle is set to
 *   null.
 * - Handles are created by the functions that take a pointer to one, and released with the matching `_free`,
 *   which accepts null. A handle may outlive the one it was created from: a model may be freed while engines
 *   run it.
 * - Sizes are in elements (bytes for uint8_t) and are compared with the size that the shape needs.
 * - Structures begin with their own size, at most 4096, so that later versions can add fields without
 *   breaking compiled programs. Initialise them with the macro HISTO_..._INIT that stands behind each. A
 *   field of options that is zero means its default, and a null pointer to the structure means that all
 *   fields are zero.
 * - One handle may be used by several threads at the same time, except while it is being freed.
 * - pthread_cancel() takes effect when the function has returned. A calling thread needs 128 KiB of stack.
 *
 * \code
 * histo_model* model = NULL;
 * histo_engine* engine = NULL;
 * histo_engine_options options = HISTO_ENGINE_OPTIONS_INIT;
 * options.threads = 4;
 * if (histo_model_open("bundle/model.safetensors", &model) != HISTO_OK ||
 *     histo_engine_create(model, &options, &engine) != HISTO_OK ||
 *     histo_engine_run_u8(engine, rgb, rgb_size, 1, 150, 150, logits, 6) != HISTO_OK) {
 *   fprintf(stderr, "%s\n", histo_last_error());
 * }
 * histo_engine_free(engine);
 * histo_model_free(model);
 * \endcode
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "histo/api.h"
#include "histo/version.h"

#ifdef __cplusplus
#define HISTO_NOEXCEPT noexcept
extern "C" {
#else
#define HISTO_NOEXCEPT
#endif

/* --- errors ------------------------------------------------------------------------------------------- */

/** The numbers of histo::ErrorCode, which are stable. */
typedef enum histo_status {
  HISTO_OK = 0,
  HISTO_INVALID_ARGUMENT = 1, /**< an argument is null, zero or outside its range */
  HISTO_SIZE_MISMATCH = 2,    /**< a buffer does not hold as many elements as the shape needs */
  HISTO_SIZE_OVERFLOW = 3,    /**< a shape's number of elements does not fit in size_t */
  HISTO_IO = 4,               /**< a file cannot be opened or read */
  HISTO_INVALID_FILE = 5,     /**< a file is not what it claims to be: damaged, or of another format */
  HISTO_UNSUPPORTED = 6,      /**< valid, but not possible here: an instruction set, a precision, an option */
  HISTO_OUT_OF_MEMORY = 7,    /**< an allocation failed */
  HISTO_CANCELLED = 8,        /**< the caller asked to stop */
  HISTO_FAILED = 9,           /**< a callback failed, or another error without a number of its own */
  HISTO_BUSY = 10             /**< no room at the moment: a queue is full */
} histo_status;

/** The last failure of a call in this thread: what was wrong, "; " and what to do about it. One line of
 * UTF-8, cut at 1 KiB; empty where no call has failed. The text does not change until another call of this
 * thread fails.
 */
HISTO_API const char* histo_last_error(void) HISTO_NOEXCEPT;

/** The second part of histo_last_error(): what to do about it. May be empty, as after the failure of a
 * callback.
 */
HISTO_API const char* histo_last_remedy(void) HISTO_NOEXCEPT;

/** The library's version, for example "0.1.0". */
HISTO_API const char* histo_version(void) HISTO_NOEXCEPT;

/** How many threads it makes sense to start here: see histo::usable_cpus(). */
HISTO_API unsigned histo_usable_cpus(void) HISTO_NOEXCEPT;

/** Whether this machine can run a precision: HISTO_OK, or HISTO_UNSUPPORTED with the reason in
 * histo_last_error().
 * \param precision  "fp32", "bf16x3", "bf16" or "int8"
 * \param isa        the highest instruction set to use, as in histo_engine_options; may be null
 * \param executed   receives the name of the instruction set whose kernels run, which may be lower than
 *                   `isa`: AMX has no float32. May be null
 */
HISTO_API histo_status histo_precision_support(const char* precision, const char* isa,
                                               const char** executed) HISTO_NOEXCEPT;

/* --- model -------------------------------------------------------------------------------------------- */

/** The contents of a `model.safetensors`: see histo::Model. */
typedef struct histo_model histo_model;

/** Reads the file into memory. It may be changed or deleted afterwards. Paths are UTF-8 on Windows, and the
 * system's own bytes elsewhere.
 */
HISTO_API histo_status histo_model_open(const char* path, histo_model** model) HISTO_NOEXCEPT;

/** Copies the contents of such a file. */
HISTO_API histo_status histo_model_from_memory(const void* bytes, size_t size,
                                               histo_model** model) HISTO_NOEXCEPT;

HISTO_API void histo_model_free(histo_model* model) HISTO_NOEXCEPT;

/** Properties of the model; 0 where `model` is null. */
HISTO_API size_t histo_model_classes(const histo_model* model) HISTO_NOEXCEPT;   /**< logits per tile */
HISTO_API size_t histo_model_crop(const histo_model* model) HISTO_NOEXCEPT;      /**< pixels */
HISTO_API size_t histo_model_tile_size(const histo_model* model) HISTO_NOEXCEPT; /**< pixels */
HISTO_API size_t histo_model_pool(const histo_model* model) HISTO_NOEXCEPT;      /**< bins along a side */
HISTO_API double histo_model_mpp(const histo_model* model) HISTO_NOEXCEPT; /**< um per pixel; 0: unknown */

/** Floats in the embedding of a tile: see histo_outputs. 0 where `model` is null. */
HISTO_API size_t histo_model_embedding_size(const histo_model* model) HISTO_NOEXCEPT;

/** The name, in UTF-8, of the class of logit `index`; null where `index` is too large. It lives as long as
 * `model`.
 */
HISTO_API const char* histo_model_class_name(const histo_model* model, size_t index) HISTO_NOEXCEPT;

/* --- engine ------------------------------------------------------------------------------------------- */

/** A model made ready to run: see histo::Engine. */
typedef struct histo_engine histo_engine;

/** Threads that engines share: see histo_team_create(). */
typedef struct histo_team histo_team;

typedef struct histo_engine_options {
  size_t struct_size;    /**< sizeof(histo_engine_options) */
  unsigned threads;      /**< 0: the team's, or else histo_usable_cpus() */
  const char* isa;       /**< "portable", "avx2" … (see histo::Isa); null: $HISTO_ISA, or else the highest */
  const char* precision; /**< "fp32", "bf16x3", "bf16" or "int8" (see histo::Precision); null: "fp32" */
  size_t crop;           /**< side of the centre crop in pixels, at most 8192; 0: the model's */
  const char* profile;   /**< "throughput" or "latency"; null: "throughput" */
  const char* algorithm; /**< "fastest" or "direct"; null: "fastest" */
  histo_team* team;      /**< threads that engines share; null: each engine has its own */
} histo_engine_options;

/** All defaults, for an initialiser: `histo_engine_options options = HISTO_ENGINE_OPTIONS_INIT;`. There is
 * one for every structure that begins with its size.
 */
#define HISTO_ENGINE_OPTIONS_INIT {sizeof(histo_engine_options), 0, NULL, NULL, 0, NULL, NULL, NULL}

typedef struct histo_engine_info {
  size_t struct_size; /**< sizeof(histo_engine_info), filled in by the caller */
  const char* isa;    /**< of the kernels that run; all names here live as long as the process */
  const char* precision;
  size_t threads;
  size_t crop;
  size_t classes;
  size_t weight_bytes;    /**< shared between copies of an engine; grows at the first large batch */
  size_t workspace_bytes; /**< of this engine alone */
  const char* profile;
  const char* algorithm;
  size_t embedding_size; /**< floats of a tile: see histo_outputs */
  size_t map_side;       /**< cells along a side: see histo_outputs */
} histo_engine_info;

#define HISTO_ENGINE_INFO_INIT {sizeof(histo_engine_info), NULL, NULL, 0, 0, 0, 0, 0, NULL, NULL, 0, 0}

/** \param options  may be null */
HISTO_API histo_status histo_engine_create(const histo_model* model, const histo_engine_options* options,
                                           histo_engine** engine) HISTO_NOEXCEPT;

/** An engine with a workspace of its own, for parallel calls, and with threads of its own unless it has a
 * team. The packed weights are shared.
 */
HISTO_API histo_status histo_engine_copy(const histo_engine* engine, histo_engine** copy) HISTO_NOEXCEPT;

HISTO_API void histo_engine_free(histo_engine* engine) HISTO_NOEXCEPT;

/** Logits of tiles as a decoder gives them.
 * \param tiles   RGB, row-major `(batch, height, width, 3)`
 * \param logits  row-major `(batch, classes)`
 */
HISTO_API histo_status histo_engine_run_u8(const histo_engine* engine, const uint8_t* tiles,
                                           size_t tiles_size, size_t batch, size_t height, size_t width,
                                           float* logits, size_t logits_size) HISTO_NOEXCEPT;

/** The same for tiles in [0, 1], row-major `(batch, 3, height, width)`. */
HISTO_API histo_status histo_engine_run_f32(const histo_engine* engine, const float* tiles, size_t tiles_size,
                                            size_t batch, size_t height, size_t width, float* logits,
                                            size_t logits_size) HISTO_NOEXCEPT;

/** Runs a black batch, so that the first real one finds memory touched and caches filled. */
HISTO_API histo_status histo_engine_warmup(const histo_engine* engine, size_t batch) HISTO_NOEXCEPT;

HISTO_API histo_status histo_engine_get_info(const histo_engine* engine,
                                             histo_engine_info* info) HISTO_NOEXCEPT;

/** See histo::SelfTestResult. */
typedef struct histo_self_test_result {
  size_t struct_size; /**< sizeof(histo_self_test_result), filled in by the caller */
  size_t tiles;
  double max_abs;
  double max_relative;
  double tolerance;
  int passed; /**< 1 or 0 */
} histo_self_test_result;

#define HISTO_SELF_TEST_RESULT_INIT {sizeof(histo_self_test_result), 0, 0, 0, 0, 0}

/** Runs the tiles of a bundle's `golden.safetensors` and compares the logits. HISTO_OK means that they were
 * compared; `passed` is the result.
 */
HISTO_API histo_status histo_engine_self_test(const histo_engine* engine, const char* golden_path,
                                              histo_self_test_result* result) HISTO_NOEXCEPT;

/* --- pixels where the host holds them, and more than logits -------------------------------------------- */

/** An image or a tile in the memory of the host, which must stay as it is while a call reads it. See
 * histo::ImageView, which says where each byte is.
 *
 * The results are those of the same pixels as packed RGB, to the last bit. A pixel of "bgra_premultiplied"
 * (on little-endian machines the ARGB32 of Cairo and of OpenSlide's C interface) becomes what it is on
 * white, `min(255, colour + 255 - alpha)` for each of its colours. The alpha of other formats is ignored.
 */
typedef struct histo_image_view {
  size_t struct_size;   /**< sizeof(histo_image_view) */
  const uint8_t* bytes; /**< from the first pixel on */
  size_t bytes_size;    /**< at least what the pixels take */
  size_t height;        /**< pixels, at least 1 */
  size_t width;         /**< pixels, at least 1 */
  const char* format;   /**< "rgb", "bgr", "rgba", "bgra", "bgra_premultiplied" or "grey"; null: "rgb" */
  size_t row_stride;    /**< bytes from a row to the next, at least a row; 0: rows without gaps */
  size_t plane_stride;  /**< bytes from a channel's plane to the next, at least a row; 0: interleaved */
} histo_image_view;

#define HISTO_IMAGE_VIEW_INIT {sizeof(histo_image_view), NULL, 0, 0, 0, NULL, 0, 0}

/** A part of an image, over the same memory.
 * \param x, y           its left column and its upper row, in pixels
 * \param height, width  in pixels
 * \param region         receives it; its `struct_size` is filled in by the caller. May be `image`
 */
HISTO_API histo_status histo_image_view_region(const histo_image_view* image, size_t x, size_t y,
                                               size_t height, size_t width,
                                               histo_image_view* region) HISTO_NOEXCEPT;

/** What a run shall write, each into the caller's memory: see histo::Outputs, which defines them. An output
 * whose pointer is null and whose size is 0 is not wanted; at least one is. They must not overlap.
 */
typedef struct histo_outputs {
  size_t struct_size; /**< sizeof(histo_outputs) */
  size_t top;         /**< of `top_classes` and `top_probabilities`; at most `classes` */
  float* logits;      /**< `(batch, classes)` */
  size_t logits_size;
  float* probabilities; /**< `(batch, classes)`: softmax of the logits */
  size_t probabilities_size;
  uint32_t* top_classes; /**< `(batch, top)`: the classes of the largest logits, from the largest on */
  size_t top_classes_size;
  float* top_probabilities; /**< `(batch, top)`: theirs */
  size_t top_probabilities_size;
  float* embedding; /**< `(batch, embedding_size)`: the input of the trained linear layer */
  size_t embedding_size;
  float* contributions; /**< `(batch, classes, map_side, map_side)`: shares of the last map's cells in the
                           logits */
  size_t contributions_size;
} histo_outputs;

#define HISTO_OUTPUTS_INIT {sizeof(histo_outputs), 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0}

/** The outputs that are wanted, of tiles where and how the host holds them; they may differ in all but in
 * that each holds the crop. The bits of the logits are those of the other functions.
 * \param tiles  `batch` of them, all with the same `struct_size`
 */
HISTO_API histo_status histo_engine_run_views(const histo_engine* engine, const histo_image_view* tiles,
                                              size_t batch, const histo_outputs* outputs) HISTO_NOEXCEPT;

/** The same for packed tiles, as for histo_engine_run_u8() and histo_engine_run_f32(). Of a tile with NaN or
 * infinity, any output may be NaN.
 */
HISTO_API histo_status histo_engine_run_u8_outputs(const histo_engine* engine, const uint8_t* tiles,
                                                   size_t tiles_size, size_t batch, size_t height,
                                                   size_t width, const histo_outputs* outputs) HISTO_NOEXCEPT;
HISTO_API histo_status histo_engine_run_f32_outputs(const histo_engine* engine, const float* tiles,
                                                    size_t tiles_size, size_t batch, size_t height,
                                                    size_t width,
                                                    const histo_outputs* outputs) HISTO_NOEXCEPT;

/* --- many tiles --------------------------------------------------------------------------------------- */

/** Fills `tile`, RGB `(height, width, 3)`, and returns 1. Returns 0 at the end, and any negative number where
 * this tile is lost. Called from one thread of the loop, in order.
 */
typedef int (*histo_tile_source)(void* user, uint8_t* tile, size_t tile_size);

/** The result for tile `index`, counted from 0 in the order of the source. */
typedef struct histo_tile_result {
  size_t index;
  const float* logits; /**< `classes` of them, valid during the call; null where the tile failed */
  size_t classes;      /**< 0 where the tile failed */
  const char* error;   /**< null where the tile did not fail */
} histo_tile_result;

/** Receives the results, in order, in the thread that called histo_run_batches(). Any value but 0 ends the
 * loop.
 */
typedef int (*histo_tile_sink)(void* user, const histo_tile_result* result);

/** The progress of the loop, or its totals: see histo::BatchRunnerStats. */
typedef struct histo_batch_stats {
  size_t struct_size; /**< sizeof(histo_batch_stats), from the caller; from the library for histo_progress */
  size_t tiles;
  size_t failed;
  size_t batches;
  double seconds;
  double prepare_seconds;
  double infer_seconds;
  double deliver_seconds;
} histo_batch_stats;

#define HISTO_BATCH_STATS_INIT {sizeof(histo_batch_stats), 0, 0, 0, 0, 0, 0, 0}

/** Called in the thread that called histo_run_batches(), after each batch and at least every 100 ms. Any
 * value but 0 cancels.
 */
typedef int (*histo_progress)(void* user, const histo_batch_stats* stats);

typedef struct histo_batch_options {
  size_t struct_size; /**< sizeof(histo_batch_options) */
  size_t batch;       /**< tiles per run of the engine; 0: 32 */
  size_t queued;      /**< batches that may wait between two stages; 0: 2 */
  int report_errors;  /**< 0: the first lost tile ends the loop; else the sink receives it with its error */
} histo_batch_options;

#define HISTO_BATCH_OPTIONS_INIT {sizeof(histo_batch_options), 0, 0, 0}

/** Runs any number of tiles of one size, with preparing, inference and delivery overlapped: see
 * histo::BatchRunner. Runs on `engine` itself, taking turns with other calls.
 * \param progress  may be null
 * \param user      passed to the callbacks unchanged
 * \param options   may be null
 * \param stats     may be null; written where the loop ends without an error
 */
HISTO_API histo_status histo_run_batches(const histo_engine* engine, size_t height, size_t width,
                                         histo_tile_source source, histo_tile_sink sink,
                                         histo_progress progress, void* user,
                                         const histo_batch_options* options,
                                         histo_batch_stats* stats) HISTO_NOEXCEPT;

/* --- the head alone ----------------------------------------------------------------------------------- */

/** Adaptive average pooling and the linear classifier behind it: see histo::FusedHead. */
typedef struct histo_head histo_head;

/** Order of a feature map's axes in memory. */
typedef enum histo_layout {
  HISTO_NCHW = 0, /**< row-major `(batch, channels, height, width)` */
  HISTO_NHWC = 1  /**< row-major `(batch, height, width, channels)` */
} histo_layout;

typedef struct histo_head_options {
  size_t struct_size; /**< sizeof(histo_head_options) */
  unsigned threads;   /**< of one call, including the caller's; 0: histo_usable_cpus() */
  const char* isa;    /**< as in histo_engine_options */
} histo_head_options;

#define HISTO_HEAD_OPTIONS_INIT {sizeof(histo_head_options), 0, NULL}

/** \param weight   row-major `(classes, channels * pool * pool)`, copied
 * \param bias     `(classes)`, copied
 * \param options  may be null
 */
HISTO_API histo_status histo_head_create(size_t pool, size_t channels, size_t classes, const float* weight,
                                         size_t weight_size, const float* bias, size_t bias_size,
                                         const histo_head_options* options, histo_head** head) HISTO_NOEXCEPT;

HISTO_API void histo_head_free(histo_head* head) HISTO_NOEXCEPT;

/** \param layout   a histo_layout
 * \param softmax  0: `out` receives logits; else probabilities, which sum to 1 over the classes
 * \param out      row-major `(batch, classes)`; must not overlap `features`
 */
HISTO_API histo_status histo_head_run_f32(const histo_head* head, const float* features, size_t features_size,
                                          size_t batch, size_t height, size_t width, int layout, int softmax,
                                          float* out, size_t out_size) HISTO_NOEXCEPT;

/** The same for bf16 features: the upper halves of float32. */
HISTO_API histo_status histo_head_run_bf16(const histo_head* head, const uint16_t* features,
                                           size_t features_size, size_t batch, size_t height, size_t width,
                                           int layout, int softmax, float* out,
                                           size_t out_size) HISTO_NOEXCEPT;

/* --- versions, names and messages ---------------------------------------------------------------------- */

/** HISTO_VERSION_NUMBER of the library that runs, which may not be that of the headers. */
HISTO_API int histo_version_number(void) HISTO_NOEXCEPT;

/** Whether a program that was compiled with the headers of version `headers` can use the library that runs:
 * it is of the same major version (before 1.0: of the same minor version) and not older. Otherwise
 * HISTO_UNSUPPORTED.
 * \param headers  HISTO_VERSION_NUMBER
 */
HISTO_API histo_status histo_require_version(int headers) HISTO_NOEXCEPT;

/** "ok", "invalid_argument" …: the name of a status, which lives as long as the process; "unknown" for a
 * number that this version does not know.
 */
HISTO_API const char* histo_status_name(int status) HISTO_NOEXCEPT;

/** How much a message of the library matters. */
typedef enum histo_log_level {
  HISTO_LOG_INFO = 0,   /**< what was done, as an engine that was made */
  HISTO_LOG_WARNING = 1 /**< what went wrong without an error for the caller */
} histo_log_level;

/** Receives one line of UTF-8, which is valid during the call: see histo::LogCallback.
 * \param level  a histo_log_level
 */
typedef void (*histo_log_callback)(void* user, int level, const char* message);

/** Sends what the library tells to `callback`, for the whole process; null turns it off, as it is at the
 * beginning. A call of the former callback may still be in progress when this returns, so its `user` must
 * stay valid.
 */
HISTO_API histo_status histo_set_log(histo_log_callback callback, void* user) HISTO_NOEXCEPT;

/* --- before running ------------------------------------------------------------------------------------ */

/** What a model file says of itself, without its weights: see histo::read_model_info(). */
typedef struct histo_model_info histo_model_info;

HISTO_API histo_status histo_model_info_read(const char* path, histo_model_info** info) HISTO_NOEXCEPT;

HISTO_API void histo_model_info_free(histo_model_info* info) HISTO_NOEXCEPT;

/** As the functions of histo_model; 0 where `info` is null. */
HISTO_API size_t histo_model_info_classes(const histo_model_info* info) HISTO_NOEXCEPT;
HISTO_API size_t histo_model_info_crop(const histo_model_info* info) HISTO_NOEXCEPT;
HISTO_API size_t histo_model_info_tile_size(const histo_model_info* info) HISTO_NOEXCEPT;
HISTO_API size_t histo_model_info_pool(const histo_model_info* info) HISTO_NOEXCEPT;
HISTO_API double histo_model_info_mpp(const histo_model_info* info) HISTO_NOEXCEPT;
HISTO_API size_t histo_model_info_file_bytes(const histo_model_info* info) HISTO_NOEXCEPT;
HISTO_API int histo_model_info_int8(const histo_model_info* info) HISTO_NOEXCEPT; /**< 1: it has the scales */
HISTO_API const char* histo_model_info_class_name(const histo_model_info* info, size_t index) HISTO_NOEXCEPT;

/** The value of a key of the file's metadata, as "histo.precision"; null where it has none of that name. It
 * lives as long as `info`.
 */
HISTO_API const char* histo_model_info_metadata(const histo_model_info* info, const char* key) HISTO_NOEXCEPT;

/** See histo::MemoryEstimate. */
typedef struct histo_memory_estimate {
  size_t struct_size;     /**< sizeof(histo_memory_estimate), filled in by the caller */
  size_t model_bytes;     /**< the contents of the file, which every engine of the model shares */
  size_t weight_bytes;    /**< packed weights, shared between copies of an engine */
  size_t workspace_bytes; /**< activations of a batch, of each engine and each copy */
  size_t thread_bytes;    /**< the part of workspace_bytes that each thread of the engine has */
  size_t huge_page_bytes; /**< what rounding to pages of 2 MiB adds, where the system gives such pages */
} histo_memory_estimate;

#define HISTO_MEMORY_ESTIMATE_INIT {sizeof(histo_memory_estimate), 0, 0, 0, 0, 0}

/** What an engine with these options takes when it has run `batch` tiles at once: see histo::estimate().
 * \param options  may be null
 */
HISTO_API histo_status histo_estimate(const histo_model* model, const histo_engine_options* options,
                                      size_t batch, histo_memory_estimate* estimate) HISTO_NOEXCEPT;

/* --- threads that engines share ------------------------------------------------------------------------ */

typedef struct histo_team_options {
  size_t struct_size; /**< sizeof(histo_team_options) */
  unsigned threads;   /**< that a loop runs on, the caller's included; 0: histo_usable_cpus() */
  const unsigned*
      cpus; /**< numbers of the CPUs that the threads may run on, copied; null: the caller's. Linux */
  size_t cpus_size;
  const char* name; /**< of the threads, copied; null: "histo" */
} histo_team_options;

#define HISTO_TEAM_OPTIONS_INIT {sizeof(histo_team_options), 0, NULL, 0, NULL}

/** Threads of the library that engines share: see histo::ThreadTeam. None is started before it is needed.
 * Engines keep the team that they were created with, so it may be freed before them.
 * \param options  may be null
 */
HISTO_API histo_status histo_team_create(const histo_team_options* options, histo_team** team) HISTO_NOEXCEPT;

/** A loop of the host: calls `body(context)` up to `threads` times at once, on threads of its own and perhaps
 * on the caller's, and returns 0 when these calls have returned; any other value ends the call of the engine
 * with HISTO_FAILED. Each call takes parts of the work until none is left, and the library does what nobody
 * took: see histo::ParallelFor.
 */
typedef int (*histo_parallel_for)(void* user, size_t threads, void (*body)(void* context), void* context);

/** Threads of the host that engines share.
 * \param threads  that a loop is divided between; 0: histo_usable_cpus()
 * \param user     passed to the loop unchanged
 */
HISTO_API histo_status histo_team_create_on(unsigned threads, histo_parallel_for parallel_for, void* user,
                                            histo_team** team) HISTO_NOEXCEPT;

HISTO_API void histo_team_free(histo_team* team) HISTO_NOEXCEPT;

HISTO_API unsigned histo_team_threads(const histo_team* team) HISTO_NOEXCEPT; /**< 0 where `team` is null */

/* --- stopping a run ------------------------------------------------------------------------------------ */

/** Set by one thread to stop the runs that were given it: see histo::CancelFlag. */
typedef struct histo_cancel_flag histo_cancel_flag;

HISTO_API histo_status histo_cancel_flag_create(histo_cancel_flag** flag) HISTO_NOEXCEPT;

/** Not while a run uses it. */
HISTO_API void histo_cancel_flag_free(histo_cancel_flag* flag) HISTO_NOEXCEPT;

/** By any thread, or in a signal handler. Null does nothing. */
HISTO_API void histo_cancel_flag_cancel(histo_cancel_flag* flag) HISTO_NOEXCEPT;
HISTO_API void histo_cancel_flag_reset(histo_cancel_flag* flag) HISTO_NOEXCEPT;
HISTO_API int histo_cancel_flag_cancelled(const histo_cancel_flag* flag) HISTO_NOEXCEPT; /**< 1 or 0 */

/** As histo_engine_run_u8(), but HISTO_CANCELLED before the next layer when `cancel` is set. */
HISTO_API histo_status histo_engine_run_u8_until(const histo_engine* engine, const uint8_t* tiles,
                                                 size_t tiles_size, size_t batch, size_t height, size_t width,
                                                 float* logits, size_t logits_size,
                                                 const histo_cancel_flag* cancel) HISTO_NOEXCEPT;

/** As histo_engine_run_f32(), likewise. */
HISTO_API histo_status histo_engine_run_f32_until(const histo_engine* engine, const float* tiles,
                                                  size_t tiles_size, size_t batch, size_t height,
                                                  size_t width, float* logits, size_t logits_size,
                                                  const histo_cancel_flag* cancel) HISTO_NOEXCEPT;

/* --- a queue of tiles ---------------------------------------------------------------------------------- */

/** Many threads submit single tiles, which run in batches: see histo::TileQueue. */
typedef struct histo_queue histo_queue;

typedef struct histo_queue_options {
  size_t struct_size; /**< sizeof(histo_queue_options) */
  size_t max_batch;   /**< tiles per run of the engine, at most; 0: 32 */
  size_t max_wait_us; /**< microseconds that the oldest tile may wait for a full batch, at most an hour; 0: it
                         does not wait */
  size_t capacity;    /**< tiles that may wait; 0: 1024 */
} histo_queue_options;

#define HISTO_QUEUE_OPTIONS_INIT {sizeof(histo_queue_options), 0, 0, 0}

/** The answer to a submission; valid during the call. */
typedef struct histo_answer {
  uint64_t id;         /**< of the submission */
  histo_status status; /**< HISTO_OK; HISTO_CANCELLED; or what the run of its batch failed with */
  const float* logits; /**< `classes` of them; null where the status is not HISTO_OK */
  size_t classes;      /**< 0 where the status is not HISTO_OK */
  const char* error;   /**< as histo_last_error(); null where the status is HISTO_OK */
} histo_answer;

/** Receives an answer: in the thread of the queue, or where a submission is cancelled, in the thread that
 * cancels, before histo_queue_cancel() returns. It may call the queue, but histo_queue_drain() fails, and
 * histo_queue_submit() does not wait.
 */
typedef void (*histo_answer_callback)(void* user, const histo_answer* answer);

/** Over a copy of `engine`, which shares its weights.
 * \param options  may be null
 */
HISTO_API histo_status histo_queue_create(const histo_engine* engine, const histo_queue_options* options,
                                          histo_queue** queue) HISTO_NOEXCEPT;

/** Cancels what has no answer yet, and returns when all callbacks have returned (but where one of them calls
 * it, its own). No thread may be about to call another function of the queue.
 */
HISTO_API void histo_queue_free(histo_queue* queue) HISTO_NOEXCEPT;

/** Submits a tile, whose pixels are copied; waits until there is room. Each submission gets exactly one call
 * of `callback`, perhaps before this returns; none where this fails.
 * \param tile  RGB, row-major `(height, width, 3)`
 * \param user  passed to the callback unchanged
 * \param id    receives the submission's id; may be null
 */
HISTO_API histo_status histo_queue_submit(histo_queue* queue, const uint8_t* tile, size_t tile_size,
                                          size_t height, size_t width, histo_answer_callback callback,
                                          void* user, uint64_t* id) HISTO_NOEXCEPT;

/** The same, but HISTO_BUSY where the queue is full. */
HISTO_API histo_status histo_queue_try_submit(histo_queue* queue, const uint8_t* tile, size_t tile_size,
                                              size_t height, size_t width, histo_answer_callback callback,
                                              void* user, uint64_t* id) HISTO_NOEXCEPT;

/** Answers a submission with HISTO_CANCELLED, waiting or in the batch that runs.
 * \param cancelled  receives 1, or 0 where it has its answer or is about to get it; may be null
 */
HISTO_API histo_status histo_queue_cancel(histo_queue* queue, uint64_t id, int* cancelled) HISTO_NOEXCEPT;

/** The same for all submissions up to now.
 * \param cancelled  receives how many; may be null
 */
HISTO_API histo_status histo_queue_cancel_all(histo_queue* queue, size_t* cancelled) HISTO_NOEXCEPT;

/** Waits until every submission has its answer and the callbacks have returned. */
HISTO_API histo_status histo_queue_drain(histo_queue* queue) HISTO_NOEXCEPT;

/** What a queue has done so far, in this process: see histo::TileQueueStats. */
typedef struct histo_queue_stats {
  size_t struct_size; /**< sizeof(histo_queue_stats), filled in by the caller */
  uint64_t submitted;
  uint64_t answered;
  uint64_t failed;
  uint64_t cancelled;
  uint64_t batches;
  size_t waiting;
} histo_queue_stats;

#define HISTO_QUEUE_STATS_INIT {sizeof(histo_queue_stats), 0, 0, 0, 0, 0, 0}

HISTO_API histo_status histo_queue_get_stats(const histo_queue* queue,
                                             histo_queue_stats* stats) HISTO_NOEXCEPT;

#ifdef __cplusplus
}
#endif
