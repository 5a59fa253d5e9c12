#include "histo/fused_head.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>

#include "adaptive_bins.h"
#include "histo/error.h"

namespace histo {
namespace {

struct Extent {
  const char* name;
  std::size_t value;
};

// The number of elements of `what`, whose shape is `shape`.
std::size_t checked_size(const char* what, std::initializer_list<Extent> shape) {
  std::size_t size = 1;
  for (const Extent& extent : shape) {
    if (extent.value == 0) {
      throw Error(ErrorCode::invalid_argument, std::string(extent.name) + " is 0; it must be at least 1");
    }
    if (size > std::numeric_limits<std::size_t>::max() / extent.value) {
      throw Error(ErrorCode::size_overflow,
                  std::string(what) + " has more elements than fit in memory; check its shape");
    }
    size *= extent.value;
  }
  return size;
}

void check_buffer(const char* what, std::span<const float> buffer, std::size_t expected) {
  if (buffer.data() == nullptr) {
    throw Error(ErrorCode::invalid_argument, std::string(what) + " is a null pointer");
  }
  if (buffer.size() != expected) {
    throw Error(ErrorCode::size_mismatch, std::string(what) + " has " + std::to_string(buffer.size()) +
                                              " elements; its shape asks for " + std::to_string(expected));
  }
}

double bin_mean(const float* map, std::size_t width, Bin rows, Bin columns) {
  double sum = 0.0;
  for (std::size_t y = rows.begin; y < rows.end; ++y) {
    for (std::size_t x = columns.begin; x < columns.end; ++x) {
      sum += static_cast<double>(map[y * width + x]);
    }
  }
  return sum /
         (static_cast<double>(rows.end - rows.begin) * static_cast<double>(columns.end - columns.begin));
}

void softmax_in_place(std::span<double> logits) {
  // The largest logit is subtracted first, so that no exponential overflows.
  const double largest = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (double& logit : logits) {
    logit = std::exp(logit - largest);
    sum += logit;
  }
  for (double& probability : logits) {
    probability /= sum;
  }
}

}  // namespace

FusedHead::FusedHead(std::size_t pool, std::size_t channels, std::size_t classes,
                     std::span<const float> weight, std::span<const float> bias)
    : pool_(pool), channels_(channels), classes_(classes) {
  check_buffer(
      "weight", weight,
      checked_size("weight", {{"classes", classes}, {"channels", channels}, {"pool", pool}, {"pool", pool}}));
  check_buffer("bias", bias, classes);

  const std::size_t columns = weight.size() / classes;
  weight_.resize(weight.size());
  for (std::size_t k = 0; k < classes; ++k) {
    for (std::size_t column = 0; column < columns; ++column) {
      weight_[column * classes + k] = weight[k * columns + column];
    }
  }
  bias_.assign(bias.begin(), bias.end());
}

void FusedHead::run(std::span<const float> features, std::size_t batch, std::size_t height, std::size_t width,
                    std::span<float> out, Softmax softmax) const {
  check_buffer(
      "features", features,
      checked_size("features",
                   {{"batch", batch}, {"channels", channels_}, {"height", height}, {"width", width}}));
  check_buffer("out", out, checked_size("out", {{"batch", batch}, {"classes", classes_}}));

  std::vector<double> logits(classes_);
  const float* map = features.data();
  for (std::size_t n = 0; n < batch; ++n) {
    std::ranges::copy(bias_, logits.begin());
    const float* weight = weight_.data();
    for (std::size_t c = 0; c < channels_; ++c, map += height * width) {
      for (std::size_t p = 0; p < pool_; ++p) {
        const Bin rows = adaptive_bin(p, pool_, height);
        for (std::size_t q = 0; q < pool_; ++q, weight += classes_) {
          const double mean = bin_mean(map, width, rows, adaptive_bin(q, pool_, width));
          for (std::size_t k = 0; k < classes_; ++k) {
            logits[k] += mean * static_cast<double>(weight[k]);
          }
        }
      }
    }
    if (softmax == Softmax::yes) {
      softmax_in_place(logits);
    }
    std::ranges::transform(logits, out.begin() + static_cast<std::ptrdiff_t>(n * classes_),
                           [](double value) { return static_cast<float>(value); });
  }
}

}  // namespace histo
