// The Python module histo_export._core: the head, the model and the engine here, the batch loop in
// batch_runner.cpp. Types are in python/histo_export/_core.pyi; tests/test_core_stub.py keeps the two in
// step.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "arrays.h"
#include "batch_runner.h"
#include "errors.h"
#include "histo/build_config.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/fused_head.h"
#include "histo/model.h"
#include "histo/names.h"
#include "histo/preprocess.h"
#include "histo/self_test.h"

namespace py = pybind11;

namespace {

using bindings::extent;
using bindings::shape_of;
using bindings::view;

// --- arguments -------------------------------------------------------------------------------------------

std::optional<histo::Isa> isa_of(const std::optional<std::string>& text) {
  if (!text) {
    return std::nullopt;
  }
  return histo::from_name<histo::Isa>("isa", *text);
}

// Python's integers have a sign; what is refused here would else be refused as "incompatible".
unsigned checked_threads(py::ssize_t threads) {
  if (threads < 0 || threads > std::numeric_limits<int>::max()) {
    throw py::value_error("threads is " + std::to_string(threads) +
                          "; a number of threads is needed, or 0 for usable_cpus()");
  }
  return static_cast<unsigned>(threads);
}

std::size_t at_least_one(const char* argument, py::ssize_t value) {
  if (value < 1) {
    throw py::value_error(std::string(argument) + " is " + std::to_string(value) + "; it must be at least 1");
  }
  return static_cast<std::size_t>(value);
}

// --- the head --------------------------------------------------------------------------------------------

histo::FusedHead make_head(const py::array& weight, const py::array& bias, py::ssize_t pool,
                           py::ssize_t threads, const std::optional<std::string>& isa) {
  const auto weight_view = view<float>("weight", weight, "(classes, channels * pool * pool)", 2);
  const auto bias_view = view<float>("bias", bias, "(classes,)", 1);
  at_least_one("pool", pool);
  // Two divisions, because pool * pool may overflow.
  const py::ssize_t columns = weight.shape(1);
  if (columns % pool != 0 || columns / pool % pool != 0) {
    throw py::value_error("weight has shape " + shape_of(weight) +
                          "; its columns are no multiple of pool * pool for pool " + std::to_string(pool));
  }
  return {static_cast<std::size_t>(pool),
          static_cast<std::size_t>(columns / pool / pool),
          extent(weight, 0),
          weight_view,
          bias_view,
          {.threads = checked_threads(threads), .isa = isa_of(isa)}};
}

struct FeatureAxes {
  const char* names;
  py::ssize_t channels;
  py::ssize_t height;
  histo::Layout layout;
};

FeatureAxes feature_axes(const std::string& layout) {
  if (histo::from_name<histo::Layout>("layout", layout) == histo::Layout::nchw) {
    return {"(batch, channels, height, width)", 1, 2, histo::Layout::nchw};
  }
  return {"(batch, height, width, channels)", 3, 1, histo::Layout::nhwc};
}

// Calls `compute(features, shape, out)` with the features as what they are, float32 or bf16.
template <typename Compute>
py::array_t<float> head_output(const histo::FusedHead& head, const py::array& features,
                               const std::string& layout, bool bf16, const Compute& compute) {
  const FeatureAxes axes = feature_axes(layout);
  const auto computed = [&](auto values) {
    if (extent(features, axes.channels) != head.channels()) {
      throw py::value_error("features has shape " + shape_of(features) + "; this head takes " +
                            std::to_string(head.channels()) + " channels on axis " +
                            std::to_string(axes.channels));
    }
    const histo::FeatureShape shape{.batch = extent(features, 0),
                                    .height = extent(features, axes.height),
                                    .width = extent(features, axes.height + 1),
                                    .layout = axes.layout};
    py::array_t<float> out({features.shape(0), static_cast<py::ssize_t>(head.classes())});
    const std::span<float> out_view(out.mutable_data(), static_cast<std::size_t>(out.size()));
    const py::gil_scoped_release unlocked;
    compute(values, shape, out_view);
    return out;
  };
  if (bf16) {
    return computed(view<histo::Bfloat16, std::uint16_t>("features", features, axes.names, 4));
  }
  return computed(view<float>("features", features, axes.names, 4));
}

histo::Softmax softmax_of(bool softmax) { return softmax ? histo::Softmax::yes : histo::Softmax::no; }

py::array_t<float> run_head(const histo::FusedHead& head, const py::array& features, bool softmax,
                            const std::string& layout, bool bf16) {
  return head_output(head, features, layout, bf16, [&](auto values, auto shape, auto out) {
    head.run(values, shape, out, softmax_of(softmax));
  });
}

py::array_t<float> run_head_reference(const histo::FusedHead& head, const py::array& features, bool softmax,
                                      const std::string& layout, bool bf16) {
  return head_output(head, features, layout, bf16, [&](auto values, auto shape, auto out) {
    head.run_reference(values, shape, out, softmax_of(softmax));
  });
}

// --- the model -------------------------------------------------------------------------------------------

histo::Model open_model(const std::filesystem::path& file) {
  const py::gil_scoped_release unlocked;
  return histo::Model::open(file);
}

histo::Model model_from_bytes(const py::buffer& contents) {
  const py::buffer_info info = contents.request();  // keeps the memory where it is
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) {
    throw py::value_error("contents is not contiguous in memory. Convert it with bytes(contents)");
  }
  const std::span bytes(static_cast<const std::byte*>(info.ptr),
                        static_cast<std::size_t>(info.size * info.itemsize));
  const py::gil_scoped_release unlocked;
  return histo::Model::from_memory(bytes);
}

// A read-only array over the model's own memory, which may be a file; it keeps the model alive.
py::array_t<float> tensor(const py::object& self, const std::string& name) {
  const histo::TensorView found = self.cast<const histo::Model&>().tensor(name);
  py::array_t<float> array(std::vector<py::ssize_t>(found.shape.begin(), found.shape.end()),
                           found.data.data(), self);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

// --- the engine ------------------------------------------------------------------------------------------

histo::Engine make_engine(const std::variant<std::filesystem::path, histo::Model>& model, py::ssize_t threads,
                          const std::string& precision, const std::optional<std::string>& isa,
                          std::optional<py::ssize_t> crop, const std::string& profile,
                          const std::string& algorithm) {
  const histo::EngineOptions options{
      .threads = checked_threads(threads),
      .precision = histo::from_name<histo::Precision>("precision", precision),
      .isa = isa_of(isa),
      .crop = crop ? at_least_one("crop", *crop) : 0,
      .profile = histo::from_name<histo::Profile>("profile", profile),
      .algorithm = histo::from_name<histo::AlgorithmPolicy>("algorithm", algorithm)};
  const py::gil_scoped_release unlocked;
  if (const auto* const opened = std::get_if<histo::Model>(&model)) {
    return histo::Engine(*opened, options);
  }
  return histo::Engine(histo::Model::open(std::get<std::filesystem::path>(model)), options);
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
  return result;
}

py::list layer_times(const histo::Engine& engine, const py::array& tiles) {
  histo::TileShape shape{};
  const auto bytes = bindings::byte_tiles(tiles, shape);
  const std::vector<histo::LayerTime> times = [&] {
    const py::gil_scoped_release unlocked;
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
    result.append(layer);
  }
  return result;
}

void warmup(const histo::Engine& engine, py::ssize_t batch) {
  const std::size_t tiles = at_least_one("batch", batch);
  const py::gil_scoped_release unlocked;
  engine.warmup(tiles);
}

py::array_t<float> preprocess(const py::array& tiles, const histo::Model& model,
                              std::optional<py::ssize_t> crop) {
  const std::size_t side = crop ? at_least_one("crop", *crop) : model.spec().crop;
  histo::TileShape shape{};
  const auto bytes = bindings::byte_tiles(tiles, shape);
  if (shape.height < side || shape.width < side) {  // before memory is asked for that may not be there
    throw py::value_error("tiles has shape " + shape_of(tiles) + "; the crop needs " + std::to_string(side) +
                          " x " + std::to_string(side) + " pixels");
  }
  py::array_t<float> out({shape.batch, std::size_t{3}, side, side});
  const std::span<float> out_view(out.mutable_data(), static_cast<std::size_t>(out.size()));
  const py::gil_scoped_release unlocked;
  histo::preprocess(bytes, shape, model.spec(), side, out_view);
  return out;
}

py::dict self_test(const histo::Engine& engine, const std::filesystem::path& golden) {
  const histo::SelfTestResult found = [&] {
    const py::gil_scoped_release unlocked;
    return histo::self_test(engine, golden);
  }();
  py::dict result;
  result["tiles"] = found.tiles;
  result["max_abs"] = found.max_abs;
  result["max_relative"] = found.max_relative;
  result["tolerance"] = found.tolerance;
  result["passed"] = found.passed;
  return result;
}

// --- this binary and this machine ------------------------------------------------------------------------

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

py::list usable_isas() {
  py::list names;
  for (const histo::Isa isa : histo::usable_isas()) {
    names.append(name(isa));
  }
  return names;
}

// --- documentation ---------------------------------------------------------------------------------------

constexpr const char* module_doc = R"(
The C++ core of histo_export.

Arrays are read where they are: they must be C-contiguous and of the dtype that is named, and nothing is
converted or copied silently. The GIL is released while the core works.

What goes wrong in the core is a ValueError (an argument, or the contents of a file), an OSError (a file that
can't be read), a MemoryError, or a RuntimeError (not possible on this machine; cancelled; failed).
)";

constexpr const char* head_doc = R"(
Adaptive average pooling and the linear classifier behind it, as one pass over the feature map.

Computes ``linear(adaptive_avg_pool2d(features, pool).flatten(1))`` for maps of any size, square or not:
``pool`` need not divide the sides and may be larger than they are. A row of the result depends on its own
features alone, to the last bit: not on the batch, the position in it or the threads. One head may be called
from many threads at once.

Args:
    weight: float32 ``(classes, channels * pool * pool)``, copied; ``torch.nn.Linear.weight`` behind
        ``flatten(1)``, as it is.
    bias: float32 ``(classes,)``, copied.
    pool: bins along each side of the map, at least 1.
    threads: that one call may use, the caller's among them; 0 means ``usable_cpus()``.
    isa: one of ``usable_isas()``; None means ``default_isa()``.

Raises:
    TypeError: an argument is not an array, or not of dtype float32.
    ValueError: a shape does not fit, an extent is 0, or an array is not C-contiguous and aligned.
    RuntimeError: this machine lacks the instruction set.
)";

constexpr const char* run_head_doc = R"(
Logits, or class probabilities, of a batch of feature maps.

Args:
    features: float32, C-contiguous, in the order of ``layout``; every extent at least 1. With ``bf16``:
        uint16 that holds bf16 bits, such as ``tensor.view(torch.uint16).numpy()``.
    softmax: whether to return probabilities, which sum to 1 over the classes, in place of logits.
    layout: "nchw" for ``(batch, channels, height, width)`` or "nhwc" for ``(batch, height, width, channels)``.
    bf16: whether the features are bf16; sums and results are float32 all the same.

Returns:
    float32 ``(batch, classes)``.

Raises:
    TypeError: ``features`` is not an array, or not of the dtype that ``bf16`` asks for.
    ValueError: its shape does not fit this head, or it is not C-contiguous and aligned.
)";

constexpr const char* reference_doc = R"(
What run() is tested against: the definition, cell by cell in float64, rounded once. Slow.

Arguments, result and errors are those of run().
)";

constexpr const char* model_doc = R"(
The contents of a ``model.safetensors``: immutable, and shared by all engines that are made from it.

``Model.open(path)`` maps a file, ``Model.from_bytes(contents)`` copies one. Any number of threads may use one
model. A file is taken for hostile until shown otherwise, and nothing in it can make this code run anything.
)";

constexpr const char* open_doc = R"(
Maps a file into memory. It must not be changed while the model, an engine or a tensor of it is in use.

Raises:
    OSError: the file cannot be read.
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

constexpr const char* engine_doc = R"(
A model made ready to run: weights packed for the instruction set, threads started.

A tile's logits are bit-identical whatever the batch it sits in, its position there and the number of threads.
They may differ in the last bits between instruction sets and between releases.

Concurrent calls on one engine are allowed and take turns; for parallel calls give each thread a ``copy()``.
A call is not interrupted by Ctrl-C; BatchRunner is, between two batches.

Args:
    model: a Model, or the path of a ``model.safetensors``.
    threads: 0 means ``usable_cpus()``.
    precision: "fp32", or "bf16", "bf16x3" and "int8" where the CPU has AMX or AVX-512 with BF16 or VNNI; the
        last needs a model with scales. See docs/quantisation.md.
    isa: one of ``usable_isas()``; None means ``default_isa()``.
    crop: side of the centre crop in pixels; None means the model's.
    profile: "throughput" for batches of 8 and more, or "latency" for single tiles.
    algorithm: "fastest", which takes Winograd's where it applies, or "direct", the definition alone.

Raises:
    OSError, ValueError: as Model.open(); ValueError for an argument out of its range too.
    RuntimeError: this machine lacks the instruction set, or one that the precision needs; the model has no scales
        for int8; or the head was folded for another crop's map.
)";

constexpr const char* layer_times_doc = R"(
What the layers are, and how long each takes for a batch: one run, so repeat it and take medians.

Args:
    tiles: uint8 ``(batch, height, width, 3)``, as for run().

Returns:
    A dict per convolution, and one for the head, in the order of the computation: ``name``, ``convolution``
    ("direct", "winograd2", "winograd4"), ``precision``, ``output`` (channels, height, width), ``multiply_adds`` per tile by the
    definition, ``executed_multiply_adds`` after Winograd's reduction, and ``seconds`` for the batch. The stem's
    time holds the preprocessing and the maximum behind it.

Raises:
    TypeError, ValueError: as run().
)";

constexpr const char* run_doc = R"(
Logits of a batch of tiles, each at least as large as the crop.

Args:
    tiles: C-contiguous; uint8 ``(batch, height, width, 3)`` as a decoder gives them, or float32
        ``(batch, 3, height, width)`` in [0, 1]. RGB. Centre crop and normalisation are done inside.

Returns:
    float32 ``(batch, classes)``. NaN in a tile comes out in that tile's row and nowhere else; in int8 all of the row
    is NaN, for infinity too.

Raises:
    TypeError: ``tiles`` is not an array, or of another dtype.
    ValueError: its shape does not fit, an extent is 0, or it is not C-contiguous and aligned.
)";

constexpr const char* stages_doc = R"(
The outputs of the six stages (stem, layer1 to layer4, head), for finding where two implementations part.

Args:
    tiles: uint8 ``(batch, height, width, 3)``, as for run().

Returns:
    By name, in the order of the computation, float32 ``(batch, channels, height, width)``; for the head
    ``(batch, classes)``.
)";

constexpr const char* info_doc = R"(
What this engine really does.

Returns:
    isa, precision, threads, crop (pixels), weight_bytes (packed, shared between copies) and workspace_bytes
    (of this engine alone; grows at the first large batch).
)";

constexpr const char* preprocess_doc = R"(
What the network sees: the centre crop, scaled to [0, 1], less the mean, over the standard deviation.

Equals PyTorch's, computed in float32 in this order, to the last bit.

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
Replays a bundle's ``golden.safetensors`` and compares with the float64 logits in it.

Returns:
    tiles, max_abs (largest difference of a logit), max_relative (the same in units of a tile's own largest
    logit, of at least 1), tolerance (allowed of max_relative) and passed.

Raises:
    OSError, ValueError: as Model.open(), for the golden file.
)";

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = module_doc;
  bindings::translate_errors();

  py::class_<histo::FusedHead>(m, "FusedHead", head_doc)
      .def(py::init(&make_head), py::arg("weight"), py::arg("bias"), py::arg("pool").noconvert(),
           py::kw_only(), py::arg("threads").noconvert() = 1, py::arg("isa") = py::none())
      .def("run", &run_head, py::arg("features"), py::arg("softmax") = false, py::kw_only(),
           py::arg("layout") = "nchw", py::arg("bf16") = false, run_head_doc)
      .def("__call__", &run_head, py::arg("features"), py::arg("softmax") = false, py::kw_only(),
           py::arg("layout") = "nchw", py::arg("bf16") = false, "The same as run().")
      .def("run_reference", &run_head_reference, py::arg("features"), py::arg("softmax") = false,
           py::kw_only(), py::arg("layout") = "nchw", py::arg("bf16") = false, reference_doc)
      .def_property_readonly("pool", &histo::FusedHead::pool, "Bins along each side of the map.")
      .def_property_readonly("channels", &histo::FusedHead::channels, "Channels of the feature map.")
      .def_property_readonly("classes", &histo::FusedHead::classes, "Number of logits.")
      .def_property_readonly("threads", &histo::FusedHead::threads, "That one call may use.")
      .def_property_readonly(
          "isa", [](const histo::FusedHead& head) { return name(head.isa()); },
          "The instruction set that its kernels are written in.");

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
          "Side in pixels of the tiles that the model was made for.")
      .def_property_readonly(
          "mean", [](const histo::Model& model) { return py::tuple(py::cast(model.spec().mean)); },
          "Per RGB channel, of values in [0, 1].")
      .def_property_readonly(
          "std", [](const histo::Model& model) { return py::tuple(py::cast(model.spec().std)); },
          "Per RGB channel, of values in [0, 1].")
      .def_property_readonly(
          "mpp", [](const histo::Model& model) { return model.spec().mpp; },
          "Micrometres per pixel of the tiles; None where unknown.")
      .def_property_readonly("size_bytes", &histo::Model::size_bytes, "Bytes that the file takes.");

  py::class_<histo::Engine>(m, "Engine", engine_doc)
      .def(py::init(&make_engine), py::arg("model"), py::kw_only(), py::arg("threads").noconvert() = 0,
           py::arg("precision") = "fp32", py::arg("isa") = py::none(),
           py::arg("crop").noconvert() = py::none(), py::arg("profile") = "throughput",
           py::arg("algorithm") = "fastest")
      .def("run", &bindings::run<histo::Engine>, py::arg("tiles"), run_doc)
      .def("__call__", &bindings::run<histo::Engine>, py::arg("tiles"), "The same as run().")
      .def("warmup", &warmup, py::arg("batch").noconvert() = 1,
           "Runs a black batch, so that the first real one finds memory touched and caches filled.")
      .def("stages", &bindings::stages<histo::Engine>, py::arg("tiles"), stages_doc)
      .def("layer_times", &layer_times, py::arg("tiles"), layer_times_doc)
      .def("info", &engine_info, info_doc)
      .def(
          "copy", [](const histo::Engine& engine) { return engine; },
          py::call_guard<py::gil_scoped_release>(),
          "An engine with threads and a workspace of its own, for parallel calls; the weights are shared.")
      .def_property_readonly(
          "model", [](const histo::Engine& engine) { return engine.model(); }, "The Model that it runs.")
      .def_property_readonly("classes", &histo::Engine::classes, "Number of logits.");

  bindings::bind_batch_runner(m);

  m.def("preprocess", &preprocess, py::arg("tiles"), py::arg("model"),
        py::arg("crop").noconvert() = py::none(), preprocess_doc);
  m.def("self_test", &self_test, py::arg("engine"), py::arg("golden"), self_test_doc);
  m.def("usable_isas", &usable_isas,
        "The instruction sets that this machine can run, lowest first: \"portable\", \"avx2\", \"avx512\", "
        "\"amx\".");
  m.def(
      "default_isa", [] { return name(histo::default_isa()); },
      "The highest usable instruction set, or the one that $HISTO_ISA names; ValueError or RuntimeError "
      "where "
      "it names none that can be had.");
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
