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
template <std::size_t rows, std::size_t ahead = 0>
[[gnu::always_inline]] inline void multiply(const float* const* x, std::size_t begin, std::size_t end,
                                            const float* weight, Sums<rows>& sums,
                                            const float* next = nullptr) {
  for (std::size_t k = begin; k < end; ++k, weight += conv_block) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < ahead; ++j) {
      __builtin_prefetch(next + ((k - begin) * ahead + j) * Vec::lanes, 0, 2);
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

// A part of a window's dot product, rows [row, row_end) and floats [begin, end) of each, with its weights.
struct Piece {
  std::size_t row, row_end;
  std::size_t begin, end;
  const float* weight;
  const float* next;  // the weights after these
  bool first, last;
};

// Floats of a piece's weights, 64 KiB: all groups but the first find them in the second-level cache, where
// the 1.2 MB of a block of layer 4 would not stay. With 256 KiB that layer takes 1.04 times as long.
constexpr std::size_t piece_weights = std::size_t{1} << 14U;

// Pixels whose sums are kept from piece to piece.
constexpr std::size_t run_pixels = 192;

// `kept`: the sums so far, (pixels, conv_block), unless the piece is the first, and from now on, unless it is
// the last.
template <std::size_t pixels, std::size_t ahead>
void conv_group(const Conv& conv, const Pixel* pixel, const Piece& piece, std::size_t channel, float* kept) {
  Sums<pixels> sums;
  const float* x[pixels];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
    x[i] = pixel[i].input;
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const std::size_t c = j * Vec::lanes;
      sums.v[i][j] = Vec::load(piece.first ? conv.epilogue.bias + channel + c : kept + i * conv_block + c);
    }
  }
  const float* weight = piece.weight;
  const float* next = piece.next;
  for (std::size_t r = piece.row; r < piece.row_end; ++r) {
    const std::size_t row = r * conv.window_row, steps = piece.end - piece.begin;
    multiply<pixels, ahead>(x, row + piece.begin, row + piece.end, weight, sums, next);
    weight += steps * conv_block;
    next += steps * ahead * Vec::lanes;
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pixels; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const std::size_t c = j * Vec::lanes;
      if (piece.last) {
        finish(conv.epilogue, sums.v[i][j], pixel[i].residual + channel + c, pixel[i].output + channel + c);
      } else {
        sums.v[i][j].store(kept + i * conv_block + c);
      }
    }
  }
}

// All pixels, at most run_pixels of them, of one block of channels.
void conv_piece(const Conv& c, Range pixels, const Piece& piece, std::size_t channel, float* kept) {
  using Group = void (*)(const Conv&, const Pixel*, const Piece&, std::size_t, float*);
  static constexpr Group groups[][conv_pixels] = {
      {conv_group<1, 0>, conv_group<2, 0>, conv_group<3, 0>, conv_group<4, 0>, conv_group<5, 0>,
       conv_group<6, 0>},
      {conv_group<1, 1>, conv_group<2, 1>, conv_group<3, 1>, conv_group<4, 1>, conv_group<5, 1>,
       conv_group<6, 1>},
      {conv_group<1, most_ahead>, conv_group<2, most_ahead>, conv_group<3, most_ahead>,
       conv_group<4, most_ahead>, conv_group<5, most_ahead>, conv_group<6, most_ahead>}};
  const Epilogue& e = c.epilogue;
  const std::size_t steps = (piece.row_end - piece.row) * (piece.end - piece.begin);
  std::size_t x = pixels.begin % e.width;
  std::size_t y = pixels.begin / e.width % e.height;
  std::size_t image = pixels.begin / e.width / e.height;
  const auto at = [&](const Strides& s) { return image * s.image + y * s.row + x * s.column; };
  Piece fetching = piece;
  std::size_t fetched = 0;
  for (std::size_t p = pixels.begin; p < pixels.end;) {
    const std::size_t done = p - pixels.begin;
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
    const std::size_t ahead = share_ahead(fetched, 1 + (pixels.end - p + conv_pixels - 1) / conv_pixels);
    groups[ahead][count - 1](c, group, fetching, channel, kept + done * conv_block);
    fetched += ahead;
    fetching.next = piece.next + fetched * steps * Vec::lanes;
  }
}

void conv(const Conv& c, Range pixels, Range blocks) {
  // A piece is the whole window, or some of the floats of one of its rows.
  const bool whole = c.window_rows * c.window_run * conv_block <= piece_weights;
  const std::size_t rows = whole ? c.window_rows : 1;
  const std::size_t cuts = whole ? 1 : (c.window_run * conv_block + piece_weights - 1) / piece_weights;
  const std::size_t most = (c.window_run + cuts - 1) / cuts;
  alignas(64) float kept[run_pixels * conv_block];
  for (std::size_t block = blocks.begin; block < blocks.end; ++block) {
    for (std::size_t p = pixels.begin; p < pixels.end; p += run_pixels) {
      const Range run{p, pixels.end - p < run_pixels ? pixels.end : p + run_pixels};
      const float* weight = c.weight + block * c.window_rows * c.window_run * conv_block;
      for (std::size_t row = 0; row < c.window_rows; row += rows) {
        for (std::size_t begin = 0; begin < c.window_run; begin += most) {
          const std::size_t end = c.window_run - begin < most ? c.window_run : begin + most;
          const float* const next = weight + rows * (end - begin) * conv_block;
          const bool first = row == 0 && begin == 0;
          const bool last = row + rows == c.window_rows && end == c.window_run;
          conv_piece(c, run, {row, row + rows, begin, end, weight, last ? weight : next, first, last},
                     block * conv_block, kept);
          weight = next;
        }
      }
    }
  }
}

}  // namespace
