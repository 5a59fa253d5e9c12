// The results of a run, until nothing can fail any more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "histo/engine.h"

namespace histo {

// Memory for the outputs that are wanted, which is kept for the next run. A run that fails leaves the
// caller's outputs as they are.
class Results {
 public:
  // For a run of `batch` tiles that wants `outputs`. What is not derived from the logits must then be
  // written.
  void begin(const Outputs& outputs, std::size_t batch, std::size_t classes);

  // Of `count` tiles.
  [[nodiscard]] std::span<float> logits(std::size_t first, std::size_t count) {
    return std::span(logits_).subspan(first * classes_, count * classes_);
  }

  // Of one tile.
  [[nodiscard]] bool wants_embedding() const { return !embedding_.empty(); }
  [[nodiscard]] float* embedding(std::size_t tile) { return embedding_.data() + tile * embedding_size(); }
  [[nodiscard]] bool wants_contributions() const { return !contributions_.empty(); }
  [[nodiscard]] float* contributions(std::size_t tile) {
    return contributions_.data() + tile * contributions_size();
  }

  void set_to_nan(std::size_t tile);

  // Writes the caller's `outputs`: those of begin(). Cannot fail.
  void deliver(const Outputs& outputs);

 private:
  [[nodiscard]] std::size_t embedding_size() const { return embedding_.size() / batch_; }
  [[nodiscard]] std::size_t contributions_size() const { return contributions_.size() / batch_; }
  void deliver_top(const Outputs& outputs, std::size_t tile);

  std::size_t batch_ = 0, classes_ = 0;
  std::vector<float> logits_, embedding_, contributions_;
  std::vector<float> probabilities_;  // of one tile
  std::vector<std::uint32_t> order_;  // its classes, the first ones from the largest logit on
};

}  // namespace histo
