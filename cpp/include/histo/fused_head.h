/// \file
/// Adaptive average pooling and the linear classifier behind it, as one pass over the feature map.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace histo {

/// Whether FusedHead::run() ends in a softmax over the classes.
enum class Softmax : bool { no = false, yes = true };

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
/// This is the scalar reference: all sums are kept in double and rounded to float once, and a tile's result
/// does not depend on the batch that it sits in, nor on its position there.
///
/// The weights are copied, so the arguments of the constructor may go away. Immutable once made: any number
/// of threads may call run() on one object at the same time.
///
/// Example: a 2 x 2 map of one channel, pooled to 1 x 1, two classes.
/// \code
/// const std::vector<float> weight{1.0F, -1.0F};  // (classes 2) x (channels 1 * pool 1 * pool 1)
/// const std::vector<float> bias{0.0F, 0.5F};
/// const histo::FusedHead head(/*pool=*/1, /*channels=*/1, /*classes=*/2, weight, bias);
///
/// const std::vector<float> features{1.0F, 2.0F, 3.0F, 6.0F};  // their mean is 3
/// std::vector<float> logits(2);
/// head.run(features, /*batch=*/1, /*height=*/2, /*width=*/2, logits);
/// assert(logits[0] == 3.0F && logits[1] == -2.5F);
/// \endcode
class FusedHead {
 public:
  /// \param pool      bins along each side of the map, at least 1
  /// \param channels  channels of the feature map (512 for ResNet34), at least 1
  /// \param classes   number of logits, at least 1
  /// \param weight    float32, row-major `(classes, channels * pool * pool)`, columns in the order channel,
  ///                  bin row, bin column: a `torch.nn.Linear.weight` behind `flatten(1)`, as it is
  /// \param bias      float32, `(classes)`
  /// \throws Error    invalid_argument for a zero or a null buffer, size_mismatch where a buffer is not as
  ///                  long as the shape says, size_overflow where the shape has no size
  FusedHead(std::size_t pool, std::size_t channels, std::size_t classes, std::span<const float> weight,
            std::span<const float> bias);

  /// Computes the logits, or with Softmax::yes the class probabilities, of `batch` feature maps.
  ///
  /// \param features  float32, row-major `(batch, channels, height, width)` (NCHW)
  /// \param batch     number of maps, at least 1
  /// \param height    rows of a map, at least 1
  /// \param width     columns of a map, at least 1
  /// \param out       float32, row-major `(batch, classes)`; written whole; must not overlap `features`
  /// \param softmax   Softmax::yes turns each row of logits into probabilities that sum to 1
  /// \throws Error    as the constructor does; `out` is untouched then
  void run(std::span<const float> features, std::size_t batch, std::size_t height, std::size_t width,
           std::span<float> out, Softmax softmax = Softmax::no) const;

  [[nodiscard]] std::size_t pool() const noexcept { return pool_; }
  [[nodiscard]] std::size_t channels() const noexcept { return channels_; }
  [[nodiscard]] std::size_t classes() const noexcept { return classes_; }

 private:
  std::size_t pool_;
  std::size_t channels_;
  std::size_t classes_;
  std::vector<float> weight_;  // (channels, pool, pool, classes): a bin's mean is multiplied with one row
  std::vector<float> bias_;    // (classes)
};

}  // namespace histo
