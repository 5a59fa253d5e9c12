// How a histo::Error becomes an exception of Python.
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
    case histo::ErrorCode::busy:
      break;
  }
  return PyExc_RuntimeError;
}

// The exception's text is the whole sentence; its attributes `message` and `remedy` are the two parts.
inline void translate_errors() {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const histo::Error& e) {
      PyObject* const type = exception_for(e.code());
      const py::object exception = py::handle(type)(e.what());
      exception.attr("message") = e.message();
      exception.attr("remedy") = e.remedy();
      PyErr_SetObject(type, exception.ptr());
    }
  });
}

}  // namespace bindings
