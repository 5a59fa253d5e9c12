/// \file
/// Adaptive average pooling and the linear classifier behind it, as one pass over the feature map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "histo/api.h"
#include "histo/cpu.h"
#include "histo/names.h"

namespace histo {

/// Whether FusedHead::run() ends in a softmax over the classes.
enum class Softmax : bool { no = false, yes = true };

/// The upper half of a float32: 8 bits of exponent, 7 of mantissa.
struct Bfloat16 {
  std::uint16_t bits;
};

/// Extents and order of a batch of feature maps.
struct FeatureShape {
  std::size_t batch;   ///< at least 1
  std::size_t height;  ///< at least 1
  std::size_t width;   ///< at least 1
  Layout layout = Layout::nchw;
};

struct FusedHeadOptions {
  unsigned threads = 1;                   ///< that one call uses, the caller's included; 0: usable_cpus()
  std::optional<Isa> isa = std::nullopt;  ///< none: default_isa()
};

/// `Linear(flatten(AdaptiveAvgPool2d(pool)(features)))`, without a pooled tensor in memory.
///
/// Any map of at least 1 x 1 is accepted, square or not, and `pool` need neither divide its sides nor be
/// smaller than they are. Along a side of `size` cells, bin `i` of `pool` averages the cells
///
///     floor(i * size / pool)  <=  cell  <  ceil((i + 1) * size / pool)
///
/// which is the rule of `torch.nn.AdaptiveAvgPool2d` (ATen/native/AdaptivePooling.h, `start_index` and
/// `end_index`): neighbouring bins overlap where `pool` does not divide `size`, and repeat cells where it is
/// larger.
///
/// Both steps together are one linear map of the features. For each map size the head chooses what costs
/// less: to multiply the features with weights folded to the map's own cells, or to sum the cells of a bin
/// (or of its rows) first and multiply the sums. The features are read from memory once for every 64 classes;
/// what overlapping bins share comes from the cache. The weights for a map size are prepared at the first
/// call with that size, while other calls wait, and kept for the eight sizes used last.
///
/// Sums are kept in float32, in an order that depends on the instruction set and the map's extents alone: a
/// tile's result does not depend on the batch that it sits in, on its position there or on the threads.
/// run_reference() is the scalar twin that sums in float64.
///
/// The weights are copied, so the arguments of the constructor may go away. Immutable once made, and cheap to
/// copy: any number of threads may call run() on one object at the same time.
///
/// Example: a 2 x 2 map of one channel, pooled to 1 x 1, two classes.
/// \code
/// const std::vector<float> weight{1.0F, -1.0F};  // (classes 2) x (channels 1 * pool 1 * pool 1)
/// const std::vector<float> bias{0.0F, 0.5F};
/// const histo::FusedHead head(/*pool=*/1, /*channels=*/1, /*classes=*/2, weight, bias);
///
/// const std::vector<float> features{1.0F, 2.0F, 3.0F, 6.0F};  // their mean is 3
/// std::vector<float> logits(2);
/// head.run(features, {.batch = 1, .height = 2, .width = 2}, logits);
/// assert(logits[0] == 3.0F && logits[1] == -2.5F);
/// \endcode
class HISTO_API FusedHead {
 public:
  /// \param pool      bins along each side of the map, at least 1
  /// \param channels  channels of the feature map (512 for ResNet34), at least 1
  /// \param classes   number of logits, at least 1
  /// \param weight    float32, row-major `(classes, channels * pool * pool)`, columns in the order channel,
  ///                  bin row, bin column: `torch.nn.Linear.weight` of a layer behind `flatten(1)`
  /// \param bias      float32, `(classes)`
  /// \throws Error    invalid_argument for a zero or a null buffer, size_mismatch where a buffer is not as
  ///                  long as the shape says, size_overflow where the shape has no size, unsupported where
  ///                  the instruction set is unavailable
  FusedHead(std::size_t pool, std::size_t channels, std::size_t classes, std::span<const float> weight,
            std::span<const float> bias, const FusedHeadOptions& options = {});

  // Without moves: a copy costs no more, and no object is ever left without its weights.
  FusedHead(const FusedHead& other) = default;
  FusedHead& operator=(const FusedHead& other) = default;
  ~FusedHead() = default;

  /// Computes the logits, or with Softmax::yes the class probabilities, of a batch of feature maps.
  ///
  /// \param features  float32 in the order of `shape.layout`
  /// \param out       float32, row-major `(batch, classes)`; every element is written; must not overlap
  ///                  `features`
  /// \param softmax   Softmax::yes turns each row of logits into probabilities that sum to 1
  /// \throws Error    invalid_argument, size_mismatch and size_overflow as the constructor; `out` is
  ///                  unchanged then
  void run(std::span<const float> features, FeatureShape shape, std::span<float> out,
           Softmax softmax = Softmax::no) const;

  /// The same for bf16 features; weights, sums and results stay float32.
  void run(std::span<const Bfloat16> features, FeatureShape shape, std::span<float> out,
           Softmax softmax = Softmax::no) const;

  /// The definition, cell by cell in float64, rounded to float32 once. Slow; it is what run() is tested
  /// against.
  void run_reference(std::span<const float> features, FeatureShape shape, std::span<float> out,
                     Softmax softmax = Softmax::no) const;
  void run_reference(std::span<const Bfloat16> features, FeatureShape shape, std::span<float> out,
                     Softmax softmax = Softmax::no) const;

  [[nodiscard]] std::size_t pool() const noexcept;
  [[nodiscard]] std::size_t channels() const noexcept;
  [[nodiscard]] std::size_t classes() const noexcept;
  [[nodiscard]] Isa isa() const noexcept;
  [[nodiscard]] unsigned threads() const noexcept;

 private:
  struct HISTO_HIDDEN State;
  std::shared_ptr<State> state_;
};

}  // namespace histo
