// Refuses compiler options that change what arithmetic means: bits would depend on the batch, and NaN in a
// tile or in a file would not be seen. CMakeLists.txt looks for those for which Clang has no macro.
#pragma once

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(_M_FP_FAST)
#error \
    "histo cannot be compiled with -ffast-math, -Ofast or their parts; leave them out for histo (docs/cpp.md)"
#endif
