// The exceptions that histo::Error becomes in Python.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

#include "histo/error.h"

namespace bindings {

namespace py = pybind11;

inline PyObject* exception_for(histo::ErrorCode code) {
  switch (code) {
    case histo::ErrorCode::invalid_argument:
    case histo::ErrorCode::size_mismatch:
    case histo::ErrorCode::size_overflow:
    case histo::ErrorCode::invalid_file:
      return PyExc_ValueError;
    case histo::ErrorCode::io:
      return PyExc_OSError;
    case histo::ErrorCode::out_of_memory:
      return PyExc_MemoryError;
    case histo::ErrorCode::unsupported:
    case histo::ErrorCode::cancelled:
    case histo::ErrorCode::failed:
      break;
  }
  return PyExc_RuntimeError;
}

inline void translate_errors() {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const histo::Error& e) {
      py::set_error(exception_for(e.code()), e.what());
    }
  });
}

}  // namespace bindings
