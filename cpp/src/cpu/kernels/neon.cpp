#include "kernels.h"
#include "vec_neon.h"

namespace histo::kernels {

#include "fp32.inl"

extern const IsaRecord neon_record;
const IsaRecord neon_record{.isa = Isa::neon,
                            .description = "NEON",
                            .needs = {&CpuInfo::neon},
                            .executes = {.fp32 = true},
                            .kernels = &fp32_kernels};

}  // namespace histo::kernels
