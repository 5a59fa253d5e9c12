// Which instruction set executes a precision: a pure function of the list of records and of the machine.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cpu/isa_records.h"
#include "histo/cpu.h"

namespace histo {

using IsaRecords = std::span<const IsaRecord* const>;

// What the choice depends on.
struct Machine {
  CpuInfo cpu;
  bool amx_granted = false;  // whether the operating system lets this process use the AMX registers
};

// Asks for AMX where the CPU has it.
Machine this_machine();

[[nodiscard]] bool runs(const IsaRecord& record, const Machine& machine);

// The instruction sets of the records that run, each once, in the order of the list.
[[nodiscard]] std::vector<Isa> usable_isas(IsaRecords records, const Machine& machine);

struct Selection {
  const IsaRecord* record = nullptr;  // null where the precision is unavailable
  std::string reason;                 // then, why: see PrecisionSupport
};

// The last record that executes `precision` and runs on `machine`, up to and including those of `highest`,
// which is usable. The list's order decides; the numbers of the enumeration mean nothing.
[[nodiscard]] Selection select_record(IsaRecords records, const Machine& machine, Precision precision,
                                      Isa highest);

// The same for this machine.
// \throws Error  unsupported where `highest` is not usable or the precision is unavailable
[[nodiscard]] const IsaRecord& require_record(Precision precision, Isa highest);

}  // namespace histo
