// Which instruction set executes what, on simulated CPUs.

#include "cpu/isa_selection.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "error_code.h"
#include "histo/engine.h"
#include "histo/error.h"

namespace {

using histo::CpuInfo;
using histo::Isa;
using histo::IsaRecord;
using histo::Machine;
using histo::PerPrecision;
using histo::Precision;

using Executed = PerPrecision<std::optional<Isa>>;

constexpr std::optional<Isa> none;

CpuInfo avx2() { return {.avx2 = true, .fma = true}; }

CpuInfo avx512() {
  CpuInfo cpu = avx2();
  cpu.avx512f = cpu.avx512bw = cpu.avx512vl = cpu.avx512dq = true;
  return cpu;
}

CpuInfo vnni() {
  CpuInfo cpu = avx512();
  cpu.avx512_vnni = true;
  return cpu;
}

CpuInfo bf16() {
  CpuInfo cpu = vnni();
  cpu.avx512_bf16 = true;
  return cpu;
}

CpuInfo amx() {
  CpuInfo cpu = bf16();
  cpu.amx_tile = cpu.amx_bf16 = cpu.amx_int8 = true;
  return cpu;
}

// Of this build's list: that of an x86 build has all that is for x86, and so on.
const std::vector<const IsaRecord*>& records() {
  static const std::vector<const IsaRecord*> list(histo::isa_records().begin(), histo::isa_records().end());
  return list;
}

bool has_kernels_for(Isa isa) {
  return std::ranges::find(records(), isa, &IsaRecord::isa) != records().end();
}

void check(const Machine& machine, Isa highest, const Executed& expected) {
  CAPTURE(histo::name(highest));
  for (const auto& [precision, precision_name] : histo::name_table<Precision>) {
    const auto name = precision_name;  // Clang 14 captures no binding
    CAPTURE(name);
    const histo::Selection selection = histo::select_record(records(), machine, precision, highest);
    CHECK((selection.record == nullptr ? none : std::optional(selection.record->isa)) == expected[precision]);
    CHECK((selection.record == nullptr) != selection.reason.empty());
    if (selection.record != nullptr) {
      CHECK(histo::runs(*selection.record, machine));
    }
  }
}

std::string reason(const Machine& machine, Precision precision, Isa highest) {
  return histo::select_record(records(), machine, precision, highest).reason;
}

TEST_CASE("instruction set selection: every kind of CPU, precision and preference") {
  if (!has_kernels_for(Isa::amx)) {
    MESSAGE("this build has no kernels for x86: their selection is not tested");
    return;
  }
  const Executed only_portable{.fp32 = Isa::portable}, only_avx2{.fp32 = Isa::avx2};
  const auto usable = [](const Machine& machine) { return histo::usable_isas(records(), machine); };
  using Isas = std::vector<Isa>;

  SUBCASE("a CPU without AVX2, and one without FMA") {
    CpuInfo no_fma = avx512();
    no_fma.fma = false;
    for (const CpuInfo& cpu : {CpuInfo{}, no_fma}) {
      CHECK(usable({.cpu = cpu}) == Isas{Isa::portable});
      check({.cpu = cpu}, Isa::portable, only_portable);
    }
  }
  SUBCASE("AVX2") {
    const Machine machine{.cpu = avx2()};
    CHECK(usable(machine) == Isas{Isa::portable, Isa::avx2});
    check(machine, Isa::portable, only_portable);
    check(machine, Isa::avx2, only_avx2);
  }
  SUBCASE("AVX2 with VNNI") {
    CpuInfo cpu = avx2();
    cpu.avx_vnni = true;
    CHECK(usable({.cpu = cpu}) == Isas{Isa::portable, Isa::avx2});
    check({.cpu = cpu}, Isa::portable, only_portable);
    check({.cpu = cpu}, Isa::avx2, {.fp32 = Isa::avx2, .int8 = Isa::avx2});
  }
  SUBCASE("AVX-512 without VNNI and BF16") {
    const Machine machine{.cpu = avx512()};
    CHECK(usable(machine) == Isas{Isa::portable, Isa::avx2, Isa::avx512});
    check(machine, Isa::portable, only_portable);
    check(machine, Isa::avx2, only_avx2);
    check(machine, Isa::avx512, {.fp32 = Isa::avx512});
  }
  SUBCASE("a part of AVX-512") {
    CpuInfo cpu = bf16();
    cpu.avx512dq = false;
    CHECK(usable({.cpu = cpu}) == Isas{Isa::portable, Isa::avx2});
    check({.cpu = cpu}, Isa::avx2, only_avx2);
  }
  SUBCASE("AVX-512 with VNNI alone") {
    const Machine machine{.cpu = vnni()};
    CHECK(usable(machine) == Isas{Isa::portable, Isa::avx2, Isa::avx512});
    check(machine, Isa::avx2, only_avx2);
    check(machine, Isa::avx512, {.fp32 = Isa::avx512, .int8 = Isa::avx512});
  }
  const Executed all_avx512{
      .fp32 = Isa::avx512, .bf16 = Isa::avx512, .bf16x3 = Isa::avx512, .int8 = Isa::avx512};
  SUBCASE("AVX-512 with BF16") {
    const Machine machine{.cpu = bf16()};
    CHECK(usable(machine) == Isas{Isa::portable, Isa::avx2, Isa::avx512});
    check(machine, Isa::portable, only_portable);
    check(machine, Isa::avx2, only_avx2);
    check(machine, Isa::avx512, all_avx512);
  }
  SUBCASE("AMX") {
    const Machine machine{.cpu = amx(), .amx_granted = true};
    CHECK(usable(machine) == Isas{Isa::portable, Isa::avx2, Isa::avx512, Isa::amx});
    check(machine, Isa::portable, only_portable);
    check(machine, Isa::avx2, only_avx2);
    check(machine, Isa::avx512, all_avx512);
    check(machine, Isa::amx, {.fp32 = Isa::avx512, .bf16 = Isa::amx, .bf16x3 = Isa::amx, .int8 = Isa::amx});
  }
  SUBCASE("AMX that the system does not grant") {
    const Machine machine{.cpu = amx(), .amx_granted = false};
    CHECK(usable(machine) == Isas{Isa::portable, Isa::avx2, Isa::avx512});
    check(machine, Isa::avx512, all_avx512);
  }
}

TEST_CASE("instruction set selection: the reason names what is missing") {
  if (!has_kernels_for(Isa::amx)) {
    return;
  }
  CHECK(reason({.cpu = avx512()}, Precision::int8, Isa::avx512) ==
        "precision int8 needs AVX2 with VNNI, AVX-512 with VNNI, or AMX, and this CPU has none of them");
  CHECK(reason({.cpu = vnni()}, Precision::bf16x3, Isa::avx512) ==
        "precision bf16x3 needs AVX-512 with BF16, or AMX, and this CPU has neither");
  CHECK(reason({.cpu = bf16()}, Precision::bf16, Isa::avx2) ==
        "precision bf16 needs AVX-512 with BF16, or AMX, and instruction set avx2 was asked for");
  CHECK(reason({.cpu = vnni()}, Precision::int8, Isa::avx2) ==
        "precision int8 needs AVX2 with VNNI, AVX-512 with VNNI, or AMX, and this CPU lacks AVX2 with VNNI "
        "while "
        "instruction set avx2 was asked for");
  // A higher instruction set would not help on this CPU, so the one that was asked for is not the reason.
  CHECK(reason({.cpu = avx512()}, Precision::bf16, Isa::avx2) ==
        "precision bf16 needs AVX-512 with BF16, or AMX, and this CPU has neither");
}

TEST_CASE("instruction set selection: every kind of Arm CPU") {
  if (!has_kernels_for(Isa::neon)) {
    MESSAGE("this build has no kernels for Arm: their selection is not tested");
    return;
  }
  const auto description = [](const CpuInfo& cpu, Precision precision) {
    const histo::Selection selection = histo::select_record(records(), {.cpu = cpu}, precision, Isa::neon);
    return selection.record == nullptr ? selection.reason : std::string(selection.record->description);
  };
  CpuInfo cpu{.neon = true};
  CHECK(histo::usable_isas(records(), {.cpu = cpu}) == std::vector<Isa>{Isa::portable, Isa::neon});
  check({.cpu = cpu}, Isa::portable, {.fp32 = Isa::portable});
  check({.cpu = cpu}, Isa::neon, {.fp32 = Isa::neon});
  CHECK(description(cpu, Precision::int8) == "precision int8 needs NEON with DOTPROD, and this CPU lacks it");
  CHECK(description(cpu, Precision::bf16) == "precision bf16 needs NEON with BF16, and this CPU lacks it");

  cpu.neon_dotprod = true;
  check({.cpu = cpu}, Isa::portable, {.fp32 = Isa::portable});
  check({.cpu = cpu}, Isa::neon, {.fp32 = Isa::neon, .int8 = Isa::neon});
  CHECK(description(cpu, Precision::int8) == "NEON with DOTPROD");
  CHECK(reason({.cpu = cpu}, Precision::int8, Isa::portable) ==
        "precision int8 needs NEON with DOTPROD, and instruction set portable was asked for");

  cpu.neon_i8mm = cpu.neon_bf16 = true;
  check({.cpu = cpu}, Isa::neon,
        {.fp32 = Isa::neon, .bf16 = Isa::neon, .bf16x3 = Isa::neon, .int8 = Isa::neon});
  CHECK(description(cpu, Precision::fp32) == "NEON");
  CHECK(description(cpu, Precision::int8) == "NEON with I8MM");
  CHECK(description(cpu, Precision::bf16) == "NEON with BF16");
}

TEST_CASE("instruction set selection: the list's order decides, not the numbers of the enumeration") {
  constexpr auto neon = Isa::neon;  // whose number comes after that of AMX, although no CPU has both
  const IsaRecord portable_record{
      .isa = Isa::portable, .description = "", .needs = {}, .executes = {.fp32 = true}};
  const IsaRecord neon_record{.isa = neon, .description = "NEON", .needs = {}, .executes = {.fp32 = true}};
  const IsaRecord low_record{
      .isa = Isa::avx2, .description = "its products", .needs = {&CpuInfo::fma}, .executes = {.int8 = true}};
  const std::vector<const IsaRecord*> list{&portable_record, &neon_record, &low_record};
  const auto select = [&](const CpuInfo& cpu, Precision precision, Isa highest) {
    return histo::select_record(list, {.cpu = cpu}, precision, highest);
  };
  CHECK(histo::usable_isas(list, {}) == std::vector<Isa>{Isa::portable, neon});
  CHECK(select({}, Precision::fp32, neon).record == &neon_record);
  CHECK(select({}, Precision::fp32, Isa::portable).record == &portable_record);
  const CpuInfo with_products{.fma = true};
  CHECK(select(with_products, Precision::fp32, Isa::avx2).record == &neon_record);
  CHECK(select(with_products, Precision::int8, Isa::avx2).record == &low_record);
  CHECK(select({}, Precision::int8, neon).reason ==
        "precision int8 needs its products, and this CPU lacks it");
  CHECK(select({}, Precision::bf16, neon).reason ==
        "precision bf16 has no kernels in this build of the library");
}

TEST_CASE("this machine: usable instruction sets and precisions agree with the records") {
  const std::vector<Isa> isas = histo::usable_isas();
  REQUIRE(!isas.empty());
  CHECK(isas.front() == Isa::portable);
  CHECK(histo::usable_precisions().front() == Precision::fp32);
  for (const Isa isa : isas) {
    CAPTURE(histo::name(isa));
    const auto support = histo::precision_support(isa);
    REQUIRE(support.size() == histo::name_table<Precision>.size());
    std::vector<Precision> usable;
    for (const histo::PrecisionSupport& row : support) {
      CHECK(row.isa.has_value() == row.reason.empty());
      if (row.isa) {
        usable.push_back(row.precision);
        CHECK(histo::require_record(row.precision, isa).isa == *row.isa);
        CHECK(std::ranges::find(isas, *row.isa) != isas.end());
      } else {
        CHECK(code_of([&] { static_cast<void>(histo::require_record(row.precision, isa)); }) ==
              histo::ErrorCode::unsupported);
      }
    }
    CHECK(histo::usable_precisions(isa) == usable);
  }
  CHECK(code_of([] { static_cast<void>(histo::precision_support(static_cast<Isa>(99))); }) ==
        histo::ErrorCode::unsupported);
}

}  // namespace
