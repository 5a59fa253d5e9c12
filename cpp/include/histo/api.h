/// \file
/// Marks what the shared library exports. Plain C, like histo.h, which includes it.
#pragma once

// The library is compiled with hidden visibility; what carries HISTO_API is seen from outside. On a class it
// covers the members and the type information too, without which no exception could be caught across the
// boundary; HISTO_HIDDEN takes a class inside such a class out again.
#if defined(__GNUC__)
#define HISTO_API __attribute__((visibility("default")))
#define HISTO_HIDDEN __attribute__((visibility("hidden")))
#else
#define HISTO_API
#define HISTO_HIDDEN
#endif
