// The kernels of avx_vnni.cpp with the instructions of AVX-512 for YMM registers, which do the same: so they
// run on CPUs that have these alone.
#include "avx_vnni_by_avx512.h"

#ifdef __AVX512VNNI__

#include "cpu/kernels/vec_avx2.h"

namespace histo::kernels {

#include "cpu/kernels/vnni.inl"

const KernelSet* const avx_vnni_by_avx512 = &vnni_kernels;

}  // namespace histo::kernels

#else

const histo::kernels::KernelSet* const histo::kernels::avx_vnni_by_avx512 = nullptr;

#endif
