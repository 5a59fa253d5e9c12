// Engine for Python, and the functions that go with it.

#include "histo/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "arrays.h"
#include "engine_outputs.h"
#include "gil.h"
#include "histo/model.h"
#include "histo/names.h"
#include "histo/preprocess.h"
#include "histo/self_test.h"
#include "register.h"

namespace bindings {
namespace {

histo::Engine make_engine(const py::object& model, const py::object& threads, const py::object& precision,
                          const py::object& isa, const py::object& crop, const py::object& profile,
                          const py::object& algorithm) {
  const histo::EngineOptions options{.threads = threads_of(threads),
                                     .precision = one_of<histo::Precision>("precision", precision),
                                     .isa = isa_of(isa),
                                     .crop = at_least_one_or_none("crop", crop).value_or(0),
                                     .profile = one_of<histo::Profile>("profile", profile),
                                     .algorithm = one_of<histo::AlgorithmPolicy>("algorithm", algorithm)};
  if (py::isinstance<histo::Model>(model)) {
    const auto& opened = model.cast<const histo::Model&>();
    const Unlocked unlocked;
    return histo::Engine(opened, options);
  }
  const std::filesystem::path file = path_of("model", model);
  const Unlocked unlocked;
  return histo::Engine(histo::Model::open(file), options);
}

std::string engine_repr(const histo::Engine& engine) {
  const histo::EngineInfo info = engine.info();
  return "<Engine: " + counted(engine.classes(), "class", "classes") + ", crop " + std::to_string(info.crop) +
         ", " + std::string(name(info.precision)) + ", " + std::string(name(info.isa)) + ", " +
         std::string(name(info.profile)) + ", " + counted(info.threads, "thread") + ">";
}

py::dict engine_info(const histo::Engine& engine) {
  const histo::EngineInfo info = engine.info();
  py::dict result;
  result["isa"] = name(info.isa);
  result["precision"] = name(info.precision);
  result["profile"] = name(info.profile);
  result["algorithm"] = name(info.algorithm);
  result["threads"] = info.threads;
  result["crop"] = info.crop;
  result["weight_bytes"] = info.weight_bytes;
  result["workspace_bytes"] = info.workspace_bytes;
  result["embedding_size"] = info.embedding_size;
  result["map_side"] = info.map_side;
  return result;
}

py::list layer_times(const histo::Engine& engine, const py::object& tiles) {
  histo::TileShape shape{};
  const auto bytes = byte_tiles(array_of("tiles", tiles), shape);
  const std::vector<histo::LayerTime> times = [&] {
    const Unlocked unlocked;
    return engine.layer_times(bytes, shape);
  }();
  py::list result;
  for (const histo::LayerTime& time : times) {
    py::dict layer;
    layer["name"] = time.name;
    layer["convolution"] = name(time.algorithm);
    layer["precision"] = name(time.precision);
    layer["output"] = py::make_tuple(time.channels, time.height, time.width);
    layer["multiply_adds"] = time.multiply_adds;
    layer["executed_multiply_adds"] = time.executed_multiply_adds;
    layer["seconds"] = time.seconds;
    layer["weight_bytes"] = time.weight_bytes;
    result.append(layer);
  }
  return result;
}

void warmup(const histo::Engine& engine, const py::object& batch) {
  const std::size_t tiles = at_least_one("batch", batch);
  const Unlocked unlocked;
  engine.warmup(tiles);
}

py::array_t<float> preprocess(const py::object& given, const py::object& of_model, const py::object& crop) {
  const py::array tiles = array_of("tiles", given);
  const auto& model = instance_of<histo::Model>("model", of_model, "a Model");
  const std::size_t side = at_least_one_or_none("crop", crop).value_or(model.spec().crop);
  histo::TileShape shape{};
  const auto bytes = byte_tiles(tiles, shape);
  if (shape.height < side || shape.width < side) {  // checked before the result is allocated
    throw py::value_error("tiles has shape " + shape_of(tiles) + "; the crop needs " + std::to_string(side) +
                          " x " + std::to_string(side) + " pixels");
  }
  py::array_t<float> out({shape.batch, std::size_t{3}, side, side});
  const std::span<float> out_view(out.mutable_data(), static_cast<std::size_t>(out.size()));
  const Unlocked unlocked;
  histo::preprocess(bytes, shape, model.spec(), side, out_view);
  return out;
}

py::dict self_test(const histo::Engine& engine, const py::object& golden) {
  const std::filesystem::path file = path_of("golden", golden);
  const histo::SelfTestResult found = [&] {
    const Unlocked unlocked;
    return histo::self_test(engine, file);
  }();
  py::dict result;
  result["tiles"] = found.tiles;
  result["max_abs"] = found.max_abs;
  result["max_relative"] = found.max_relative;
  result["tolerance"] = found.tolerance;
  result["passed"] = found.passed;
  return result;
}

// --- documentation ---------------------------------------------------------------------------------------

constexpr const char* engine_doc = R"(
A model made ready to run: weights packed for the instruction set, threads started.

A tile's logits are bit-identical whatever the batch it sits in, its position there and the number of threads.
They may differ in the last bits between instruction sets and between releases.

Concurrent calls on one engine are allowed and take turns; for parallel calls give each thread a ``copy()``.
A call is not interrupted by Ctrl-C; BatchRunner is, between two batches.

Args:
    model: a Model, or the path of a ``model.safetensors``.
    threads: 0 means ``usable_cpus()``.
    precision: one of ``usable_precisions()``; "int8" needs a model with scales. See docs/quantisation.md.
    isa: one of ``usable_isas()``; None means ``default_isa()``.
    crop: side of the centre crop in pixels; None means the model's.
    profile: "throughput" for batches of 8 and more, or "latency" for single tiles.
    algorithm: "fastest", which takes Winograd's where it applies, or "direct", the definition alone.

Raises:
    OSError, ValueError: as Model.open(); ValueError also for an argument out of its range.
    RuntimeError: this machine lacks the instruction set, or one that the precision needs; the model has no scales
        for int8; or its head was folded for the feature map of another crop.
)";

constexpr const char* layer_times_doc = R"(
The layers, and the time of each for a batch. It is measured in one run: repeat it and take medians.

Args:
    tiles: uint8 ``(batch, height, width, 3)``, as for run().

Returns:
    A dict per convolution, and one for the head, in the order of the computation: ``name``, ``convolution``
    ("direct", "winograd2", "winograd4"), ``precision``, ``output`` (channels, height, width), ``multiply_adds`` per tile by the
    definition, ``executed_multiply_adds`` after Winograd's reduction, ``seconds`` for the batch, and ``weight_bytes``,
    the packed weights that the batch reads, each once. The stem's time holds the preprocessing and the maximum behind
    it.

Raises:
    TypeError, ValueError: as run().
)";

constexpr const char* run_doc = R"(
Logits of a batch of tiles, each at least as large as the crop.

Args:
    tiles: C-contiguous; uint8 ``(batch, height, width, 3)`` as a decoder gives them, or float32
        ``(batch, 3, height, width)`` in [0, 1]. RGB. Centre crop and normalisation are done inside.

Returns:
    float32 ``(batch, classes)``. NaN or infinity in a tile affects the row of that tile only; in int8 the complete
    row is then NaN.

Raises:
    TypeError: ``tiles`` is not an array, or of another dtype.
    ValueError: its shape does not fit, an extent is 0, or it is not C-contiguous and aligned.
)";

constexpr const char* stages_doc = R"(
The outputs of the six stages (stem, layer1 to layer4, head), to find the first in which two implementations differ.

Args:
    tiles: uint8 ``(batch, height, width, 3)``, as for run().

Returns:
    By name, in the order of the computation, float32 ``(batch, channels, height, width)``; for the head
    ``(batch, classes)``.
)";

constexpr const char* info_doc = R"(
What this engine runs.

Returns:
    A dict: ``isa`` (of the kernels that run), ``precision``, ``profile``, ``algorithm``, ``threads``, ``crop``
    (pixels), ``weight_bytes`` (packed, shared between copies), ``workspace_bytes`` (of this engine alone; grows at
    the first large batch), and for outputs() ``embedding_size`` and ``map_side``.
)";

constexpr const char* preprocess_doc = R"(
The input of the network: the centre crop, scaled to [0, 1], minus the mean, divided by the standard deviation.

Computed in float32 in this order, and bit-identical to PyTorch's.

Args:
    tiles: uint8 ``(batch, height, width, 3)``, C-contiguous.
    model: whose mean and standard deviation are used.
    crop: side in pixels; None means the model's.

Returns:
    float32 ``(batch, 3, crop, crop)``.

Raises:
    TypeError, ValueError: as Engine.run().
)";

constexpr const char* self_test_doc = R"(
Runs the tiles of a bundle's ``golden.safetensors`` and compares with the float64 logits in it.

Returns:
    tiles, max_abs (largest difference of a logit), max_relative (the same in units of a tile's own largest
    logit, of at least 1), tolerance (allowed of max_relative) and passed.

Raises:
    OSError, ValueError: as Model.open(), for the golden file.
)";

}  // namespace

void register_engine(py::module_& m) {
  py::class_<histo::Engine> engine_class(m, "Engine", engine_doc);
  engine_class
      .def(py::init(&make_engine), py::arg("model"), py::kw_only(), py::arg("threads") = 0,
           py::arg("precision") = "fp32", py::arg("isa") = py::none(), py::arg("crop") = py::none(),
           py::arg("profile") = "throughput", py::arg("algorithm") = "fastest")
      .def("run", &run<histo::Engine>, py::arg("tiles"), run_doc)
      .def("__call__", &run<histo::Engine>, py::arg("tiles"), "The same as run().")
      .def("warmup", &warmup, py::arg("batch") = 1,
           "Runs a black batch, so that memory is allocated and caches are filled before the first real "
           "batch.")
      .def("stages", &stages<histo::Engine>, py::arg("tiles"), stages_doc)
      .def("layer_times", &layer_times, py::arg("tiles"), layer_times_doc)
      .def("info", &engine_info, info_doc)
      .def(
          "copy", [](const histo::Engine& engine) { return engine; }, py::call_guard<Unlocked>(),
          "An engine with threads and a workspace of its own, for parallel calls; the weights are shared.")
      .def_property_readonly(
          "model", [](const histo::Engine& engine) { return engine.model(); }, "The Model that it runs.")
      .def_property_readonly("classes", &histo::Engine::classes,
                             "Number of logits; their names are ``model.classes``.")
      .def("__repr__", &engine_repr);
  register_outputs(engine_class);

  m.def("preprocess", &preprocess, py::arg("tiles"), py::arg("model"), py::arg("crop") = py::none(),
        preprocess_doc);
  m.def("self_test", &self_test, py::arg("engine"), py::arg("golden"), self_test_doc);
}

}  // namespace bindings
