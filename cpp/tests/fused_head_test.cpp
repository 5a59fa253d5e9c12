#include "histo/fused_head.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "error_code.h"
#include "executed_isa.h"
#include "histo/error.h"
#include "joined_threads.h"
#include "plan/adaptive_bins.h"

namespace {

using histo::adaptive_bin;
using histo::Bfloat16;
using histo::Error;
using histo::ErrorCode;
using histo::FeatureShape;
using histo::FusedHead;
using histo::Isa;
using histo::Layout;
using histo::Range;
using histo::Softmax;

constexpr double unit_roundoff = 0x1p-24;  // of float32

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  std::ranges::generate(values, [&] { return normal(generator); });
  return values;
}

// Cut off, not rounded: any bf16 numbers will do.
std::vector<Bfloat16> bf16(std::span<const float> values) {
  std::vector<Bfloat16> result;
  for (const float value : values) {
    result.push_back({static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16U)});
  }
  return result;
}

std::vector<float> widened(std::span<const Bfloat16> values) {
  std::vector<float> result;
  for (const Bfloat16 value : values) {
    result.push_back(std::bit_cast<float>(std::uint32_t{value.bits} << 16U));
  }
  return result;
}

struct Case {
  std::size_t pool, channels, classes, batch, height, width;
  Layout layout = Layout::nchw;

  [[nodiscard]] FeatureShape shape() const { return {batch, height, width, layout}; }
  [[nodiscard]] std::size_t tile() const { return channels * height * width; }
  [[nodiscard]] std::size_t weights() const { return classes * channels * pool * pool; }
  // Where a tile's feature lies.
  [[nodiscard]] std::size_t at(std::size_t c, std::size_t y, std::size_t x) const {
    return layout == Layout::nchw ? (c * height + y) * width + x : (y * width + x) * channels + c;
  }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "pool " << c.pool << ", channels " << c.channels << ", classes " << c.classes << ", batch "
             << c.batch << ", map " << c.height << " x " << c.width
             << (c.layout == Layout::nchw ? ", nchw" : ", nhwc");
}

// The definition, with the pooled tensor in memory and the bins as the formula writes them: logits, or with
// `absolute` the sums of the terms' absolute values.
std::vector<double> two_step_logits(const Case& s, std::span<const float> weight, std::span<const float> bias,
                                    std::span<const float> features, bool absolute = false) {
  const auto term = [absolute](double value) { return absolute ? std::abs(value) : value; };
  std::vector<double> logits;
  for (std::size_t n = 0; n < s.batch; ++n) {
    std::vector<double> pooled;
    for (std::size_t c = 0; c < s.channels; ++c) {
      for (std::size_t p = 0; p < s.pool; ++p) {
        for (std::size_t q = 0; q < s.pool; ++q) {
          const std::size_t y0 = p * s.height / s.pool, y1 = ((p + 1) * s.height + s.pool - 1) / s.pool;
          const std::size_t x0 = q * s.width / s.pool, x1 = ((q + 1) * s.width + s.pool - 1) / s.pool;
          double sum = 0;
          for (std::size_t y = y0; y < y1; ++y) {
            for (std::size_t x = x0; x < x1; ++x) {
              sum += term(static_cast<double>(features[n * s.tile() + s.at(c, y, x)]));
            }
          }
          pooled.push_back(sum / static_cast<double>((y1 - y0) * (x1 - x0)));
        }
      }
    }
    for (std::size_t k = 0; k < s.classes; ++k) {
      double logit = term(static_cast<double>(bias[k]));
      for (std::size_t i = 0; i < pooled.size(); ++i) {
        logit += pooled[i] * term(static_cast<double>(weight[k * pooled.size() + i]));
      }
      logits.push_back(logit);
    }
  }
  return logits;
}

// Whatever the order, n float32 additions and multiply-adds change a sum by at most n * unit_roundoff /
// (1 - n * unit_roundoff) times the sum of the terms' absolute values (Higham, Accuracy and Stability of
// Numerical Algorithms, 2nd ed., 4.2). No term goes through more of them than a tile has features, and three:
// its weight's rounding, the multiplication and the bias.
double sum_bound(const Case& s) {
  const double n = static_cast<double>(s.tile() + 3) * unit_roundoff;
  return n / (1 - n);
}

template <typename Feature>
void check_against_the_definition(const Case& s, Isa isa, std::span<const Feature> features,
                                  std::span<const float> as_float, unsigned threads) {
  const auto weight = random_floats(s.weights(), 1);
  const auto bias = random_floats(s.classes, 2);
  const FusedHead head(s.pool, s.channels, s.classes, weight, bias, {.threads = threads, .isa = isa});
  std::vector<float> logits(s.batch * s.classes), reference(s.batch * s.classes);
  head.run(features, s.shape(), logits);
  head.run_reference(features, s.shape(), reference);

  const auto expected = two_step_logits(s, weight, bias, as_float);
  const auto magnitude = two_step_logits(s, weight, bias, as_float, /*absolute=*/true);
  std::size_t wrong = 0, wrong_reference = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    wrong += !(std::abs(static_cast<double>(logits[i]) - expected[i]) <= sum_bound(s) * magnitude[i]);
    // One rounding, and that of the double sums where they cancel.
    wrong_reference += !(std::abs(static_cast<double>(reference[i]) - expected[i]) <=
                         unit_roundoff * std::abs(expected[i]) + 1e-12 * magnitude[i]);
  }
  CHECK(wrong == 0);
  CHECK(wrong_reference == 0);
}

void check_against_the_definition(const Case& s) {
  for (const Isa isa : histo::usable_isas()) {
    CAPTURE(s);
    CAPTURE(histo::name(isa));
    const auto features = random_floats(s.batch * s.tile(), 3);
    const auto threads = static_cast<unsigned>(1 + s.batch % 4);
    check_against_the_definition<float>(s, isa, features, features, threads);
    const auto half = bf16(features);
    check_against_the_definition<Bfloat16>(s, isa, half, widened(half), threads);
  }
}

TEST_CASE("bins: dividing, not dividing, larger than the map") {
  CHECK(adaptive_bin(0, 2, 4) == Range{0, 2});
  CHECK(adaptive_bin(1, 2, 4) == Range{2, 4});

  // 3 bins on 4 cells overlap.
  CHECK(adaptive_bin(0, 3, 4) == Range{0, 2});
  CHECK(adaptive_bin(1, 3, 4) == Range{1, 3});
  CHECK(adaptive_bin(2, 3, 4) == Range{2, 4});

  // 8 bins on 4 cells repeat each cell twice.
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(adaptive_bin(i, 8, 4) == Range{i / 2, i / 2 + 1});
  }
}

TEST_CASE("bins: the formula of the header, for every small size") {
  for (std::size_t pool = 1; pool <= 20; ++pool) {
    for (std::size_t size = 1; size <= 40; ++size) {
      for (std::size_t i = 0; i < pool; ++i) {
        CHECK(adaptive_bin(i, pool, size) == Range{i * size / pool, ((i + 1) * size + pool - 1) / pool});
      }
      CHECK(adaptive_bin(pool - 1, pool, size).end == size);
    }
  }
}

TEST_CASE("bins: a side whose product with the pool overflows") {
  constexpr std::size_t size = std::numeric_limits<std::size_t>::max() - 1;
  static_assert(adaptive_bin(0, 2, size) == Range{0, size / 2});
  static_assert(adaptive_bin(1, 2, size) == Range{size / 2, size});
}

TEST_CASE("the example of the header") {
  const std::vector<float> weight{1.0F, -1.0F};
  const std::vector<float> bias{0.0F, 0.5F};
  const FusedHead head(/*pool=*/1, /*channels=*/1, /*classes=*/2, weight, bias);

  const std::vector<float> features{1.0F, 2.0F, 3.0F, 6.0F};
  std::vector<float> logits(2);
  head.run(features, {.batch = 1, .height = 2, .width = 2}, logits);
  CHECK(logits == std::vector<float>{3.0F, -2.5F});
  CHECK(head.pool() == 1);
  CHECK(head.channels() == 1);
  CHECK(head.classes() == 2);
  CHECK(head.threads() == 1);
  CHECK(head.isa() == executed_isa(histo::Precision::fp32, histo::default_isa()));
}

TEST_CASE("threads 0 asks for the usable CPUs") {
  const std::vector<float> one(1);
  CHECK(FusedHead(1, 1, 1, one, one, {.threads = 0}).threads() >= 1);
  CHECK(FusedHead(1, 1, 1, one, one, {.threads = 3}).threads() == 3);
}

// Sums hide a feature that is missed or taken twice if there are many; a single one that is not zero does
// not.
TEST_CASE("every feature meets its own weights") {
  std::size_t turn = 0;
  for (std::size_t pool = 1; pool <= 9; ++pool) {
    for (const auto& [height, width] : std::vector<std::pair<std::size_t, std::size_t>>{{1, 1},
                                                                                        {1, 6},
                                                                                        {2, 2},
                                                                                        {3, 3},
                                                                                        {4, 4},
                                                                                        {5, 2},
                                                                                        {5, 5},
                                                                                        {3, 17},
                                                                                        {7, 7},
                                                                                        {8, 8},
                                                                                        {9, 9},
                                                                                        {2, 33}}) {
      for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
        const std::size_t channels = std::vector<std::size_t>{1, 3, 4, 5, 8, 18}[turn % 6];
        const std::size_t classes = std::vector<std::size_t>{1, 6, 7, 2}[turn++ % 4];
        const Case s{.pool = pool,
                     .channels = channels,
                     .classes = classes,
                     .batch = channels * height * width,
                     .height = height,
                     .width = width,
                     .layout = layout};
        CAPTURE(s);
        const auto weight = random_floats(s.weights(), 4);
        std::vector<float> features(s.batch * s.tile());
        std::vector<double> expected(s.batch * classes), magnitude(s.batch * classes);
        for (std::size_t c = 0, n = 0; c < channels; ++c) {
          for (std::size_t y = 0; y < height; ++y) {
            for (std::size_t x = 0; x < width; ++x, ++n) {
              features[n * s.tile() + s.at(c, y, x)] = 1.0F;
              for (std::size_t p = 0; p < pool; ++p) {
                const Range rows = adaptive_bin(p, pool, height);
                for (std::size_t q = 0; q < pool; ++q) {
                  const Range columns = adaptive_bin(q, pool, width);
                  if (y < rows.begin || y >= rows.end || x < columns.begin || x >= columns.end) {
                    continue;
                  }
                  const auto cells =
                      static_cast<double>((rows.end - rows.begin) * (columns.end - columns.begin));
                  for (std::size_t k = 0; k < classes; ++k) {
                    const auto w =
                        static_cast<double>(weight[((k * channels + c) * pool + p) * pool + q]) / cells;
                    expected[n * classes + k] += w;
                    magnitude[n * classes + k] += std::abs(w);
                  }
                }
              }
            }
          }
        }
        const auto half = bf16(features);
        for (const Isa isa : histo::usable_isas()) {
          CAPTURE(histo::name(isa));
          const FusedHead head(pool, channels, classes, weight, std::vector<float>(classes), {.isa = isa});
          std::vector<float> logits(s.batch * classes), from_half(s.batch * classes);
          head.run(features, s.shape(), logits);
          head.run(half, s.shape(), from_half);
          // A weight per bin that holds the cell, each rounded once, added up: at most three a side.
          std::size_t wrong = 0;
          for (std::size_t i = 0; i < logits.size(); ++i) {
            wrong += !(std::abs(static_cast<double>(logits[i]) - expected[i]) <=
                       static_cast<double>(pool * pool + 1) * unit_roundoff * magnitude[i]);
          }
          CHECK(wrong == 0);
          CHECK(logits == from_half);
        }
      }
    }
  }
}

TEST_CASE("logits equal pooling followed by a linear layer: pools and maps") {
  std::size_t turn = 0;
  for (std::size_t pool = 1; pool <= 9; ++pool) {
    for (const std::size_t height : {1, 2, 3, 4, 5, 7, 8, 9}) {
      for (const std::size_t width : {1, 3, 4, 6, 7, 9, 19}) {
        check_against_the_definition({.pool = pool,
                                      .channels = 1 + turn * 7 % 40,
                                      .classes = 1 + turn % 8,
                                      .batch = 1 + turn % 7,
                                      .height = height,
                                      .width = width,
                                      .layout = turn % 2 == 0 ? Layout::nchw : Layout::nhwc});
        ++turn;
      }
    }
  }
}

TEST_CASE("logits equal pooling followed by a linear layer: channels, classes and batches") {
  for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
    for (std::size_t channels = 1; channels <= 70; ++channels) {
      check_against_the_definition({.pool = 1 + channels % 3,
                                    .channels = channels,
                                    .classes = 1 + channels % 20,
                                    .batch = 1 + channels % 5,
                                    .height = 4,
                                    .width = 4,
                                    .layout = layout});
    }
    for (std::size_t batch = 1; batch <= 33; ++batch) {
      check_against_the_definition({.pool = 2,
                                    .channels = 24,
                                    .classes = 1 + batch % 20,
                                    .batch = batch,
                                    .height = 4,
                                    .width = 5,
                                    .layout = layout});
    }
    // More classes than there is room for at once, and more channels than a chunk takes.
    check_against_the_definition(
        {.pool = 2, .channels = 5, .classes = 300, .batch = 6, .height = 3, .width = 3, .layout = layout});
    check_against_the_definition(
        {.pool = 2, .channels = 1100, .classes = 2, .batch = 5, .height = 8, .width = 8, .layout = layout});
  }
}

TEST_CASE("logits equal pooling followed by a linear layer: ResNet34's channels") {
  for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
    for (const std::size_t pool : {1, 2, 3, 4, 8}) {
      for (const std::size_t side : {4, 7, 32}) {
        check_against_the_definition({.pool = pool,
                                      .channels = 512,
                                      .classes = 6,
                                      .batch = side == 32 ? 2U : 5U,
                                      .height = side,
                                      .width = side,
                                      .layout = layout});
      }
    }
  }
}

TEST_CASE("a tile's logits depend neither on its batch and its place there nor on the threads") {
  constexpr std::size_t batch = 33;
  for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
    for (const std::size_t pool : {1, 2, 3, 4, 8}) {
      // A large map is cut into segments.
      for (const auto& [side, channels] :
           std::vector<std::pair<std::size_t, std::size_t>>{{4, 70}, {7, 37}, {16, 160}}) {
        const Case s{.pool = pool,
                     .channels = channels,
                     .classes = 7,
                     .batch = batch,
                     .height = side,
                     .width = side,
                     .layout = layout};
        CAPTURE(s);
        const auto weight = random_floats(s.weights(), 5);
        const auto bias = random_floats(s.classes, 6);
        const auto features = random_floats(batch * s.tile(), 7);
        for (const Isa isa : histo::usable_isas()) {
          CAPTURE(histo::name(isa));
          std::vector<float> expected(batch * s.classes);
          FusedHead(pool, channels, s.classes, weight, bias, {.isa = isa}).run(features, s.shape(), expected);
          for (const unsigned threads : {1U, 2U, 3U, 4U}) {
            const FusedHead head(pool, channels, s.classes, weight, bias, {.threads = threads, .isa = isa});
            std::mt19937 generator(threads);
            for (std::size_t first = 0; first < batch;) {
              const std::size_t count = std::min<std::size_t>(1 + generator() % 12, batch - first);
              std::vector<float> logits(count * s.classes);
              head.run(std::span(features).subspan(first * s.tile(), count * s.tile()),
                       {count, side, side, layout}, logits);
              CHECK(
                  std::ranges::equal(logits, std::span(expected).subspan(first * s.classes, logits.size())));
              first += count;
            }
          }
        }
      }
    }
  }
}

TEST_CASE("one head serves many threads, with more map sizes than it keeps weights for") {
  constexpr std::size_t channels = 64, classes = 3, pool = 2;
  const FusedHead head(pool, channels, classes, random_floats(classes * channels * pool * pool, 8),
                       random_floats(classes, 9), {.threads = 2});
  const auto features = random_floats(2 * channels * 24 * 24, 10);
  const auto run = [&](std::size_t side) {
    std::vector<float> logits(2 * classes);
    head.run(std::span(features).first(2 * channels * side * side),
             {.batch = 2, .height = side, .width = side}, logits);
    return logits;
  };
  std::vector<std::vector<float>> expected(25);
  for (std::size_t side = 1; side <= 24; ++side) {
    expected[side] = run(side);
  }
  std::vector<std::size_t> wrong(4);
  {
    JoinedThreads threads;
    for (std::size_t i = 0; i < wrong.size(); ++i) {
      threads.emplace_back([&, i] {
        for (std::size_t repeat = 0; repeat < 200; ++repeat) {
          const std::size_t side = 1 + (i * 5 + repeat) % 24;
          wrong[i] += run(side) != expected[side];
        }
      });
    }
  }
  CHECK(wrong == std::vector<std::size_t>(4));
}

#ifdef __linux__
// Pages that may be read, between two that may not: vectors must not reach past either end of the features.
class Fenced {
 public:
  explicit Fenced(std::size_t bytes) {
    page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (bytes + page_ - 1) / page_ * page_;
    base_ = static_cast<std::byte*>(
        mmap(nullptr, inner_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(base_ != MAP_FAILED);
    REQUIRE(mprotect(base_ + page_, inner_, PROT_READ | PROT_WRITE) == 0);
  }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced() { munmap(base_, inner_ + 2 * page_); }

  // A copy of `values` that touches the fence behind it, or the one before it.
  template <typename T>
  std::span<const T> copy(std::span<const T> values, bool at_end) {
    std::byte* const to = base_ + page_ + (at_end ? inner_ - values.size_bytes() : 0);
    std::memcpy(to, values.data(), values.size_bytes());
    return {reinterpret_cast<const T*>(to), values.size()};
  }

 private:
  std::size_t page_, inner_;
  std::byte* base_;
};

TEST_CASE("nothing outside the features is read") {
  std::size_t turn = 0;
  for (const std::size_t pool : {1, 2, 3, 8}) {
    for (const auto& [height, width] : std::vector<std::pair<std::size_t, std::size_t>>{
             {1, 1}, {1, 3}, {2, 2}, {4, 4}, {3, 5}, {7, 7}, {5, 9}, {6, 17}, {4, 33}}) {
      for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
        const Case s{.pool = pool,
                     .channels = 1 + turn++ % 23,
                     .classes = 2,
                     .batch = 5,
                     .height = height,
                     .width = width,
                     .layout = layout};
        const auto features = random_floats(s.batch * s.tile(), 11);
        const auto half = bf16(features);
        Fenced fenced(features.size() * sizeof(float));
        for (const Isa isa : histo::usable_isas()) {
          const FusedHead head(pool, s.channels, s.classes, random_floats(s.weights(), 12),
                               random_floats(s.classes, 13), {.isa = isa});
          std::vector<float> logits(s.batch * s.classes), fenced_logits(logits);
          head.run(features, s.shape(), logits);
          for (const bool at_end : {false, true}) {
            head.run(fenced.copy<float>(features, at_end), s.shape(), fenced_logits);
            CHECK(fenced_logits == logits);
          }
          head.run(half, s.shape(), logits);
          for (const bool at_end : {false, true}) {
            head.run(fenced.copy<Bfloat16>(half, at_end), s.shape(), fenced_logits);
            CHECK(fenced_logits == logits);
          }
        }
      }
    }
  }
}
#endif

TEST_CASE("infinities and NaN stay in their own tile, and infinities keep their sign") {
  for (const Isa isa : histo::usable_isas()) {
    for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
      for (const std::size_t pool : {1, 2, 3, 7}) {
        CAPTURE(histo::name(isa));
        CAPTURE(pool);
        const Case s{
            .pool = pool, .channels = 5, .classes = 2, .batch = 6, .height = 7, .width = 7, .layout = layout};
        std::vector<float> weight(s.weights(), 1.0F);
        std::fill(weight.begin() + static_cast<std::ptrdiff_t>(weight.size() / 2), weight.end(), -1.0F);
        const FusedHead head(pool, s.channels, s.classes, weight, std::vector<float>(2), {.isa = isa});
        auto features = random_floats(s.batch * s.tile(), 14);
        for (std::size_t i = 0; i < s.tile(); i += 11) {
          std::vector<float> logits(s.batch * s.classes);
          features[1 * s.tile() + i] = std::numeric_limits<float>::quiet_NaN();
          features[3 * s.tile() + i] = std::numeric_limits<float>::infinity();
          head.run(features, s.shape(), logits);
          features[1 * s.tile() + i] = features[3 * s.tile() + i] = 0.0F;
          CHECK(std::isnan(logits[2]));
          CHECK(std::isnan(logits[3]));
          CHECK(logits[6] == std::numeric_limits<float>::infinity());
          CHECK(logits[7] == -std::numeric_limits<float>::infinity());
          for (const std::size_t other : {0, 1, 4, 5, 8, 9, 10, 11}) {
            CHECK(std::isfinite(logits[other]));
          }
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
  const double sum = std::exp(0.5) + std::exp(1.0) + std::exp(-0.5);
  for (const bool reference : {false, true}) {
    std::vector<float> probabilities(6);
    if (reference) {
      head.run_reference(features, {.batch = 2, .height = 1, .width = 1}, probabilities, Softmax::yes);
    } else {
      head.run(features, {.batch = 2, .height = 1, .width = 1}, probabilities, Softmax::yes);
    }
    CHECK(static_cast<double>(probabilities[0]) == doctest::Approx(std::exp(0.5) / sum));
    CHECK(static_cast<double>(probabilities[1]) == doctest::Approx(std::exp(1.0) / sum));
    CHECK(static_cast<double>(probabilities[2]) == doctest::Approx(std::exp(-0.5) / sum));
    CHECK(std::vector<float>(probabilities.begin() + 3, probabilities.end()) ==
          std::vector<float>{0.0F, 1.0F, 0.0F});
  }
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

TEST_CASE("a head runs what float32 runs, whatever instruction set is preferred") {
  const std::vector<float> one(1);
  for (const Isa isa : histo::usable_isas()) {
    CAPTURE(histo::name(isa));
    CHECK(FusedHead(1, 1, 1, one, one, {.isa = isa}).isa() == executed_isa(histo::Precision::fp32, isa));
  }
}

TEST_CASE("an instruction set that is not there is refused") {
  const std::vector<float> one(1);
  CHECK(code_of([&] { FusedHead(1, 1, 1, one, one, {.isa = static_cast<Isa>(99)}); }) ==
        ErrorCode::unsupported);
}

TEST_CASE("a bad argument of run is refused and the output left alone") {
  const FusedHead head(2, 4, 6, std::vector<float>(6 * 4 * 4), std::vector<float>(6));
  const std::vector<float> features(2 * 4 * 3 * 5);
  const std::span<const float> null;
  std::vector<float> out(2 * 6, 42.0F);
  std::vector<float> short_out(11, 42.0F);
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();

  for (const bool reference : {false, true}) {
    const auto code = [&](std::span<const float> x, const FeatureShape& shape, std::span<float> y) {
      return code_of([&] { reference ? head.run_reference(x, shape, y) : head.run(x, shape, y); });
    };
    CHECK(code(features, {0, 3, 5}, out) == ErrorCode::invalid_argument);
    CHECK(code(features, {2, 0, 5}, out) == ErrorCode::invalid_argument);
    CHECK(code(features, {2, 3, 0}, out) == ErrorCode::invalid_argument);
    CHECK(code(features, {2, 3, 5, static_cast<Layout>(2)}, out) == ErrorCode::invalid_argument);
    CHECK(code(null, {2, 3, 5}, out) == ErrorCode::invalid_argument);
    CHECK(code(features, {2, 3, 5}, {}) == ErrorCode::invalid_argument);
    CHECK(code(features, {2, 3, 4}, out) == ErrorCode::size_mismatch);
    CHECK(code(features, {2, 3, 5}, short_out) == ErrorCode::size_mismatch);
    CHECK(code(features, {huge, 3, 5}, out) == ErrorCode::size_overflow);
    CHECK(code(features, {2, huge / 2, 2}, out) == ErrorCode::size_overflow);
  }
  CHECK(std::ranges::count(out, 42.0F) == 12);
  CHECK(std::ranges::count(short_out, 42.0F) == 11);
}

}  // namespace
