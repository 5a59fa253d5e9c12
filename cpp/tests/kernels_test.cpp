// The kernels beside scalar twins, in every precision: those that this machine can run and, for the
// precisions below float32, an emulation of all.

#include "cpu/kernels/kernels.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "avx_vnni_by_avx512.h"
#include "cpu/isa_selection.h"
#include "cpu/kernels/fused.h"
#include "cpu/packing.h"
#include "emulated_kernels.h"
#include "model/network.h"
#include "plan/map_format.h"
#include "plan/plan.h"
#include "under_emulation.h"

namespace {

using histo::Algorithm;
using histo::ConvLayer;
using histo::MapFormat;
using histo::Precision;
using histo::Range;
using histo::Storage;
using histo::kernels::Conv;
using histo::kernels::KernelSet;
using histo::kernels::Strides;

// Those that this machine can run, and the emulated ones.
const std::vector<std::pair<std::string, const KernelSet*>>& kernel_sets() {
  static const auto sets = [] {
    std::vector<std::pair<std::string, const KernelSet*>> found{
        {"emulated vectors", &histo::kernels::emulated_vectors},
        {"emulated NEON with BF16", &histo::kernels::emulated_neon}};
    if (!under_emulation) {  // where it would take most of the time
      found.emplace_back("emulated AMX", &histo::kernels::emulated_amx);
    }
    const histo::CpuInfo cpu = histo::cpu_info();
    if (histo::kernels::avx_vnni_by_avx512 != nullptr && cpu.avx512_vnni && cpu.avx512vl) {
      found.emplace_back("AVX2 with VNNI, by AVX-512", histo::kernels::avx_vnni_by_avx512);
    }
    for (const histo::IsaRecord* const record : histo::isa_records()) {
      if (histo::runs(*record, histo::this_machine())) {
        found.emplace_back(record->description, record->kernels);
      } else {
        MESSAGE("this machine lacks " << std::string(record->description)
                                      << ": kernels that use it are not tested");
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

std::size_t storage_bytes(Storage storage) {
  return storage == Storage::f32 ? 4 : storage == Storage::bf16 ? 2 : storage == Storage::bf16x3 ? 6 : 1;
}

// Channels-last images with a border of zeros, in any format.
struct Map {
  static constexpr std::size_t border = 4;  // wide enough for every kernel and Winograd tile here
  std::size_t count, height, width, channels;
  MapFormat format;
  std::vector<std::uint32_t> data;

  Map(std::size_t n, std::size_t h, std::size_t w, std::size_t c, MapFormat f)
      : count(n), height(h), width(w), channels(c), format(f), data(n * image()) {}

  [[nodiscard]] std::size_t pixel() const { return channels * storage_bytes(format.storage) / 4; }
  [[nodiscard]] std::size_t row() const { return (width + 2 * border) * pixel(); }
  [[nodiscard]] std::size_t image() const { return (height + 2 * border) * row(); }
  [[nodiscard]] Strides strides(std::size_t step = 1) const {
    return {.column = step * pixel(), .row = step * row(), .image = image(), .group = image()};
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
  // The same in groups of `n` images, which lie side by side, pixel by pixel. What the last group lacks is
  // `filling`.
  [[nodiscard]] std::vector<std::uint32_t> interleaved(std::size_t n, std::uint32_t filling) const {
    std::vector<std::uint32_t> all((count + n - 1) / n * n * image(), filling);
    for_each_interleaved(n, [&](std::size_t from, std::size_t to) { all[to] = data[from]; });
    return all;
  }
  // The way back. What the last group lacks must be `filling` still.
  void set_interleaved(std::size_t n, std::vector<std::uint32_t> all, std::uint32_t filling) {
    for_each_interleaved(n, [&](std::size_t to, std::size_t from) {
      data[to] = all[from];
      all[from] = filling;
    });
    CHECK(std::ranges::count(all, filling) == static_cast<std::ptrdiff_t>(all.size()));
  }
  void for_each_interleaved(std::size_t n,
                            const std::function<void(std::size_t, std::size_t)>& function) const {
    for (std::size_t i = 0; i < data.size(); ++i) {
      const std::size_t at_image = i / image(), at_pixel = i % image() / pixel();
      function(i, at_image / n * n * image() + (at_pixel * n + at_image % n) * pixel() + i % pixel());
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

struct Case {
  Precision precision;
  Algorithm algorithm;
  std::size_t images, height, width, inputs, outputs, kernel, stride;
  std::optional<Storage> residual;
  bool relu;
};

MapFormat format_of(Storage storage, float scale) {
  return storage == Storage::u8 ? MapFormat{storage, scale, 1 / scale} : MapFormat{storage};
}

struct Problem {
  Case c;
  Storage storage;  // of the input
  Map input, residual;
  std::vector<float> weight, bias, scales, sum_scales;
  ConvLayer layer;

  explicit Problem(const Case& given)
      : c(given),
        storage(histo::storage_of(c.precision)),
        input(c.images, c.height, c.width, c.inputs, format_of(storage, 0.01F)),
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
  // What the arithmetic multiplies, by its definition: numbers as they are stored, in two parts for bf16x3.
  struct Factor {
    double high, low;
  };
  // Of the input, border included: channel c of the cell at `cell` has the index cell / input.pixel() *
  // inputs + c.
  std::vector<Factor> input_factors() const {
    std::vector<Factor> factors;
    for (std::size_t cell = 0; cell < input.data.size(); cell += input.pixel()) {
      for (std::size_t channel = 0; channel < c.inputs; ++channel) {
        const auto half = [&](std::size_t i) { return static_cast<double>(from_bf16(input.half(cell, i))); };
        switch (storage) {
          case Storage::u8:
            factors.push_back({static_cast<double>(input.byte(cell, channel)), 0});
            break;
          case Storage::bf16:
            factors.push_back({half(channel), 0});
            break;
          case Storage::bf16x3:
            factors.push_back({half(channel), half(c.inputs + channel)});
            break;
          default:
            factors.push_back({static_cast<double>(input.number(cell, channel)), 0});
        }
      }
    }
    return factors;
  }
  // In the order of `weight`.
  std::vector<Factor> weight_factors() const {
    std::vector<Factor> factors;
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const float exact = weight[i], high = from_bf16(to_bf16(exact));
      if (storage == Storage::u8) {
        const float integer = std::nearbyint(exact / scales[i / (weight.size() / c.outputs)]);
        factors.push_back({static_cast<double>(std::clamp(integer, -127.0F, 127.0F)), 0});
      } else if (storage == Storage::f32) {
        factors.push_back({static_cast<double>(exact), 0});
      } else {
        const double low = static_cast<double>(from_bf16(to_bf16(exact - high)));
        factors.push_back({static_cast<double>(high), storage == Storage::bf16x3 ? low : 0});
      }
    }
    return factors;
  }

  // What an output should be before it is stored, and how far from that float32 sums in any order may be.
  std::pair<double, double> expected(const std::vector<Factor>& inputs, const std::vector<Factor>& weights,
                                     std::size_t n, std::size_t y, std::size_t x, std::size_t k) const {
    double sum = 0, size = 0;
    for (std::size_t i = 0; i < c.kernel; ++i) {
      for (std::size_t j = 0; j < c.kernel; ++j) {
        const auto pad = static_cast<std::ptrdiff_t>(c.kernel / 2);
        const std::size_t cell = input.at(n, static_cast<std::ptrdiff_t>(y * c.stride + i) - pad,
                                          static_cast<std::ptrdiff_t>(x * c.stride + j) - pad);
        const Factor* const a = inputs.data() + cell / input.pixel() * c.inputs;
        const Factor* const b = weights.data() + (k * c.inputs * c.kernel + i) * c.kernel + j;
        for (std::size_t channel = 0; channel < c.inputs; ++channel) {
          const auto [w_high, w_low] = b[channel * c.kernel * c.kernel];
          const auto [a_high, a_low] = a[channel];
          const double term = a_high * w_high + (a_low * w_high + a_high * w_low);
          sum += term;
          size += std::abs(term);
        }
      }
    }
    double y_value = sum + static_cast<double>(bias[k]);
    if (storage == Storage::u8) {  // exact: the sum is an integer, and the rest is rounded as in the kernel
      y_value = static_cast<double>(fused(static_cast<float>(sum), sum_scales[k], bias[k]));
    }
    if (c.residual) {
      const float r = residual.number(at(residual, n, y, x), k);
      y_value = storage == Storage::u8 ? static_cast<double>(static_cast<float>(y_value) + r)
                                       : y_value + static_cast<double>(r);
      size += std::abs(static_cast<double>(r));
    }
    // A float32 sum of n terms in any order is off by at most n / 2^24 of the sum of the sizes. On average it
    // is off by far less, and so is Winograd's algorithm, the entries of whose transforms add up to about 10.
    constexpr double unit = 1.0 / (1 << 24);
    const auto terms =
        static_cast<double>(c.inputs * c.kernel * c.kernel * (storage == Storage::bf16x3 ? 3 : 1));
    size += storage == Storage::f32 ? std::abs(static_cast<double>(bias[k])) : std::abs(sum);
    return {c.relu ? std::max(y_value, 0.0) : y_value,
            storage == Storage::u8 ? 0 : unit * size * std::sqrt(terms + 16) * 4};
  }
};

constexpr std::uint32_t canary = 0xC0FFEE77;

const histo::kernels::WinogradKernels* winograd_of(const KernelSet& set, const Case& c) {
  const histo::kernels::ConvKernels& kernels = *set.of[c.precision];
  return c.algorithm == Algorithm::winograd4   ? &kernels.winograd4
         : c.algorithm == Algorithm::winograd2 ? &kernels.winograd2
                                               : nullptr;
}

bool has_kernels(const KernelSet& set, const Case& c) {
  return set.of[c.precision] != nullptr &&
         (c.algorithm == Algorithm::direct || winograd_of(set, c)->input != nullptr);
}

// `cut` tiles at a time, and one block of channels after the other. Either `weight` or `plain_weight` is
// null.
void run_winograd(const KernelSet& set, const Problem& p, const histo::kernels::Epilogue& epilogue,
                  const std::uint32_t* weight, const std::uint32_t* plain_weight, std::size_t cut) {
  const Case& c = p.c;
  const histo::kernels::WinogradKernels& winograd = *winograd_of(set, c);
  const std::size_t m = histo::winograd_tile(c.algorithm), points = (m + 2) * (m + 2);
  const std::size_t block = set.of[c.precision]->block,
                    units = histo::transformed_units(c.precision, c.inputs);
  const histo::kernels::Winograd w{.input = p.input.data.data() + p.input.at(0, -1, -1),
                                   .input_strides = p.input.strides(),
                                   .channels = c.inputs,
                                   .tile_rows = (epilogue.height + m - 1) / m,
                                   .tile_columns = (epilogue.width + m - 1) / m,
                                   .weight = weight,
                                   .plain_weight = plain_weight,
                                   .epilogue = epilogue};
  const std::size_t total = c.images * w.tile_rows * w.tile_columns;
  for (std::size_t begin = 0; begin < total; begin += std::min(cut, total)) {
    const Range tiles{begin, std::min(begin + cut, total)};
    const std::size_t count = tiles.end - begin;
    std::vector<std::uint32_t> transformed(points * count * units);
    std::vector<float> products(points * count * block);
    winograd.input(w, tiles, transformed.data(), count * units);
    for (std::size_t b = 0; b < (c.outputs + block - 1) / block; ++b) {
      winograd.output(w, tiles, {b, b + 1}, transformed.data(), count * units, products.data(),
                      count * block);
    }
  }
}

// With the work cut at `cut` pixels or tiles, and a canary where nothing may be written. `on_the_fly`:
// weights are transformed then.
Map run(const KernelSet& set, const Problem& p, MapFormat format, std::size_t cut, bool on_the_fly = false) {
  const Case& c = p.c;
  const histo::kernels::ConvKernels& kernels = *set.of[c.precision];
  const histo::Packing packing{.layer = p.layer,
                               .algorithm = c.algorithm,
                               .precision = c.precision,
                               .block = kernels.block,
                               .pair = kernels.pair,
                               .run = kernels.run,
                               .lanes = set.lanes,
                               .plain = on_the_fly,
                               .transform = kernels.winograd4.weights};
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
  const histo::kernels::Epilogue epilogue{
      .bias = bias.data(),
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
      .relu = c.relu};
  if (c.algorithm != Algorithm::direct) {
    run_winograd(set, p, epilogue, on_the_fly ? nullptr : weight.data(), on_the_fly ? weight.data() : nullptr,
                 cut);
    return output;
  }
  const auto pad = static_cast<std::ptrdiff_t>(c.kernel / 2);
  const Conv conv{.input = p.input.data.data() + p.input.at(0, -pad, -pad),
                  .input_strides = p.input.strides(c.stride),
                  .window_rows = c.kernel,
                  .window_run = packing.window_run(),
                  .window_row = p.input.row(),
                  .weight = weight.data(),
                  .epilogue = epilogue};
  const std::size_t total = c.images * output.height * output.width;
  for (std::size_t begin = 0; begin < total; begin += std::min(cut, total)) {
    kernels.direct(conv, {begin, std::min(begin + cut, total)}, {0, blocks});
  }
  return output;
}

// The same of interleaved images.
Map run_interleaved(const KernelSet& set, const Problem& p, MapFormat format, std::size_t cut) {
  const Case& c = p.c;
  const std::size_t n = set.interleaved;
  const histo::kernels::ConvKernels& kernels = *set.of[c.precision];
  const histo::Packing packing{.layer = p.layer,
                               .algorithm = c.algorithm,
                               .precision = c.precision,
                               .block = kernels.block,
                               .run = kernels.run};
  std::vector<std::uint32_t> weight(packing.blocks() * packing.block_units());
  for (std::size_t i = 0; i < packing.blocks(); ++i) {
    packing.pack(i, weight.data() + i * packing.block_units());
  }
  Map output = p.empty_output(format);
  std::ranges::fill(output.data, canary);
  const std::vector<std::uint32_t> input = p.input.interleaved(n, canary),
                                   residual = p.residual.interleaved(n, canary);
  std::vector<std::uint32_t> result = output.interleaved(n, canary);
  const auto strides = [n](const Map& map, std::size_t step) {
    return Strides{.column = step * n * map.pixel(),
                   .row = step * n * map.row(),
                   .image = map.pixel(),
                   .group = n * map.image()};
  };
  const auto pad = static_cast<std::ptrdiff_t>(c.kernel / 2);
  const Conv conv{
      .input = input.data() + n * p.input.at(0, -pad, -pad),
      .input_strides = strides(p.input, c.stride),
      .window_rows = c.kernel,
      .window_run = p.input.pixel(),
      .window_row = n * p.input.row(),
      .weight = weight.data(),
      .epilogue = {.bias = p.bias.data(),
                   .scale = p.sum_scales.data(),
                   .channels = c.outputs,
                   .residual = c.residual ? residual.data() + n * p.residual.at(0, 0, 0) : nullptr,
                   .residual_strides = strides(p.residual, 1),
                   .residual_format = p.residual.format,
                   .output = result.data() + n * output.at(0, 0, 0),
                   .output_strides = strides(output, 1),
                   .output_format = format,
                   .height = output.height,
                   .width = output.width,
                   .relu = c.relu},
      .interleaved = n,
      .images = c.images,
      .window_parts = c.kernel,
      .window_part = n * p.input.pixel()};
  const std::size_t total = c.images * output.height * output.width;
  for (std::size_t begin = 0; begin < total; begin += std::min(cut, total)) {
    kernels.direct(conv, {begin, std::min(begin + cut, total)}, {0, packing.blocks()});
  }
  output.set_interleaved(n, std::move(result), canary);
  return output;
}

std::string describe(const Case& c) {
  std::string text = std::string(histo::name(c.precision)) + " " + std::string(histo::name(c.algorithm));
  for (const std::size_t value : {c.images, c.height, c.width, c.inputs, c.outputs, c.kernel, c.stride}) {
    text += " " + std::to_string(value);
  }
  return text + (c.residual ? " residual" : "") + (c.relu ? " relu" : "");
}

// Pixels, or tiles, of a task.
std::vector<std::size_t> cuts_of(const Map& output, const Case& c) {
  if (c.precision == Precision::fp32 || c.algorithm != Algorithm::direct) {
    return {1, 5, 7};
  }
  // The emulations are slow.
  const std::size_t pixels = output.count * output.height * output.width;
  return pixels < 16 ? std::vector<std::size_t>{1, 5} : std::vector<std::size_t>{13, 33};
}

// Sets with equal bits have equal names here. Sums of integers are never rounded.
std::string_view rounding_of(std::string_view set, Precision precision) {
  for (const std::string_view own : {"AMX", "NEON with BF16"}) {
    if (precision != Precision::int8 && set.ends_with(own)) {
      return own;
    }
  }
  return "AVX-512 with BF16";
}

// An emulation alone is tested where it is fast: not on an emulated CPU.
bool worth_checking(const Case& c) {
  return !under_emulation || std::ranges::any_of(kernel_sets(), [&c](const auto& named) {
    return !named.first.starts_with("emulated") && has_kernels(*named.second, c);
  });
}

void check(const Case& c) {
  if (!worth_checking(c)) {
    return;
  }
  const Problem problem(c);
  const Map shape = problem.empty_output({Storage::f32});
  const std::vector<Problem::Factor> inputs = problem.input_factors(), weights = problem.weight_factors();
  std::vector<std::pair<double, double>> expected_values;
  shape.for_each_cell([&](auto n, auto y, auto x, auto k) {
    expected_values.push_back(problem.expected(inputs, weights, n, y, x, k));
  });
  constexpr std::size_t all = std::numeric_limits<std::size_t>::max() / 2;
  std::map<std::string_view, std::vector<std::uint32_t>> by_rounding;
  for (const auto& [set_name, set] : kernel_sets()) {
    if (!has_kernels(*set, c)) {
      continue;
    }
    const auto name = set_name;  // Clang 14 captures no binding
    CAPTURE(name);
    CAPTURE(describe(c));
    const Map exact = run(*set, problem, format_of(Storage::f32, 1), all);
    double worst = 0;
    auto next = expected_values.begin();
    exact.for_each_cell([&](auto n, auto y, auto x, auto k) {
      const auto [value, tolerance] = *next++;
      const double off = std::abs(static_cast<double>(exact.number(Problem::at(exact, n, y, x), k)) - value);
      worst = std::max(worst, tolerance == 0 ? (off == 0 ? 0 : 2) : off / tolerance);
    });
    CHECK(worst <= 1);

    // Every format that the kernels can write holds what float32 holds, rounded once; however the work is
    // cut; and nothing else is written.
    for (const Storage storage : {Storage::f32, Storage::bf16, Storage::bf16x3, Storage::u8}) {
      if (c.precision == Precision::fp32 && storage != Storage::f32) {
        continue;
      }
      const MapFormat format = format_of(storage, 0.03F);
      Map expected = problem.empty_output(format);
      std::ranges::fill(expected.data, canary);
      exact.for_each_cell([&](auto n, auto y, auto x, auto k) {
        expected.set(Problem::at(expected, n, y, x), k, exact.number(Problem::at(exact, n, y, x), k));
      });
      CHECK(run(*set, problem, format, all).data == expected.data);
      if (storage == problem.storage) {
        for (const std::size_t cut : cuts_of(shape, c)) {
          CAPTURE(cut);
          CHECK(run(*set, problem, format, cut).data == expected.data);
        }
        for (const std::size_t cut : {all, std::size_t{48}, std::size_t{13}}) {
          if (set->interleaved > 1) {
            CAPTURE(cut);
            CHECK(run_interleaved(*set, problem, format, cut).data == expected.data);
          }
        }
      }
    }

    // Weights that are transformed on the fly have the bits of those that were transformed before.
    if (c.algorithm == Algorithm::winograd4 && winograd_of(*set, c)->weights != nullptr) {
      const Map expected = run(*set, problem, format_of(problem.storage, 0.03F), all);
      for (std::size_t tiles = 1; tiles <= histo::kernels::most_tiles_on_the_fly; ++tiles) {
        CAPTURE(tiles);
        CHECK(run(*set, problem, expected.format, tiles, true).data == expected.data);
      }
    }

    // The processor's instructions and their emulation give the same bits.
    if (c.precision != Precision::fp32) {
      const auto same = by_rounding.try_emplace(rounding_of(name, c.precision), exact.data).first;
      CHECK(exact.data == same->second);
    }
  }
}

TEST_CASE("convolutions: those of the network, on maps of odd sizes") {
  for (const std::size_t side : {1, 2, 4, 5, 9}) {
    check({Precision::fp32, Algorithm::direct, 2, side, side + 1, 64, 64, 3, 1, Storage::f32, true});
    check({Precision::fp32, Algorithm::direct, 2, side, side, 64, 128, 3, 2, {}, true});
    check({Precision::fp32, Algorithm::direct, 3, side + 2, side, 64, 128, 1, 2, {}, false});
    check({Precision::fp32, Algorithm::direct, 1, side + 6, side, 3, 64, 7, 2, {}, true});
    for (const Algorithm winograd : {Algorithm::winograd2, Algorithm::winograd4}) {
      check({Precision::fp32, winograd, 2, side, side + 1, 64, 64, 3, 1, Storage::f32, true});
      check({Precision::fp32, winograd, 1, side + 3, side, 128, 64, 3, 1, {}, false});
    }
  }
}

TEST_CASE("direct convolutions whose weights and pixels are taken in slices") {
  // 220 pixels
  check({Precision::fp32, Algorithm::direct, 2, 10, 11, 128, 64, 3, 1, Storage::f32, true});
  // rows of 1056 floats
  check({Precision::fp32, Algorithm::direct, 1, 3, 4, 352, 64, 3, 1, Storage::f32, true});
  // a window of one pixel
  check({Precision::fp32, Algorithm::direct, 1, 5, 3, 1056, 64, 1, 2, {}, false});
}

TEST_CASE("maximum pooling, NaN included") {
  constexpr std::size_t channels = 64;
  for (const auto& [set_name, set] : kernel_sets()) {
    const auto name = set_name;  // Clang 14 captures no binding
    CAPTURE(name);
    Map input(1, 7, 9, channels, {Storage::f32}), output(1, 4, 5, channels, {Storage::f32});
    std::mt19937 generator(1);
    std::uniform_real_distribution<float> uniform(0, 1);
    input.for_each_cell([&](auto n, auto y, auto x, auto k) {
      input.set(Problem::at(input, n, y, x), k, uniform(generator));
    });
    input.set(input.at(0, 2, 3), 5, std::numeric_limits<float>::quiet_NaN());
    set->max_pool(reinterpret_cast<const float*>(input.data.data() + input.at(0, -1, -1)), input.row(),
                  output.data.data() + output.at(0, 0, 0), output.row(), output.pixel(), output.format, 4, 5,
                  channels);
    output.for_each_cell([&](auto n, auto y, auto x, auto k) {
      float largest = 0;
      bool nan = false;
      for (std::size_t i = 0; i < 9; ++i) {
        const std::size_t cell = input.at(n, static_cast<std::ptrdiff_t>(2 * y + i / 3) - 1,
                                          static_cast<std::ptrdiff_t>(2 * x + i % 3) - 1);
        nan = nan || std::isnan(input.number(cell, k));
        largest = std::max(largest, input.number(cell, k));
      }
      const float got = output.number(Problem::at(output, n, y, x), k);
      CHECK((nan ? std::isnan(got) : got == largest));
    });
  }
}

TEST_CASE("a NaN goes through ReLU and residual, and reaches no other image") {
  for (const Algorithm algorithm : {Algorithm::direct, Algorithm::winograd2, Algorithm::winograd4}) {
    Problem problem({Precision::fp32, algorithm, 2, 4, 4, 64, 64, 3, 1, Storage::f32, true});
    problem.input.set(problem.input.at(1, 2, 2), 9, std::numeric_limits<float>::quiet_NaN());
    for (const auto& [set_name, set] : kernel_sets()) {
      if (!has_kernels(*set, problem.c)) {
        continue;
      }
      const auto name = set_name;  // Clang 14 captures no binding
      CAPTURE(name);
      const Map output = run(*set, problem, {Storage::f32}, 100);
      output.for_each_cell([&](auto n, auto y, auto x, auto k) {
        const float number = output.number(Problem::at(output, n, y, x), k);
        if (n == 0) {
          CHECK_FALSE(std::isnan(number));
        } else if (y >= 1 && x >= 1) {
          CHECK(std::isnan(number));
        }
      });
    }
  }
}

TEST_CASE("low precision: convolutions of the network, on maps of odd sizes") {
  for (const Precision precision : {Precision::bf16, Precision::bf16x3, Precision::int8}) {
    const Algorithm direct = Algorithm::direct;
    for (const std::size_t side : {1, 5}) {
      check({precision, direct, 2, side, side + 1, 64, 64, 3, 1, Storage::u8, true});
      check({precision, direct, 1, side, side, 64, 128, 3, 2, {}, true});
      check({precision, direct, 3, side + 2, side, 128, 64, 1, 2, Storage::bf16, false});
    }
    check(
        {precision, direct, 1, 2, 37, 64, 64, 3, 1, Storage::bf16x3, true});  // tiles of 16 pixels of one row
    check({precision, direct, 1, 15, 14, 64, 64, 3, 1, Storage::f32, true});  // 210 pixels
    check({precision, direct, 1, 2, 3, 512, 64, 3, 1, {}, false});            // weights in slices
    // More images than are interleaved, and a last group of one, two and three.
    check({precision, direct, 5, 2, 4, 64, 64, 3, 1, Storage::bf16, true});
    check({precision, direct, 6, 3, 5, 64, 128, 3, 2, {}, true});
    check({precision, direct, 7, 4, 4, 64, 64, 1, 2, {}, false});
  }
}

TEST_CASE("low precision: F(4 x 4) in integers equals the definition to the bit, on maps of odd sizes") {
  for (const std::size_t side : {1, 4, 5, 9}) {
    check({Precision::int8, Algorithm::winograd4, 2, side, side + 1, 64, 64, 3, 1, Storage::u8, true});
    check({Precision::int8, Algorithm::winograd4, 1, side + 3, side, 128, 64, 3, 1, {}, false});
  }
}

TEST_CASE("low precision: a multiply-add without an instruction for it is rounded once") {
  constexpr float ulp = std::numeric_limits<float>::epsilon(), above = 1 + ulp, below = 1 - ulp / 2;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(fused(above, above, -1 - 2 * ulp) == ulp * ulp);  // which a rounded product has lost
  CHECK(fused(above, ulp / 2, 1) == above);
  CHECK(fused(-above, ulp / 2, -1) == -above);
  CHECK(fused(below, ulp / 2, 1) == 1);
  // Exact sums beside the middle of two floats, which is what double would round them to.
  CHECK(fused(-0x1.9f4cp+55F, -0x1.f18p+37F, 0x1.d4de38p+9F) == 0x1.93891ap+93F);
  CHECK(fused(-0x1.31p+55F, -0x1.f096p-43F, -0x1.8d248ap-105F) == 0x1.27d15ap+13F);
  CHECK(fused(0x1.31p+55F, -0x1.f096p-43F, 0x1.8d248ap-105F) == -0x1.27d15ap+13F);
  CHECK(fused(0x1p-100F, 0x1p-49F, 0x1p-149F) == 0x1p-148F);  // denormal numbers
  CHECK(fused(2, -3, 6) == 0);
  CHECK(fused(2, 3, infinity) == infinity);
  CHECK(fused(0x1p100F, 0x1p100F, 1) == infinity);
  CHECK(std::isnan(fused(infinity, 0, 1)));
}

TEST_CASE("low precision: numbers are rounded to nearest, ties to even, and bytes saturate") {
  // A convolution of one pixel, 1 x 1, whose weights are zero: the bias comes out as it is.
  for (const auto& [set_name, set] : kernel_sets()) {
    const auto name = set_name;  // Clang 14 captures no binding
    CAPTURE(name);
    if (set->of.int8 == nullptr) {
      continue;
    }
    Problem p({Precision::int8, Algorithm::direct, 1, 1, 1, 64, 64, 1, 1, {}, false});
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
  for (const auto& [set_name, set] : kernel_sets()) {
    const auto name = set_name;  // Clang 14 captures no binding
    CAPTURE(name);
    if (set->split == nullptr) {
      continue;  // float32 alone
    }
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
    for (const Storage storage : {Storage::f32, Storage::bf16, Storage::bf16x3, Storage::u8}) {
      Map expected(1, 3, 4, 64, format_of(storage, 0.01F)), output = expected;
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
                    output.data.data() + output.at(0, 0, 0), output.row(), output.pixel(), output.format, 3,
                    4, 64);
      CHECK(output.data == expected.data);
    }
  }
}

}  // namespace
