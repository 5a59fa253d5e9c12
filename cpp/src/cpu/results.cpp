#include "cpu/results.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "head_arithmetic.h"

namespace histo {

void Results::begin(const Outputs& outputs, std::size_t batch, std::size_t classes) {
  batch_ = batch;
  classes_ = classes;
  logits_.resize(batch * classes);
  embedding_.resize(outputs.embedding.size());
  contributions_.resize(outputs.contributions.size());
  probabilities_.resize(classes);
  order_.resize(classes);
}

void Results::set_to_nan(std::size_t tile) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  std::ranges::fill(logits(tile, 1), nan);
  std::fill_n(embedding(tile), embedding_size(), nan);
  std::fill_n(contributions(tile), contributions_size(), nan);
}

void Results::deliver(const Outputs& outputs) {
  if (!outputs.logits.empty()) {
    std::ranges::copy(logits_, outputs.logits.begin());
  }
  std::ranges::copy(embedding_, outputs.embedding.begin());
  std::ranges::copy(contributions_, outputs.contributions.begin());
  if (outputs.probabilities.empty() && outputs.top == 0) {
    return;
  }
  for (std::size_t tile = 0; tile < batch_; ++tile) {
    softmax_of(std::span<const float>(logits(tile, 1)), probabilities_);
    if (!outputs.probabilities.empty()) {
      std::ranges::copy(probabilities_,
                        outputs.probabilities.begin() + static_cast<std::ptrdiff_t>(tile * classes_));
    }
    deliver_top(outputs, tile);
  }
}

void Results::deliver_top(const Outputs& outputs, std::size_t tile) {
  const std::span<const float> values = logits(tile, 1);
  std::iota(order_.begin(), order_.end(), std::uint32_t{0});
  const auto before = [values](std::uint32_t a, std::uint32_t b) {
    if (std::isnan(values[a]) != std::isnan(values[b])) {
      return std::isnan(values[b]);
    }
    return values[a] != values[b] && !std::isnan(values[a]) ? values[a] > values[b] : a < b;
  };
  std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(outputs.top), order_.end(),
                    before);
  for (std::size_t i = 0; i < outputs.top; ++i) {
    if (!outputs.top_classes.empty()) {
      outputs.top_classes[tile * outputs.top + i] = order_[i];
    }
    if (!outputs.top_probabilities.empty()) {
      outputs.top_probabilities[tile * outputs.top + i] = probabilities_[order_[i]];
    }
  }
}

}  // namespace histo
