#include "kernels.h"
#include "vec_avx512.h"

namespace histo::kernels {

#include "table.inl"

const Table avx512_table = kernel_table;

}  // namespace histo::kernels
