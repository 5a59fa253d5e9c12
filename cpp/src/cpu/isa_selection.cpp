#include "cpu/isa_selection.h"

#include <algorithm>
#include <string_view>

#include "cpu/baseline.h"
#include "histo/error.h"
#include "platform/platform.h"

namespace histo {
namespace {

// "A", "A, or B", "A, B, or C": the lowest record of each instruction set that executes `precision`.
struct Alternatives {
  std::size_t count = 0;
  std::string text;
};

Alternatives alternatives(IsaRecords records, Precision precision) {
  std::vector<const IsaRecord*> lowest;
  for (const IsaRecord* const record : records) {
    if (record->executes[precision] &&
        std::ranges::find(lowest, record->isa, &IsaRecord::isa) == lowest.end()) {
      lowest.push_back(record);
    }
  }
  Alternatives result{.count = lowest.size(), .text = {}};
  for (std::size_t i = 0; i < lowest.size(); ++i) {
    result.text += i == 0 ? "" : i + 1 == lowest.size() ? ", or " : ", ";
    result.text += lowest[i]->description;
  }
  return result;
}

std::string why_unavailable(IsaRecords records, const Machine& machine, Precision precision, Isa highest) {
  const std::string subject = "precision " + std::string(name(precision));
  const auto [count, needed] = alternatives(records, precision);
  if (count == 0) {
    return subject + " has no kernels in this build of the library";
  }
  const bool runs_higher = std::ranges::any_of(records, [&](const IsaRecord* record) {
    return record->executes[precision] && runs(*record, machine);
  });
  const auto of_highest = std::ranges::find_if(records, [&](const IsaRecord* record) {
    return record->isa == highest && record->executes[precision];
  });
  const std::string lacks = of_highest == records.end()
                                ? ""
                                : "this CPU lacks " + std::string((*of_highest)->description) + " while ";
  const std::string missing = runs_higher
                                  ? lacks + "instruction set " + std::string(name(highest)) + " was asked for"
                              : count == 1 ? "this CPU lacks it"
                              : count == 2 ? "this CPU has neither"
                                           : "this CPU has none of them";
  return subject + " needs " + needed + ", and " + missing;
}

}  // namespace

Machine this_machine() {
  require_baseline();
  const CpuInfo cpu = cpu_info();
  return {.cpu = cpu, .amx_granted = cpu.amx_tile && ask_for_amx()};
}

bool runs(const IsaRecord& record, const Machine& machine) {
  for (const auto feature : record.needs) {
    if (feature == nullptr) {
      break;
    }
    if (!(machine.cpu.*feature) || (feature == &CpuInfo::amx_tile && !machine.amx_granted)) {
      return false;
    }
  }
  return true;
}

std::vector<Isa> usable_isas(IsaRecords records, const Machine& machine) {
  std::vector<Isa> isas;
  for (const IsaRecord* const record : records) {
    if (runs(*record, machine) && std::ranges::find(isas, record->isa) == isas.end()) {
      isas.push_back(record->isa);
    }
  }
  return isas;
}

Selection select_record(IsaRecords records, const Machine& machine, Precision precision, Isa highest) {
  std::size_t end = records.size();
  while (end > 0 && records[end - 1]->isa != highest) {
    --end;
  }
  for (std::size_t i = end; i-- > 0;) {
    if (records[i]->executes[precision] && runs(*records[i], machine)) {
      return {.record = records[i], .reason = {}};
    }
  }
  return {.record = nullptr, .reason = why_unavailable(records, machine, precision, highest)};
}

const IsaRecord& require_record(Precision precision, Isa highest) {
  const Selection selection =
      select_record(isa_records(), this_machine(), precision, require_usable(highest));
  if (selection.record == nullptr) {
    throw Error(ErrorCode::unsupported, selection.reason, "use fp32");
  }
  return *selection.record;
}

std::vector<Isa> usable_isas() { return usable_isas(isa_records(), this_machine()); }

Isa require_usable(Isa isa) {
  const std::vector<Isa> usable = usable_isas();
  if (std::ranges::find(usable, isa) == usable.end()) {
    throw Error(ErrorCode::unsupported, "instruction set " + std::string(name(isa)) + " is not usable here",
                "usable: " + name_list(std::span<const Isa>(usable)));
  }
  return isa;
}

Isa default_isa() {
  const std::optional<std::string> forced = environment_variable("HISTO_ISA");
  if (!forced || forced->empty()) {
    return usable_isas().back();
  }
  return require_usable(from_name<Isa>("HISTO_ISA", *forced));
}

std::vector<PrecisionSupport> precision_support(std::optional<Isa> highest) {
  const Isa isa = require_usable(highest ? *highest : default_isa());
  const Machine machine = this_machine();
  std::vector<PrecisionSupport> support;
  for (const auto& [precision, name] : name_table<Precision>) {
    Selection selection = select_record(isa_records(), machine, precision, isa);
    support.push_back(
        {.precision = precision,
         .isa = selection.record == nullptr ? std::nullopt : std::optional(selection.record->isa),
         .reason = std::move(selection.reason)});
  }
  return support;
}

std::vector<Precision> usable_precisions(std::optional<Isa> highest) {
  std::vector<Precision> precisions;
  for (const PrecisionSupport& support : precision_support(highest)) {
    if (support.isa) {
      precisions.push_back(support.precision);
    }
  }
  return precisions;
}

}  // namespace histo
