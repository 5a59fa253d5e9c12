// By CPU and not by operating system: rounding, flush-to-zero, traps and the flags of exceptions are in few
// registers.
#include <cstring>

#include "platform/platform.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace histo {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

// The x87 registers compute nothing here, but the C library's strtod() may use them.
struct Registers {
  unsigned mxcsr;
  unsigned char x87[28];  // control, status, tags and pointers, as FNSTENV writes them
};

// FNSTENV also masks the traps of the x87 unit.
Registers current() {
  Registers registers{};
  registers.mxcsr = _mm_getcsr();
  __asm__ volatile("fnstenv %0" : "=m"(registers.x87)::"memory");
  return registers;
}

// Not FLDCW for the host's: it would trap what the library's flags say.
void set(const Registers& registers) {
  __asm__ volatile("fldenv %0" ::"m"(registers.x87) : "memory");
  _mm_setcsr(registers.mxcsr);
}

// Source: Intel SDM vol. 1, 8.1.5 (the x87 control word after FNINIT) and 10.2.3 (MXCSR after a reset).
void set_default() {
  const unsigned short control = 0x037F;
  __asm__ volatile("fldcw %0" ::"m"(control) : "memory");
  _mm_setcsr(0x1F80);
}

#elif defined(__aarch64__)

// Source: Arm Architecture Reference Manual for A-profile, FPCR and FPSR.
struct Registers {
  std::uint64_t control, status;
};

Registers current() {
  Registers registers{};
  __asm__ volatile("mrs %0, fpcr" : "=r"(registers.control)::"memory");
  __asm__ volatile("mrs %0, fpsr" : "=r"(registers.status)::"memory");
  return registers;
}

void set(const Registers& registers) {
  __asm__ volatile("msr fpcr, %0" ::"r"(registers.control) : "memory");
  __asm__ volatile("msr fpsr, %0" ::"r"(registers.status) : "memory");
}

void set_default() { __asm__ volatile("msr fpcr, %0" ::"r"(std::uint64_t{0}) : "memory"); }

#else

using Registers = std::fenv_t;

Registers current() {
  Registers registers;
  std::fegetenv(&registers);
  return registers;
}

void set(const Registers& registers) { std::fesetenv(&registers); }

void set_default() { std::fesetenv(FE_DFL_ENV); }

#endif

static_assert(sizeof(Registers) <= FloatEnvironment::saved_bytes);

}  // namespace

FloatEnvironment::FloatEnvironment() noexcept : saved_{} {
  const Registers host = current();
  std::memcpy(saved_, &host, sizeof host);
  set_default();
}

FloatEnvironment::~FloatEnvironment() {
  Registers host;
  std::memcpy(&host, saved_, sizeof host);
  set(host);
}

void FloatEnvironment::exchange() noexcept {
  const Registers now = current();
  Registers next;
  std::memcpy(&next, saved_, sizeof next);
  std::memcpy(saved_, &now, sizeof now);
  set(next);
}

}  // namespace histo
