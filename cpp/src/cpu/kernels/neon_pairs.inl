// Products by the matrix instructions of Armv8.6, which multiply two pixels with two output channels: a
// register of sums is (2 pixels, 2 channels), and one of factors (2 pixels or channels, 2 units). They do
// twice the work of a dot product.
//
// Weights are packed with two units of a channel side by side (ConvKernels::pair), so they are loaded as they
// are. Pixels are put together from two loads, and sums change their order before and after a run of
// products.

namespace {

// The first or the second halves of two registers.
template <typename Register>
[[gnu::always_inline]] inline Register first_halves(Register a, Register b) {
  return reinterpret_cast<Register>(
      vzip1q_u64(reinterpret_cast<uint64x2_t>(a), reinterpret_cast<uint64x2_t>(b)));
}
template <typename Register>
[[gnu::always_inline]] inline Register second_halves(Register a, Register b) {
  return reinterpret_cast<Register>(
      vzip2q_u64(reinterpret_cast<uint64x2_t>(a), reinterpret_cast<uint64x2_t>(b)));
}

// As multiply() of conv.inl, for a multiple of four units. `Arithmetic::plus_pair_product(sum, a, b)` is the
// instruction. If `rows` is odd, the last row is its own partner.
template <typename Arithmetic, std::size_t rows, std::size_t ahead>
[[gnu::always_inline]] inline void multiply_pairs(const Unit* const* x, std::size_t begin, std::size_t end,
                                                  const Unit* weight,
                                                  Sums<typename Arithmetic::Sum, rows>& sums,
                                                  const Unit* next) {
  using Sum = typename Arithmetic::Sum;
  constexpr std::size_t pairs = (rows + 1) / 2;
  constexpr std::size_t columns = 2 * conv_vectors;  // pairs of channels
  const auto partner = [](std::size_t pair) { return 2 * pair + 1 < rows ? 2 * pair + 1 : rows - 1; };
  Sum of[pairs][columns];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pairs; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const Sum a = sums.v[2 * i][j], b = sums.v[partner(i)][j];
      of[i][2 * j] = {first_halves(a.v, b.v)};
      of[i][2 * j + 1] = {second_halves(a.v, b.v)};
    }
  }
  const auto step = [&of](const uint32x4_t(&factors)[pairs], const Unit* w) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < columns; ++j) {
      const uint32x4_t of_channels = vld1q_u32(w + j * Vec::lanes);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < pairs; ++i) {
        of[i][j] = Arithmetic::plus_pair_product(of[i][j], factors[i], of_channels);
      }
    }
  };
  for (std::size_t k = begin; k < end; k += 4, weight += 4 * conv_block) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < ahead; ++j) {
      __builtin_prefetch(next + ((k - begin) * ahead + j * 4) * Vec::lanes, 0, 2);
    }
    uint32x4_t first[pairs], second[pairs];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < pairs; ++i) {
      const uint32x4_t a = vld1q_u32(x[2 * i] + k), b = vld1q_u32(x[partner(i)] + k);
      first[i] = first_halves(a, b);
      second[i] = second_halves(a, b);
    }
    step(first, weight);
    step(second, weight + 2 * conv_block);
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < pairs; ++i) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < conv_vectors; ++j) {
      const Sum a = of[i][2 * j], b = of[i][2 * j + 1];
      sums.v[2 * i][j] = {first_halves(a.v, b.v)};
      if (2 * i + 1 < rows) {
        sums.v[2 * i + 1][j] = {second_halves(a.v, b.v)};
      }
    }
  }
}

}  // namespace
