#include <doctest/doctest.h>

#include <thread>

#include "histo/cpu.h"

#ifdef __linux__
#include <sched.h>
#endif

#if defined(__linux__) && defined(__aarch64__)
#include <cstdlib>
#include <string_view>
#endif

namespace {

#if defined(__linux__) && defined(__aarch64__)
// `make cpp-test-arm` names the CPUs in the variable of qemu-user.
TEST_CASE("cpu_info of an emulated Arm CPU has what that CPU has") {
  const char* const name = std::getenv("QEMU_CPU");
  if (name == nullptr) {
    MESSAGE("QEMU_CPU is not set: what the CPU should have is not known");
    return;
  }
  const bool newest = std::string_view(name) == "max";
  const histo::CpuInfo cpu = histo::cpu_info();
  CHECK(cpu.neon);
  CHECK(cpu.neon_dotprod == (newest || std::string_view(name) == "neoverse-n1"));
  CHECK(cpu.neon_i8mm == newest);
  CHECK(cpu.neon_bf16 == newest);
}
#endif

TEST_CASE("cpu_info agrees with the compiler's own detection") {
  const histo::CpuInfo cpu = histo::cpu_info();
#if defined(__x86_64__) && defined(__GNUC__)
  // Both look at cpuid and at XCR0, so they must not differ. AMX and bf16 are unknown to older compilers.
  CHECK(cpu.avx2 == (__builtin_cpu_supports("avx2") != 0));
  CHECK(cpu.fma == (__builtin_cpu_supports("fma") != 0));
  CHECK(cpu.avx512f == (__builtin_cpu_supports("avx512f") != 0));
  CHECK(cpu.avx512bw == (__builtin_cpu_supports("avx512bw") != 0));
  CHECK(cpu.avx512vl == (__builtin_cpu_supports("avx512vl") != 0));
  CHECK(cpu.avx512dq == (__builtin_cpu_supports("avx512dq") != 0));
  CHECK(cpu.avx512_vnni == (__builtin_cpu_supports("avx512vnni") != 0));
  CHECK((cpu.avx2 || !cpu.avx_vnni));
#elif !defined(__x86_64__) && !defined(__i386__) && !defined(_M_X64)
  CHECK_FALSE(cpu.avx2);
  CHECK_FALSE(cpu.avx512f);
  CHECK_FALSE(cpu.amx_tile);
#endif
#if defined(__aarch64__)
  CHECK(cpu.neon);
#else
  CHECK_FALSE(cpu.neon);
  CHECK_FALSE(cpu.neon_dotprod);
  CHECK_FALSE(cpu.neon_i8mm);
  CHECK_FALSE(cpu.neon_bf16);
#endif
  CHECK((cpu.avx512f || !cpu.avx512bw));
  CHECK((cpu.amx_tile || !cpu.amx_bf16));
}

TEST_CASE("usable_cpus is at least one and no more than the machine has") {
  const unsigned cpus = histo::usable_cpus();
  CHECK(cpus >= 1);
  if (std::thread::hardware_concurrency() != 0) {
    CHECK(cpus <= std::thread::hardware_concurrency());
  }
}

#ifdef __linux__
TEST_CASE("usable_cpus honours the affinity mask") {
  cpu_set_t before;
  CPU_ZERO(&before);
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  int first = 0;
  while (!CPU_ISSET(static_cast<unsigned>(first), &before)) {
    ++first;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<unsigned>(first), &one);
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  const unsigned cpus = histo::usable_cpus();
  REQUIRE(sched_setaffinity(0, sizeof before, &before) == 0);
  CHECK(cpus == 1);
}
#endif

}  // namespace
