// Winograd convolution F(m x m, 3 x 3) over `Vec`, m = 2 or 4, channels-last. Uses multiply() of conv.inl.
//
// An output tile of m x m pixels takes (m + 2)^2 multiplications per pair of channels in place of 9 m^2: 16
// for 36, or 36 for 144. Per tile and input channel the (m + 2) x (m + 2) inputs d become B^T d B; per point
// of the (m + 2)^2 a matrix product runs over the input channels; the products p of an output channel become
// A^T p A. Vectors run along channels in all three, so no lane is ever moved to another.
//
// `Arithmetic` says how the numbers of a precision are transformed; it is Fp32Winograd of fp32.inl, or a type
// of the files that include low_precision.inl. It has
//   Numbers                             a vector of numbers that inputs are transformed in
//   map_channels, channels_per_unit     channels in a unit of the map, and of the transformed input
//   read(pixel, channel), write(v, row, channel)    from the map, and to the transformed input
//   Products                            how products are summed: an Arithmetic of conv.inl
//   finish(epilogue, sum, bias, channel, residual, output)    from the transformed sum to the output
// and, where these kernels transform weights,
//   weights_per_unit                    of w, in a unit
//   read_weight(p)                      from w
//   keep_weight(v, p), resume_weight(p), factor(v)    to memory and back; as a factor of `Products`
//
// Source: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). The matrices are
// those of Toom and Cook for the points 0, +-a, +-b and infinity. F(4 x 4) has a = 5/8, b = 3/2 in place of
// the usual 1 and 2: rounding errors halve (relative to the outputs 6.8e-7 instead of 1.4e-6 rms at 64
// channels; direct convolution has 3.1e-7), and all constants of A and B are exact in binary.
//
// Weights become G w G^T: four times as many numbers as w, in int8 eight times as many bytes. A few tiles
// would wait for them, so their products are made of w itself: products_on_the_fly(). The bits are the same,
// because the same functions transform weights there and in winograd_weights(), which makes all of them once.

namespace {

struct F2 {
  static constexpr std::size_t output = 2;
  static constexpr std::size_t input = 4;

  // One column or row of B^T d.
  static void transform_input(const Vec* d, Vec* v) {
    v[0] = d[0].minus(d[2]);
    v[1] = d[1].plus(d[2]);
    v[2] = d[2].minus(d[1]);
    v[3] = d[3].minus(d[1]);
  }

  static void transform_output(const Vec* p, Vec* y) {
    y[0] = p[0].plus(p[1]).plus(p[2]);
    y[1] = p[1].minus(p[2]).plus(p[3]);
  }
};

struct F4 {
  static constexpr std::size_t output = 4;
  static constexpr std::size_t input = 6;
  static constexpr float a = 0.625F, b = 1.5F;
  static constexpr float a2 = a * a, b2 = b * b;

  static void transform_input(const Vec* d, Vec* v) {
    const Vec d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4];
    const Vec va2 = Vec::broadcast(a2), vb2 = Vec::broadcast(b2);
    const Vec sum = Vec::broadcast(a2 + b2), product = Vec::broadcast(a2 * b2);
    const Vec even_a = d4.minus_product(vb2, d2), odd_a = d3.minus_product(vb2, d1);
    const Vec even_b = d4.minus_product(va2, d2), odd_b = d3.minus_product(va2, d1);
    v[0] = d4.minus_product(sum, d2).plus_product(product, d[0]);
    v[1] = even_a.plus_product(Vec::broadcast(a), odd_a);
    v[2] = even_a.minus_product(Vec::broadcast(a), odd_a);
    v[3] = even_b.plus_product(Vec::broadcast(b), odd_b);
    v[4] = even_b.minus_product(Vec::broadcast(b), odd_b);
    v[5] = d[5].minus_product(sum, d3).plus_product(product, d1);
  }

  // The row of G for the point p is (1, p, p^2) / N, N being the product of its distances to the other finite
  // points; the last one is for infinity.
  static constexpr double g0 = 1.0 / (a2 * b2);
  static constexpr double ga = 1.0 / (2.0 * a2 * (a2 - b2)), gb = 1.0 / (2.0 * b2 * (b2 - a2));

  // Half of G times a column of weights.
  static void transform_weight_low(const Vec* g, Vec* u) {
    const Vec even = g[0].times(constant(ga)).plus_product(constant(ga * a2), g[2]);
    u[0] = g[0].times(constant(g0));
    u[1] = even.plus_product(constant(ga * a), g[1]);
    u[2] = even.minus_product(constant(ga * a), g[1]);
  }
  static void transform_weight_high(const Vec* g, Vec* u) {
    const Vec even = g[0].times(constant(gb)).plus_product(constant(gb * b2), g[2]);
    u[0] = even.plus_product(constant(gb * b), g[1]);
    u[1] = even.minus_product(constant(gb * b), g[1]);
    u[2] = g[2];
  }
  static Vec constant(double x) { return Vec::broadcast(static_cast<float>(x)); }

  static void transform_output(const Vec* p, Vec* y) {
    const Vec plus_a = p[1].plus(p[2]), minus_a = p[1].minus(p[2]);
    const Vec plus_b = p[3].plus(p[4]), minus_b = p[3].minus(p[4]);
    y[0] = p[0].plus(plus_a).plus(plus_b);
    y[1] = minus_a.times(Vec::broadcast(a)).plus_product(Vec::broadcast(b), minus_b);
    y[2] = plus_a.times(Vec::broadcast(a2)).plus_product(Vec::broadcast(b2), plus_b);
    y[3] = p[5].plus_product(Vec::broadcast(a * a2), minus_a).plus_product(Vec::broadcast(b * b2), minus_b);
  }
};

struct TilePosition {
  std::size_t image, y, x;  // of the tile's first output pixel
};

template <typename F>
TilePosition position(const Winograd& w, std::size_t tile) {
  return {.image = tile / w.tile_columns / w.tile_rows,
          .y = tile / w.tile_columns % w.tile_rows * F::output,
          .x = tile % w.tile_columns * F::output};
}

template <typename F, typename Arithmetic>
void winograd_input(const Winograd& w, Range tiles, Unit* out, std::size_t plane) {
  using Numbers = typename Arithmetic::Numbers;
  constexpr std::size_t n = F::input;
  const Strides& s = w.input_strides;
  for (std::size_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const TilePosition at = position<F>(w, tile);
    const Unit* const in = w.input + at.image * s.image + at.y * s.row + at.x * s.column;
    Unit* const row = out + (tile - tiles.begin) * (w.channels / Arithmetic::channels_per_unit);
    // The next tile is prefetched while this one is computed: it comes from the third-level cache or from
    // memory, in 36 short runs that hardware prefetchers do not follow. Without this the transform takes 1.3
    // times as long.
    const TilePosition next_at = position<F>(w, tile + 1 < tiles.end ? tile + 1 : tile);
    const Unit* const next = w.input + next_at.image * s.image + next_at.y * s.row + next_at.x * s.column;
    for (std::size_t c = 0; c < w.channels; c += Numbers::lanes) {
      Numbers columns_done[n * n];
#pragma GCC unroll 8
      for (std::size_t x = 0; x < n; ++x) {
        Numbers column[n];
#pragma GCC unroll 8
        for (std::size_t y = 0; y < n; ++y) {
          column[y] = Arithmetic::read(in + y * s.row + x * s.column, c);
          __builtin_prefetch(next + y * s.row + x * s.column + c / Arithmetic::map_channels);
        }
        Numbers done[n];
        F::transform_input(column, done);
#pragma GCC unroll 8
        for (std::size_t y = 0; y < n; ++y) {
          columns_done[y * n + x] = done[y];
        }
      }
#pragma GCC unroll 8
      for (std::size_t y = 0; y < n; ++y) {
        Numbers done[n];
        F::transform_input(columns_done + y * n, done);
#pragma GCC unroll 8
        for (std::size_t x = 0; x < n; ++x) {
          Arithmetic::write(done[x], row + (y * n + x) * plane, c);
        }
      }
    }
  }
}

// products (tiles, conv_block) = input (tiles, units) * weight (units, conv_block).
template <typename Products, std::size_t rows, std::size_t ahead>
void product_rows(const Unit* input, std::size_t units, const Unit* weight, const Unit* next,
                  typename Products::Kept* products) {
  using Sum = typename Products::Sum;
  Sums<Sum, rows> sums;
  const Unit* x[rows];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < rows; ++i) {
    x[i] = input + i * units;
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      sums.v[i][j] = Sum::zero();
    }
  }
  multiply<Products, rows, ahead>(x, 0, units, weight, sums, next);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      Products::keep(sums.v[i][j], products + i * conv_block + j * Vec::lanes);
    }
  }
}

// The same for any number of tiles. Meanwhile `next`, the weights of another point, are prefetched.
template <typename Products>
void product(const Unit* input, std::size_t tiles, std::size_t units, const Unit* weight, const Unit* next,
             typename Products::Kept* products) {
  using Rows = void (*)(const Unit*, std::size_t, const Unit*, const Unit*, typename Products::Kept*);
  static constexpr Rows rows[][conv_pixels] = {
      {product_rows<Products, 1, 0>, product_rows<Products, 2, 0>, product_rows<Products, 3, 0>,
       product_rows<Products, 4, 0>, product_rows<Products, 5, 0>, product_rows<Products, 6, 0>},
      {product_rows<Products, 1, 1>, product_rows<Products, 2, 1>, product_rows<Products, 3, 1>,
       product_rows<Products, 4, 1>, product_rows<Products, 5, 1>, product_rows<Products, 6, 1>},
      {product_rows<Products, 1, most_ahead>, product_rows<Products, 2, most_ahead>,
       product_rows<Products, 3, most_ahead>, product_rows<Products, 4, most_ahead>,
       product_rows<Products, 5, most_ahead>, product_rows<Products, 6, most_ahead>}};
  std::size_t fetched = 0;
  for (std::size_t t = 0, count = 0; t < tiles; t += count) {
    const std::size_t left = tiles - t, groups = (left + conv_pixels - 1) / conv_pixels;
    const std::size_t ahead = share_ahead(fetched, groups);
    count = (left + groups - 1) / groups;
    rows[ahead][count - 1](input + t * units, units, weight, next + fetched * units * Vec::lanes,
                           products + t * conv_block);
    fetched += ahead;
  }
}

constexpr std::size_t cache_line = 16;  // units

// Units of the weights, as trained, of a vector of output channels and a unit of input channels.
template <typename Arithmetic>
constexpr std::size_t plain_tap = Vec::lanes * Arithmetic::channels_per_unit / Arithmetic::weights_per_unit;
template <typename Arithmetic>
constexpr std::size_t plain_kernel = 9 * plain_tap<Arithmetic>;

// G w for each column of a kernel, of one vector of output channels: from `plain` (units, 9, lanes, channels
// of a unit) to `out` (m + 2, units, 3, lanes).
template <typename F, typename Arithmetic>
void transform_columns(const Unit* plain, std::size_t units, Unit* out) {
  using Numbers = typename Arithmetic::Numbers;
  constexpr std::size_t n = F::input;
  for (std::size_t unit = 0; unit < units; ++unit, plain += plain_kernel<Arithmetic>) {
#pragma GCC unroll 8
    for (std::size_t x = 0; x < 3; ++x) {
      Numbers column[3];
#pragma GCC unroll 8
      for (std::size_t y = 0; y < 3; ++y) {
        column[y] = Arithmetic::read_weight(plain + (y * 3 + x) * plain_tap<Arithmetic>);
      }
      Numbers done[n];
      F::transform_weight_low(column, done);
      F::transform_weight_high(column, done + n / 2);
#pragma GCC unroll 8
      for (std::size_t y = 0; y < n; ++y) {
        Arithmetic::keep_weight(done[y], out + ((y * units + unit) * 3 + x) * Vec::lanes);
      }
    }
  }
}

// As WinogradKernels::weights.
template <typename F, typename Arithmetic>
void winograd_weights(const Unit* plain, std::size_t units, Unit* out) {
  using Numbers = typename Arithmetic::Numbers;
  constexpr std::size_t n = F::input;
  alignas(64) Unit columns[n * 3 * Vec::lanes];
  for (std::size_t j = 0; j < conv_vectors; ++j) {
    for (std::size_t unit = 0; unit < units; ++unit, plain += plain_kernel<Arithmetic>) {
      transform_columns<F, Arithmetic>(plain, 1, columns);
      for (std::size_t y = 0; y < n; ++y) {
        Numbers row[3], done[n];
#pragma GCC unroll 8
        for (std::size_t x = 0; x < 3; ++x) {
          row[x] = Arithmetic::resume_weight(columns + (y * 3 + x) * Vec::lanes);
        }
        F::transform_weight_low(row, done);
        F::transform_weight_high(row, done + n / 2);
#pragma GCC unroll 8
        for (std::size_t x = 0; x < n; ++x) {
          Arithmetic::keep_weight(done[x], out + ((y * n + x) * units + unit) * conv_block + j * Vec::lanes);
        }
      }
    }
  }
}

// The input of a row of points, and where its products lie.
struct PointRow {
  const Unit* columns;  // of this row, from transform_columns()
  std::size_t units;
  const Unit* input;          // of the first point and tile, and of the first of these units
  std::size_t plane, stride;  // from one point, and from one tile, to the next
  std::size_t products_plane;
  bool first;  // the products are of these channels alone, not added to those of earlier ones
};

// Products of the points of a row, the first half of it (`low`), the second (`high`) or both: their weights
// are made in registers, used for `tiles` tiles and forgotten.
template <typename F, typename Arithmetic, std::size_t tiles, bool low, bool high>
void row_products(const PointRow& row, typename Arithmetic::Products::Kept* products) {
  using Products = typename Arithmetic::Products;
  using Numbers = typename Arithmetic::Numbers;
  constexpr std::size_t half = F::input / 2, begin = low ? 0 : half, points = low && high ? F::input : half;
  typename Products::Sum sums[points][tiles];
  const Unit* x[points];
#pragma GCC unroll 8
  for (std::size_t p = 0; p < points; ++p) {
    x[p] = row.input + (begin + p) * row.plane;
#pragma GCC unroll 8
    for (std::size_t t = 0; t < tiles; ++t) {
      const auto* const kept = products + (begin + p) * row.products_plane + t * conv_block;
      sums[p][t] = row.first ? Products::Sum::zero() : Products::resume(kept);
    }
  }
  for (std::size_t unit = 0; unit < row.units; ++unit) {
    Numbers columns[3], weights[points];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 3; ++i) {
      columns[i] = Arithmetic::resume_weight(row.columns + (unit * 3 + i) * Vec::lanes);
    }
    if constexpr (low) {
      F::transform_weight_low(columns, weights);
    }
    if constexpr (high) {
      F::transform_weight_high(columns, weights + (points - half));
    }
#pragma GCC unroll 8
    for (std::size_t p = 0; p < points; ++p) {
      const auto weight = Arithmetic::factor(weights[p]);
#pragma GCC unroll 8
      for (std::size_t t = 0; t < tiles; ++t) {
        sums[p][t] = Products::plus_product(sums[p][t], Products::broadcast(x[p] + t * row.stride), weight);
      }
      ++x[p];
    }
  }
#pragma GCC unroll 8
  for (std::size_t p = 0; p < points; ++p) {
#pragma GCC unroll 8
    for (std::size_t t = 0; t < tiles; ++t) {
      Products::keep(sums[p][t], products + (begin + p) * row.products_plane + t * conv_block);
    }
  }
}

// The products of one block of output channels, by weights that were transformed before.
template <typename F, typename Arithmetic>
void products_of_block(const Winograd& w, std::size_t block, bool last, std::size_t tiles, const Unit* input,
                       std::size_t plane, typename Arithmetic::Products::Kept* products,
                       std::size_t products_plane) {
  constexpr std::size_t points = F::input * F::input;
  const std::size_t units = w.channels / Arithmetic::channels_per_unit;
  for (std::size_t point = 0; point < points; ++point) {
    const Unit* const weight = w.weight + (block * points + point) * units * conv_block;
    const Unit* const next = last && point + 1 == points ? weight : weight + units * conv_block;
    product<typename Arithmetic::Products>(input + point * plane, tiles, units, weight, next,
                                           products + point * products_plane);
  }
}

// Units of channels whose columns are transformed at a time: 9 KiB in AVX-512, so they stay in the
// first-level cache.
constexpr std::size_t columns_chunk = 8;

// Units of channels from the weights that are used to those that are prefetched.
constexpr std::size_t plain_ahead = 16;

// The same by weights as trained, of which only the columns are transformed in memory.
template <typename F, typename Arithmetic, std::size_t tiles>
void products_on_the_fly(const Winograd& w, std::size_t block, const Unit* input, std::size_t plane,
                         typename Arithmetic::Products::Kept* products, std::size_t products_plane) {
  constexpr std::size_t n = F::input, kernel = plain_kernel<Arithmetic>;
  constexpr bool whole_rows = Vec::registers == 32 && tiles <= 2;
  const std::size_t units = w.channels / Arithmetic::channels_per_unit;
  alignas(64) Unit columns[n * columns_chunk * 3 * Vec::lanes];
  const Unit* plain = w.plain_weight + block * conv_vectors * units * kernel;
  for (std::size_t j = 0; j < conv_vectors; ++j) {
    for (std::size_t first = 0; first < units; first += columns_chunk) {
      const std::size_t count = units - first < columns_chunk ? units - first : columns_chunk;
      transform_columns<F, Arithmetic>(plain, count, columns);
      plain += count * kernel;
      for (std::size_t y = 0; y < n; ++y) {
        // Spread over the rows: a core waits for a dozen lines at a time. Behind the last block this may be
        // no memory of ours, so it is an address and not a pointer.
        for (std::size_t i = y * count * kernel / n; i < (y + 1) * count * kernel / n; i += cache_line) {
          const auto ahead =
              reinterpret_cast<std::uintptr_t>(plain) + (plain_ahead * kernel + i) * sizeof(Unit);
          __builtin_prefetch(reinterpret_cast<const void*>(ahead), 0, 2);
        }
        const PointRow row{.columns = columns + y * count * 3 * Vec::lanes,
                           .units = count,
                           .input = input + y * n * plane + first,
                           .plane = plane,
                           .stride = units,
                           .products_plane = products_plane,
                           .first = first == 0};
        auto* const to = products + y * n * products_plane + j * Vec::lanes;
        if constexpr (whole_rows) {
          row_products<F, Arithmetic, tiles, true, true>(row, to);
        } else {
          row_products<F, Arithmetic, tiles, true, false>(row, to);
          row_products<F, Arithmetic, tiles, false, true>(row, to);
        }
      }
    }
  }
}

template <typename F, typename Arithmetic>
void products_on_the_fly(const Winograd& w, std::size_t block, std::size_t tiles, const Unit* input,
                         std::size_t plane, typename Arithmetic::Products::Kept* products,
                         std::size_t products_plane) {
  using Kept = typename Arithmetic::Products::Kept;
  using OfTiles = void (*)(const Winograd&, std::size_t, const Unit*, std::size_t, Kept*, std::size_t);
  static constexpr OfTiles of_tiles[most_tiles_on_the_fly] = {
      products_on_the_fly<F, Arithmetic, 1>, products_on_the_fly<F, Arithmetic, 2>,
      products_on_the_fly<F, Arithmetic, 3>, products_on_the_fly<F, Arithmetic, 4>};
  of_tiles[tiles - 1](w, block, input, plane, products, products_plane);
}

template <typename F, typename Arithmetic>
void winograd_output(const Winograd& w, Range tiles, Range blocks, const Unit* input, std::size_t plane,
                     float* products_memory, std::size_t products_plane) {
  using Products = typename Arithmetic::Products;
  using Sum = typename Products::Sum;
  auto* const products = reinterpret_cast<typename Products::Kept*>(products_memory);
  constexpr std::size_t n = F::input, m = F::output;
  const Epilogue& e = w.epilogue;
  const std::size_t count = tiles.end - tiles.begin;
  for (std::size_t block = blocks.begin; block < blocks.end; ++block) {
    if (w.plain_weight == nullptr) {
      products_of_block<F, Arithmetic>(w, block, block + 1 == blocks.end, count, input, plane, products,
                                       products_plane);
    } else if constexpr (requires { &F::transform_weight_low; }) {
      products_on_the_fly<F, Arithmetic>(w, block, count, input, plane, products, products_plane);
    }
    for (std::size_t tile = 0; tile < count; ++tile) {
      const TilePosition at = position<F>(w, tiles.begin + tile);
      const auto offset = [&at](const Strides& s) {
        return at.image * s.image + at.y * s.row + at.x * s.column;
      };
      Unit* const output = e.output + offset(e.output_strides);
      const Unit* const residual = e.residual == nullptr ? output : e.residual + offset(e.residual_strides);
      const std::size_t height = e.height - at.y < m ? e.height - at.y : m;
      const std::size_t width = e.width - at.x < m ? e.width - at.x : m;
      // As in winograd_input(): a store waits for its cache line, too.
      const TilePosition next_at = position<F>(w, tiles.begin + (tile + 1 < count ? tile + 1 : tile));
      const Unit* const next = e.output + next_at.image * e.output_strides.image +
                               next_at.y * e.output_strides.row + next_at.x * e.output_strides.column;
#pragma GCC unroll 8
      for (std::size_t j = 0; j < conv_vectors; ++j) {
        const auto* const p = products + tile * conv_block + j * Vec::lanes;
        const std::size_t channel = block * conv_block + j * Vec::lanes;
        for (std::size_t y = 0; y < m; ++y) {
          for (std::size_t x = 0; x < m; ++x) {
            __builtin_prefetch(next + y * e.output_strides.row + x * e.output_strides.column +
                                   channel / Arithmetic::map_channels,
                               1);
          }
        }
        Sum columns_done[m * n];
#pragma GCC unroll 8
        for (std::size_t x = 0; x < n; ++x) {
          Sum column[n];
#pragma GCC unroll 8
          for (std::size_t y = 0; y < n; ++y) {
            column[y] = Products::resume(p + (y * n + x) * products_plane);
          }
          Sum done[m];
          F::transform_output(column, done);
#pragma GCC unroll 8
          for (std::size_t y = 0; y < m; ++y) {
            columns_done[y * n + x] = done[y];
          }
        }
        const Vec bias = Vec::load(e.bias + channel);
        for (std::size_t y = 0; y < height; ++y) {
          Sum done[m];
          F::transform_output(columns_done + y * n, done);
          for (std::size_t x = 0; x < width; ++x) {
            Arithmetic::finish(e, done[x], bias, channel,
                               residual + y * e.residual_strides.row + x * e.residual_strides.column,
                               output + y * e.output_strides.row + x * e.output_strides.column);
          }
        }
      }
    }
  }
}

}  // namespace
