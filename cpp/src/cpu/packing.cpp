#include "cpu/packing.h"

#include <algorithm>
#include <array>
#include <bit>
#include <span>
#include <vector>

namespace histo {
namespace {

// --- Winograd's transform of weights -----------------------------------------------------------------------

// G of F(2 x 2), whose other matrices are in kernels/winograd.inl.
constexpr std::array<std::array<double, 3>, 4> g2 = {
    {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}}};

// G w G^T of a 3 x 3 kernel, in double.
std::array<float, 16> transform(std::span<const float> w) {
  constexpr std::size_t points = g2.size();
  std::array<std::array<double, 3>, points> rows_done{};
  for (std::size_t i = 0; i < points; ++i) {
    for (std::size_t x = 0; x < 3; ++x) {
      for (std::size_t y = 0; y < 3; ++y) {
        rows_done[i][x] += g2[i][y] * static_cast<double>(w[y * 3 + x]);
      }
    }
  }
  std::array<float, points * points> result{};
  for (std::size_t i = 0; i < points; ++i) {
    for (std::size_t j = 0; j < points; ++j) {
      double sum = 0;
      for (std::size_t x = 0; x < 3; ++x) {
        sum += rows_done[i][x] * g2[j][x];
      }
      result[i * points + j] = static_cast<float>(sum);
    }
  }
  return result;
}

// --- how a number is stored --------------------------------------------------------------------------------

// The nearest bf16, of two the even one.
std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U);
}

float from_bf16(std::uint16_t x) { return std::bit_cast<float>(std::uint32_t{x} << 16U); }

// An Encoding says how many numbers share a unit, in how many parts a weight is multiplied, and what the bits
// of a part are.
struct Float32 {
  static constexpr std::size_t per_unit = 1, parts = 1;
  static std::uint32_t bits(float w, std::size_t) { return std::bit_cast<std::uint32_t>(w); }
};

struct Bf16 {
  static constexpr std::size_t per_unit = 2, parts = 1;
  static std::uint32_t bits(float w, std::size_t) { return to_bf16(w); }
};

// High, high and low, for the (high, low, high) parts of a map: see Storage::bf16x3.
struct Bf16x3 {
  static constexpr std::size_t per_unit = 2, parts = 3;
  static std::uint32_t bits(float w, std::size_t part) {
    const std::uint16_t high = to_bf16(w);
    return part < 2 ? high : to_bf16(w - from_bf16(high));
  }
};

// Of integers.
struct Int8 {
  static constexpr std::size_t per_unit = 4, parts = 1;
  static std::uint32_t bits(float w, std::size_t) {
    return static_cast<std::uint8_t>(static_cast<std::int8_t>(w));
  }
};

// Number `i` of output channel `k` of the block, in the run of units that begins at `run`: (units, block), or
// (units / 2, block, 2) in pairs.
template <typename Encoding>
void put(const Packing& p, std::uint32_t* run, std::size_t i, std::size_t k, std::uint32_t bits) {
  const std::size_t unit = i / Encoding::per_unit;
  const std::size_t at = p.pair ? unit / 2 * 2 * p.block + 2 * k + unit % 2 : unit * p.block + k;
  if constexpr (Encoding::per_unit == 1) {
    run[at] = bits;
  } else {
    run[at] |= bits << i % Encoding::per_unit * (32 / Encoding::per_unit);
  }
}

// --- packing -----------------------------------------------------------------------------------------------

// Calls function(input channel, channel of the block, weights of their kernel) for all pairs, in an order in
// which a cache line of the packed weights is complete before the next is begun.
template <typename Function>
void for_each_kernel(const Packing& p, std::size_t index, const Function& function) {
  const ConvLayer& layer = p.layer;
  const std::size_t area = layer.kernel * layer.kernel;
  const std::size_t channels = std::min(p.block, layer.outputs - index * p.block);
  std::vector<float> integers(area);
  for (std::size_t c = 0; c < layer.inputs; ++c) {
    for (std::size_t k = 0; k < channels; ++k) {
      const std::size_t output = index * p.block + k;
      std::span<const float> weight = layer.weight.subspan((output * layer.inputs + c) * area, area);
      if (p.precision == Precision::int8) {
        for (std::size_t i = 0; i < area; ++i) {
          integers[i] = layer.integer_weight(output, c * area + i);
        }
        weight = integers;
      }
      function(c, k, weight);
    }
  }
}

// (window_rows, window_run, block), a row of the window being (kernel columns, parts, input channels).
template <typename Encoding>
void pack_direct(const Packing& p, std::size_t index, std::uint32_t* out) {
  const std::size_t kernel = p.layer.kernel, run = p.window_run();
  for_each_kernel(p, index, [&](std::size_t c, std::size_t k, std::span<const float> weight) {
    for (std::size_t row = 0; row < kernel; ++row) {
      for (std::size_t column = 0; column < kernel; ++column) {
        for (std::size_t part = 0; part < Encoding::parts; ++part) {
          put<Encoding>(p, out + row * run * p.block, (column * Encoding::parts + part) * p.layer.inputs + c,
                        k, Encoding::bits(weight[row * kernel + column], part));
        }
      }
    }
  });
}

// (points, units of the input channels, block).
template <typename Encoding>
void pack_winograd2(const Packing& p, std::size_t index, std::uint32_t* out) {
  const std::size_t point_units = transformed_units(p.precision, p.layer.inputs) * p.block;
  for_each_kernel(p, index, [&](std::size_t c, std::size_t k, std::span<const float> weight) {
    const auto transformed = transform(weight);
    for (std::size_t point = 0; point < transformed.size(); ++point) {
      put<Encoding>(p, out + point * point_units, c, k, Encoding::bits(transformed[point], 0));
    }
  });
}

// As kernels::Winograd::plain_weight: (vectors, units of the transformed input channels, 9, lanes, channels
// of a unit).
template <typename Encoding>
void pack_plain(const Packing& p, std::size_t index, std::uint32_t* out) {
  const std::size_t units = transformed_units(p.precision, p.layer.inputs), of_unit = p.layer.inputs / units;
  for_each_kernel(p, index, [&](std::size_t c, std::size_t k, std::span<const float> weight) {
    const std::size_t kernel = k / p.lanes * units + c / of_unit;
    for (std::size_t tap = 0; tap < weight.size(); ++tap) {
      const std::size_t i = ((kernel * weight.size() + tap) * p.lanes + k % p.lanes) * of_unit + c % of_unit;
      out[i / Encoding::per_unit] |= Encoding::bits(weight[tap], 0)
                                     << i % Encoding::per_unit * (32 / Encoding::per_unit);
    }
  });
}

// The same of F(4 x 4), by the kernels.
template <typename Encoding>
void pack_winograd4(const Packing& p, std::size_t index, std::uint32_t* out) {
  std::vector<std::uint32_t> plain(p.plain_units());
  pack_plain<Encoding>(p, index, plain.data());
  const std::size_t units = transformed_units(p.precision, p.layer.inputs);
  p.transform(plain.data(), units, out);
}

PackedLayer allocate(const Packing& p) {
  const ConvLayer& layer = p.layer;
  PackedLayer packed{.weight = AlignedBuffer::uninitialised(p.blocks() * p.block_units()),
                     .bias = AlignedBuffer(p.blocks() * p.block),
                     .scale = {},
                     .blocks = p.blocks()};
  std::ranges::copy(layer.bias, packed.bias.data());
  if (p.precision == Precision::int8) {
    packed.scale = AlignedBuffer(p.blocks() * p.block);
    std::ranges::transform(layer.scales->weight, packed.scale.data(),
                           [&layer](float scale) { return layer.scales->input * scale; });
  }
  return packed;
}

}  // namespace

std::size_t Packing::window_run() const {
  const std::size_t numbers = layer.kernel * layer.inputs;
  std::size_t units = numbers;
  switch (precision) {
    case Precision::bf16:
      units = (numbers + 1) / 2;
      break;
    case Precision::bf16x3:
      units = (3 * numbers + 1) / 2;
      break;
    case Precision::int8:
      units = (numbers + 3) / 4;
      break;
    case Precision::fp32:
      break;
  }
  return (units + run - 1) / run * run;
}

std::size_t transformed_units(Precision precision, std::size_t channels) {
  return precision == Precision::fp32 ? channels : channels / 2;  // bf16, or the integers of 16 bits of int8
}

std::size_t Packing::plain_units() const {
  return 9 * layer.inputs * block / (precision == Precision::int8 ? Int8::per_unit : Float32::per_unit);
}

std::size_t Packing::block_units() const {
  if (algorithm == Algorithm::direct) {
    return layer.kernel * window_run() * block;
  }
  return plain ? plain_units() : transformed_units();
}

std::size_t Packing::transformed_units() const {
  const std::size_t points = algorithm == Algorithm::winograd4 ? 36 : 16;
  return points * histo::transformed_units(precision, layer.inputs) * block;
}

void Packing::pack(std::size_t index, std::uint32_t* out) const {
  std::fill_n(out, block_units(), 0U);  // numbers that share a unit are added to it
  const bool direct = algorithm == Algorithm::direct, two = algorithm == Algorithm::winograd2;
  switch (precision) {
    case Precision::fp32:
      return direct  ? pack_direct<Float32>(*this, index, out)
             : two   ? pack_winograd2<Float32>(*this, index, out)
             : plain ? pack_plain<Float32>(*this, index, out)
                     : pack_winograd4<Float32>(*this, index, out);
    case Precision::bf16:
      return direct ? pack_direct<Bf16>(*this, index, out) : pack_winograd2<Bf16>(*this, index, out);
    case Precision::bf16x3:
      return pack_direct<Bf16x3>(*this, index, out);
    case Precision::int8:
      return direct  ? pack_direct<Int8>(*this, index, out)
             : plain ? pack_plain<Int8>(*this, index, out)
                     : pack_winograd4<Int8>(*this, index, out);
  }
}

std::vector<PackedLayer> pack(std::span<const Packing> packings, ThreadPool& threads) {
  struct Task {
    std::size_t layer, block;
  };
  std::vector<PackedLayer> layers;
  std::vector<Task> tasks;
  for (const Packing& packing : packings) {
    layers.push_back(allocate(packing));
    for (std::size_t block = 0; block < packing.blocks(); ++block) {
      tasks.push_back({layers.size() - 1, block});
    }
  }
  threads.for_each(tasks.size(), [&](std::size_t i) {
    const Packing& packing = packings[tasks[i].layer];
    packing.pack(tasks[i].block,
                 layers[tasks[i].layer].weight.units() + tasks[i].block * packing.block_units());
  });
  return layers;
}

AlignedBuffer transform(const Packing& packing, const PackedLayer& packed, ThreadPool& threads) {
  AlignedBuffer weight = AlignedBuffer::uninitialised(packed.blocks * packing.transformed_units());
  const std::size_t units = transformed_units(packing.precision, packing.layer.inputs);
  threads.for_each(packed.blocks, [&](std::size_t block) {
    packing.transform(packed.weight.units() + block * packing.block_units(), units,
                      weight.units() + block * packing.transformed_units());
  });
  return weight;
}

}  // namespace histo
