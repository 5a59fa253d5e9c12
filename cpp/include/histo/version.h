/** \file
 * The version of these headers, and whether the library is one that they can be used with. Plain C, like
 * c_api.h, which includes it.
 */
#pragma once

#include "histo/api.h"

#define HISTO_VERSION_MAJOR 0
#define HISTO_VERSION_MINOR 1
#define HISTO_VERSION_PATCH 0

/* As one number that grows with each version, for the preprocessor: `#if HISTO_VERSION_NUMBER >= 200`. */
#define HISTO_VERSION_NUMBER (HISTO_VERSION_MAJOR * 10000 + HISTO_VERSION_MINOR * 100 + HISTO_VERSION_PATCH)
