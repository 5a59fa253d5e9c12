#include "kernels.h"
#include "vec_portable.h"

namespace histo::kernels {

#include "fp32.inl"

extern const IsaRecord portable_record;
const IsaRecord portable_record{.isa = Isa::portable,
                                .description = "the compiler's baseline",
                                .needs = {},
                                .executes = {.fp32 = true},
                                .kernels = &fp32_kernels};

}  // namespace histo::kernels
