#include "histo/build_config.h"

// The HISTO_ macros are set for this file alone, in CMakeLists.txt.

#define HISTO_STRING(x) #x
#define HISTO_VALUE_AS_STRING(x) HISTO_STRING(x)

namespace histo {

BuildConfig build_config() noexcept {
  // The standard says "202002L"; the suffix is not part of the number.
  constexpr std::string_view standard = HISTO_VALUE_AS_STRING(__cplusplus);
  return {.version = HISTO_VERSION,
          .compiler = HISTO_COMPILER,
          .cxx_standard = standard.substr(0, standard.find('L')),
          .build_type = HISTO_BUILD_TYPE,
          .baseline = HISTO_BASELINE};
}

}  // namespace histo
