#include <cmath>
#include <cstddef>
#include <cstdint>

#include "histo/cpu.h"
#include "platform/platform.h"

#if defined(__x86_64__) || defined(__i386__)
#define HISTO_X86 1
#include <cpuid.h>
#endif

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__) && defined(__aarch64__)
#include <sys/sysctl.h>
#elif defined(_WIN32) && (defined(__aarch64__) || defined(_M_ARM64))
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#endif

namespace histo {

#ifdef HISTO_X86

namespace {

struct CpuidResult {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero for a leaf that the CPU does not have.
CpuidResult cpuid(std::uint32_t leaf, std::uint32_t subleaf) noexcept {
  CpuidResult r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// XCR0: the register states that the operating system saves. Only callable where cpuid reports OSXSAVE.
std::uint64_t xcr0() noexcept {
  // Not the _xgetbv intrinsic: GCC offers it only under -mxsave, which x86-64-v2 does not include.
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32U) | low;
}

constexpr bool bit(std::uint32_t word, unsigned position) { return ((word >> position) & 1U) != 0; }

}  // namespace

CpuInfo cpu_info() noexcept {
  const CpuidResult leaf1 = cpuid(1, 0);
  if (!bit(leaf1.ecx, 27)) {  // OSXSAVE
    return {};
  }
  const std::uint64_t saved = xcr0();
  const auto os_saves = [saved](std::uint64_t states) { return (saved & states) == states; };
  const bool avx = bit(leaf1.ecx, 28) && os_saves(0x6);  // XMM, YMM
  const bool avx512 = avx && os_saves(0xE6);             // and opmask, ZMM low, ZMM high
  const bool amx = os_saves(0x60000);                    // tile configuration, tile data

  const CpuidResult leaf7 = cpuid(7, 0);
  const CpuidResult leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : CpuidResult{};
  const bool avx512f = avx512 && bit(leaf7.ebx, 16);
  const bool amx_tile = amx && bit(leaf7.edx, 24);
  return {.avx2 = avx && bit(leaf7.ebx, 5),
          .fma = avx && bit(leaf1.ecx, 12),
          .avx512f = avx512f,
          .avx512bw = avx512f && bit(leaf7.ebx, 30),
          .avx512vl = avx512f && bit(leaf7.ebx, 31),
          .avx512dq = avx512f && bit(leaf7.ebx, 17),
          .avx512_bf16 = avx512f && bit(leaf7_1.eax, 5),
          .avx512_vnni = avx512f && bit(leaf7.ecx, 11),
          .avx_vnni = avx && bit(leaf7_1.eax, 4),
          .amx_tile = amx_tile,
          .amx_bf16 = amx_tile && bit(leaf7.edx, 22),
          .amx_int8 = amx_tile && bit(leaf7.edx, 25)};
}

#elif defined(__linux__) && defined(__aarch64__)

// HWCAP_ASIMD, HWCAP_ASIMDDP, HWCAP2_I8MM and HWCAP2_BF16, which older headers lack.
CpuInfo cpu_info() noexcept {
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  const auto bit = [](unsigned long word, unsigned position) { return ((word >> position) & 1U) != 0; };
  return {.neon = bit(first, 1),
          .neon_dotprod = bit(first, 20),
          .neon_i8mm = bit(second, 13),
          .neon_bf16 = bit(second, 14)};
}

#elif defined(__APPLE__) && defined(__aarch64__)

CpuInfo cpu_info() noexcept {
  const auto has = [](const char* name) {  // a name that this version of macOS does not know is an error
    int value = 0;
    std::size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  return {.neon = true,  // part of every such CPU
          .neon_dotprod = has("hw.optional.arm.FEAT_DotProd"),
          .neon_i8mm = has("hw.optional.arm.FEAT_I8MM"),
          .neon_bf16 = has("hw.optional.arm.FEAT_BF16")};
}

#elif defined(_WIN32) && (defined(__aarch64__) || defined(_M_ARM64))

// Older headers lack the names of the last two, and older systems answer no.
CpuInfo cpu_info() noexcept {
  constexpr DWORD neon = 19, dotprod = 43, i8mm = 66, bf16 = 68;  // PF_ARM_..._INSTRUCTIONS_AVAILABLE
  const auto has = [](DWORD feature) { return IsProcessorFeaturePresent(feature) != 0; };
  return {.neon = has(neon), .neon_dotprod = has(dotprod), .neon_i8mm = has(i8mm), .neon_bf16 = has(bf16)};
}

#else

CpuInfo cpu_info() noexcept { return {}; }

#endif

unsigned usable_cpus() {
  const FloatEnvironment environment;
  const unsigned cpus = cpus_in_affinity_mask();
  const auto quota = cpu_quota();
  if (!quota || *quota >= static_cast<double>(cpus)) {
    return cpus;
  }
  // Up, not down: one thread would leave a third of a quota of 1.5 CPUs unused; two are throttled now and
  // then.
  return static_cast<unsigned>(std::ceil(*quota));
}

}  // namespace histo
