/// \file
/// What this machine's CPU can run, and what the library chooses from that: instruction sets, precisions,
/// threads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "histo/api.h"
#include "histo/names.h"

namespace histo {

// --- the CPU ---------------------------------------------------------------------------------------------

/// Instructions that may be used here: the CPU has them and the operating system saves their registers.
/// On x86 the first ones may be true, on AArch64 the last four.
///
/// Sources: Intel SDM vol. 1, 13.2-13.3 and 14.3 (detecting AVX), 15.2-15.4 (AVX-512), 18.3 (AMX); vol. 2,
/// CPUID. Documentation/arch/arm64/elf_hwcaps.rst of the Linux kernel; "Determining instruction set
/// characteristics" of Apple's developer documentation; IsProcessorFeaturePresent of Windows.
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
  bool avx_vnni = false;  ///< VNNI for the registers of AVX2
  bool amx_tile = false;
  bool amx_bf16 = false;
  bool amx_int8 = false;
  bool neon = false;
  bool neon_dotprod = false;  ///< SDOT, UDOT
  bool neon_i8mm = false;     ///< USMMLA
  bool neon_bf16 = false;     ///< BFDOT, BFMMLA
};

/// \code
/// const char* kernel = histo::cpu_info().avx512f ? "avx512" : "portable";
/// \endcode
[[nodiscard]] HISTO_API CpuInfo cpu_info() noexcept;

/// How many threads it makes sense to start: the CPUs in this thread's affinity mask (on Windows, in that of
/// the process), and no more than the cgroup's CPU quota (v1 or v2) rounded up. At least 1. Where the system
/// has neither, its number of CPUs.
///
/// Each call reads a few files, so ask once and keep the answer.
///
/// \code
/// std::vector<std::thread> workers(histo::usable_cpus());
/// \endcode
[[nodiscard]] HISTO_API unsigned usable_cpus();

// --- the kernels -----------------------------------------------------------------------------------------

/// The instruction sets that this machine can run and this library was built for, lowest first. The first is
/// always Isa::portable.
///
/// Where the CPU has AMX, the first call asks Linux for permission to use its registers, for this process and
/// the threads that it will start. Isa::amx is usable where that is granted; containers and old kernels may
/// refuse.
[[nodiscard]] HISTO_API std::vector<Isa> usable_isas();

/// The highest usable instruction set, or the one that the environment variable `HISTO_ISA` names.
///
/// The variable is read at each call. Objects that were made before a change keep their instruction set.
///
/// \throws Error  invalid_argument where `HISTO_ISA` does not name an instruction set, unsupported where this
///                machine cannot run it
[[nodiscard]] HISTO_API Isa default_isa();

/// Returns `isa`.
/// \throws Error  unsupported where this machine cannot run it
HISTO_API Isa require_usable(Isa isa);

/// Whether this machine can run a precision, and how.
struct PrecisionSupport {
  Precision precision;
  std::optional<Isa>
      isa;             ///< the instruction set whose kernels run; empty where the precision is unavailable
  std::string reason;  ///< why it is unavailable, a sentence without a full stop; else empty
};

/// Every precision in the order of name_table<Precision>, with the instruction set that executes it.
///
/// That may be lower than `highest`: AMX has no float32, so Precision::fp32 runs on Isa::avx512 there.
/// Nothing is replaced in the other direction: a precision that `highest` cannot run is unavailable.
///
/// \param highest  the highest instruction set to use, as EngineOptions::isa; none: default_isa()
/// \throws Error   as default_isa() and require_usable()
///
/// \code
/// for (const histo::PrecisionSupport& support : histo::precision_support()) {
///   std::cout << histo::name(support.precision) << ": "
///             << (support.isa ? histo::name(*support.isa) : support.reason) << '\n';
/// }
/// \endcode
[[nodiscard]] HISTO_API std::vector<PrecisionSupport> precision_support(std::optional<Isa> highest = {});

/// The precisions that this machine can run, in the order of name_table<Precision>; the first is always
/// Precision::fp32. Arguments and errors as precision_support().
[[nodiscard]] HISTO_API std::vector<Precision> usable_precisions(std::optional<Isa> highest = {});

}  // namespace histo
