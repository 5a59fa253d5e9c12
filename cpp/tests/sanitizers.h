// Which sanitizer this test is compiled with. GCC says it by macros of its own, Clang by __has_feature().
#pragma once

#ifdef __has_feature
#define HISTO_HAS_FEATURE(feature) __has_feature(feature)
#else
#define HISTO_HAS_FEATURE(feature) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || HISTO_HAS_FEATURE(address_sanitizer)
#define HISTO_ADDRESS_SANITIZER 1
#else
#define HISTO_ADDRESS_SANITIZER 0
#endif

#if defined(__SANITIZE_THREAD__) || HISTO_HAS_FEATURE(thread_sanitizer)
#define HISTO_THREAD_SANITIZER 1
#else
#define HISTO_THREAD_SANITIZER 0
#endif
