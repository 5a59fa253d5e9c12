#include "kernels.h"

namespace histo::kernels {

const Table& table(Isa isa) {
  switch (isa) {
#ifdef HISTO_X86_KERNELS
    case Isa::avx512:
      return avx512_table;
    case Isa::avx2:
      return avx2_table;
#endif
    default:
      return portable_table;
  }
}

}  // namespace histo::kernels
