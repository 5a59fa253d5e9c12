// The engine's kernels for every instruction set that this machine has, beside scalar twins in double.

#include "cpu/kernels/kernels.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "aligned_buffer.h"
#include "cpu/isa_selection.h"
#include "cpu/packing.h"
#include "model/network.h"

namespace {

using histo::Algorithm;
using histo::AlignedBuffer;
using histo::ConvLayer;
using histo::Range;
using histo::kernels::KernelSet;

// The kernel sets of this machine that execute float32, one for each instruction set.
std::vector<const histo::IsaRecord*> records() {
  std::vector<const histo::IsaRecord*> found;
  for (const histo::IsaRecord* const record : histo::isa_records()) {
    if (record->executes.fp32 && histo::runs(*record, histo::this_machine())) {
      found.push_back(record);
    }
  }
  return found;
}

std::uint32_t* units(float* p) { return reinterpret_cast<std::uint32_t*>(p); }

// Channels-last images with a border of zeros on all sides, wide enough for every kernel and tile here.
struct Image {
  static constexpr std::size_t border = 4;
  std::size_t count, height, width, channels;
  std::vector<float> data;

  Image(std::size_t n, std::size_t h, std::size_t w, std::size_t c)
      : count(n), height(h), width(w), channels(c), data(n * image()) {}

  [[nodiscard]] std::size_t row() const { return (width + 2 * border) * channels; }
  [[nodiscard]] std::size_t image() const { return (height + 2 * border) * row(); }
  [[nodiscard]] float* at(std::size_t n, std::size_t y, std::size_t x) {
    return data.data() + n * image() + (y + border) * row() + (x + border) * channels;
  }
  [[nodiscard]] histo::kernels::Strides strides(std::size_t step = 1) const {
    return {.column = step * channels, .row = step * row(), .image = image()};
  }
  // The cells that belong to the images, without the border.
  template <typename Function>
  void for_each_cell(const Function& function) {
    for (std::size_t n = 0; n < count; ++n) {
      for (std::size_t y = 0; y < height; ++y) {
        for (std::size_t x = 0; x < width; ++x) {
          for (std::size_t c = 0; c < channels; ++c) {
            function(n, y, x, c);
          }
        }
      }
    }
  }
};

struct Case {
  Algorithm algorithm;
  std::size_t images, height, width, inputs, outputs, kernel, stride;
  bool residual, relu;
};

std::string describe(const Case& c) {
  std::string text(histo::name(c.algorithm));
  for (const std::size_t value : {c.images, c.height, c.width, c.inputs, c.outputs, c.kernel, c.stride}) {
    text += " " + std::to_string(value);
  }
  return text + (c.residual ? " residual" : "") + (c.relu ? " relu" : "");
}

struct Problem {
  Case c;
  Image input, residual, expected, tolerance;  // expected in double, rounded once
  std::vector<float> weight, bias;
  ConvLayer layer;

  explicit Problem(const Case& given)
      : c(given),
        input(c.images, c.height, c.width, c.inputs),
        residual(c.images, (c.height + c.stride - 1) / c.stride, (c.width + c.stride - 1) / c.stride,
                 c.outputs),
        expected(residual),
        tolerance(residual),
        weight(c.outputs * c.inputs * c.kernel * c.kernel),
        bias(c.outputs) {
    std::mt19937 generator(static_cast<unsigned>(c.height * 31 + c.width * 7 + c.inputs));
    std::normal_distribution<float> normal;
    input.for_each_cell([&](auto n, auto y, auto x, auto k) { input.at(n, y, x)[k] = normal(generator); });
    residual.for_each_cell(
        [&](auto n, auto y, auto x, auto k) { residual.at(n, y, x)[k] = normal(generator); });
    std::ranges::generate(weight, [&] { return normal(generator); });
    std::ranges::generate(bias, [&] { return normal(generator); });
    layer = {.name = "test",
             .inputs = c.inputs,
             .outputs = c.outputs,
             .kernel = c.kernel,
             .stride = c.stride,
             .weight = weight,
             .bias = bias};
    expected.for_each_cell([&](auto n, auto y, auto x, auto k) { compute(n, y, x, k); });
  }

  void compute(std::size_t n, std::size_t y, std::size_t x, std::size_t k) {
    double sum = static_cast<double>(bias[k]), size = std::abs(sum);
    for (std::size_t i = 0; i < c.kernel; ++i) {
      for (std::size_t j = 0; j < c.kernel; ++j) {
        const float* const cell =
            input.at(n, y * c.stride + i, x * c.stride + j) - c.kernel / 2 * (input.row() + input.channels);
        for (std::size_t channel = 0; channel < c.inputs; ++channel) {
          const double term =
              static_cast<double>(cell[channel]) *
              static_cast<double>(weight[((k * c.inputs + channel) * c.kernel + i) * c.kernel + j]);
          sum += term;
          size += std::abs(term);
        }
      }
    }
    if (c.residual) {
      sum += static_cast<double>(residual.at(n, y, x)[k]);
      size += std::abs(static_cast<double>(residual.at(n, y, x)[k]));
    }
    expected.at(n, y, x)[k] = static_cast<float>(c.relu ? std::max(sum, 0.0) : sum);
    // A float sum of n terms in any order is off by at most n / 2^24 of the sum of the sizes; it is far less
    // on average, and Winograd's transforms, whose entries add up to about 10, stay below as well.
    constexpr double unit = 1.0 / (1 << 24);
    tolerance.at(n, y, x)[k] = static_cast<float>(
        unit * size * std::sqrt(static_cast<double>(c.inputs * c.kernel * c.kernel) + 16) * 4);
  }
};

// Runs the kernel with its work cut at `cut` (pixels or tiles), and with a canary where nothing may be
// written.
Image run(const KernelSet& set, Problem& p, std::size_t cut) {
  const Case& c = p.c;
  const histo::kernels::ConvKernels& kernels = *set.of.fp32;
  const std::size_t block = kernels.block;
  const histo::Packing packing{p.layer, c.algorithm, histo::Precision::fp32, block};
  const std::size_t blocks = packing.blocks();
  AlignedBuffer weight(blocks * packing.block_units()), bias(blocks * block);
  for (std::size_t i = 0; i < blocks; ++i) {
    packing.pack(i, weight.units() + i * packing.block_units());
  }
  std::ranges::copy(p.bias, bias.data());
  Image output(p.expected.count, p.expected.height, p.expected.width, c.outputs);
  std::ranges::fill(output.data, 77.0F);
  const histo::kernels::Epilogue epilogue{.bias = bias.data(),
                                          .scale = nullptr,
                                          .channels = c.outputs,
                                          .residual = c.residual ? units(p.residual.at(0, 0, 0)) : nullptr,
                                          .residual_strides = p.residual.strides(),
                                          .residual_format = {},
                                          .output = units(output.at(0, 0, 0)),
                                          .output_strides = output.strides(),
                                          .output_format = {},
                                          .height = output.height,
                                          .width = output.width,
                                          .relu = c.relu};
  const std::uint32_t* const input =
      units(p.input.at(0, 0, 0)) - c.kernel / 2 * (p.input.row() + p.input.channels);
  if (c.algorithm == Algorithm::direct) {
    const histo::kernels::Conv conv{.input = input,
                                    .input_strides = p.input.strides(c.stride),
                                    .window_rows = c.kernel,
                                    .window_run = packing.window_run(),
                                    .window_row = p.input.row(),
                                    .weight = weight.units(),
                                    .epilogue = epilogue};
    const std::size_t total = c.images * output.height * output.width;
    for (std::size_t begin = 0; begin < total; begin += cut) {
      kernels.direct(conv, {begin, std::min(begin + cut, total)}, {0, blocks});
    }
    return output;
  }
  const std::size_t m = c.algorithm == Algorithm::winograd4 ? 4 : 2;
  const histo::kernels::WinogradKernels& winograd = m == 4 ? kernels.winograd4 : kernels.winograd2;
  const histo::kernels::Winograd w{.input = input,
                                   .input_strides = p.input.strides(),
                                   .channels = c.inputs,
                                   .tile_rows = (output.height + m - 1) / m,
                                   .tile_columns = (output.width + m - 1) / m,
                                   .weight = weight.units(),
                                   .epilogue = epilogue};
  const std::size_t total = c.images * w.tile_rows * w.tile_columns;
  for (std::size_t begin = 0; begin < total; begin += cut) {
    const Range tiles{begin, std::min(begin + cut, total)};
    const std::size_t count = tiles.end - begin, points = (m + 2) * (m + 2);
    std::vector<float> transformed(points * count * c.inputs), products(points * count * block);
    winograd.input(w, tiles, units(transformed.data()), count * c.inputs);
    for (std::size_t b = 0; b < blocks; ++b) {
      winograd.output(w, tiles, {b, b + 1}, units(transformed.data()), count * c.inputs, products.data(),
                      count * block);
    }
  }
  return output;
}

void check(const Case& c) {
  CAPTURE(describe(c));
  Problem problem(c);
  for (const histo::IsaRecord* const record : records()) {
    CAPTURE(record->description);
    const KernelSet& kernel = *record->kernels;
    Image output = run(kernel, problem, std::numeric_limits<std::size_t>::max() / 2);
    double worst = 0;
    output.for_each_cell([&](auto n, auto y, auto x, auto k) {
      const double difference = std::abs(static_cast<double>(output.at(n, y, x)[k]) -
                                         static_cast<double>(problem.expected.at(n, y, x)[k]));
      worst = std::max(worst, difference / static_cast<double>(problem.tolerance.at(n, y, x)[k]));
    });
    CHECK(worst <= 1);
    // However the work is cut, the same bits; and nothing but the output is written.
    for (const std::size_t cut : {1, 5, 7}) {
      CHECK(run(kernel, problem, cut).data == output.data);
    }
    std::vector<float> border = output.data;
    output.for_each_cell([&](auto n, auto y, auto x, auto k) { output.at(n, y, x)[k] = 77.0F; });
    CHECK(std::ranges::count(output.data, 77.0F) == static_cast<std::ptrdiff_t>(border.size()));
  }
}

TEST_CASE("convolutions: those of the network, on maps of odd sizes") {
  for (const std::size_t side : {1, 2, 4, 5, 9}) {
    check({Algorithm::direct, 2, side, side + 1, 64, 64, 3, 1, true, true});
    check({Algorithm::direct, 2, side, side, 64, 128, 3, 2, false, true});
    check({Algorithm::direct, 3, side + 2, side, 64, 128, 1, 2, false, false});
    check({Algorithm::direct, 1, side + 6, side, 3, 64, 7, 2, false, true});
    for (const Algorithm winograd : {Algorithm::winograd2, Algorithm::winograd4}) {
      check({winograd, 2, side, side + 1, 64, 64, 3, 1, true, true});
      check({winograd, 1, side + 3, side, 128, 64, 3, 1, false, false});
    }
  }
}

TEST_CASE("direct convolutions whose weights and pixels are taken in pieces") {
  check({Algorithm::direct, 2, 10, 11, 128, 64, 3, 1, true, true});   // 220 pixels
  check({Algorithm::direct, 1, 3, 4, 352, 64, 3, 1, true, true});     // rows of 1056 floats
  check({Algorithm::direct, 1, 5, 3, 1056, 64, 1, 2, false, false});  // a window of one pixel
}

TEST_CASE("maximum pooling, NaN included") {
  constexpr std::size_t channels = 64;
  for (const histo::IsaRecord* const record : records()) {
    CAPTURE(record->description);
    Image input(1, 7, 9, channels);
    std::mt19937 generator(1);
    std::uniform_real_distribution<float> uniform(0, 1);
    input.for_each_cell([&](auto n, auto y, auto x, auto k) { input.at(n, y, x)[k] = uniform(generator); });
    input.at(0, 2, 3)[5] = std::numeric_limits<float>::quiet_NaN();
    Image output(1, 4, 5, channels);
    record->kernels->max_pool(input.at(0, 0, 0) - input.row() - channels, input.row(),
                              units(output.at(0, 0, 0)), output.row(), {}, 4, 5, channels);
    output.for_each_cell([&](auto, auto y, auto x, auto k) {
      float largest = 0;
      bool nan = false;
      for (std::size_t i = 0; i < 3; ++i) {
        for (std::size_t j = 0; j < 3; ++j) {
          const float value = *(input.at(0, 2 * y + i, 2 * x + j) - input.row() - channels + k);
          nan = nan || std::isnan(value);
          largest = std::max(largest, value);
        }
      }
      const float got = output.at(0, y, x)[k];
      CHECK((nan ? std::isnan(got) : got == largest));
    });
  }
}

TEST_CASE("a NaN goes through ReLU and residual, and reaches no other image") {
  for (const Algorithm algorithm : {Algorithm::direct, Algorithm::winograd2, Algorithm::winograd4}) {
    Problem problem({algorithm, 2, 4, 4, 64, 64, 3, 1, true, true});
    problem.input.at(1, 2, 2)[9] = std::numeric_limits<float>::quiet_NaN();
    for (const histo::IsaRecord* const record : records()) {
      CAPTURE(record->description);
      Image output = run(*record->kernels, problem, 100);
      output.for_each_cell([&](auto n, auto y, auto x, auto k) {
        if (n == 0) {
          CHECK_FALSE(std::isnan(output.at(n, y, x)[k]));
        } else if (y >= 1 && x >= 1) {
          CHECK(std::isnan(output.at(n, y, x)[k]));
        }
      });
    }
  }
}

}  // namespace
