// How a feature map stores its numbers.
#pragma once

#include <cstddef>

namespace histo {

// The number type of a channels-last map, whose memory is counted in units of 32 bits.
enum class Storage : int {
  f32,     // one channel per unit
  bf16,    // two channels per unit
  bf16x3,  // Each number is the sum of two bf16 parts, high and low, exact to 16 bits. A pixel has all high
           // parts, then all low parts, then all high parts again: its dot product with the (high, high, low)
           // parts of weights is the sum of the three products that count.
  u8,      // four channels per unit; a byte times MapFormat::scale is the number
};

struct MapFormat {
  Storage storage = Storage::f32;
  float scale = 1, inverse = 1;  // u8 only: the scale and its reciprocal
};

// Units of 32 bits of one pixel; `channels` is a multiple of four.
constexpr std::size_t units_of_pixel(Storage storage, std::size_t channels) {
  switch (storage) {
    case Storage::bf16:
      return channels / 2;
    case Storage::bf16x3:
      return channels / 2 * 3;
    case Storage::u8:
      return channels / 4;
    default:
      return channels;
  }
}

}  // namespace histo
