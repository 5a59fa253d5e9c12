#include "kernels.h"
#include "vec_portable.h"

namespace histo::kernels {

#include "table.inl"

const Table portable_table = kernel_table;

}  // namespace histo::kernels
