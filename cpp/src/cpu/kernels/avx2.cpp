#include "kernels.h"
#include "vec_avx2.h"

namespace histo::kernels {

#include "table.inl"

const Table avx2_table = kernel_table;

}  // namespace histo::kernels
