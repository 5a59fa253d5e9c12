/* What the tests of the C interface check with; C89, for one file of a program. */
#ifndef HISTO_C_CHECK_H
#define HISTO_C_CHECK_H

#include <stdio.h>
#include <string.h>

#include "histo/c_api.h"

static int failures = 0;

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      ++failures;                                                                                  \
      fprintf(stderr, "%s:%d: CHECK(%s) failed; last error: %s\n", __FILE__, __LINE__, #condition, \
              histo_last_error());                                                                 \
    }                                                                                              \
  } while (0)

static int ends_with(const char* text, const char* end) {
  return strlen(text) >= strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0;
}

/* The call must fail with this status and a message with `word`, of which the remedy is the end. */
#define CHECK_FAILS(call, status, word)                           \
  do {                                                            \
    CHECK((call) == (status));                                    \
    CHECK(strstr(histo_last_error(), (word)) != NULL);            \
    CHECK(ends_with(histo_last_error(), histo_last_remedy()));    \
    CHECK((status) == HISTO_FAILED || *histo_last_remedy() != 0); \
  } while (0)

#endif
