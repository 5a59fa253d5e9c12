#include "cpu/record.h"

#include <bit>
#include <cstring>

namespace histo {
namespace {

// Channel `channel` of the pixel at `pixel`.
float number_at(const std::uint32_t* pixel, const MapFormat& format, std::size_t channel,
                std::size_t channels) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(pixel);
  const auto bf16 = [bytes](std::size_t i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes + 2 * i, sizeof bits);
    return std::bit_cast<float>(std::uint32_t{bits} << 16U);
  };
  switch (format.storage) {
    case Storage::u8:
      return format.scale * static_cast<float>(bytes[channel]);
    case Storage::bf16:
      return bf16(channel);
    case Storage::bf16x3:
      return bf16(channel) + bf16(channels + channel);
    case Storage::f32:
      break;
  }
  float number = 0;
  std::memcpy(&number, pixel + channel, sizeof number);
  return number;
}

}  // namespace

Timer::Timer(const RunRecord& record, std::size_t layer)
    : seconds_(record.times == nullptr ? nullptr : &(*record.times)[layer].seconds) {
  if (seconds_ != nullptr) {
    start_ = std::chrono::steady_clock::now();
  }
}

Timer::~Timer() {
  if (seconds_ != nullptr) {
    *seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
}

void record_stage(const RunRecord& record, std::size_t stage, const Map& map, const MapFormat& format,
                  const std::uint32_t* image, const kernels::Strides& strides) {
  if (record.stages == nullptr) {
    return;
  }
  Stage& to = (*record.stages)[stage];
  ++to.shape[0];
  to.shape[1] = map.channels;
  to.shape[2] = map.height;
  to.shape[3] = map.width;
  for (std::size_t c = 0; c < map.channels; ++c) {
    for (std::size_t y = 0; y < map.height; ++y) {
      for (std::size_t x = 0; x < map.width; ++x) {
        to.data.push_back(number_at(image + y * strides.row + x * strides.column, format, c, map.channels));
      }
    }
  }
}

}  // namespace histo
