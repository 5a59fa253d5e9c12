#include "histo/build_config.h"

#include <string>

#include "histo/error.h"

// The HISTO_ macros are set for this file alone, in CMakeLists.txt.

#define HISTO_STRING(x) #x
#define HISTO_VALUE_AS_STRING(x) HISTO_STRING(x)

#define HISTO_VERSION_OF_HEADERS             \
  HISTO_VALUE_AS_STRING(HISTO_VERSION_MAJOR) \
  "." HISTO_VALUE_AS_STRING(HISTO_VERSION_MINOR) "." HISTO_VALUE_AS_STRING(HISTO_VERSION_PATCH)

namespace histo {

static_assert(std::string_view(HISTO_VERSION) == HISTO_VERSION_OF_HEADERS,
              "cpp/include/histo/version.h and python/histo_export/__init__.py state different versions");

namespace {

std::string text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

// Versions with the same of these can replace each other, upwards: see SOVERSION in CMakeLists.txt.
int interface_of(int version) { return version >= 10000 ? version / 10000 * 10000 : version / 100; }

}  // namespace

BuildConfig build_config() noexcept {
  // The standard says "202002L"; the suffix is not part of the number.
  constexpr std::string_view standard = HISTO_VALUE_AS_STRING(__cplusplus);
  return {.version = HISTO_VERSION,
          .compiler = HISTO_COMPILER,
          .cxx_standard = standard.substr(0, standard.find('L')),
          .build_type = HISTO_BUILD_TYPE,
          .baseline = HISTO_BASELINE};
}

int version_number() noexcept { return HISTO_VERSION_NUMBER; }

void require_version(int headers) {
  if (headers > version_number() || interface_of(headers) != interface_of(version_number())) {
    throw Error(ErrorCode::unsupported,
                "the program was compiled with the headers of histo " + text(headers) +
                    ", and the library is version " + text(version_number()),
                "compile it again, or install the library that belongs to the headers");
  }
}

}  // namespace histo
