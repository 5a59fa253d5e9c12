// Direct convolution over `Vec`, for any kernel size, stride and precision, and what it shares with
// winograd.inl.
//
// Images are channels-last with a border of zeros, so one row of a pixel's window, kernel columns times input
// channels, is contiguous: a convolution is, per kernel row, a dot product of `window_run` units with packed
// weights, and neither padding nor the 3 channels of the stem are special cases.
//
// What a unit is, one float, two bf16 or four bytes, and how a sum grows by the product of two, is said by
// `Dot`: Fp32Dot below, and those of dot.inl and of the files that include it. All are 32 bits wide, so one
// broadcast and one vector of weights serve every precision alike.
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

template <typename Sum, std::size_t rows>
struct Sums {
  Sum v[rows][conv_vectors];
};

// Weights pass through the second-level cache in pieces, each of which several groups of rows read; only the
// first would wait for memory, and the others leave it idle. So all groups fetch the next piece meanwhile,
// each its share: this many vectors in every step, of which `done` have been fetched and `groups` are to
// come.
constexpr std::size_t most_ahead = conv_vectors / 2;
constexpr std::size_t share_ahead(std::size_t done, std::size_t groups) {
  const std::size_t share = (conv_vectors - done + groups - 1) / groups;
  return share < most_ahead ? share : most_ahead;
}

// sums[row] += x[row][k] * weight[k] for begin <= k < end. `ahead` vectors of `next` are fetched in every
// step.
template <typename Dot, std::size_t rows, std::size_t ahead = 0>
[[gnu::always_inline]] inline void multiply(const typename Dot::Unit* const* x, std::size_t begin,
                                            std::size_t end, const typename Dot::Unit* weight,
                                            Sums<typename Dot::Sum, rows>& sums,
                                            const typename Dot::Unit* next = nullptr) {
  for (std::size_t k = begin; k < end; ++k, weight += conv_block) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < ahead; ++j) {
      __builtin_prefetch(next + ((k - begin) * ahead + j) * Vec::lanes, 0, 2);
    }
    typename Dot::Units w[conv_vectors];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      w[j] = Dot::load(weight + j * Vec::lanes);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < rows; ++i) {
      const typename Dot::Units value = Dot::broadcast(x[i] + k);
#pragma GCC unroll 8
      for (std::size_t j = 0; j < conv_vectors; ++j) {
        sums.v[i][j] = Dot::plus_product(sums.v[i][j], value, w[j]);
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

struct Fp32Dot {
  using Unit = float;
  using Units = Vec;
  using Sum = Vec;
  using Kept = float;
  using Conv = kernels::Conv;

  static Units broadcast(const Unit* p) { return Vec::broadcast(*p); }
  static Units load(const Unit* p) { return Vec::load(p); }
  static Sum plus_product(Sum sum, Units a, Units b) { return sum.plus_product(a, b); }
  static Sum start(const Epilogue& e, std::size_t channel) { return Vec::load(e.bias + channel); }
  static Sum resume(const Kept* p) { return Vec::load(p); }
  static void keep(Sum sum, Kept* p) { sum.store(p); }
  static void finish(const Epilogue& e, Sum sum, std::size_t channel, const Unit* residual, Unit* output) {
    kernels::finish(e, sum, residual + channel, output + channel);
  }
};

template <typename Unit>
struct Pixel {
  const Unit* input;
  const Unit* residual;
  Unit* output;
};

// A part of a window's dot product, rows [row, row_end) and units [begin, end) of each, with its weights.
template <typename Unit>
struct Piece {
  std::size_t row, row_end;
  std::size_t begin, end;
  const Unit* weight;
  const Unit* next;  // the weights after these
  bool first, last;
};

// Units of a piece's weights, 64 KiB: all groups but the first find them in the second-level cache, where
// the 1.2 MB of a block of layer 4 would not stay. With 256 KiB that layer takes 1.04 times as long.
constexpr std::size_t piece_weights = std::size_t{1} << 14U;

// Pixels whose sums are kept from piece to piece.
constexpr std::size_t run_pixels = 192;

// `kept`: the sums so far, (pixels, conv_block), unless the piece is the first, and from now on, unless it is
// the last.
template <typename Dot, std::size_t pixels, std::size_t ahead>
void conv_group(const typename Dot::Conv& conv, const Pixel<typename Dot::Unit>* pixel,
                const Piece<typename Dot::Unit>& piece, std::size_t channel, typename Dot::Kept* kept) {
  using Unit = typename Dot::Unit;
  Sums<typename Dot::Sum, pixels> sums;
  const Unit* x[pixels];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
    x[i] = pixel[i].input;
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const std::size_t c = j * Vec::lanes;
      sums.v[i][j] =
          piece.first ? Dot::start(conv.epilogue, channel + c) : Dot::resume(kept + i * conv_block + c);
    }
  }
  const Unit* weight = piece.weight;
  const Unit* next = piece.next;
  for (std::size_t r = piece.row; r < piece.row_end; ++r) {
    const std::size_t row = r * conv.window_row, steps = piece.end - piece.begin;
    multiply<Dot, pixels, ahead>(x, row + piece.begin, row + piece.end, weight, sums, next);
    weight += steps * conv_block;
    next += steps * ahead * Vec::lanes;
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const std::size_t c = j * Vec::lanes;
      if (piece.last) {
        Dot::finish(conv.epilogue, sums.v[i][j], channel + c, pixel[i].residual, pixel[i].output);
      } else {
        Dot::keep(sums.v[i][j], kept + i * conv_block + c);
      }
    }
  }
}

// Walks over the output pixels from `first` on, row by row and image by image.
template <typename Conv>
class PixelWalk {
 public:
  using Unit = typename Conv::Unit;

  PixelWalk(const Conv& conv, std::size_t first)
      : conv_(conv),
        x_(first % conv.epilogue.width),
        y_(first / conv.epilogue.width % conv.epilogue.height),
        image_(first / conv.epilogue.width / conv.epilogue.height) {}

  Pixel<Unit> next() {
    const auto& e = conv_.epilogue;
    const Pixel<Unit> pixel{conv_.input + at(conv_.input_strides),
                            e.residual == nullptr ? e.output : e.residual + at(e.residual_strides),
                            e.output + at(e.output_strides)};
    if (++x_ == e.width) {
      x_ = 0;
      if (++y_ == e.height) {
        y_ = 0;
        ++image_;
      }
    }
    return pixel;
  }

 private:
  [[nodiscard]] std::size_t at(const Strides& s) const {
    return image_ * s.image + y_ * s.row + x_ * s.column;
  }

  const Conv& conv_;
  std::size_t x_, y_, image_;
};

// All pixels, at most run_pixels of them, of one block of channels.
template <typename Dot>
void conv_piece(const typename Dot::Conv& c, Range pixels, const Piece<typename Dot::Unit>& piece,
                std::size_t channel, typename Dot::Kept* kept) {
  using Unit = typename Dot::Unit;
  using Group = void (*)(const typename Dot::Conv&, const Pixel<Unit>*, const Piece<Unit>&, std::size_t,
                         typename Dot::Kept*);
  static constexpr Group groups[][conv_pixels] = {
      {conv_group<Dot, 1, 0>, conv_group<Dot, 2, 0>, conv_group<Dot, 3, 0>, conv_group<Dot, 4, 0>,
       conv_group<Dot, 5, 0>, conv_group<Dot, 6, 0>},
      {conv_group<Dot, 1, 1>, conv_group<Dot, 2, 1>, conv_group<Dot, 3, 1>, conv_group<Dot, 4, 1>,
       conv_group<Dot, 5, 1>, conv_group<Dot, 6, 1>},
      {conv_group<Dot, 1, most_ahead>, conv_group<Dot, 2, most_ahead>, conv_group<Dot, 3, most_ahead>,
       conv_group<Dot, 4, most_ahead>, conv_group<Dot, 5, most_ahead>, conv_group<Dot, 6, most_ahead>}};
  const std::size_t steps = (piece.row_end - piece.row) * (piece.end - piece.begin);
  PixelWalk walk(c, pixels.begin);
  Piece<Unit> fetching = piece;
  std::size_t fetched = 0;
  for (std::size_t p = pixels.begin; p < pixels.end;) {
    const std::size_t done = p - pixels.begin;
    Pixel<Unit> group[conv_pixels];
    std::size_t count = 0;
    for (; count < conv_pixels && p < pixels.end; ++count, ++p) {
      group[count] = walk.next();
    }
    const std::size_t ahead = share_ahead(fetched, 1 + (pixels.end - p + conv_pixels - 1) / conv_pixels);
    groups[ahead][count - 1](c, group, fetching, channel, kept + done * conv_block);
    fetched += ahead;
    fetching.next = piece.next + fetched * steps * Vec::lanes;
  }
}

template <typename Dot>
void conv(const typename Dot::Conv& c, Range pixels, Range blocks) {
  // A piece is the whole window, or some of the units of one of its rows.
  const bool whole = c.window_rows * c.window_run * conv_block <= piece_weights;
  const std::size_t rows = whole ? c.window_rows : 1;
  const std::size_t cuts = whole ? 1 : (c.window_run * conv_block + piece_weights - 1) / piece_weights;
  const std::size_t most = (c.window_run + cuts - 1) / cuts;
  alignas(64) typename Dot::Kept kept[run_pixels * conv_block];
  for (std::size_t block = blocks.begin; block < blocks.end; ++block) {
    for (std::size_t p = pixels.begin; p < pixels.end; p += run_pixels) {
      const Range run{p, pixels.end - p < run_pixels ? pixels.end : p + run_pixels};
      const auto* weight = c.weight + block * c.window_rows * c.window_run * conv_block;
      for (std::size_t row = 0; row < c.window_rows; row += rows) {
        for (std::size_t begin = 0; begin < c.window_run; begin += most) {
          const std::size_t end = c.window_run - begin < most ? c.window_run : begin + most;
          const auto* const next = weight + rows * (end - begin) * conv_block;
          const bool first = row == 0 && begin == 0;
          const bool last = row + rows == c.window_rows && end == c.window_run;
          conv_piece<Dot>(c, run, {row, row + rows, begin, end, weight, last ? weight : next, first, last},
                          block * conv_block, kept);
          weight = next;
        }
      }
    }
  }
}

}  // namespace
