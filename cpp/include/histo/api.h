/** \file
 * Marks what the shared library exports. Plain C, like c_api.h, which includes it.
 */
#pragma once

/* HISTO_API makes a name visible to programs; all others stay hidden in the library. On a class it includes
 * the members and the type information, which a program needs to catch an exception that the library throws.
 * HISTO_HIDDEN hides a class inside such a class again, where that is not so by itself.
 *
 * HISTO_STATIC, which the CMake target histo::static defines for whoever links it, is for the static library:
 * there nothing is exported, so that a program or a library that contains it does not offer histo to others.
 *
 * On Windows, programs need no mark of their own: nothing but functions is exported, and linkers find these
 * through the import library.
 */
#if defined(HISTO_STATIC)
#define HISTO_API
#define HISTO_HIDDEN
#elif defined(_WIN32) && defined(HISTO_EXPORTS)
#define HISTO_API __declspec(dllexport)
#define HISTO_HIDDEN
#elif defined(_WIN32) || !defined(__GNUC__)
#define HISTO_API
#define HISTO_HIDDEN
#else
#define HISTO_API __attribute__((visibility("default")))
#define HISTO_HIDDEN __attribute__((visibility("hidden")))
#endif
