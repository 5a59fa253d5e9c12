// Arguments that several classes take.
//
// They come as any objects and are judged here. pybind11 would refuse those of a wrong type with a message
// that holds all arguments in full: whole arrays, and the contents of files.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl/filesystem.h>

#include <cstddef>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>

#include "histo/cpu.h"
#include "histo/error.h"
#include "histo/names.h"

namespace bindings {

namespace py = pybind11;

inline std::string type_of(const py::handle& object) {
  return py::str(py::type::of(object).attr("__name__"));
}

[[noreturn]] inline void wrong_type(const char* argument, const py::handle& value,
                                    const std::string& needed) {
  throw py::type_error(std::string(argument) + " is " + type_of(value) + "; " + needed + " is needed");
}

// An integer of any size; of NumPy too.
inline py::int_ integer(const char* argument, const py::handle& value) {
  if (PyIndex_Check(value.ptr()) == 0) {
    wrong_type(argument, value, "an integer");
  }
  PyObject* const number = PyNumber_Index(value.ptr());
  if (number == nullptr) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::int_>(number);
}

// "threads is -1". Python refuses to write numbers of many thousands of digits.
inline std::string stated(const char* argument, const py::int_& number) {
  constexpr int shown_bits = 128;
  const auto bits = number.attr("bit_length")().cast<std::size_t>();
  return std::string(argument) + " is " +
         (bits <= shown_bits ? std::string(py::str(number))
                             : "an integer of " + std::to_string(bits) + " bits");
}

inline std::size_t at_least_one(const char* argument, const py::handle& value,
                                py::ssize_t largest = std::numeric_limits<py::ssize_t>::max()) {
  const py::int_ number = integer(argument, value);
  if (number < py::int_(1)) {
    throw py::value_error(stated(argument, number) + "; it must be at least 1");
  }
  if (number > py::int_(largest)) {
    throw py::value_error(stated(argument, number) + "; it must be at most " + std::to_string(largest));
  }
  return number.cast<std::size_t>();
}

inline std::optional<std::size_t> at_least_one_or_none(
    const char* argument, const py::handle& value,
    py::ssize_t largest = std::numeric_limits<py::ssize_t>::max()) {
  return value.is_none() ? std::nullopt : std::optional(at_least_one(argument, value, largest));
}

// The core knows how many are too many.
inline unsigned threads_of(const py::handle& value) {
  const py::int_ number = integer("threads", value);
  if (number < py::int_(0) || number > py::int_(std::numeric_limits<unsigned>::max())) {
    throw histo::Error(histo::ErrorCode::invalid_argument, stated("threads", number),
                       "give a number of threads, or 0 for usable_cpus()");
  }
  return number.cast<unsigned>();
}

inline std::string string_of(const char* argument, const py::handle& value) {
  if (!py::isinstance<py::str>(value)) {
    wrong_type(argument, value, "a string");
  }
  return value.cast<std::string>();
}

template <histo::ClosedSet Value>
Value one_of(const char* argument, const py::handle& value) {
  return histo::from_name<Value>(argument, string_of(argument, value));
}

inline std::optional<histo::Isa> isa_of(const py::handle& value) {
  return value.is_none() ? std::nullopt : std::optional(one_of<histo::Isa>("isa", value));
}

// A str or an os.PathLike. Bytes are refused, because they may be the contents of a file.
inline std::filesystem::path path_of(const char* argument, const py::handle& value) {
  if (!py::isinstance<py::str>(value) && !py::hasattr(value, "__fspath__")) {
    wrong_type(argument, value, "a path");
  }
  return value.cast<std::filesystem::path>();
}

// "1 tile", "2 tiles": for a repr.
inline std::string counted(std::size_t number, const std::string& one, const std::string& many = {}) {
  return std::to_string(number) + " " + (number == 1 ? one : many.empty() ? one + "s" : many);
}

template <typename Class>
const Class& instance_of(const char* argument, const py::handle& value, const char* needed) {
  if (!py::isinstance<Class>(value)) {
    wrong_type(argument, value, needed);
  }
  return value.cast<const Class&>();
}

}  // namespace bindings
