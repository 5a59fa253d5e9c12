// NumPy arrays as spans over their own memory, and the methods that Engine and TorchRuntime share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "arguments.h"
#include "gil.h"
#include "histo/engine.h"

namespace bindings {

namespace py = pybind11;

inline std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

inline std::string dtype_of(const py::array& array) { return py::str(array.dtype()); }

// The array's own memory. An array that would need a conversion or a copy is refused, because a silent copy
// may cost more than the computation. `Stored` is the elements' NumPy type, `T` their C++ type.
template <typename T, typename Stored = T>
std::span<const T> view(const char* name, const py::array& array, const char* axes, py::ssize_t ndim) {
  static_assert(sizeof(T) == sizeof(Stored));
  if (!py::isinstance<py::array_t<Stored>>(array)) {
    const std::string needed = py::str(py::dtype::of<Stored>());
    throw py::type_error(std::string(name) + " has dtype " + dtype_of(array) + "; " + needed +
                         " is needed. Convert it with .astype(numpy." + needed + ")");
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
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

inline std::size_t extent(const py::array& array, py::ssize_t axis) {
  return static_cast<std::size_t>(array.shape(axis));
}

inline void check_channels(const py::array& tiles, py::ssize_t axis, const char* axes) {
  if (tiles.shape(axis) != 3) {
    throw py::value_error("tiles has shape " + shape_of(tiles) + "; " + axes + " is needed");
  }
}

inline py::array array_of(const char* name, const py::handle& object) {
  if (!py::isinstance<py::array>(object)) {
    wrong_type(name, object, "a NumPy array");
  }
  return py::reinterpret_borrow<py::array>(object);
}

// uint8 `(batch, height, width, 3)`.
inline std::span<const std::uint8_t> byte_tiles(const py::array& tiles, histo::TileShape& shape) {
  constexpr const char* axes = "(batch, height, width, 3)";
  const auto bytes = view<std::uint8_t>("tiles", tiles, axes, 4);
  check_channels(tiles, 3, axes);
  shape = {.batch = extent(tiles, 0), .height = extent(tiles, 1), .width = extent(tiles, 2)};
  return bytes;
}

// float32 `(batch, 3, height, width)`.
inline std::span<const float> float_tiles(const py::array& tiles, histo::TileShape& shape) {
  constexpr const char* axes = "(batch, 3, height, width)";
  const auto floats = view<float>("tiles", tiles, axes, 4);
  check_channels(tiles, 1, axes);
  shape = {.batch = extent(tiles, 0), .height = extent(tiles, 2), .width = extent(tiles, 3)};
  return floats;
}

// Logits of uint8 or float32 tiles, by their dtype. `Runtime` is a histo::Engine or a histo::TorchRuntime.
template <typename Runtime>
py::array_t<float> run(const Runtime& runtime, const py::object& given) {
  const py::array tiles = array_of("tiles", given);
  histo::TileShape shape{};
  const auto logits_of = [&](auto view_of_tiles) {
    py::array_t<float> logits({shape.batch, runtime.classes()});
    const std::span<float> out(logits.mutable_data(), static_cast<std::size_t>(logits.size()));
    const Unlocked unlocked;
    runtime.run(view_of_tiles, shape, out);
    return logits;
  };
  if (py::isinstance<py::array_t<std::uint8_t>>(tiles)) {
    return logits_of(byte_tiles(tiles, shape));
  }
  if (py::isinstance<py::array_t<float>>(tiles)) {
    return logits_of(float_tiles(tiles, shape));
  }
  throw py::type_error("tiles has dtype " + dtype_of(tiles) +
                       "; uint8 (batch, height, width, 3) or float32 (batch, 3, height, width) is needed");
}

template <typename Runtime>
py::dict stages(const Runtime& runtime, const py::object& tiles) {
  histo::TileShape shape{};
  const auto bytes = byte_tiles(array_of("tiles", tiles), shape);
  const std::vector<histo::Stage> outputs = [&] {
    const Unlocked unlocked;
    return runtime.stages(bytes, shape);
  }();
  py::dict result;
  for (const histo::Stage& stage : outputs) {
    result[py::str(stage.name)] = py::array_t<float>(stage.shape, stage.data.data());
  }
  return result;
}

}  // namespace bindings
