// Direct convolution over `Vec`, for any kernel size, stride and precision, and what it shares with
// winograd.inl.
//
// Images are channels-last with a border of zeros, so one row of a pixel's window, kernel columns times input
// channels, is contiguous: a convolution is, per kernel row, a dot product of `window_run` units with packed
// weights, and neither padding nor the 3 channels of the stem are special cases.
//
// `Arithmetic` says what a unit holds, one float, two bf16 or four bytes, and how a sum grows by the product
// of two units. It is Fp32 of fp32.inl, or a type of the files that include low_precision.inl. It has
//   Units, Sum, Kept            a vector of units; a vector of sums; the number type of a sum in memory
//   broadcast(p), load(p)       one unit in all lanes; a vector of units
//   plus_product(sum, a, b)     the sum after one step
//   start(epilogue, channel)    the sum before the first step
//   keep(sum, p), resume(p)     to memory and back
//   finish(epilogue, sum, channel, residual, output)    from the sum to the output
// On NEON it may also say that an instruction takes more than one unit of a pixel:
//   multiplies_lanes                           one of the four lanes of a register, in place of a broadcast:
//     load_factors(p), plus_lane_product<lane>(sum, factors, b)
//   multiplies_pairs                           two units of two pixels: see neon_pairs.inl
//
// The micro-kernel computes 6 pixels x `conv_vectors` vectors of output channels in registers. A step of
// 6 x 2 multiply-adds on AVX2 needs 6 broadcasts and 2 loads: 8 loads on two ports against 12 multiply-adds
// on two ports. 6 x 2 sums + 2 weights + 1 broadcast are 15 of the 16 registers. AVX-512 and NEON have 32 and
// take 6 x 4. Each pixel has its own pointer, so a group of 6 may run over the ends of rows and images: on a
// 4 x 4 map no lane is wasted.

namespace {

constexpr std::size_t conv_pixels = 6;
constexpr std::size_t conv_vectors = Vec::registers == 32 ? 4 : 2;
constexpr std::size_t conv_block = conv_vectors * Vec::lanes;

template <typename Sum, std::size_t rows>
struct Sums {
  Sum v[rows][conv_vectors];
};

// Weights pass through the second-level cache in slices, and several groups of rows read each slice. If only
// the first group fetched a slice, it would wait for memory while the others left memory idle. So all groups
// prefetch the next slice, each its share: this many vectors in every step, where `done` vectors per step
// have been fetched and `groups` groups are to come.
constexpr std::size_t most_ahead = conv_vectors / 2;
constexpr std::size_t share_ahead(std::size_t done, std::size_t groups) {
  const std::size_t share = (conv_vectors - done + groups - 1) / groups;
  return share < most_ahead ? share : most_ahead;
}

// Four steps, from `lane` on. On NEON a broadcast would take a turn of the multiplying units; a lane costs
// nothing, and one load serves four steps.
template <typename Arithmetic, std::size_t lane, std::size_t rows>
[[gnu::always_inline]] inline void multiply_lanes(const typename Arithmetic::Units (&factors)[rows],
                                                  const Unit* weight,
                                                  Sums<typename Arithmetic::Sum, rows>& sums) {
#pragma GCC unroll 8
  for (std::size_t j = 0; j < conv_vectors; ++j) {
    const typename Arithmetic::Units w = Arithmetic::load(weight + j * Vec::lanes);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < rows; ++i) {
      sums.v[i][j] = Arithmetic::template plus_lane_product<lane>(sums.v[i][j], factors[i], w);
    }
  }
  if constexpr (lane + 1 < 4) {
    multiply_lanes<Arithmetic, lane + 1>(factors, weight + conv_block, sums);
  }
}

// sums[row] += x[row][k] * weight[k] for begin <= k < end. `ahead` vectors of `next` are fetched in every
// step.
template <typename Arithmetic, std::size_t rows, std::size_t ahead>
[[gnu::always_inline]] inline void multiply_units(const Unit* const* x, std::size_t begin, std::size_t end,
                                                  const Unit* weight,
                                                  Sums<typename Arithmetic::Sum, rows>& sums,
                                                  const Unit* next) {
  std::size_t k = begin;
  if constexpr (requires { Arithmetic::multiplies_lanes; }) {
    for (; end - k >= 4; k += 4, weight += 4 * conv_block) {
#pragma GCC unroll 8
      for (std::size_t j = 0; j < ahead; ++j) {
        __builtin_prefetch(next + ((k - begin) * ahead + j * 4) * Vec::lanes, 0, 2);  // a line, four vectors
      }
      typename Arithmetic::Units factors[rows];
#pragma GCC unroll 8
      for (std::size_t i = 0; i < rows; ++i) {
        factors[i] = Arithmetic::load_factors(x[i] + k);
      }
      multiply_lanes<Arithmetic, 0>(factors, weight, sums);
    }
  }
  for (; k < end; ++k, weight += conv_block) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < ahead; ++j) {
      __builtin_prefetch(next + ((k - begin) * ahead + j) * Vec::lanes, 0, 2);
    }
    typename Arithmetic::Units w[conv_vectors];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      w[j] = Arithmetic::load(weight + j * Vec::lanes);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < rows; ++i) {
      const typename Arithmetic::Units value = Arithmetic::broadcast(x[i] + k);
#pragma GCC unroll 8
      for (std::size_t j = 0; j < conv_vectors; ++j) {
        sums.v[i][j] = Arithmetic::plus_product(sums.v[i][j], value, w[j]);
      }
    }
  }
}

template <typename Arithmetic, std::size_t rows, std::size_t ahead>
[[gnu::always_inline]] inline void multiply(const Unit* const* x, std::size_t begin, std::size_t end,
                                            const Unit* weight, Sums<typename Arithmetic::Sum, rows>& sums,
                                            const Unit* next) {
  if constexpr (requires { Arithmetic::multiplies_pairs; }) {
    multiply_pairs<Arithmetic, rows, ahead>(x, begin, end, weight, sums, next);
  } else {
    multiply_units<Arithmetic, rows, ahead>(x, begin, end, weight, sums, next);
  }
}

struct Pixel {
  const Unit* input;
  const Unit* residual;
  Unit* output;
};

// A part of a window's dot product, rows [row, row_end) and units [begin, end) of each, with its weights.
struct Slice {
  std::size_t row, row_end;
  std::size_t begin, end;
  const Unit* weight;
  const Unit* next;  // the weights after these
  bool first, last;
};

// Units of a slice's weights, 64 KiB: all groups but the first find them in the second-level cache, where
// the 1.2 MB of a block of layer 4 would not stay. With 256 KiB that layer takes 1.04 times as long.
constexpr std::size_t slice_weights = std::size_t{1} << 14U;

// Pixels whose sums are kept from slice to slice.
constexpr std::size_t run_pixels = 192;

// `kept`: the sums so far, (pixels, conv_block), unless the slice is the first, and from now on, unless it is
// the last.
template <typename Arithmetic, std::size_t pixels, std::size_t ahead>
void conv_group(const Conv& conv, const Pixel* pixel, const Slice& slice, std::size_t channel,
                typename Arithmetic::Kept* kept) {
  Sums<typename Arithmetic::Sum, pixels> sums;
  const Unit* x[pixels];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
    x[i] = pixel[i].input;
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const std::size_t c = j * Vec::lanes;
      sums.v[i][j] = slice.first ? Arithmetic::start(conv.epilogue, channel + c)
                                 : Arithmetic::resume(kept + i * conv_block + c);
    }
  }
  const Unit* weight = slice.weight;
  const Unit* next = slice.next;
  for (std::size_t r = slice.row; r < slice.row_end; ++r) {
    const std::size_t row = r * conv.window_row, steps = slice.end - slice.begin;
    multiply<Arithmetic, pixels, ahead>(x, row + slice.begin, row + slice.end, weight, sums, next);
    weight += steps * conv_block;
    next += steps * ahead * Vec::lanes;
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const std::size_t c = j * Vec::lanes;
      if (slice.last) {
        Arithmetic::finish(conv.epilogue, sums.v[i][j], channel + c, pixel[i].residual, pixel[i].output);
      } else {
        Arithmetic::keep(sums.v[i][j], kept + i * conv_block + c);
      }
    }
  }
}

// Walks over the output pixels from `first` on, in the order of Conv::interleaved.
class PixelWalk {
 public:
  PixelWalk(const Conv& conv, std::size_t first) : conv_(conv) {
    const std::size_t width = conv.epilogue.width, height = conv.epilogue.height;
    enter_group(first / (conv.interleaved * height * width));
    const std::size_t in_group = first % (conv.interleaved * height * width);
    image_ = in_group % images_;
    enter_row(in_group / images_ / width, in_group / images_ % width);
  }

  Pixel next() {
    const Epilogue& e = conv_.epilogue;
    if (x_ == e.width) {
      if (y_ + 1 == e.height) {
        enter_group(group_ + 1);
        enter_row(0, 0);
      } else {
        enter_row(y_ + 1, 0);
      }
    }
    const Pixel pixel{place_.input + image_ * conv_.input_strides.image,
                      place_.residual + image_ * e.residual_strides.image,
                      place_.output + image_ * e.output_strides.image};
    if (++image_ == images_) {
      image_ = 0;
      ++x_;
      place_.input += conv_.input_strides.column;
      place_.residual += e.residual_strides.column;
      place_.output += e.output_strides.column;
    }
    return pixel;
  }

 private:
  void enter_group(std::size_t group) {
    group_ = group;
    const std::size_t left = conv_.interleaved == 1 ? 1 : conv_.images - group * conv_.interleaved;
    images_ = left < conv_.interleaved ? left : conv_.interleaved;
  }
  void enter_row(std::size_t y, std::size_t x) {
    y_ = y;
    x_ = x;
    const Epilogue& e = conv_.epilogue;
    place_ = {conv_.input + at(conv_.input_strides),
              e.residual == nullptr ? e.output : e.residual + at(e.residual_strides),
              e.output + at(e.output_strides)};
  }
  [[nodiscard]] std::size_t at(const Strides& s) const {
    return group_ * s.group + y_ * s.row + x_ * s.column;
  }

  const Conv& conv_;
  std::size_t group_, images_;  // the group's number, and how many images it has
  std::size_t y_, x_;
  std::size_t image_;  // of the group
  Pixel place_;        // (y, x) of image 0 of the group
};

// All pixels, at most run_pixels of them, of one block of channels.
template <typename Arithmetic>
void conv_slice(const Conv& c, Range pixels, const Slice& slice, std::size_t channel,
                typename Arithmetic::Kept* kept) {
  using Group = void (*)(const Conv&, const Pixel*, const Slice&, std::size_t, typename Arithmetic::Kept*);
  static constexpr Group groups[][conv_pixels] = {
      {conv_group<Arithmetic, 1, 0>, conv_group<Arithmetic, 2, 0>, conv_group<Arithmetic, 3, 0>,
       conv_group<Arithmetic, 4, 0>, conv_group<Arithmetic, 5, 0>, conv_group<Arithmetic, 6, 0>},
      {conv_group<Arithmetic, 1, 1>, conv_group<Arithmetic, 2, 1>, conv_group<Arithmetic, 3, 1>,
       conv_group<Arithmetic, 4, 1>, conv_group<Arithmetic, 5, 1>, conv_group<Arithmetic, 6, 1>},
      {conv_group<Arithmetic, 1, most_ahead>, conv_group<Arithmetic, 2, most_ahead>,
       conv_group<Arithmetic, 3, most_ahead>, conv_group<Arithmetic, 4, most_ahead>,
       conv_group<Arithmetic, 5, most_ahead>, conv_group<Arithmetic, 6, most_ahead>}};
  const std::size_t steps = (slice.row_end - slice.row) * (slice.end - slice.begin);
  PixelWalk walk(c, pixels.begin);
  Slice fetching = slice;
  std::size_t fetched = 0;
  for (std::size_t p = pixels.begin; p < pixels.end;) {
    const std::size_t done = p - pixels.begin;
    Pixel group[conv_pixels];
    std::size_t count = 0;
    for (; count < conv_pixels && p < pixels.end; ++count, ++p) {
      group[count] = walk.next();
    }
    const std::size_t ahead = share_ahead(fetched, 1 + (pixels.end - p + conv_pixels - 1) / conv_pixels);
    groups[ahead][count - 1](c, group, fetching, channel, kept + done * conv_block);
    fetched += ahead;
    fetching.next = slice.next + fetched * steps * Vec::lanes;
  }
}

template <typename Arithmetic>
void conv(const Conv& c, Range pixels, Range blocks) {
  // A slice is the whole window, or some of the units of one of its rows.
  const bool whole = c.window_rows * c.window_run * conv_block <= slice_weights;
  const std::size_t rows = whole ? c.window_rows : 1;
  const std::size_t cuts = whole ? 1 : (c.window_run * conv_block + slice_weights - 1) / slice_weights;
  std::size_t most = (c.window_run + cuts - 1) / cuts;
  if constexpr (requires { Arithmetic::multiplies_pairs; }) {
    most = (most + 3) / 4 * 4;
  }
  alignas(64) typename Arithmetic::Kept kept[run_pixels * conv_block];
  for (std::size_t block = blocks.begin; block < blocks.end; ++block) {
    for (std::size_t p = pixels.begin; p < pixels.end; p += run_pixels) {
      const Range run{p, pixels.end - p < run_pixels ? pixels.end : p + run_pixels};
      const Unit* weight = c.weight + block * c.window_rows * c.window_run * conv_block;
      for (std::size_t row = 0; row < c.window_rows; row += rows) {
        for (std::size_t begin = 0; begin < c.window_run; begin += most) {
          const std::size_t end = c.window_run - begin < most ? c.window_run : begin + most;
          const Unit* const next = weight + rows * (end - begin) * conv_block;
          const bool first = row == 0 && begin == 0;
          const bool last = row + rows == c.window_rows && end == c.window_run;
          conv_slice<Arithmetic>(c, run,
                                 {row, row + rows, begin, end, weight, last ? weight : next, first, last},
                                 block * conv_block, kept);
          weight = next;
        }
      }
    }
  }
}

}  // namespace
