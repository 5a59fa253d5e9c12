// The head's kernels over `Vec`.
//
// A dot product with one vector of weights per class is bound by memory only if its multiply-adds hide behind
// the loads: six classes take six multiply-adds per vector of features, which is 6 cycles on a CPU with one
// 64-byte or two 32-byte multiply-add units, when the first-level cache delivers a vector in one. So
//  - `tiles x classes` sums are kept in registers: with 2 x 6 of 16 registers (4 x 6 of 32) a step of 12 (24)
//    multiply-adds needs 8 (10) loads, fewer than the load ports deliver meanwhile;
//  - rows of a bin are summed in registers before the multiplication, and a vector is filled with rows of
//    several channels where one row does not: additions and loads have units of their own.
//
// Each lane of a sum adds its products in the order of the steps, however many tiles are handled together.

// What a step does must be inlined into the loop, or the sums would not stay in registers.
#define HISTO_INLINE __attribute__((always_inline)) inline
#define HISTO_INLINE_LAMBDA __attribute__((always_inline))

namespace {

constexpr std::size_t head_tile_block = Vec::registers == 32 ? 4 : 2;

// Steps over a run of features.
template <typename Feature>
struct RunSteps {
  const Feature* first;
  std::size_t tile_stride, length;

  template <std::size_t tiles, typename Body>
  HISTO_INLINE void for_each(const Body& body) const {
    std::size_t i = 0;
    Vec value[tiles];
    for (; i + Vec::lanes <= length; i += Vec::lanes) {
#pragma GCC unroll 4
      for (std::size_t t = 0; t < tiles; ++t) {
        value[t] = Vec::load(first + t * tile_stride + i);
      }
      body(value);
    }
    if (i < length) {
      const Vec::Mask rest = Vec::first(length - i);
#pragma GCC unroll 4
      for (std::size_t t = 0; t < tiles; ++t) {
        value[t] = Vec::load(first + t * tile_stride + i, rest);
      }
      body(value);
    }
  }
};

// Steps over sums of rows: channels, as many as share a vector; bins; vectors of a row. `Part` is what holds
// a channel's row, or a vector's worth of it.
template <typename Feature, typename Part>
struct RowSteps {
  static constexpr std::size_t slots = sizeof(Vec) / sizeof(Part);
  const HeadRows<Feature>& rows;
  const Feature* first;

  template <std::size_t tiles, typename Body>
  HISTO_INLINE void for_each(const Body& body) const {
    const std::size_t width = rows.width;
    const std::size_t area = rows.height * width;
    // The lanes of a row that does not fill its slot. Empty slots behind the last channel load nothing.
    Vec::Mask rest[slots];
#pragma GCC unroll 4
    for (std::size_t s = 0; s < slots; ++s) {
      rest[s] = Vec::first(width % Vec::lanes);
    }
    for (std::size_t c = 0; c < rows.channels; c += slots) {
#pragma GCC unroll 4
      for (std::size_t s = 1; s < slots; ++s) {
        if (c + s >= rows.channels) {
          rest[s] = Vec::first(0);
        }
      }
      for (const Range* bin = rows.bins; bin != rows.bins + rows.bin_count; ++bin) {
        const Feature* p = first + c * area + bin->begin * width;
        const std::size_t more = (bin->end - bin->begin - 1) * width;
        std::size_t x = width;
        if constexpr (slots == 1) {
          for (; x >= Vec::lanes; x -= Vec::lanes, p += Vec::lanes) {
            sum<tiles>(
                p, more, [](const Feature* q, std::size_t) HISTO_INLINE_LAMBDA { return Part::load(q); },
                body);
          }
          if (x == 0) {
            continue;
          }
        }
        sum<tiles>(
            p, more,
            [&rest](const Feature* q, std::size_t s) HISTO_INLINE_LAMBDA { return Part::load(q, rest[s]); },
            body);
      }
    }
  }

  // The rows at p, p + width, ..., p + more, of the channels that share a vector.
  template <std::size_t tiles, typename Load, typename Body>
  HISTO_INLINE void sum(const Feature* p, std::size_t more, const Load& load, const Body& body) const {
    const std::size_t width = rows.width;
    const std::size_t area = rows.height * width;
    const std::size_t tile = rows.tiles.stride;
    Vec value[tiles];
#pragma GCC unroll 4
    for (std::size_t t = 0; t < tiles; ++t) {
      const Feature* row = p + t * tile;
      Part part[slots];
#pragma GCC unroll 4
      for (std::size_t s = 0; s < slots; ++s) {
        part[s] = load(row + s * area, s);
      }
      for (const Feature* const last = row + more; row != last;) {
        row += width;
#pragma GCC unroll 4
        for (std::size_t s = 0; s < slots; ++s) {
          part[s] = part[s].plus(load(row + s * area, s));
        }
      }
      value[t] = Vec::join(part);
    }
    body(value);
  }
};

// Steps over sums of the cells of one bin: vectors of channels.
template <typename Feature>
struct BinSteps {
  const HeadBin<Feature>& bin;
  const Feature* first;

  template <std::size_t tiles, typename Body>
  HISTO_INLINE void for_each(const Body& body) const {
    std::size_t c = 0;
    for (; c + Vec::lanes <= bin.count; c += Vec::lanes) {
      sum<tiles>(c, [](const Feature* p) HISTO_INLINE_LAMBDA { return Vec::load(p); }, body);
    }
    if (c < bin.count) {
      const Vec::Mask rest = Vec::first(bin.count - c);
      sum<tiles>(c, [rest](const Feature* p) HISTO_INLINE_LAMBDA { return Vec::load(p, rest); }, body);
    }
  }

  template <std::size_t tiles, typename Load, typename Body>
  HISTO_INLINE void sum(std::size_t c, const Load& load, const Body& body) const {
    Vec value[tiles];
#pragma GCC unroll 4
    for (std::size_t t = 0; t < tiles; ++t) {
      value[t] = Vec::zero();
    }
    for (std::size_t y = bin.rows.begin; y < bin.rows.end; ++y) {
      for (std::size_t x = bin.columns.begin; x < bin.columns.end; ++x) {
        const Feature* const cell = first + (y * bin.width + x) * bin.channels + c;
#pragma GCC unroll 4
        for (std::size_t t = 0; t < tiles; ++t) {
          value[t] = value[t].plus(load(cell + t * bin.tiles.stride));
        }
      }
    }
    body(value);
  }
};

template <std::size_t tiles, std::size_t classes, typename Steps>
void dot_block(const Steps& steps, const HeadWeights& weights, const float* weight, float* sums) {
  Vec sum[tiles][classes];
#pragma GCC unroll 4
  for (std::size_t t = 0; t < tiles; ++t) {
#pragma GCC unroll 6
    for (std::size_t k = 0; k < classes; ++k) {
      sum[t][k] = Vec::load(sums + (t * weights.classes + k) * Vec::lanes);
    }
  }
  const std::size_t stride = weights.stride;
  steps.template for_each<tiles>([&](const Vec(&value)[tiles]) HISTO_INLINE_LAMBDA {
#pragma GCC unroll 6
    for (std::size_t k = 0; k < classes; ++k) {
      const Vec w = Vec::load(weight + k * Vec::lanes);
#pragma GCC unroll 4
      for (std::size_t t = 0; t < tiles; ++t) {
        sum[t][k] = sum[t][k].plus_product(value[t], w);
      }
    }
    weight += stride;
  });
#pragma GCC unroll 4
  for (std::size_t t = 0; t < tiles; ++t) {
#pragma GCC unroll 6
    for (std::size_t k = 0; k < classes; ++k) {
      sum[t][k].store(sums + (t * weights.classes + k) * Vec::lanes);
    }
  }
}

template <std::size_t tiles, typename Steps>
void dot_classes(const Steps& steps, const HeadWeights& weights, float* sums) {
  for (std::size_t k = 0; k < weights.classes;) {
    const std::size_t left = weights.classes - k;
    const float* const weight = weights.first + k * Vec::lanes;
    float* const sum = sums + k * Vec::lanes;
    if (left >= 6) {
      dot_block<tiles, 6>(steps, weights, weight, sum);
      k += 6;
    } else if (left >= 3) {
      dot_block<tiles, 3>(steps, weights, weight, sum);
      k += 3;
    } else if (left == 2) {
      dot_block<tiles, 2>(steps, weights, weight, sum);
      k += 2;
    } else {
      dot_block<tiles, 1>(steps, weights, weight, sum);
      k += 1;
    }
  }
}

// `steps_of(t)` are the steps from tile t on.
template <typename StepsOf>
void dot_tiles(std::size_t tiles, const StepsOf& steps_of, const HeadWeights& weights, float* sums) {
  const std::size_t tile_sums = weights.classes * Vec::lanes;
  std::size_t t = 0;
  for (; t + head_tile_block <= tiles; t += head_tile_block) {
    dot_classes<head_tile_block>(steps_of(t), weights, sums + t * tile_sums);
  }
  for (; t < tiles; ++t) {
    dot_classes<1>(steps_of(t), weights, sums + t * tile_sums);
  }
}

template <typename Feature>
void head_runs(const HeadRuns<Feature>& run, const HeadWeights& weights, float* sums) {
  const auto steps_of = [&](std::size_t t) {
    return RunSteps<Feature>{run.tiles.first + t * run.tiles.stride, run.tiles.stride, run.length};
  };
  dot_tiles(run.tiles.count, steps_of, weights, sums);
}

template <typename Feature, typename Part>
void head_rows_of(const HeadRows<Feature>& rows, const HeadWeights& weights, float* sums) {
  const auto steps_of = [&](std::size_t t) {
    return RowSteps<Feature, Part>{rows, rows.tiles.first + t * rows.tiles.stride};
  };
  dot_tiles(rows.tiles.count, steps_of, weights, sums);
}

template <typename Feature>
void head_rows(const HeadRows<Feature>& rows, const HeadWeights& weights, float* sums) {
  if (rows.slots == 4) {
    head_rows_of<Feature, Vec::Quarter>(rows, weights, sums);
  } else if (rows.slots == 2) {
    head_rows_of<Feature, Vec::Half>(rows, weights, sums);
  } else {
    head_rows_of<Feature, Vec>(rows, weights, sums);
  }
}

template <typename Feature>
void head_bin(const HeadBin<Feature>& bin, const HeadWeights& weights, float* sums) {
  const auto steps_of = [&](std::size_t t) {
    return BinSteps<Feature>{bin, bin.tiles.first + t * bin.tiles.stride};
  };
  dot_tiles(bin.tiles.count, steps_of, weights, sums);
}

// Adds `cells` neighbouring cells to `out`, or writes their sum there.
template <std::size_t cells, typename Feature>
void add_cells(const Feature* cell, std::size_t channels, std::size_t count, bool add, float* out) {
  const auto part = [&](std::size_t c, const auto& load) HISTO_INLINE_LAMBDA {
    Vec sum = add ? Vec::load(out + c) : Vec::zero();
#pragma GCC unroll 4
    for (std::size_t i = 0; i < cells; ++i) {
      sum = sum.plus(load(cell + i * channels + c));
    }
    sum.store(out + c);
  };
  std::size_t c = 0;
  for (; c + Vec::lanes <= count; c += Vec::lanes) {
    part(c, [](const Feature* p) HISTO_INLINE_LAMBDA { return Vec::load(p); });
  }
  if (c < count) {
    const Vec::Mask rest = Vec::first(count - c);
    part(c, [rest](const Feature* p) HISTO_INLINE_LAMBDA { return Vec::load(p, rest); });
  }
}

// The features are read in the order in which they lie in memory. Taking four cells together stores partial
// sums a quarter as often. But where a row of the bin is as long as the first-level cache, it comes from
// farther away, and prefetchers follow a single stream best: 512 channels of 32 x 32, pool 1, take 3.4 ms
// instead of 5.7.
template <typename Feature>
void sum_bin(const HeadBin<Feature>& bin, float* out) {
  constexpr std::size_t long_row = 32768;
  const std::size_t row = (bin.columns.end - bin.columns.begin) * bin.channels * sizeof(Feature);
  const std::size_t together = row >= long_row ? 1 : 4;
  for (std::size_t y = bin.rows.begin; y < bin.rows.end; ++y) {
    for (std::size_t x = bin.columns.begin; x < bin.columns.end; x += together) {
      const Feature* const cell = bin.tiles.first + (y * bin.width + x) * bin.channels;
      const bool add = y != bin.rows.begin || x != bin.columns.begin;
      switch (together == 1 ? 1 : bin.columns.end - x) {
        case 1:
          add_cells<1>(cell, bin.channels, bin.count, add, out);
          break;
        case 2:
          add_cells<2>(cell, bin.channels, bin.count, add, out);
          break;
        case 3:
          add_cells<3>(cell, bin.channels, bin.count, add, out);
          break;
        default:
          add_cells<4>(cell, bin.channels, bin.count, add, out);
      }
    }
  }
}

}  // namespace

#undef HISTO_INLINE
#undef HISTO_INLINE_LAMBDA
