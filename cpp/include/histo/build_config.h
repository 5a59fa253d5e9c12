/// \file
/// How this binary was built.
#pragma once

#include <string_view>

#include "histo/api.h"

namespace histo {

/// How the library was compiled.
struct BuildConfig {
  std::string_view version;       ///< of histo, for example "0.1.0"
  std::string_view compiler;      ///< name and version, for example "GNU 12.2.0"
  std::string_view cxx_standard;  ///< value of `__cplusplus`, for example "202002"
  std::string_view build_type;    ///< CMake's, for example "Release"
  std::string_view baseline;  ///< oldest CPU that runs it: "x86-64-v2", or "generic" (the compiler's default)
};

/// \code
/// std::cout << histo::build_config().compiler << '\n';
/// \endcode
[[nodiscard]] HISTO_API BuildConfig build_config() noexcept;

}  // namespace histo
