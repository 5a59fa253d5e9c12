// 3 x 3 maximum pooling with stride 2 over `Vec`, channels-last.

namespace {

// For one image with a border of zeros, whose values are all at least zero or NaN: calls write(vector, pixel,
// channel) for each vector of the output, where `pixel` points to that pixel of `output`.
template <typename Write>
[[gnu::always_inline]] inline void pool(const float* input, std::size_t input_row, Unit* output,
                                        std::size_t output_row, std::size_t output_column, std::size_t height,
                                        std::size_t width, std::size_t channels, const Write& write) {
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < width; ++x) {
      const float* const window = input + 2 * y * input_row + 2 * x * channels;
      for (std::size_t c = 0; c < channels; c += Vec::lanes) {
        Vec largest = Vec::zero();
        for (std::size_t r = 0; r < 3; ++r) {
          for (std::size_t k = 0; k < 3; ++k) {
            largest = largest.max(Vec::load(window + r * input_row + k * channels + c));
          }
        }
        write(largest, output + y * output_row + x * output_column, c);
      }
    }
  }
}

}  // namespace
