// Compiled for every x86-64 CPU (CMakeLists.txt). No inline functions of the standard library, because the
// linker might take copies that were compiled for the baseline.
#include "cpu/baseline.h"

#if defined(HISTO_X86_64_V2) && defined(__GNUC__)

#include <cpuid.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace histo {
namespace {

struct Feature {
  const char* name;
  unsigned leaf;
  unsigned bit;  // of ECX
};

// Source: x86-64 psABI, "Micro-Architecture Levels"; Intel SDM vol. 2, CPUID.
constexpr Feature x86_64_v2[] = {{"SSE3", 1, 0},          {"SSSE3", 1, 9},   {"CMPXCHG16B", 1, 13},
                                 {"SSE4.1", 1, 19},       {"SSE4.2", 1, 20}, {"POPCNT", 1, 23},
                                 {"LAHF", 0x80000001U, 0}};

bool has(const Feature& feature) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(feature.leaf, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> feature.bit & 1U) != 0;
}

// Before the constructors of everybody else, whose priority is 65535.
[[gnu::constructor(101)]] void check_when_loaded() { require_baseline(); }

}  // namespace

void require_baseline() noexcept {
  bool complete = true;
  for (const Feature& feature : x86_64_v2) {
    if (!has(feature)) {
      std::fputs(complete ? "histo: this CPU lacks " : ", ", stderr);
      std::fputs(feature.name, stderr);
      complete = false;
    }
  }
  if (!complete) {
    std::fputs(", which this library is compiled for (x86-64-v2); use a CPU from 2009 or later\n", stderr);
    std::_Exit(1);
  }
}

}  // namespace histo

#else

namespace histo {

void require_baseline() noexcept {}

}  // namespace histo

#endif
