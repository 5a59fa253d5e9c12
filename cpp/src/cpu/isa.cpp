#include "histo/isa.h"

#include <algorithm>
#include <cstdlib>
#include <span>
#include <string>

#include "histo/build_config.h"
#include "histo/error.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace histo {
namespace {

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
    throw Error(ErrorCode::unsupported, "instruction set " + std::string(name(isa)) + " is not usable here",
                "usable: " + name_list(std::span<const Isa>(usable)));
  }
  return isa;
}

Isa default_isa() {
  const char* const forced = std::getenv("HISTO_ISA");
  if (forced == nullptr || *forced == '\0') {
    return usable_isas().back();
  }
  return require_usable(from_name<Isa>("HISTO_ISA", forced));
}

}  // namespace histo
