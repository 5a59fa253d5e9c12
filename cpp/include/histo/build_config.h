/// \file
/// How this binary was built.
#pragma once

#include <string_view>

#include "histo/api.h"
#include "histo/version.h"

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

/// HISTO_VERSION_NUMBER of the library that runs, which may not be that of the headers.
[[nodiscard]] HISTO_API int version_number() noexcept;

/// Whether a program that was compiled with the headers of version `headers` can use the library that runs:
/// it is of the same major version (before 1.0: of the same minor version) and not older.
///
/// \param headers  leave the default, which is taken where the program is compiled
/// \throws Error   unsupported, with both versions
///
/// \code
/// histo::require_version();  // once, at the start of a program that loads a shared library
/// \endcode
HISTO_API void require_version(int headers = HISTO_VERSION_NUMBER);

}  // namespace histo
