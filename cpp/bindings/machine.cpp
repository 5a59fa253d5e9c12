// The names of all closed sets, how this binary was built and what this machine can do, for Python.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <ranges>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "histo/build_config.h"
#include "histo/cpu.h"
#include "histo/names.h"
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
  m.def("usable_cpus", &histo::usable_cpus,
        "Threads worth starting: the CPUs that affinity and the cgroup's quota leave to this process, at "
        "least 1.");
}

}  // namespace bindings
