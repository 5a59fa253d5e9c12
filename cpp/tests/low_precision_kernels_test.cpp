// The kernels of low precision beside scalar twins: those of this machine, and all of them emulated.

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/isa_selection.h"
#include "cpu/kernels/kernels.h"
#include "cpu/packing.h"
#include "emulated_kernels.h"
#include "model/network.h"
#include "plan/map_format.h"

namespace {

using histo::ConvLayer;
using histo::MapFormat;
using histo::Precision;
using histo::Range;
using histo::Storage;
using histo::kernels::Conv;
using histo::kernels::KernelSet;
using histo::kernels::Strides;

// Those of this machine, and the emulated ones.
const std::vector<std::pair<std::string, const KernelSet*>>& kernel_sets() {
  static const auto sets = [] {
    std::vector<std::pair<std::string, const KernelSet*>> found{
        {"emulated vectors", &histo::kernels::emulated_vectors},
        {"emulated AMX", &histo::kernels::emulated_amx}};
    for (const histo::IsaRecord* const record : histo::isa_records()) {
      if (record->kernels->split == nullptr) {
        continue;  // float32 alone
      }
      if (histo::runs(*record, histo::this_machine())) {
        found.emplace_back(record->description, record->kernels);
      } else {
        MESSAGE("this machine lacks " << record->description << ": its kernels are tested by emulation only");
      }
    }
    return found;
  }();
  return sets;
}

// --- formats, by their definition ------------------------------------------------------------------------

std::uint16_t to_bf16(float x) {  // of the two neighbours the nearer, of two as near the even one
  if (std::isnan(x)) {
    return 0x7FC0;
  }
  const std::uint32_t below = std::bit_cast<std::uint32_t>(x) >> 16U;
  const auto at = [](std::uint32_t bits) { return static_cast<double>(std::bit_cast<float>(bits << 16U)); };
  const double down = std::abs(static_cast<double>(x) - at(below));
  const double up = std::abs(at(below + 1) - static_cast<double>(x));
  return static_cast<std::uint16_t>(below + (up < down || (up == down && below % 2 == 1) ? 1 : 0));
}

float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16U); }

std::uint8_t to_u8(float x, MapFormat format) {
  return static_cast<std::uint8_t>(std::clamp(std::nearbyint(x * format.inverse), 0.0F, 255.0F));
}

std::size_t cell_bytes(Storage cell) {
  return cell == Storage::f32 ? 4 : cell == Storage::bf16 ? 2 : cell == Storage::bf16x3 ? 6 : 1;
}

// Channels-last images with a border of zeros, in any format.
struct Map {
  static constexpr std::size_t border = 3;
  std::size_t count, height, width, channels;
  MapFormat format;
  std::vector<std::uint32_t> data;

  Map(std::size_t n, std::size_t h, std::size_t w, std::size_t c, MapFormat f)
      : count(n), height(h), width(w), channels(c), format(f), data(n * image()) {}

  [[nodiscard]] std::size_t pixel() const { return channels * cell_bytes(format.storage) / 4; }
  [[nodiscard]] std::size_t row() const { return (width + 2 * border) * pixel(); }
  [[nodiscard]] std::size_t image() const { return (height + 2 * border) * row(); }
  [[nodiscard]] Strides strides(std::size_t step = 1) const {
    return {.column = step * pixel(), .row = step * row(), .image = image()};
  }
  // Coordinates below zero are in the border.
  [[nodiscard]] std::size_t at(std::size_t n, std::ptrdiff_t y, std::ptrdiff_t x) const {
    constexpr auto b = static_cast<std::ptrdiff_t>(border);
    return n * image() + static_cast<std::size_t>(y + b) * row() + static_cast<std::size_t>(x + b) * pixel();
  }
  [[nodiscard]] std::uint16_t half(std::size_t pixel_at, std::size_t i) const {
    return static_cast<std::uint16_t>(data[pixel_at + i / 2] >> i % 2 * 16);
  }
  [[nodiscard]] std::uint8_t byte(std::size_t pixel_at, std::size_t c) const {
    return static_cast<std::uint8_t>(data[pixel_at + c / 4] >> c % 4 * 8);
  }
  [[nodiscard]] float number(std::size_t pixel_at, std::size_t c) const {
    switch (format.storage) {
      case Storage::bf16:
        return from_bf16(half(pixel_at, c));
      case Storage::bf16x3:
        return from_bf16(half(pixel_at, c)) + from_bf16(half(pixel_at, channels + c));
      case Storage::u8:
        return format.scale * static_cast<float>(byte(pixel_at, c));
      default:
        return std::bit_cast<float>(data[pixel_at + c]);
    }
  }
  void set(std::size_t pixel_at, std::size_t c, float x) {
    const auto set_half = [&](std::size_t i, std::uint16_t bits) {
      std::uint32_t& unit = data[pixel_at + i / 2];
      unit = (unit & ~(0xFFFFU << i % 2 * 16)) | std::uint32_t{bits} << i % 2 * 16;
    };
    switch (format.storage) {
      case Storage::bf16:
        set_half(c, to_bf16(x));
        break;
      case Storage::bf16x3:
        set_half(c, to_bf16(x));
        set_half(channels + c, to_bf16(x - from_bf16(to_bf16(x))));
        set_half(2 * channels + c, to_bf16(x));
        break;
      case Storage::u8: {
        std::uint32_t& unit = data[pixel_at + c / 4];
        unit = (unit & ~(0xFFU << c % 4 * 8)) | std::uint32_t{to_u8(x, format)} << c % 4 * 8;
        break;
      }
      default:
        data[pixel_at + c] = std::bit_cast<std::uint32_t>(x);
    }
  }
  void for_each_cell(
      const std::function<void(std::size_t, std::size_t, std::size_t, std::size_t)>& function) const {
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

// The precision of a layer that reads such maps.
Precision precision_of(Storage storage) {
  return storage == Storage::bf16     ? Precision::bf16
         : storage == Storage::bf16x3 ? Precision::bf16x3
                                      : Precision::int8;
}

struct Case {
  Storage input;
  std::size_t images, height, width, inputs, outputs, kernel, stride;
  std::optional<Storage> residual;
  bool relu;
};

MapFormat format_of(Storage cell, float scale) {
  return cell == Storage::u8 ? MapFormat{cell, scale, 1 / scale} : MapFormat{cell};
}

struct Problem {
  Case c;
  Map input, residual;
  std::vector<float> weight, bias, scales, sum_scales;
  ConvLayer layer;

  explicit Problem(const Case& given)
      : c(given),
        input(c.images, c.height, c.width, c.inputs, format_of(c.input, 0.01F)),
        residual(c.images, out(c.height), out(c.width), c.outputs,
                 format_of(c.residual.value_or(Storage::f32), 0.02F)),
        weight(c.outputs * c.inputs * c.kernel * c.kernel),
        bias(c.outputs),
        scales(c.outputs) {
    std::mt19937 generator(static_cast<unsigned>(c.height * 31 + c.width * 7 + c.inputs));
    std::normal_distribution<float> normal;
    input.for_each_cell(
        [&](auto n, auto y, auto x, auto k) { input.set(at(input, n, y, x), k, normal(generator)); });
    residual.for_each_cell(
        [&](auto n, auto y, auto x, auto k) { residual.set(at(residual, n, y, x), k, normal(generator)); });
    std::ranges::generate(weight, [&] { return normal(generator); });
    std::ranges::generate(bias, [&] { return normal(generator); });
    std::ranges::generate(scales, [&] { return 0.02F + 0.01F * std::abs(normal(generator)); });
    layer = {.name = "test",
             .inputs = c.inputs,
             .outputs = c.outputs,
             .kernel = c.kernel,
             .stride = c.stride,
             .weight = weight,
             .bias = bias,
             .scales = histo::Scales{.input = input.format.scale, .weight = scales}};
    for (const float scale : scales) {
      sum_scales.push_back(input.format.scale * scale);
    }
  }

  [[nodiscard]] std::size_t out(std::size_t side) const { return (side + c.stride - 1) / c.stride; }
  [[nodiscard]] Map empty_output(MapFormat format) const {
    return {c.images, out(c.height), out(c.width), c.outputs, format};
  }
  static std::size_t at(const Map& map, std::size_t n, std::size_t y, std::size_t x) {
    return map.at(n, static_cast<std::ptrdiff_t>(y), static_cast<std::ptrdiff_t>(x));
  }
  [[nodiscard]] std::int8_t weight_byte(std::size_t k, std::size_t i) const {
    return static_cast<std::int8_t>(std::clamp(std::nearbyint(weight[i] / scales[k]), -127.0F, 127.0F));
  }

  // What an output should be before it is stored, and how far from that float32 sums in any order may be.
  std::pair<double, double> expected(std::size_t n, std::size_t y, std::size_t x, std::size_t k) const {
    double sum = 0, size = 0;
    std::int64_t integer_sum = 0;
    for (std::size_t i = 0; i < c.kernel; ++i) {
      for (std::size_t j = 0; j < c.kernel; ++j) {
        const auto pad = static_cast<std::ptrdiff_t>(c.kernel / 2);
        const std::size_t cell = input.at(n, static_cast<std::ptrdiff_t>(y * c.stride + i) - pad,
                                          static_cast<std::ptrdiff_t>(x * c.stride + j) - pad);
        for (std::size_t channel = 0; channel < c.inputs; ++channel) {
          const std::size_t w = ((k * c.inputs + channel) * c.kernel + i) * c.kernel + j;
          if (c.input == Storage::u8) {
            integer_sum += input.byte(cell, channel) * weight_byte(k, w);
            continue;
          }
          const double high = static_cast<double>(from_bf16(to_bf16(weight[w])));
          const double a = static_cast<double>(from_bf16(input.half(cell, channel)));
          double term = a * high;
          if (c.input == Storage::bf16x3) {
            const double low = static_cast<double>(from_bf16(to_bf16(weight[w] - static_cast<float>(high))));
            term += static_cast<double>(from_bf16(input.half(cell, c.inputs + channel))) * high + a * low;
          }
          sum += term;
          size += std::abs(term);
        }
      }
    }
    double y_value = sum + static_cast<double>(bias[k]);
    if (c.input == Storage::u8) {  // exact: the sum is an integer, and the rest is rounded as in the kernel
      y_value = static_cast<double>(std::fma(static_cast<float>(integer_sum), sum_scales[k], bias[k]));
    }
    if (c.residual) {
      const float r = residual.number(at(residual, n, y, x), k);
      y_value = c.input == Storage::u8 ? static_cast<double>(static_cast<float>(y_value) + r)
                                       : y_value + static_cast<double>(r);
      size += std::abs(static_cast<double>(r));
    }
    constexpr double unit = 1.0 / (1 << 24);
    const auto terms =
        static_cast<double>(c.inputs * c.kernel * c.kernel * (c.input == Storage::bf16x3 ? 3 : 1));
    return {c.relu ? std::max(y_value, 0.0) : y_value,
            c.input == Storage::u8 ? 0 : unit * (size + std::abs(sum)) * std::sqrt(terms + 16) * 4};
  }
};

constexpr std::uint32_t canary = 0xC0FFEE77;

Map run(const KernelSet& set, const Problem& p, MapFormat format, std::size_t cut) {
  const Case& c = p.c;
  const histo::kernels::ConvKernels& kernels = *set.of[precision_of(c.input)];
  const histo::Packing packing{p.layer, histo::Algorithm::direct, precision_of(c.input), kernels.block};
  const std::size_t blocks = packing.blocks();
  std::vector<std::uint32_t> weight(blocks * packing.block_units());
  std::vector<float> bias(blocks * kernels.block), scale(blocks * kernels.block);
  for (std::size_t i = 0; i < blocks; ++i) {
    packing.pack(i, weight.data() + i * packing.block_units());
  }
  std::ranges::copy(p.bias, bias.begin());
  std::ranges::copy(p.sum_scales, scale.begin());
  Map output = p.empty_output(format);
  std::ranges::fill(output.data, canary);
  const auto pad = static_cast<std::ptrdiff_t>(c.kernel / 2);
  const Conv conv{
      .input = p.input.data.data() + p.input.at(0, -pad, -pad),
      .input_strides = p.input.strides(c.stride),
      .window_rows = c.kernel,
      .window_run = packing.window_run(),
      .window_row = p.input.row(),
      .weight = weight.data(),
      .epilogue = {.bias = bias.data(),
                   .scale = scale.data(),
                   .channels = c.outputs,
                   .residual = c.residual ? p.residual.data.data() + p.residual.at(0, 0, 0) : nullptr,
                   .residual_strides = p.residual.strides(),
                   .residual_format = p.residual.format,
                   .output = output.data.data() + output.at(0, 0, 0),
                   .output_strides = output.strides(),
                   .output_format = format,
                   .height = output.height,
                   .width = output.width,
                   .relu = c.relu}};
  const std::size_t total = c.images * output.height * output.width;
  for (std::size_t begin = 0; begin < total; begin += std::min(cut, total)) {
    kernels.direct(conv, {begin, std::min(begin + cut, total)}, {0, blocks});
  }
  return output;
}

void check(const Case& c) {
  const Problem problem(c);
  const Map shape = problem.empty_output({Storage::f32});
  std::vector<std::pair<double, double>> expected_values;
  shape.for_each_cell(
      [&](auto n, auto y, auto x, auto k) { expected_values.push_back(problem.expected(n, y, x, k)); });
  constexpr std::size_t all = std::numeric_limits<std::size_t>::max() / 2;
  std::optional<std::vector<std::uint32_t>> of_vectors, of_amx;
  for (const auto& [name, set] : kernel_sets()) {
    CAPTURE(name);
    CAPTURE(c.height);
    CAPTURE(c.width);
    if (set->of[precision_of(c.input)] == nullptr) {
      continue;  // without BF16, AVX-512 has no bf16x3
    }
    const Map exact = run(*set, problem, format_of(Storage::f32, 1), all);
    double worst = 0;
    auto next = expected_values.begin();
    exact.for_each_cell([&](auto n, auto y, auto x, auto k) {
      const auto [value, tolerance] = *next++;
      const double off = std::abs(static_cast<double>(exact.number(Problem::at(exact, n, y, x), k)) - value);
      worst = std::max(worst, tolerance == 0 ? (off == 0 ? 0 : 2) : off / tolerance);
    });
    CHECK(worst <= 1);

    // Every format holds what float32 holds, rounded once; however the work is cut; and nothing else is
    // written.
    for (const Storage cell : {Storage::f32, Storage::bf16, Storage::bf16x3, Storage::u8}) {
      const MapFormat format = format_of(cell, 0.03F);
      Map expected = problem.empty_output(format);
      std::ranges::fill(expected.data, canary);
      exact.for_each_cell([&](auto n, auto y, auto x, auto k) {
        expected.set(Problem::at(expected, n, y, x), k, exact.number(Problem::at(exact, n, y, x), k));
      });
      CHECK(run(*set, problem, format, all).data == expected.data);
      if (cell == c.input) {
        const std::size_t pixels = shape.count * shape.height * shape.width;
        for (const std::size_t cut : {pixels < 16 ? 1 : 13, pixels < 16 ? 5 : 33}) {
          CAPTURE(cut);
          CHECK(run(*set, problem, format, cut).data == expected.data);
        }
      }
    }

    // The processor's instructions and their emulation give the same bits.
    auto& same = name.ends_with("AMX") && c.input != Storage::u8 ? of_amx : of_vectors;
    if (!same) {
      same = exact.data;
    }
    CHECK(exact.data == *same);
  }
}

TEST_CASE("low precision: convolutions of the network, on maps of odd sizes") {
  for (const Storage input : {Storage::bf16, Storage::bf16x3, Storage::u8}) {
    CAPTURE(static_cast<int>(input));
    for (const std::size_t side : {1, 5}) {
      check({input, 2, side, side + 1, 64, 64, 3, 1, Storage::u8, true});
      check({input, 1, side, side, 64, 128, 3, 2, {}, true});
      check({input, 3, side + 2, side, 128, 64, 1, 2, Storage::bf16, false});
    }
    check({input, 1, 2, 37, 64, 64, 3, 1, Storage::bf16x3, true});  // tiles of 16 pixels of one row
    check({input, 1, 15, 14, 64, 64, 3, 1, Storage::f32, true});    // 210 pixels
    check({input, 1, 2, 3, 512, 64, 3, 1, {}, false});              // weights in pieces
  }
}

TEST_CASE("low precision: numbers are rounded to nearest, ties to even, and bytes saturate") {
  // A convolution of one pixel, 1 x 1, whose weights are zero: the bias comes out as it is.
  for (const auto& [name, set] : kernel_sets()) {
    CAPTURE(name);
    Problem p({Storage::u8, 1, 1, 1, 64, 64, 1, 1, {}, false});
    std::ranges::fill(p.weight, 0.0F);
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    const std::vector<float> values{0.5F, 1.5F, 2.5F, 254.5F, 255.5F, 1e30F,  -1.0F,  0.0F,
                                    inf,  -inf, nan,  0.49F,  127.5F, 128.5F, 1e-40F, -1e-40F};
    const std::vector<int> bytes{0, 2, 2, 254, 255, 255, 0, 0, 255, 0, 0, 0, 128, 128, 0, 0};
    for (std::size_t i = 0; i < p.bias.size(); ++i) {
      p.bias[i] = values[i % values.size()];
    }
    const Map u8 = run(*set, p, {Storage::u8, 1, 1}, 1), bf16 = run(*set, p, {Storage::bf16}, 1);
    for (std::size_t i = 0; i < p.bias.size(); ++i) {
      CAPTURE(p.bias[i]);
      CHECK(u8.byte(u8.at(0, 0, 0), i) == bytes[i % bytes.size()]);
      const std::uint16_t half = bf16.half(bf16.at(0, 0, 0), i);
      if (std::isnan(p.bias[i])) {
        CHECK(std::isnan(from_bf16(half)));
      } else {
        CHECK(half == to_bf16(p.bias[i]));
      }
    }
    const std::vector<std::uint16_t> ties{0x3F80, 0x3F82, 0x3F82};  // 1 + 1/256, 1 + 3/256, 1 + 2/128
    p.bias = {1.00390625F, 1.01171875F, 1.015625F};
    p.bias.resize(64);
    const Map tied = run(*set, p, {Storage::bf16}, 1);
    for (std::size_t i = 0; i < ties.size(); ++i) {
      CHECK(tied.half(tied.at(0, 0, 0), i) == ties[i]);
    }
  }
}

TEST_CASE("low precision: parts of numbers, and the maximum to every format") {
  for (const auto& [name, set] : kernel_sets()) {
    CAPTURE(name);
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(83);
    std::ranges::generate(x, [&] { return normal(generator); });
    std::vector<std::uint16_t> high(x.size()), low(x.size()), alone(x.size());
    set->split(x.data(), x.size(), high.data(), low.data());
    set->split(x.data(), x.size(), alone.data(), nullptr);
    CHECK(high == alone);
    for (std::size_t i = 0; i < x.size(); ++i) {
      CHECK(high[i] == to_bf16(x[i]));
      CHECK(low[i] == to_bf16(x[i] - from_bf16(high[i])));
    }

    Map input(1, 6, 8, 64, {Storage::f32});
    input.for_each_cell([&](auto n, auto y, auto c, auto k) {
      input.set(Problem::at(input, n, y, c), k, std::abs(normal(generator)));
    });
    for (const Storage cell : {Storage::f32, Storage::bf16, Storage::bf16x3, Storage::u8}) {
      Map expected(1, 3, 4, 64, format_of(cell, 0.01F)), output = expected;
      expected.for_each_cell([&](auto n, auto y, auto c, auto k) {
        float largest = 0;
        for (std::size_t i = 0; i < 9; ++i) {
          largest = std::max(largest, input.number(input.at(n, static_cast<std::ptrdiff_t>(2 * y + i / 3) - 1,
                                                            static_cast<std::ptrdiff_t>(2 * c + i % 3) - 1),
                                                   k));
        }
        expected.set(Problem::at(expected, n, y, c), k, largest);
      });
      set->max_pool(reinterpret_cast<const float*>(input.data.data() + input.at(0, -1, -1)), input.row(),
                    output.data.data() + output.at(0, 0, 0), output.row(), output.format, 3, 4, 64);
      CHECK(output.data == expected.data);
    }
  }
}

}  // namespace
