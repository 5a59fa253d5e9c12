/// \file
/// Marks what the shared library exports. Plain C, like c_api.h, which includes it.
#pragma once

// The library is compiled with hidden visibility; HISTO_API makes a name visible to programs. On a class it
// includes the members and the type information, which a program needs to catch an exception that the library
// throws. HISTO_HIDDEN hides a class inside such a class again.
#if defined(__GNUC__)
#define HISTO_API __attribute__((visibility("default")))
#define HISTO_HIDDEN __attribute__((visibility("hidden")))
#else
#define HISTO_API
#define HISTO_HIDDEN
#endif
