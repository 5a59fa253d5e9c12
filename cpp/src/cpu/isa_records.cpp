#include "cpu/isa_records.h"

// HISTO_KERNELS is set for this file alone, in CMakeLists.txt: HISTO_RECORD(portable) HISTO_RECORD(avx2) ...
// A file kernels/NAME.cpp defines NAME_record.

namespace histo {

namespace kernels {

#define HISTO_RECORD(name) extern const IsaRecord name##_record;
HISTO_KERNELS
#undef HISTO_RECORD

}  // namespace kernels

std::span<const IsaRecord* const> isa_records() {
#define HISTO_RECORD(name) &kernels::name##_record,
  static constexpr const IsaRecord* records[] = {HISTO_KERNELS};
#undef HISTO_RECORD
  return records;
}

}  // namespace histo
