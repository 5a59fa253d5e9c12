#include "histo/fused_head.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "adaptive_bins.h"
#include "histo/error.h"

namespace {

using histo::adaptive_bin;
using histo::Bin;
using histo::Error;
using histo::ErrorCode;
using histo::FusedHead;
using histo::Softmax;

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  std::ranges::generate(values, [&] { return normal(generator); });
  return values;
}

// The definition, with the pooled tensor in memory and the bins as the formula writes them.
std::vector<double> two_step_logits(std::size_t pool, std::size_t channels, std::size_t classes,
                                    const std::vector<float>& weight, const std::vector<float>& bias,
                                    const std::vector<float>& features, std::size_t batch, std::size_t height,
                                    std::size_t width) {
  std::vector<double> logits;
  for (std::size_t n = 0; n < batch; ++n) {
    std::vector<double> pooled;
    for (std::size_t c = 0; c < channels; ++c) {
      for (std::size_t p = 0; p < pool; ++p) {
        for (std::size_t q = 0; q < pool; ++q) {
          const std::size_t y0 = p * height / pool, y1 = ((p + 1) * height + pool - 1) / pool;
          const std::size_t x0 = q * width / pool, x1 = ((q + 1) * width + pool - 1) / pool;
          double sum = 0;
          for (std::size_t y = y0; y < y1; ++y) {
            for (std::size_t x = x0; x < x1; ++x) {
              sum += static_cast<double>(features[((n * channels + c) * height + y) * width + x]);
            }
          }
          pooled.push_back(sum / static_cast<double>((y1 - y0) * (x1 - x0)));
        }
      }
    }
    for (std::size_t k = 0; k < classes; ++k) {
      logits.push_back(std::inner_product(pooled.begin(), pooled.end(),
                                          weight.begin() + static_cast<std::ptrdiff_t>(k * pooled.size()),
                                          static_cast<double>(bias[k])));
    }
  }
  return logits;
}

template <typename Function>
ErrorCode code_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    CHECK_FALSE(std::string(error.what()).empty());
    return error.code();
  }
  FAIL("no histo::Error was thrown");
  return {};
}

TEST_CASE("bins: dividing, not dividing, larger than the map") {
  CHECK(adaptive_bin(0, 2, 4) == Bin{0, 2});
  CHECK(adaptive_bin(1, 2, 4) == Bin{2, 4});

  // 3 bins on 4 cells overlap.
  CHECK(adaptive_bin(0, 3, 4) == Bin{0, 2});
  CHECK(adaptive_bin(1, 3, 4) == Bin{1, 3});
  CHECK(adaptive_bin(2, 3, 4) == Bin{2, 4});

  // 8 bins on 4 cells repeat each cell twice.
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(adaptive_bin(i, 8, 4) == Bin{i / 2, i / 2 + 1});
  }
}

TEST_CASE("bins: the formula of the header, for every small size") {
  for (std::size_t pool = 1; pool <= 20; ++pool) {
    for (std::size_t size = 1; size <= 40; ++size) {
      for (std::size_t i = 0; i < pool; ++i) {
        CHECK(adaptive_bin(i, pool, size) == Bin{i * size / pool, ((i + 1) * size + pool - 1) / pool});
      }
      CHECK(adaptive_bin(pool - 1, pool, size).end == size);
    }
  }
}

TEST_CASE("bins: a side whose product with the pool overflows") {
  constexpr std::size_t size = std::numeric_limits<std::size_t>::max() - 1;
  static_assert(adaptive_bin(0, 2, size) == Bin{0, size / 2});
  static_assert(adaptive_bin(1, 2, size) == Bin{size / 2, size});
}

TEST_CASE("the example of the header") {
  const std::vector<float> weight{1.0F, -1.0F};
  const std::vector<float> bias{0.0F, 0.5F};
  const FusedHead head(/*pool=*/1, /*channels=*/1, /*classes=*/2, weight, bias);

  const std::vector<float> features{1.0F, 2.0F, 3.0F, 6.0F};
  std::vector<float> logits(2);
  head.run(features, /*batch=*/1, /*height=*/2, /*width=*/2, logits);
  CHECK(logits == std::vector<float>{3.0F, -2.5F});
  CHECK(head.pool() == 1);
  CHECK(head.channels() == 1);
  CHECK(head.classes() == 2);
}

TEST_CASE("logits equal pooling followed by a linear layer") {
  constexpr std::size_t batch = 3, channels = 5, classes = 6;
  for (const std::size_t pool : {1, 2, 3, 4, 5, 8, 9}) {
    for (const std::size_t height : {1, 2, 4, 7}) {
      for (const std::size_t width : {1, 3, 4, 7, 11}) {
        CAPTURE(pool);
        CAPTURE(height);
        CAPTURE(width);
        const auto weight = random_floats(classes * channels * pool * pool, 1);
        const auto bias = random_floats(classes, 2);
        const auto features = random_floats(batch * channels * height * width, 3);
        std::vector<float> logits(batch * classes);
        FusedHead(pool, channels, classes, weight, bias).run(features, batch, height, width, logits);

        const auto expected =
            two_step_logits(pool, channels, classes, weight, bias, features, batch, height, width);
        for (std::size_t i = 0; i < logits.size(); ++i) {
          // One rounding to float apart, plus that of the double sums where they cancel.
          CHECK(std::abs(static_cast<double>(logits[i]) - expected[i]) <=
                6e-8 * std::abs(expected[i]) + 1e-13);
        }
      }
    }
  }
}

TEST_CASE("probabilities are the softmax of the logits, however large they are") {
  const std::vector<float> weight{1.0F, 2.0F, -1.0F};
  const std::vector<float> bias{0.0F, 0.0F, 0.0F};
  const FusedHead head(1, 1, 3, weight, bias);
  const std::vector<float> features{0.5F, 3000.0F};
  std::vector<float> probabilities(6);
  head.run(features, 2, 1, 1, probabilities, Softmax::yes);

  const double sum = std::exp(0.5) + std::exp(1.0) + std::exp(-0.5);
  CHECK(static_cast<double>(probabilities[0]) == doctest::Approx(std::exp(0.5) / sum));
  CHECK(static_cast<double>(probabilities[1]) == doctest::Approx(std::exp(1.0) / sum));
  CHECK(static_cast<double>(probabilities[2]) == doctest::Approx(std::exp(-0.5) / sum));
  CHECK(std::vector<float>(probabilities.begin() + 3, probabilities.end()) ==
        std::vector<float>{0.0F, 1.0F, 0.0F});
}

TEST_CASE("a tile's logits do not depend on its batch") {
  constexpr std::size_t batch = 7, channels = 4, classes = 3, pool = 3, side = 4;
  const auto weight = random_floats(classes * channels * pool * pool, 4);
  const auto bias = random_floats(classes, 5);
  const auto features = random_floats(batch * channels * side * side, 6);
  const FusedHead head(pool, channels, classes, weight, bias);
  std::vector<float> together(batch * classes);
  head.run(features, batch, side, side, together);

  for (std::size_t n = 0; n < batch; ++n) {
    std::vector<float> alone(classes);
    head.run(std::span(features).subspan(n * channels * side * side, channels * side * side), 1, side, side,
             alone);
    CHECK(std::ranges::equal(alone, std::span(together).subspan(n * classes, classes)));
  }
}

TEST_CASE("one head serves many threads") {
  constexpr std::size_t channels = 16, classes = 3, pool = 2, side = 4;
  const FusedHead head(pool, channels, classes, random_floats(classes * channels * pool * pool, 7),
                       random_floats(classes, 8));
  const auto features = random_floats(channels * side * side, 9);
  std::vector<float> expected(classes);
  head.run(features, 1, side, side, expected);

  std::vector<std::vector<float>> results(4, std::vector<float>(classes));
  {
    std::vector<std::jthread> threads;
    for (auto& result : results) {
      threads.emplace_back([&] {
        for (int repeat = 0; repeat < 50; ++repeat) {
          head.run(features, 1, side, side, result);
        }
      });
    }
  }
  CHECK(std::ranges::all_of(results, [&](const auto& result) { return result == expected; }));
}

TEST_CASE("a bad constructor argument is refused") {
  const std::vector<float> weight(6 * 4 * 4);
  const std::vector<float> bias(6);
  const std::span<const float> null;
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();

  CHECK(code_of([&] { FusedHead(0, 4, 6, weight, bias); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { FusedHead(2, 0, 6, weight, bias); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { FusedHead(2, 4, 0, weight, bias); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { FusedHead(2, 4, 6, null, bias); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { FusedHead(2, 4, 6, weight, null); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { FusedHead(2, 5, 6, weight, bias); }) == ErrorCode::size_mismatch);
  CHECK(code_of([&] { FusedHead(2, 4, 6, weight, weight); }) == ErrorCode::size_mismatch);
  CHECK(code_of([&] { FusedHead(huge, 4, 6, weight, bias); }) == ErrorCode::size_overflow);
  CHECK(code_of([&] { FusedHead(2, huge / 2, 6, weight, bias); }) == ErrorCode::size_overflow);
}

TEST_CASE("a bad argument of run is refused and the output left alone") {
  const FusedHead head(2, 4, 6, std::vector<float>(6 * 4 * 4), std::vector<float>(6));
  const std::vector<float> features(2 * 4 * 3 * 5);
  const std::span<const float> null;
  std::vector<float> out(2 * 6, 42.0F);
  std::vector<float> short_out(11, 42.0F);
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();

  CHECK(code_of([&] { head.run(features, 0, 3, 5, out); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { head.run(features, 2, 0, 5, out); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { head.run(features, 2, 3, 0, out); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { head.run(null, 2, 3, 5, out); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { head.run(features, 2, 3, 5, {}); }) == ErrorCode::invalid_argument);
  CHECK(code_of([&] { head.run(features, 2, 3, 4, out); }) == ErrorCode::size_mismatch);
  CHECK(code_of([&] { head.run(features, 2, 3, 5, short_out); }) == ErrorCode::size_mismatch);
  CHECK(code_of([&] { head.run(features, huge, 3, 5, out); }) == ErrorCode::size_overflow);
  CHECK(code_of([&] { head.run(features, 2, huge / 2, 2, out); }) == ErrorCode::size_overflow);
  CHECK(std::ranges::count(out, 42.0F) == 12);
  CHECK(std::ranges::count(short_out, 42.0F) == 11);
}

}  // namespace
