// The Python module histo_export._core. All of pybind11 is in this file; its types are in
// python/histo_export/_core.pyi, and tests/test_core_stub.py keeps the two in step.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <exception>
#include <span>
#include <string>

#include "histo/build_config.h"
#include "histo/error.h"
#include "histo/fused_head.h"

namespace py = pybind11;

namespace {

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

// The array's own memory: a copy made behind the caller's back would cost more than the work that follows, so
// whatever would need one is refused.
std::span<const float> float32_view(const char* name, const py::array& array, const char* axes,
                                    py::ssize_t ndim) {
  if (!py::isinstance<py::array_t<float>>(array)) {
    throw py::type_error(std::string(name) + " has dtype " + std::string(py::str(array.dtype())) +
                         "; float32 is needed. Convert it with .astype(numpy.float32)");
  }
  if (array.ndim() != ndim) {
    throw py::value_error(std::string(name) + " has shape " + shape_of(array) + "; " + axes + " is needed");
  }
  using py::detail::npy_api;
  constexpr int layout = npy_api::NPY_ARRAY_C_CONTIGUOUS_ | npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & layout) != layout) {
    throw py::value_error(
        std::string(name) + " of shape " + shape_of(array) +
        " is not C-contiguous and aligned. Convert it with numpy.require(array, requirements='CA')");
  }
  return {static_cast<const float*>(array.data()), static_cast<std::size_t>(array.size())};
}

histo::FusedHead make_head(const py::array& weight, const py::array& bias, py::ssize_t pool) {
  const auto weight_view = float32_view("weight", weight, "(classes, channels * pool * pool)", 2);
  const auto bias_view = float32_view("bias", bias, "(classes,)", 1);
  if (pool < 1) {
    throw py::value_error("pool is " + std::to_string(pool) + "; it must be at least 1");
  }
  // Two divisions, because pool * pool may overflow.
  const py::ssize_t columns = weight.shape(1);
  if (columns % pool != 0 || columns / pool % pool != 0) {
    throw py::value_error("weight has shape " + shape_of(weight) +
                          "; its columns are no multiple of pool * pool for pool " + std::to_string(pool));
  }
  return {static_cast<std::size_t>(pool), static_cast<std::size_t>(columns / pool / pool),
          static_cast<std::size_t>(weight.shape(0)), weight_view, bias_view};
}

py::array_t<float> run(const histo::FusedHead& head, const py::array& features, bool softmax) {
  const auto view = float32_view("features", features, "(batch, channels, height, width)", 4);
  if (static_cast<std::size_t>(features.shape(1)) != head.channels()) {
    throw py::value_error("features has shape " + shape_of(features) + "; this head takes " +
                          std::to_string(head.channels()) + " channels on axis 1");
  }
  const auto extent = [&features](py::ssize_t axis) {
    return static_cast<std::size_t>(features.shape(axis));
  };
  py::array_t<float> out({features.shape(0), static_cast<py::ssize_t>(head.classes())});
  const std::span<float> out_view(out.mutable_data(), static_cast<std::size_t>(out.size()));
  {
    const py::gil_scoped_release unlocked;
    head.run(view, extent(0), extent(2), extent(3), out_view,
             softmax ? histo::Softmax::yes : histo::Softmax::no);
  }
  return out;
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
  result["amx_tile"] = cpu.amx_tile;
  result["amx_bf16"] = cpu.amx_bf16;
  result["amx_int8"] = cpu.amx_int8;
  return result;
}

constexpr const char* head_doc = R"(
Adaptive average pooling and the linear classifier behind it, as one pass over the feature map.

Computes ``linear(adaptive_avg_pool2d(features, pool).flatten(1))`` for maps of any size, square or not:
``pool`` need not divide the sides and may be larger than they are. Sums are kept in float64. One head may be
called from many threads at once: it never changes, and the GIL is released while it works.

Arrays must be C-contiguous float32 and are read where they are; nothing is converted or copied silently.

Args:
    weight: float32 ``(classes, channels * pool * pool)``, copied; ``torch.nn.Linear.weight`` behind
        ``flatten(1)``, as it is.
    bias: float32 ``(classes,)``, copied.
    pool: bins along each side of the map, at least 1.

Raises:
    TypeError: an argument is not an array, or not of dtype float32.
    ValueError: a shape does not fit, an extent is 0, or an array is not C-contiguous and aligned.
)";

constexpr const char* run_doc = R"(
Logits, or class probabilities, of a batch of feature maps.

Args:
    features: float32 ``(batch, channels, height, width)``, C-contiguous; every extent at least 1.
    softmax: whether to return probabilities, which sum to 1 over the classes, in place of logits.

Returns:
    float32 ``(batch, classes)``.

Raises:
    TypeError: ``features`` is not an array, or not of dtype float32.
    ValueError: its shape does not fit this head, or it is not C-contiguous and aligned.
)";

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of histo_export.";

  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const histo::Error& e) {
      py::set_error(PyExc_ValueError, e.what());
    }
  });

  py::class_<histo::FusedHead>(m, "FusedHead", head_doc)
      .def(py::init(&make_head), py::arg("weight"), py::arg("bias"), py::arg("pool").noconvert())
      .def("run", &run, py::arg("features"), py::arg("softmax") = false, run_doc)
      .def("__call__", &run, py::arg("features"), py::arg("softmax") = false, "The same as run().")
      .def_property_readonly("pool", &histo::FusedHead::pool, "Bins along each side of the map.")
      .def_property_readonly("channels", &histo::FusedHead::channels, "Channels of the feature map.")
      .def_property_readonly("classes", &histo::FusedHead::classes, "Number of logits.");

  m.def("build_config", &build_config,
        "How the core was compiled: version, compiler, cxx_standard, build_type and baseline (the oldest "
        "CPU that runs it).");
  m.def("cpu_info", &cpu_info,
        "Instruction sets that may be used here, by name: the CPU has them and the operating system saves "
        "their registers.");
  m.def("usable_cpus", &histo::usable_cpus,
        "Threads worth starting: the CPUs that affinity and the cgroup's quota leave to this process, at "
        "least 1.");
}
