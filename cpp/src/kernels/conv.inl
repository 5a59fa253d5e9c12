// Direct convolution over `Vec`, for any kernel size and stride, and what it shares with winograd.inl.
//
// Images are channels-last with a border of zeros, so one row of a pixel's window, kernel columns times input
// channels, is contiguous: a convolution is, per kernel row, a dot product of `window_run` floats with packed
// weights, and neither padding nor the 3 channels of the stem are special cases.
//
// The micro-kernel computes 6 pixels x `conv_vectors` vectors of output channels in registers. A step of
// 6 x 2 multiply-adds on AVX2 needs 6 broadcasts and 2 loads: 8 loads on two ports against 12 multiply-adds
// on two ports. 6 x 2 sums + 2 weights + 1 broadcast are 15 of the 16 registers. AVX-512 has 32 and takes 6
// x 4. Each pixel has its own pointer, so a group of 6 may run over the ends of rows and images: on a 4 x 4
// map nothing is wasted.

namespace {

constexpr std::size_t conv_pixels = 6;
constexpr std::size_t conv_vectors = Vec::registers == 32 ? 4 : 2;
constexpr std::size_t conv_block = conv_vectors * Vec::lanes;

template <std::size_t rows>
struct Sums {
  Vec v[rows][conv_vectors];
};

// sums[row] += x[row][k] * weight[k] for begin <= k < end. The first `ahead` vectors of next[k - begin] are
// fetched meanwhile.
template <std::size_t rows, std::size_t ahead = 0>
[[gnu::always_inline]] inline void multiply(const float* const* x, std::size_t begin, std::size_t end,
                                            const float* weight, Sums<rows>& sums,
                                            const float* next = nullptr) {
  for (std::size_t k = begin; k < end; ++k, weight += conv_block) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < ahead; ++j) {
      __builtin_prefetch(next + (k - begin) * conv_block + j * Vec::lanes, 0, 2);
    }
    Vec w[conv_vectors];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      w[j] = Vec::load(weight + j * Vec::lanes);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < rows; ++i) {
      const Vec value = Vec::broadcast(x[i][k]);
#pragma GCC unroll 8
      for (std::size_t j = 0; j < conv_vectors; ++j) {
        sums.v[i][j] = sums.v[i][j].plus_product(value, w[j]);
      }
    }
  }
}

// One pixel's vector of channels, with the bias in it already.
[[gnu::always_inline]] inline void finish(const Epilogue& e, Vec sum, const float* residual, float* output) {
  if (e.residual != nullptr) {
    sum = sum.plus(Vec::load(residual));
  }
  if (e.relu) {
    sum = sum.relu();
  }
  sum.store(output);
}

struct Pixel {
  const float* input;
  const float* residual;
  float* output;
};

template <std::size_t pixels>
void conv_group(const Conv& conv, const Pixel* pixel, const float* weight, std::size_t channel) {
  Sums<pixels> sums;
  const float* x[pixels];
#pragma GCC unroll 8
  for (std::size_t j = 0; j < conv_vectors; ++j) {
    const Vec bias = Vec::load(conv.epilogue.bias + channel + j * Vec::lanes);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < pixels; ++i) {
      sums.v[i][j] = bias;
    }
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
    x[i] = pixel[i].input;
  }
  for (std::size_t r = 0; r < conv.window_rows; ++r) {
    const std::size_t begin = r * conv.window_row;
    multiply<pixels>(x, begin, begin + conv.window_run, weight + r * conv.window_run * conv_block, sums);
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const std::size_t c = channel + j * Vec::lanes;
      finish(conv.epilogue, sums.v[i][j], pixel[i].residual + c, pixel[i].output + c);
    }
  }
}

void conv(const Conv& c, Range pixels, Range blocks) {
  using Group = void (*)(const Conv&, const Pixel*, const float*, std::size_t);
  static constexpr Group groups[conv_pixels] = {conv_group<1>, conv_group<2>, conv_group<3>,
                                                conv_group<4>, conv_group<5>, conv_group<6>};
  const Epilogue& e = c.epilogue;
  for (std::size_t block = blocks.begin; block < blocks.end; ++block) {
    const float* const weight = c.weight + block * c.window_rows * c.window_run * conv_block;
    std::size_t x = pixels.begin % e.width;
    std::size_t y = pixels.begin / e.width % e.height;
    std::size_t image = pixels.begin / e.width / e.height;
    const auto at = [&](const Strides& s) { return image * s.image + y * s.row + x * s.column; };
    for (std::size_t p = pixels.begin; p < pixels.end;) {
      Pixel group[conv_pixels];
      std::size_t count = 0;
      for (; count < conv_pixels && p < pixels.end; ++count, ++p) {
        group[count] = {c.input + at(c.input_strides),
                        e.residual == nullptr ? e.output : e.residual + at(e.residual_strides),
                        e.output + at(e.output_strides)};
        if (++x == e.width) {
          x = 0;
          if (++y == e.height) {
            y = 0;
            ++image;
          }
        }
      }
      groups[count - 1](c, group, weight, block * conv_block);
    }
  }
}

}  // namespace
