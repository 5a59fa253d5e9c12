// All kernels over `Vec`, and the table of them. A file per instruction set defines `Vec`, includes this and
// names the table.

#include "conv.inl"
#include "head.inl"
#include "pool.inl"
#include "winograd.inl"

namespace {

constexpr Table kernel_table{.lanes = Vec::lanes,
                             .conv_block = conv_block,
                             .conv = conv,
                             .winograd2 = {.input = winograd_input<F2>, .output = winograd_output<F2>},
                             .winograd4 = {.input = winograd_input<F4>, .output = winograd_output<F4>},
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
