// All kernels over `Vec`, and the table of them. A file per instruction set defines `Vec`, includes this and
// names the table.

#include "conv.inl"
#include "head.inl"
#include "pool.inl"
#include "winograd.inl"

namespace {

void max_pool(const float* input, std::size_t input_row, float* output, std::size_t output_row,
              std::size_t height, std::size_t width, std::size_t channels) {
  pool(input, input_row, output, output_row, channels, height, width, channels,
       [](Vec largest, float* pixel, std::size_t channel) { largest.store(pixel + channel); });
}

constexpr Table kernel_table{
    .lanes = Vec::lanes,
    .conv_block = conv_block,
    .conv = conv<Fp32Dot>,
    .winograd2 = {.input = winograd_input<F2, Fp32Winograd>, .output = winograd_output<F2, Fp32Winograd>},
    .winograd4 = {.input = winograd_input<F4, Fp32Winograd>, .output = winograd_output<F4, Fp32Winograd>},
    .max_pool = max_pool,
    .head_cells_f32 = head_cells<float>,
    .head_cells_bf16 = head_cells<std::uint16_t>,
    .head_rows_f32 = head_rows<float>,
    .head_rows_bf16 = head_rows<std::uint16_t>,
    .head_bin_f32 = head_bin<float>,
    .head_bin_bf16 = head_bin<std::uint16_t>,
    .sum_bin_f32 = sum_bin<float>,
    .sum_bin_bf16 = sum_bin<std::uint16_t>};

}  // namespace
