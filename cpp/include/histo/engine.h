/// \file
/// The engine: runs a Model on tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "histo/api.h"
#include "histo/cpu.h"
#include "histo/image_view.h"
#include "histo/model.h"
#include "histo/names.h"

namespace histo {

class CancelFlag;
class ThreadTeam;

/// Pixels along a side. A crop of this size takes about 4 GB of memory; larger ones are refused.
inline constexpr std::size_t largest_crop = 8192;

/// What an Engine is made with; the defaults suit most.
///
/// The precisions below float32 need AMX, or AVX-512 with BF16 (bf16, bf16x3) or VNNI (int8), or AVX2 with
/// VNNI (int8); on Arm see docs/arm.md. Where these are missing the constructor fails; no other precision is
/// used instead. precision_support() tells in advance.
///
/// AlgorithmPolicy::fastest lets layers run by Winograd's algorithm in fp32, in bf16 (with more rounding) and
/// in int8 (with the same result to the bit). bf16x3 always runs directly, and so do bf16 and int8 on AMX.
struct EngineOptions {
  unsigned threads = 0;  ///< that one call uses, the caller's included; 0: the team's, or else usable_cpus()
  Precision precision = Precision::fp32;
  std::optional<Isa> isa = std::nullopt;  ///< none: default_isa()
  std::size_t crop = 0;  ///< side of the centre crop; 0: the model's. Tiles must be at least as large.
                         ///< At most largest_crop
  Profile profile = Profile::throughput;
  AlgorithmPolicy algorithm = AlgorithmPolicy::fastest;
  std::shared_ptr<ThreadTeam> team = nullptr;  ///< threads that engines share (histo/thread_team.h); null:
                                               ///< each Engine has its own
};

/// What an Engine really does.
struct EngineInfo {
  Isa isa;  ///< of the kernels that run; it may be lower than EngineOptions::isa: AMX has no fp32 kernels
  Precision precision;
  Profile profile;
  AlgorithmPolicy algorithm;
  unsigned threads;
  std::size_t crop;
  std::size_t weight_bytes;  ///< packed weights, shared between copies of an Engine; in Profile::throughput
                             ///< they grow at the first batch that is large enough: 2 tiles at crop 128
  std::size_t workspace_bytes;  ///< activations, of this Engine alone; grows at the first large batch
  std::size_t embedding_size;   ///< floats of a tile: see Outputs::embedding
  std::size_t map_side;         ///< cells along a side: see Outputs::contributions
};

/// Extents of a batch of RGB tiles, in pixels.
struct TileShape {
  std::size_t batch;   ///< at least 1
  std::size_t height;  ///< at least the crop
  std::size_t width;   ///< at least the crop
};

/// What Engine::run() shall write, each into the caller's memory. A default span, which is null and empty, is
/// an output that is not wanted; at least one is. They must not overlap.
///
/// A softmax subtracts the largest logit, computes in float64 and rounds once. The top classes are in the
/// order of their logits, from the largest on; of equal ones the first class comes first, and NaN comes last.
///
/// An embedding is `AdaptiveAvgPool2d(pool)` of the last feature map, flattened: `(channels, pool, pool)`, in
/// the order that the trained linear layer reads, with the pool that was trained. Sums are float32.
///
/// Pooling and the linear layer are one linear map of the last feature map, so that each of its cells has an
/// exact share in each logit, whatever the pool. A contribution is this share,
/// `sum over channels of feature * weight`, and a tile's contributions to a logit and the bias add up to it.
/// With P the sum of the absolute values of the bias and of all products, the difference is at most
/// `(N / 4 + 192) * 2^-24 * P`, where N is cells * channels, 8192 for a crop of 128 pixels; usually it is a
/// hundred times smaller. docs/pooling.md tells what a share means, and what it does not mean.
///
/// \code
/// std::vector<float> probabilities(engine.classes()), embedding(engine.info().embedding_size);
/// engine.run(tile, shape, {.probabilities = probabilities, .embedding = embedding});
/// \endcode
struct Outputs {
  std::size_t top = 0;                        ///< of `top_classes` and `top_probabilities`; at most `classes`
  std::span<float> logits = {};               ///< `(batch, classes)`
  std::span<float> probabilities = {};        ///< `(batch, classes)`: softmax of the logits
  std::span<std::uint32_t> top_classes = {};  ///< `(batch, top)`: the classes of the largest logits
  std::span<float> top_probabilities = {};    ///< `(batch, top)`: theirs
  std::span<float> embedding = {};            ///< `(batch, EngineInfo::embedding_size)`
  std::span<float> contributions = {};        ///< `(batch, classes, EngineInfo::map_side, map_side)`
};

/// The output of a stage of the network, to find where two implementations begin to differ.
struct Stage {
  std::string name;                ///< one of stage_names
  std::vector<std::size_t> shape;  ///< (batch, channels, height, width); (batch, classes) for the head
  std::vector<float> data;         ///< row-major, as float32 whatever the precision
};

/// A convolution of the network, or the head, in the order of the computation.
struct LayerTime {
  std::string name;                        ///< stem, layer1.0.conv1, ... or head
  Algorithm algorithm;                     ///< the head's is direct
  Precision precision;                     ///< of this layer
  std::size_t channels, height, width;     ///< of the output
  std::size_t multiply_adds;               ///< per tile, by the definition
  std::size_t executed_multiply_adds = 0;  ///< per tile, with Winograd's reduction; without its transforms
  double seconds = 0;                      ///< for the batch that was timed
  std::size_t weight_bytes = 0;            ///< packed weights that this batch reads, each once; more where
                                           ///< transformed ones are used
};

/// A Model made ready to run: weights packed for the instruction set.
///
/// **A tile's logits are bit-identical whatever the batch it sits in, its position there and the number of
/// threads.** They may differ in the last bits between instruction sets and between releases.
///
/// Preprocessing is part of it: see histo/preprocess.h. The zero padding of the convolutions comes after
/// that.
///
/// A call uses the Engine's threads and workspace, so concurrent calls of run() on one Engine are allowed but
/// take turns. For parallel calls copy the Engine: a copy shares the packed weights and has a workspace of
/// its own, and threads of its own unless it has a team. Its threads are started by its first run.
///
/// The calling thread's floating-point environment (rounding, flush-to-zero, traps, flags) changes no result,
/// and is as before when a call returns. In a forked child an Engine runs on the caller's thread alone; where
/// another thread was inside run() during the fork, it begins with a new workspace.
///
/// After a move, the Engine that was moved from can be assigned to and destroyed; every other call throws
/// Error (invalid_argument).
///
/// \code
/// const histo::Engine engine(histo::Model::open("bundle/model.safetensors"));
/// std::vector<float> logits(engine.classes());
/// engine.run(rgb_bytes, {.batch = 1, .height = 150, .width = 150}, logits);
/// \endcode
class HISTO_API Engine {
 public:
  /// \throws Error  unsupported where the instruction set or the precision is unavailable here, where the
  ///                model has no scales for int8, where the head was folded for the map of another crop, or
  ///                where the crop is larger than largest_crop, or where the system does not start that
  ///                many threads; invalid_argument where `threads` is not 0 and not those of `team`;
  ///                out_of_memory
  explicit Engine(Model model, const EngineOptions& options = {});
  Engine(const Engine& other);
  Engine& operator=(const Engine& other);
  Engine(Engine&& other) noexcept;
  Engine& operator=(Engine&& other) noexcept;
  ~Engine();

  /// Logits of tiles as a decoder gives them.
  /// \param tiles   uint8 RGB, row-major `(batch, height, width, 3)`
  /// \param logits  float32 `(batch, classes)`; every element is written
  /// \throws Error  invalid_argument for a zero extent, a null buffer or a tile smaller than the crop,
  ///                size_mismatch where a buffer is not as long as the shape says, size_overflow where the
  ///                shape has no size, unsupported where the system does not start the threads of a copy,
  ///                out_of_memory; `logits` is untouched then
  void run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits) const;

  /// The same for float32 tiles in [0, 1], row-major `(batch, 3, height, width)`. NaN and infinity in a tile
  /// reach that tile's logits and no others; in int8 all its logits are NaN then.
  void run(std::span<const float> tiles, TileShape shape, std::span<float> logits) const;

  /// The outputs that are wanted, of tiles where and how the host holds them; they may differ in all but in
  /// that each holds the crop. The bits of the logits are those of the other functions.
  /// \throws Error  as run() above, with the number of the tile in the message; invalid_argument also where
  ///                no output is wanted or `top` does not fit; all outputs are untouched then
  void run(std::span<const ImageView> tiles, const Outputs& outputs) const;

  /// The same for packed tiles, as above. Of a tile with NaN or infinity, any output may be NaN.
  void run(std::span<const std::uint8_t> tiles, TileShape shape, const Outputs& outputs) const;
  void run(std::span<const float> tiles, TileShape shape, const Outputs& outputs) const;

  /// As the first two, but they throw Error (cancelled) before the next layer when `cancel` is set. A run
  /// that has begun its last layer ends as usual.
  void run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits,
           const CancelFlag& cancel) const;
  void run(std::span<const float> tiles, TileShape shape, std::span<float> logits,
           const CancelFlag& cancel) const;

  /// Runs a black batch, so that the first real one finds memory touched and caches filled.
  /// \throws Error  as run()
  void warmup(std::size_t batch = 1) const;

  /// The outputs of the six stages, in the order of the computation; errors as run().
  [[nodiscard]] std::vector<Stage> stages(std::span<const std::uint8_t> tiles, TileShape shape) const;

  /// What the layers are, and how long each takes for a batch (one run; repeat it and take medians). The
  /// stem's time includes the preprocessing and the maximum after the convolution. Errors as run().
  [[nodiscard]] std::vector<LayerTime> layer_times(std::span<const std::uint8_t> tiles,
                                                   TileShape shape) const;

  [[nodiscard]] EngineInfo info() const;
  [[nodiscard]] const Model& model() const;
  [[nodiscard]] std::size_t classes() const;

 private:
  struct HISTO_HIDDEN State;
  HISTO_HIDDEN const State& state() const;  // throws where this was moved from
  std::unique_ptr<State> state_;
};

}  // namespace histo
