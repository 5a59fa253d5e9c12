// What the precisions below float32 share, over `Vec`: the formats of maps, and the start and end of a
// convolution's sums. The convolution itself is conv.inl's, with an Arithmetic of the file that includes
// this, or amx.inl's.

#include "conv.inl"
#include "pool.inl"

namespace {

// Vec::lanes channels of the pixel at `p` as floats, from `channel` on; `channels` is the map's.
[[gnu::always_inline]] inline Vec read_numbers(const Unit* p, MapFormat format, std::size_t channel,
                                               std::size_t channels) {
  switch (format.storage) {
    case Storage::bf16:
      return Vec::load(reinterpret_cast<const std::uint16_t*>(p) + channel);
    case Storage::bf16x3: {
      const auto* const parts = reinterpret_cast<const std::uint16_t*>(p) + channel;
      return Vec::load(parts).plus(Vec::load(parts + channels));
    }
    case Storage::u8:
      return Vec::load(reinterpret_cast<const std::uint8_t*>(p) + channel)
          .times(Vec::broadcast(format.scale));
    default:
      return Vec::load(reinterpret_cast<const float*>(p) + channel);
  }
}

[[gnu::always_inline]] inline void write_numbers(Vec y, Unit* p, MapFormat format, std::size_t channel,
                                                 std::size_t channels) {
  switch (format.storage) {
    case Storage::bf16:
      y.store_bf16(reinterpret_cast<std::uint16_t*>(p) + channel);
      break;
    case Storage::bf16x3: {
      auto* const parts = reinterpret_cast<std::uint16_t*>(p) + channel;
      y.store_bf16(parts);
      y.minus(Vec::load(parts)).store_bf16(parts + channels);
      y.store_bf16(parts + 2 * channels);
      break;
    }
    case Storage::u8:
      y.times(Vec::broadcast(format.inverse)).store_u8(reinterpret_cast<std::uint8_t*>(p) + channel);
      break;
    default:
      y.store(reinterpret_cast<float*>(p) + channel);
  }
}

// One pixel's vector of channels, with the bias in it already.
[[gnu::always_inline]] inline void finish(const Epilogue& e, Vec sum, std::size_t channel,
                                          const Unit* residual, Unit* output) {
  if (e.residual != nullptr) {
    sum = sum.plus(read_numbers(residual, e.residual_format, channel, e.channels));
  }
  if (e.relu) {
    sum = sum.relu();
  }
  write_numbers(sum, output, e.output_format, channel, e.channels);
}

// How sums of bf16 products begin and end. A base of each Arithmetic.
struct Bf16Sums {
  using Sum = Vec;
  using Kept = float;

  static Sum start(const Epilogue& e, std::size_t channel) { return Vec::load(e.bias + channel); }
  static Sum resume(const Kept* p) { return Vec::load(p); }
  static void keep(Sum sum, Kept* p) { sum.store(p); }
  static void finish(const Epilogue& e, Sum sum, std::size_t channel, const Unit* residual, Unit* output) {
    kernels::finish(e, sum, channel, residual, output);
  }
};

// The same for integer products.
struct Int8Sums {
  using Sum = IntVec;
  using Kept = std::int32_t;

  static Sum start(const Epilogue&, std::size_t) { return IntVec::zero(); }
  static Sum resume(const Kept* p) { return IntVec::load(p); }
  static void keep(Sum sum, Kept* p) { sum.store(p); }
  static void finish(const Epilogue& e, Sum sum, std::size_t channel, const Unit* residual, Unit* output) {
    const Vec scaled = Vec::load(e.bias + channel).plus_fused(sum.to_float(), Vec::load(e.scale + channel));
    kernels::finish(e, scaled, channel, residual, output);
  }
};

// KernelSet::split. Works in whole vectors, so the last one may overlap the one before it.
void split(const float* x, std::size_t count, std::uint16_t* high, std::uint16_t* low) {
  for (std::size_t i = 0; i < count; i += Vec::lanes) {
    const std::size_t at = count - i < Vec::lanes ? count - Vec::lanes : i;
    const Vec v = Vec::load(x + at);
    v.store_bf16(high + at);
    if (low != nullptr) {
      v.minus(Vec::load(high + at)).store_bf16(low + at);
    }
  }
}

void max_pool(const float* input, std::size_t input_row, Unit* output, std::size_t output_row,
              std::size_t output_column, MapFormat format, std::size_t height, std::size_t width,
              std::size_t channels) {
  pool(input, input_row, output, output_row, output_column, height, width, channels,
       [&](Vec largest, Unit* pixel, std::size_t channel) {
         write_numbers(largest, pixel, format, channel, channels);
       });
}

}  // namespace
