/// \file
/// A trained classifier's weights and description, as `model.safetensors` holds them.
#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "histo/api.h"

namespace histo {

/// The settings that, together with the weights, turn a tile into logits.
struct ModelSpec {
  std::size_t pool = 1;                      ///< n of the n x n adaptive average pool that was trained
  std::vector<std::string> classes;          ///< names, UTF-8, in the order of the logits; at least two
  std::size_t crop = 128;                    ///< side in pixels of the centre crop that the network sees
  std::size_t tile_size = 150;               ///< side in pixels of the tiles that the model was trained on
  std::array<float, 3> mean{};               ///< per RGB channel, of values in [0, 1]
  std::array<float, 3> std{1, 1, 1};         ///< as mean; greater than zero
  std::optional<double> mpp = std::nullopt;  ///< micrometres per pixel of the tiles, where known
  std::size_t head_pool = 1;  ///< the pool that the stored linear layer expects (see docs/bundle.md)
};

/// Side of the final feature map for a crop of `crop` pixels: five halvings, each rounding up (128 gives 4).
[[nodiscard]] HISTO_API std::size_t map_size(std::size_t crop) noexcept;

/// A float32 tensor inside a Model; lives as long as any copy of that Model.
struct TensorView {
  std::span<const std::size_t> shape;
  std::span<const float> data;  ///< row-major
};

/// The contents of a `model.safetensors`. Immutable and cheap to copy: copies share the weights. Any number
/// of threads and engines may use one Model at the same time.
///
/// The file is untrusted input: header size, JSON, offsets, overlaps, gaps, dtypes, the presence and shape of
/// every tensor, and the finiteness of every weight are checked before anything is used, and nothing in a
/// file is executed. The format is documented in docs/bundle.md; the container format is that of
/// https://github.com/huggingface/safetensors.
///
/// \code
/// const histo::Model model = histo::Model::open("bundle/model.safetensors");
/// std::cout << model.spec().classes.size() << " classes\n";
/// \endcode
class HISTO_API Model {
 public:
  /// Reads the file into memory, once and completely: it may be changed or deleted afterwards. The header is
  /// checked before memory for the weights is allocated.
  /// \throws Error  io where the file cannot be read or changes meanwhile, invalid_file where it is not a
  /// valid
  ///                model, out_of_memory
  [[nodiscard]] static Model open(const std::filesystem::path& file);

  /// Copies `bytes`, the contents of such a file, when their header has been checked.
  /// \throws Error  invalid_argument where `bytes` is null or empty, invalid_file and out_of_memory as open()
  [[nodiscard]] static Model from_memory(std::span<const std::byte> bytes);

  // Without moves: a copy costs no more, and no object is ever left without its contents.
  Model(const Model& other) = default;
  Model& operator=(const Model& other) = default;
  ~Model() = default;

  [[nodiscard]] const ModelSpec& spec() const noexcept;

  /// \throws Error  invalid_argument where the model has no tensor of that name
  [[nodiscard]] TensorView tensor(std::string_view name) const;

  /// The same, but nullopt where the model has no tensor of that name. The scales of int8 are optional: see
  /// docs/bundle.md.
  [[nodiscard]] std::optional<TensorView> find_tensor(std::string_view name) const;

  /// Floats in the embedding of a tile: channels of the last feature map * pool * pool. See
  /// Outputs::embedding in histo/engine.h.
  /// \throws Error  size_overflow where they have no size
  [[nodiscard]] std::size_t embedding_size() const;

  /// Size of the file in bytes.
  [[nodiscard]] std::size_t size_bytes() const noexcept;

 private:
  struct HISTO_HIDDEN Contents;
  explicit Model(std::shared_ptr<const Contents> contents) noexcept;
  std::shared_ptr<const Contents> contents_;
};

}  // namespace histo
