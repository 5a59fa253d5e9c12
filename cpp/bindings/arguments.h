// Arguments that several classes take.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <limits>
#include <optional>
#include <string>

#include "histo/cpu.h"
#include "histo/names.h"

namespace bindings {

namespace py = pybind11;

inline std::optional<histo::Isa> isa_of(const std::optional<std::string>& text) {
  return text ? std::optional(histo::from_name<histo::Isa>("isa", *text)) : std::nullopt;
}

// Python's integers are signed: a negative one would otherwise be refused as an "incompatible" argument.
inline unsigned checked_threads(py::ssize_t threads) {
  if (threads < 0 || threads > std::numeric_limits<int>::max()) {
    throw py::value_error("threads is " + std::to_string(threads) +
                          "; give a number of threads, or 0 for usable_cpus()");
  }
  return static_cast<unsigned>(threads);
}

inline std::size_t at_least_one(const char* argument, py::ssize_t value) {
  if (value < 1) {
    throw py::value_error(std::string(argument) + " is " + std::to_string(value) + "; it must be at least 1");
  }
  return static_cast<std::size_t>(value);
}

}  // namespace bindings
