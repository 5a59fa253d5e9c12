// The names of all closed sets, how this binary was built and what this machine can do, for Python.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <ranges>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "gil.h"
#include "histo/build_config.h"
#include "histo/cpu.h"
#include "histo/names.h"
#include "histo/peak.h"
#include "register.h"

namespace bindings {
namespace {

template <typename Range>
py::tuple tuple_of(const Range& values) {
  return py::tuple(py::cast(std::vector(std::ranges::begin(values), std::ranges::end(values))));
}

template <histo::ClosedSet Value>
py::tuple names_of() {
  return tuple_of(std::views::transform(histo::name_table<Value>, &histo::Named<Value>::name));
}

py::dict build_config() {
  const histo::BuildConfig config = histo::build_config();
  py::dict result;
  result["version"] = config.version;
  result["compiler"] = config.compiler;
  result["cxx_standard"] = config.cxx_standard;
  result["build_type"] = config.build_type;
  result["baseline"] = config.baseline;
  return result;
}

py::dict cpu_info() {
  const histo::CpuInfo cpu = histo::cpu_info();
  py::dict result;
  result["avx2"] = cpu.avx2;
  result["fma"] = cpu.fma;
  result["avx512f"] = cpu.avx512f;
  result["avx512bw"] = cpu.avx512bw;
  result["avx512vl"] = cpu.avx512vl;
  result["avx512dq"] = cpu.avx512dq;
  result["avx512_bf16"] = cpu.avx512_bf16;
  result["avx512_vnni"] = cpu.avx512_vnni;
  result["avx_vnni"] = cpu.avx_vnni;
  result["amx_tile"] = cpu.amx_tile;
  result["amx_bf16"] = cpu.amx_bf16;
  result["amx_int8"] = cpu.amx_int8;
  result["neon"] = cpu.neon;
  result["neon_dotprod"] = cpu.neon_dotprod;
  result["neon_i8mm"] = cpu.neon_i8mm;
  result["neon_bf16"] = cpu.neon_bf16;
  return result;
}

template <histo::ClosedSet Value>
py::list list_of(const std::vector<Value>& values) {
  py::list names;
  for (const Value value : values) {
    names.append(name(value));
  }
  return names;
}

py::dict precision_support(const py::object& isa) {
  py::dict by_precision;
  for (const histo::PrecisionSupport& support : histo::precision_support(isa_of(isa))) {
    by_precision[py::str(name(support.precision))] = support;
  }
  return by_precision;
}

constexpr const char* precision_support_doc = R"(
Whether this machine can run each precision.

Args:
    isa: the highest instruction set to use, one of ``usable_isas()``; None means ``default_isa()``.

Returns:
    A PrecisionSupport for each of ``PRECISIONS``, in that order.

Raises:
    ValueError: ``isa`` or ``$HISTO_ISA`` is unknown.
    RuntimeError: it is not usable on this machine.
)";

constexpr const char* usable_precisions_doc = R"(
The precisions that this machine can run, in the order of ``PRECISIONS``; the first is always "fp32".

Argument and errors are those of precision_support().
)";

py::list measure_peaks(const py::object& threads, double seconds, const py::object& isa) {
  const unsigned count = threads_of(threads);
  const std::optional<histo::Isa> highest = isa_of(isa);
  const std::vector<histo::Peak> peaks = [&] {
    const Unlocked unlocked;
    return histo::measure_peaks(count, seconds, highest);
  }();
  py::list result;
  for (const histo::Peak& peak : peaks) {
    py::dict entry;
    entry["products"] = peak.products;
    entry["instruction"] = peak.instruction;
    entry["multiply_adds"] = peak.multiply_adds;
    result.append(entry);
  }
  return result;
}

double measure_reading(const py::object& threads, double seconds) {
  const unsigned count = threads_of(threads);
  const Unlocked unlocked;
  return histo::measure_reading(count, seconds);
}

constexpr const char* measure_peaks_doc = R"(
What this machine multiplies at most: the instructions of the engine's kernels, in registers, on all threads.

Args:
    threads: 0 means ``usable_cpus()``.
    seconds: for each kind of products, 0 to 60. The fastest repetition counts.
    isa: the highest instruction set to use, one of ``usable_isas()``; None means ``default_isa()``.

Returns:
    A dict for each kind that the kernels here multiply: ``products`` ("fp32", "bf16", "int8", or "int16", in which
    int8's Winograd multiplies), ``instruction``, and ``multiply_adds`` per second. bf16x3 forms three products in bf16
    for each of the network's.

Raises:
    ValueError: an argument is out of range, or ``isa`` or ``$HISTO_ISA`` is unknown.
    RuntimeError: it is not usable on this machine, or the threads cannot be started.
)";

constexpr const char* measure_reading_doc = R"(
Bytes per second that all threads together read from a buffer of 256 MiB, which few caches hold.

Arguments and errors are those of measure_peaks(); MemoryError where there is no memory for the buffer.
)";

void register_names(py::module_& m) {
  m.attr("ISAS") = names_of<histo::Isa>();
  m.attr("PRECISIONS") = names_of<histo::Precision>();
  m.attr("PROFILES") = names_of<histo::Profile>();
  m.attr("ALGORITHM_POLICIES") = names_of<histo::AlgorithmPolicy>();
  m.attr("LAYER_ALGORITHMS") = names_of<histo::Algorithm>();
  m.attr("LAYOUTS") = names_of<histo::Layout>();
  m.attr("PIXEL_FORMATS") = names_of<histo::PixelFormat>();
  m.attr("STAGES") = tuple_of(histo::stage_names);
  m.attr("BLOCK_COUNTS") = tuple_of(histo::block_counts);
}

}  // namespace

void register_machine(py::module_& m) {
  register_names(m);
  py::class_<histo::PrecisionSupport>(m, "PrecisionSupport",
                                      "Whether this machine can run a precision: see precision_support().")
      .def_property_readonly(
          "isa",
          [](const histo::PrecisionSupport& support) {
            return support.isa ? std::optional(name(*support.isa)) : std::nullopt;
          },
          "The instruction set whose kernels run; None where the precision is unavailable.")
      .def_readonly("reason", &histo::PrecisionSupport::reason,
                    "Why the precision is unavailable, without a full stop; else empty.")
      .def("__repr__", [](const histo::PrecisionSupport& support) {
        return "<PrecisionSupport: " + (support.isa ? std::string(name(*support.isa)) : support.reason) + ">";
      });
  m.def("precision_support", &precision_support, py::arg("isa") = py::none(), precision_support_doc);
  m.def(
      "usable_precisions",
      [](const py::object& isa) { return list_of(histo::usable_precisions(isa_of(isa))); },
      py::arg("isa") = py::none(), usable_precisions_doc);
  m.def(
      "usable_isas", [] { return list_of(histo::usable_isas()); },
      "The instruction sets that this machine can run, lowest first: see ISAS.");
  m.def(
      "default_isa", [] { return name(histo::default_isa()); },
      "The highest usable instruction set, or the one that $HISTO_ISA names; ValueError where that is "
      "unknown, "
      "RuntimeError where it is not usable on this machine.");
  m.def("build_config", &build_config,
        "How the core was compiled: version, compiler, cxx_standard, build_type and baseline (the oldest "
        "CPU that runs it).");
  m.def("cpu_info", &cpu_info,
        "Whether each instruction set extension may be used here, by name: the CPU has it and the operating "
        "system saves its registers.");
  m.def("measure_peaks", &measure_peaks, py::arg("threads") = 0, py::arg("seconds") = 0.1,
        py::arg("isa") = py::none(), measure_peaks_doc);
  m.def("measure_reading", &measure_reading, py::arg("threads") = 0, py::arg("seconds") = 0.3,
        measure_reading_doc);
  m.def("usable_cpus", &histo::usable_cpus,
        "Threads worth starting: the CPUs that affinity and the cgroup's quota leave to this process, at "
        "least 1.");
}

}  // namespace bindings
