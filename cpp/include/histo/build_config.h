/// \file
/// How this binary was built, and what the machine that runs it can do.
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

/// Instruction sets that may be used here: the CPU has them and the operating system saves their registers.
/// All false on anything but x86.
///
/// Sources: Intel SDM vol. 1, 13.2-13.3 and 14.3 (detecting AVX), 15.2-15.4 (AVX-512), 18.3 (AMX); vol. 2,
/// CPUID.
///
/// On Linux a process must also ask for the AMX registers (`arch_prctl(ARCH_REQ_XCOMP_PERM)`) before it uses
/// them; the `amx_*` fields say that asking makes sense, not that it has been done.
struct CpuInfo {
  bool avx2 = false;
  bool fma = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512dq = false;
  bool avx512_bf16 = false;
  bool avx512_vnni = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
  bool amx_int8 = false;
};

/// \code
/// const char* kernel = histo::cpu_info().avx512f ? "avx512" : "portable";
/// \endcode
[[nodiscard]] HISTO_API CpuInfo cpu_info() noexcept;

/// How many threads it makes sense to start: the CPUs in this thread's affinity mask, and no more than the
/// cgroup's CPU quota (v1 or v2) rounded up. At least 1. Where the system has neither notion, its number of
/// CPUs.
///
/// The answer is read anew at each call (a few files), so ask once and keep it.
///
/// \code
/// std::vector<std::jthread> workers(histo::usable_cpus());
/// \endcode
[[nodiscard]] HISTO_API unsigned usable_cpus();

}  // namespace histo
