// The list of instruction sets that kernels are compiled for.
#pragma once

#include <span>

#include "histo/cpu.h"
#include "plan/per_precision.h"

namespace histo {

namespace kernels {
struct KernelSet;
}

// One set of kernels. Several records may share an Isa, where CPUs have parts of it: AVX2 with and without
// VNNI, AVX-512 with and without VNNI and BF16.
//
// An aggregate of constants, because the files of kernels/ that define these must not run code to initialise
// them.
struct IsaRecord {
  Isa isa;
  const char* description;      // for messages: "AVX-512 with VNNI"
  bool CpuInfo::* needs[12];    // all of these, up to the first null; AMX also needs the system's grant
  PerPrecision<bool> executes;  // what an Engine may be asked for
  const kernels::KernelSet* kernels = nullptr;
};

// Lowest first: the order of histo_kernels() in CMakeLists.txt.
[[nodiscard]] std::span<const IsaRecord* const> isa_records();

}  // namespace histo
