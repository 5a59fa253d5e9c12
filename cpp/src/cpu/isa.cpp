#include "histo/isa.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "histo/build_config.h"
#include "histo/error.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace histo {
namespace {

std::string names(const std::vector<Isa>& isas) {
  std::string list;
  for (const Isa isa : isas) {
    list += (list.empty() ? "" : ", ") + std::string(name(isa));
  }
  return list;
}

#ifdef HISTO_X86_KERNELS
// Linux saves the matrix unit's 8 KiB of registers only for processes that have asked.
// Source: Documentation/arch/x86/xstate.rst of the Linux kernel.
bool amx_is_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int request_permission = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

}  // namespace

std::string_view name(Isa isa) noexcept {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
  }
  return "unknown";
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> isas{Isa::portable};
#ifdef HISTO_X86_KERNELS
  const CpuInfo cpu = cpu_info();
  if (cpu.avx2 && cpu.fma) {
    isas.push_back(Isa::avx2);
    if (cpu.avx512f && cpu.avx512bw && cpu.avx512dq && cpu.avx512vl) {
      isas.push_back(Isa::avx512);
      if (cpu.amx_bf16 && cpu.amx_int8 && cpu.avx512_bf16 && cpu.avx512_vnni && amx_is_granted()) {
        isas.push_back(Isa::amx);
      }
    }
  }
#endif
  return isas;
}

Isa require_usable(Isa isa) {
  const std::vector<Isa> usable = usable_isas();
  if (std::ranges::find(usable, isa) == usable.end()) {
    throw Error(ErrorCode::unsupported, "instruction set " + std::string(name(isa)) +
                                            " is not usable here; usable: " + names(usable));
  }
  return isa;
}

Isa default_isa() {
  const char* const forced = std::getenv("HISTO_ISA");
  if (forced == nullptr || *forced == '\0') {
    return usable_isas().back();
  }
  const std::vector<Isa> all{Isa::portable, Isa::avx2, Isa::avx512, Isa::amx};
  const auto found = std::ranges::find(all, std::string_view(forced), [](Isa isa) { return name(isa); });
  if (found == all.end()) {
    throw Error(ErrorCode::invalid_argument,
                "HISTO_ISA is \"" + std::string(forced) + "\"; it must be one of " + names(all));
  }
  return require_usable(*found);
}

}  // namespace histo
