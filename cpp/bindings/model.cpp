// Model for Python.

#include "histo/model.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "arguments.h"
#include "gil.h"
#include "register.h"

namespace bindings {
namespace {

namespace py = pybind11;

histo::Model open_model(const py::object& path) {
  const std::filesystem::path file = path_of("path", path);
  const Unlocked unlocked;
  return histo::Model::open(file);
}

histo::Model model_from_bytes(const py::object& contents) {
  if (PyObject_CheckBuffer(contents.ptr()) == 0) {
    wrong_type("contents", contents, "bytes, or an object with a buffer,");
  }
  const py::buffer_info info =
      py::reinterpret_borrow<py::buffer>(contents).request();  // keeps the memory where it is
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) {
    throw py::value_error("contents is not contiguous in memory. Convert it with bytes(contents)");
  }
  const std::span bytes(static_cast<const std::byte*>(info.ptr),
                        static_cast<std::size_t>(info.size * info.itemsize));
  const Unlocked unlocked;
  return histo::Model::from_memory(bytes);
}

// A read-only array over the model's own memory; it keeps the model alive.
py::array_t<float> tensor(const py::object& self, const std::string& name) {
  const histo::TensorView found = self.cast<const histo::Model&>().tensor(name);
  py::array_t<float> array(std::vector<py::ssize_t>(found.shape.begin(), found.shape.end()),
                           found.data.data(), self);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

// --- documentation ---------------------------------------------------------------------------------------

constexpr const char* model_doc = R"(
The contents of a ``model.safetensors``: immutable, and shared by all engines that are made from it.

``Model.open(path)`` reads a file, ``Model.from_bytes(contents)`` copies one. Any number of threads may use one
model. The file is untrusted input: it is checked completely before use, and nothing in it is executed.
)";

constexpr const char* open_doc = R"(
Reads a file into memory. It may be changed or deleted afterwards.

Raises:
    OSError: the file cannot be read, or changes meanwhile.
    ValueError: it is not a valid model.
)";

constexpr const char* from_bytes_doc = R"(
Copies the contents of such a file.

Args:
    contents: bytes, or anything else that has a contiguous buffer.

Raises:
    ValueError: they are not a valid model.
)";

constexpr const char* tensor_doc = R"(
A weight by its name in the file, such as "layer1.0.conv1.weight".

Returns:
    float32, read-only, over the model's own memory, which it keeps alive.

Raises:
    ValueError: the model has no such tensor.
)";

}  // namespace

void register_model(py::module_& m) {
  py::class_<histo::Model>(m, "Model", model_doc)
      .def_static("open", &open_model, py::arg("path"), open_doc)
      .def_static("from_bytes", &model_from_bytes, py::arg("contents"), from_bytes_doc)
      .def("tensor", &tensor, py::arg("name"), tensor_doc)
      .def_property_readonly(
          "classes", [](const histo::Model& model) { return py::tuple(py::cast(model.spec().classes)); },
          "Names of the classes, in the order of the logits.")
      .def_property_readonly(
          "pool", [](const histo::Model& model) { return model.spec().pool; },
          "n of the n x n adaptive average pool that was trained.")
      .def_property_readonly(
          "head_pool", [](const histo::Model& model) { return model.spec().head_pool; },
          "The pool that the stored linear layer expects.")
      .def_property_readonly(
          "crop", [](const histo::Model& model) { return model.spec().crop; },
          "Side in pixels of the centre crop that the network sees.")
      .def_property_readonly(
          "tile_size", [](const histo::Model& model) { return model.spec().tile_size; },
          "Side in pixels of the tiles that the model was trained on.")
      .def_property_readonly(
          "mean", [](const histo::Model& model) { return py::tuple(py::cast(model.spec().mean)); },
          "Per RGB channel, of values in [0, 1].")
      .def_property_readonly(
          "std", [](const histo::Model& model) { return py::tuple(py::cast(model.spec().std)); },
          "Per RGB channel, of values in [0, 1].")
      .def_property_readonly(
          "mpp", [](const histo::Model& model) { return model.spec().mpp; },
          "Micrometres per pixel of the tiles; None where unknown.")
      .def_property_readonly("embedding_size", &histo::Model::embedding_size,
                             "Numbers in the embedding of a tile: the input of the trained linear layer.")
      .def_property_readonly("size_bytes", &histo::Model::size_bytes, "Size of the file in bytes.")
      .def("__repr__", [](const histo::Model& model) {
        const histo::ModelSpec& spec = model.spec();
        return "<Model: " + counted(spec.classes.size(), "class", "classes") + ", pool " +
               std::to_string(spec.pool) + ", crop " + std::to_string(spec.crop) + ", tiles of " +
               std::to_string(spec.tile_size) + " pixels>";
      });
}

}  // namespace bindings
