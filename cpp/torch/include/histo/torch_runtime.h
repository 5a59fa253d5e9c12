/// \file
/// TorchScript through libtorch: what QuPath and WSInfer run, without Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "histo/api.h"
#include "histo/engine.h"

namespace histo {

/// What a TorchRuntime is made with.
struct TorchOptions {
  /// Threads of one call; 0: libtorch chooses. libtorch keeps the number per calling thread, so each call
  /// sets it again where another runtime has changed it, and leaves it set. The inter-op pool is not changed:
  /// the network has no parallel branches and never starts it.
  unsigned threads = 0;
  std::string device = "cpu";  ///< "cpu", "cuda" (the first GPU) or "cuda:N"
};

/// A bundle's `torchscript_model.pt`, frozen and made ready to run, in float32.
///
/// **A TorchScript file is a program.** To load a file is to run it, so load only files that you trust:
/// compare the file's sha256 with a known one first, as `histo_export.export.bundle.open_bundle` does with
/// the bundle's `config.json`. This class passes the file to torch::jit::load and unpickles nothing else.
///
/// Files exported with `--input float` and with `--input uint8` both take both kinds of tiles. Crop and
/// normalisation are part of the file; the division by 255 is done here where the file does not do it.
///
/// On a GPU, constructing a runtime turns TF32 off for the whole process (cuDNN and cuBLAS): TF32 keeps 10
/// bits of mantissa, and this runtime promises float32.
///
/// run(), warmup() and stages() may be called by several threads at the same time; they do not take turns.
///
/// \code
/// const histo::TorchRuntime runtime("bundle/torchscript_model.pt", {.threads = 4});
/// runtime.warmup(32);
/// std::vector<float> logits(runtime.classes());
/// runtime.run(rgb_bytes, {.batch = 1, .height = 150, .width = 150}, logits);
/// \endcode
///
/// In the batch loop:
/// \code
/// histo::BatchRunner runner([&](auto tiles, auto shape, auto logits) { runtime.run(tiles, shape, logits); },
///                           runtime.classes(), {.batch = 32});
/// \endcode
class HISTO_API TorchRuntime {
 public:
  /// \throws Error  invalid_argument for a device that is not one of the above,
  ///                io where the file cannot be read,
  ///                invalid_file where it is not TorchScript that histo export wrote,
  ///                unsupported for a GPU that is not available,
  ///                out_of_memory, failed
  explicit TorchRuntime(const std::filesystem::path& file, const TorchOptions& options = {});
  TorchRuntime(TorchRuntime&& other) noexcept;
  TorchRuntime& operator=(TorchRuntime&& other) noexcept;
  ~TorchRuntime();

  /// Logits of tiles as a decoder gives them.
  /// \param tiles   uint8 RGB, row-major `(batch, height, width, 3)`
  /// \param logits  float32 `(batch, classes)`; all of it is written
  /// \throws Error  as Engine::run(), and out_of_memory and failed where libtorch does; `logits` is untouched
  ///                then
  void run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits) const;

  /// The same for float32 tiles in [0, 1], row-major `(batch, 3, height, width)`.
  void run(std::span<const float> tiles, TileShape shape, std::span<float> logits) const;

  /// Runs black tiles of side × side bytes three times: libtorch's executor observes the first runs and
  /// compiles after them. On a GPU the result depends on the shape, so give the batch and side of the runs
  /// that follow.
  /// \param side  0: the tile size, or the crop where the file takes larger tiles too
  /// \throws Error  as run()
  void warmup(std::size_t batch = 1, std::size_t side = 0) const;

  /// The outputs of the six stages, in the order of the computation, from the file's network as it was before
  /// freezing; errors as run().
  [[nodiscard]] std::vector<Stage> stages(std::span<const std::uint8_t> tiles, TileShape shape) const;

  [[nodiscard]] std::size_t classes() const noexcept;
  [[nodiscard]] std::size_t crop() const noexcept;  ///< side in pixels of the square that the network sees
  /// Side in pixels that tiles must have; 0 for files of older versions, which take all tiles that are not
  /// smaller than the crop.
  [[nodiscard]] std::size_t tile_size() const noexcept;

  /// Device, precision and form of the network for reports, for example "cpu fp32, frozen".
  [[nodiscard]] std::string executed() const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

}  // namespace histo
