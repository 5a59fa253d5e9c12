// What a call that must fail fails with.
#pragma once

#include <doctest/doctest.h>

#include <string>

#include "histo/error.h"

template <typename Function>
histo::ErrorCode code_of(Function&& function) {
  try {
    function();
  } catch (const histo::Error& error) {
    CHECK_FALSE(std::string(error.what()).empty());
    return error.code();
  }
  FAIL("no histo::Error was thrown");
  return {};
}
