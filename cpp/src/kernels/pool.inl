// 3 x 3 maximum pooling with stride 2 over `Vec`, channels-last.

namespace {

void max_pool(const float* input, std::size_t input_row, float* output, std::size_t output_row,
              std::size_t height, std::size_t width, std::size_t channels) {
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < width; ++x) {
      const float* const window = input + 2 * y * input_row + 2 * x * channels;
      float* const out = output + y * output_row + x * channels;
      for (std::size_t c = 0; c < channels; c += Vec::lanes) {
        Vec largest = Vec::zero();  // all values are at least zero
        for (std::size_t r = 0; r < 3; ++r) {
          for (std::size_t k = 0; k < 3; ++k) {
            largest = largest.max(Vec::load(window + r * input_row + k * channels + c));
          }
        }
        largest.store(out + c);
      }
    }
  }
}

}  // namespace
