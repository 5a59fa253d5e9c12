// The Python module _histo_torch, which histo_export.runtimes.libtorch compiles at first use. It takes and
// returns NumPy arrays and does not use torch's own types.

#include <pybind11/pybind11.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <string>

#include "arrays.h"
#include "errors.h"
#include "gil.h"
#include "histo/torch_runtime.h"
#include "initialised.h"

namespace py = pybind11;

PYBIND11_MODULE(_histo_torch, m) {
  bindings::translate_errors();

  py::class_<histo::TorchRuntime>(m, "TorchRuntime")
      .def(py::init([](const std::filesystem::path& file, unsigned threads, const std::string& device) {
             const bindings::Unlocked unlocked;
             return histo::TorchRuntime(file, {.threads = threads, .device = device});
           }),
           py::arg("file"), py::arg("threads"), py::arg("device"))
      .def("run", &bindings::run<histo::TorchRuntime>, py::arg("tiles"))
      .def("stages", &bindings::stages<histo::TorchRuntime>, py::arg("tiles"))
      .def("warmup", &histo::TorchRuntime::warmup, py::arg("batch") = 1, py::arg("side") = 0,
           py::call_guard<bindings::Unlocked>())
      .def_property_readonly("classes", &histo::TorchRuntime::classes)
      .def_property_readonly("crop", &histo::TorchRuntime::crop)
      .def_property_readonly("tile_size", &histo::TorchRuntime::tile_size)
      .def_property_readonly("executed", &histo::TorchRuntime::executed);
  bindings::refuse_uninitialised(m);
}
