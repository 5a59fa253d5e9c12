#include "kernels.h"

#include "histo/build_config.h"

namespace histo::kernels {

const Table& table(Isa isa) {
  switch (isa) {
#ifdef HISTO_X86_KERNELS
    case Isa::amx:
    case Isa::avx512:
      return avx512_table;
    case Isa::avx2:
      return avx2_table;
#endif
    default:
      return portable_table;
  }
}

DotTables dot_tables([[maybe_unused]] Isa isa) {
#ifdef HISTO_X86_KERNELS
  const DotTable& vectors = cpu_info().avx512_bf16 ? avx512_bf16_table : avx512_vnni_table;
  if (isa == Isa::amx) {
    return {.layers = &amx_table, .stem = &vectors};
  }
  if (isa == Isa::avx512) {
    return {.layers = &vectors, .stem = &vectors};
  }
#endif
  return {};
}

}  // namespace histo::kernels
