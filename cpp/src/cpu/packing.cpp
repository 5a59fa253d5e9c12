#include "cpu/packing.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

namespace histo {
namespace {

// G of Winograd's algorithm, whose other matrices are in kernels/winograd.inl: row i is (1, p, p^2) / N for
// the point p, N being the product of its distances to the other finite points; the last row is for infinity.
template <std::size_t points>
using Matrix = std::array<std::array<double, 3>, points>;

constexpr Matrix<4> g2 = {{{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}}};

constexpr Matrix<6> make_g4() {
  constexpr double a = 0.625, b = 1.5;
  constexpr std::array<double, 5> finite = {0, a, -a, b, -b};
  Matrix<6> g{};
  for (std::size_t i = 0; i < finite.size(); ++i) {
    double n = 1;
    for (std::size_t j = 0; j < finite.size(); ++j) {
      n *= i == j ? 1 : finite[i] - finite[j];
    }
    g[i] = {1 / n, finite[i] / n, finite[i] * finite[i] / n};
  }
  g[5] = {0, 0, 1};
  return g;
}

constexpr Matrix<6> g4 = make_g4();

// For the points 0, +-1, +-2 and infinity, without their denominators: see F4Whole of kernels/avx512_dot.cpp.
constexpr Matrix<6> g4_whole = {{{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 1}}};

// G w G^T of a 3 x 3 kernel, in double; point i goes to out[i * step].
template <std::size_t points>
void transform(const Matrix<points>& g, const float* w, float* out, std::size_t step) {
  std::array<std::array<double, 3>, points> rows_done{};
  for (std::size_t i = 0; i < points; ++i) {
    for (std::size_t x = 0; x < 3; ++x) {
      for (std::size_t y = 0; y < 3; ++y) {
        rows_done[i][x] += g[i][y] * static_cast<double>(w[y * 3 + x]);
      }
    }
  }
  for (std::size_t i = 0; i < points; ++i) {
    for (std::size_t j = 0; j < points; ++j) {
      double sum = 0;
      for (std::size_t x = 0; x < 3; ++x) {
        sum += rows_done[i][x] * g[j][x];
      }
      out[(i * points + j) * step] = static_cast<float>(sum);
    }
  }
}

// The nearest bf16, of two the even one.
std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U);
}

float from_bf16(std::uint16_t x) { return std::bit_cast<float>(std::uint32_t{x} << 16U); }

// A weight of int8. Of two nearest whole numbers the even one, as the processor's rounding is set.
float to_whole(float x) { return std::clamp(std::nearbyint(x), -127.0F, 127.0F); }

std::size_t weights_per_pair(const ConvLayer& layer, Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::winograd4:
      return 36;
    case Algorithm::winograd2:
      return 16;
    case Algorithm::direct:
      break;
  }
  return layer.kernel * layer.kernel;
}

}  // namespace

std::size_t packed_block_size(const ConvLayer& layer, Algorithm algorithm, std::size_t block) {
  return weights_per_pair(layer, algorithm) * layer.inputs * block;
}

void pack_weight(const ConvLayer& layer, Algorithm algorithm, std::size_t block, std::size_t index,
                 float* out) {
  const std::size_t area = layer.kernel * layer.kernel;
  const std::size_t step = layer.inputs * block;  // from one cell of the kernel, or point, to the next
  const std::size_t channels = std::min(block, layer.outputs - index * block);
  // In this order a cache line of `out` is complete before the next is begun.
  for (std::size_t c = 0; c < layer.inputs; ++c) {
    for (std::size_t k = 0; k < channels; ++k) {
      const float* const w = layer.weight.data() + ((index * block + k) * layer.inputs + c) * area;
      float* const to = out + c * block + k;
      switch (algorithm) {
        case Algorithm::direct:
          for (std::size_t cell = 0; cell < area; ++cell) {
            to[cell * step] = w[cell];
          }
          break;
        case Algorithm::winograd2:
          transform(g2, w, to, step);
          break;
        case Algorithm::winograd4:
          transform(g4, w, to, step);
          break;
      }
    }
  }
}

std::size_t dot_run(const ConvLayer& layer, kernels::Cell cell) {
  const std::size_t weights = layer.kernel * layer.inputs;
  switch (cell) {
    case kernels::Cell::u8:
      return (weights + 3) / 4;
    case kernels::Cell::bf16x3:
      return (3 * weights + 1) / 2;
    default:
      return (weights + 1) / 2;
  }
}

std::size_t packed_dot_size(const ConvLayer& layer, kernels::Cell cell, std::size_t block) {
  return layer.kernel * dot_run(layer, cell) * block;
}

void pack_dot_weight(const ConvLayer& layer, kernels::Cell cell, std::size_t block, std::size_t index,
                     std::uint32_t* out) {
  const std::size_t run = dot_run(layer, cell), channels = std::min(block, layer.outputs - index * block);
  const std::size_t parts = cell == kernels::Cell::bf16x3 ? 3 : 1;
  const std::size_t per_unit = cell == kernels::Cell::u8 ? 4 : 2;
  for (std::size_t k = 0; k < channels; ++k) {
    const std::size_t output = index * block + k;
    for (std::size_t row = 0; row < layer.kernel; ++row) {
      std::size_t at = 0;  // in the row of the window
      for (std::size_t column = 0; column < layer.kernel; ++column) {
        for (std::size_t part = 0; part < parts; ++part) {
          for (std::size_t c = 0; c < layer.inputs; ++c, ++at) {
            const float w =
                layer.weight[((output * layer.inputs + c) * layer.kernel + row) * layer.kernel + column];
            const std::uint16_t high = to_bf16(w);
            const std::uint32_t bits = cell == kernels::Cell::u8
                                           ? static_cast<std::uint8_t>(static_cast<std::int8_t>(
                                                 to_whole(w / layer.scales->weight[output])))
                                       : part < 2 ? high
                                                  : to_bf16(w - from_bf16(high));
            out[(row * run + at / per_unit) * block + k] |= bits << at % per_unit * (32 / per_unit);
          }
        }
      }
    }
  }
}

std::size_t packed_dot_winograd_size(const ConvLayer& layer, Algorithm algorithm, std::size_t block) {
  return packed_block_size(layer, algorithm, block) / 2;
}

void pack_dot_winograd(const ConvLayer& layer, Algorithm algorithm, std::size_t block, std::size_t index,
                       std::uint32_t* out) {
  const std::size_t points = algorithm == Algorithm::winograd4 ? 36 : 16;
  const std::size_t channels = std::min(block, layer.outputs - index * block);
  const std::size_t step = layer.inputs / 2 * block;  // from one point to the next
  std::array<float, 9> w{};
  std::array<float, 36> transformed{};
  for (std::size_t c = 0; c < layer.inputs; ++c) {
    for (std::size_t k = 0; k < channels; ++k) {
      const std::size_t output = index * block + k;
      std::ranges::copy(layer.weight.subspan((output * layer.inputs + c) * 9, 9), w.begin());
      if (algorithm == Algorithm::winograd4) {
        for (float& value : w) {
          value = to_whole(value / layer.scales->weight[output]);
        }
        transform(g4_whole, w.data(), transformed.data(), 1);
      } else {
        transform(g2, w.data(), transformed.data(), 1);
      }
      for (std::size_t point = 0; point < points; ++point) {
        const std::uint16_t bits =
            algorithm == Algorithm::winograd4
                ? static_cast<std::uint16_t>(static_cast<std::int16_t>(transformed[point]))
                : to_bf16(transformed[point]);
        out[point * step + c / 2 * block + k] |= std::uint32_t{bits} << c % 2 * 16;
      }
    }
  }
}

bool fits_winograd(const ConvLayer& layer) {
  constexpr float limit = (1 << 25) / 255;  // of the sum of all weights of one sign
  const std::size_t window = layer.weight.size() / layer.outputs;
  for (std::size_t output = 0; output < layer.outputs; ++output) {
    float above = 0, below = 0;  // exact: whole numbers below 2^24
    for (std::size_t i = 0; i < window; ++i) {
      const float w = to_whole(layer.weight[output * window + i] / layer.scales->weight[output]);
      (w > 0 ? above : below) += w;
    }
    if (std::max(above, -below) >= limit) {
      return false;
    }
  }
  return true;
}

}  // namespace histo
