// Objects whose __init__() never ran.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

namespace bindings {

namespace py = pybind11;

// `Engine.__new__(Engine)`, and a subclass before it calls super().__init__(), give an object of Python
// without one of C++. Where such an object is used as an argument, `self` included, pybind11 gives it memory
// that nobody has initialised. It takes this memory from the class's operator new alone: here that one
// refuses.
inline void refuse_uninitialised(const py::module_& m) {
  for (const auto& [name, value] : m.attr("__dict__").cast<py::dict>()) {
    if (py::isinstance<py::type>(value)) {
      auto* const type = py::detail::get_type_info(reinterpret_cast<PyTypeObject*>(value.ptr()));
      if (type != nullptr) {
        type->operator_new = [](std::size_t) -> void* {
          throw py::type_error("the object is not initialised: its __init__() never ran");
        };
      }
    }
  }
}

}  // namespace bindings
