// The code of the Error that a call must throw, which must also say what to do.
#pragma once

#include <doctest/doctest.h>

#include "histo/error.h"

template <typename Function>
histo::ErrorCode code_of(Function&& function) {
  try {
    function();
  } catch (const histo::Error& error) {
    CHECK_FALSE(error.message().empty());
    // After a callback's failure the library cannot know what to do.
    CHECK((error.code() == histo::ErrorCode::failed || !error.remedy().empty()));
    return error.code();
  }
  FAIL("no histo::Error was thrown");
  return {};
}
