#include "histo/build_config.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <string_view>

TEST_CASE("build_config tells how the library was compiled") {
  const histo::BuildConfig config = histo::build_config();
  CHECK(std::count(config.version.begin(), config.version.end(), '.') == 2);
  CHECK(config.compiler.find(' ') != std::string_view::npos);
  CHECK(std::stol(std::string(config.cxx_standard)) >= 202002);
  CHECK_FALSE(config.build_type.empty());
  const bool known_baseline =
      config.baseline == "x86-64-v2" || config.baseline == "armv8-a" || config.baseline == "generic";
  CHECK(known_baseline);
}
