// By CPU and not by operating system: rounding, flush-to-zero, traps and the flags of exceptions are one
// register.
#include "platform/platform.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#include <cstring>
#endif

namespace histo {

#if defined(__x86_64__) || defined(_M_X64)

// Source: Intel SDM vol. 1, 10.2.3 (MXCSR after a reset). The x87 registers compute nothing here.
FloatEnvironment::FloatEnvironment() noexcept : saved_{_mm_getcsr(), 0} { _mm_setcsr(0x1F80); }
FloatEnvironment::~FloatEnvironment() { _mm_setcsr(static_cast<unsigned>(saved_[0])); }

#elif defined(__aarch64__)

// Source: Arm Architecture Reference Manual for A-profile, FPCR and FPSR.
FloatEnvironment::FloatEnvironment() noexcept : saved_{} {
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved_[0])::"memory");
  __asm__ volatile("mrs %0, fpsr" : "=r"(saved_[1])::"memory");
  __asm__ volatile("msr fpcr, %0" ::"r"(std::uint64_t{0}) : "memory");
}
FloatEnvironment::~FloatEnvironment() {
  __asm__ volatile("msr fpcr, %0" ::"r"(saved_[0]) : "memory");
  __asm__ volatile("msr fpsr, %0" ::"r"(saved_[1]) : "memory");
}

#else

static_assert(sizeof(std::fenv_t) <= FloatEnvironment::saved_bytes);

FloatEnvironment::FloatEnvironment() noexcept : saved_{} {
  std::fenv_t environment;
  std::fegetenv(&environment);
  std::memcpy(saved_, &environment, sizeof environment);
  std::fesetenv(FE_DFL_ENV);
}
FloatEnvironment::~FloatEnvironment() {
  std::fenv_t environment;
  std::memcpy(&environment, saved_, sizeof environment);
  std::fesetenv(&environment);
}

#endif

}  // namespace histo
