// FusedHead for Python.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "arguments.h"
#include "arrays.h"
#include "gil.h"
#include "histo/fused_head.h"
#include "histo/names.h"
#include "register.h"

namespace bindings {
namespace {

histo::FusedHead make_head(const py::object& given_weight, const py::object& given_bias,
                           const py::object& given_pool, const py::object& threads, const py::object& isa) {
  const py::array weight = array_of("weight", given_weight);
  const py::array bias = array_of("bias", given_bias);
  const auto weight_view = view<float>("weight", weight, "(classes, channels * pool * pool)", 2);
  const auto bias_view = view<float>("bias", bias, "(classes,)", 1);
  const auto pool = static_cast<py::ssize_t>(at_least_one("pool", given_pool));
  // Two divisions, because pool * pool may overflow.
  const py::ssize_t columns = weight.shape(1);
  if (columns % pool != 0 || columns / pool % pool != 0) {
    throw py::value_error("weight has shape " + shape_of(weight) +
                          "; its columns are not a multiple of pool * pool for pool " + std::to_string(pool));
  }
  return {static_cast<std::size_t>(pool),
          static_cast<std::size_t>(columns / pool / pool),
          extent(weight, 0),
          weight_view,
          bias_view,
          {.threads = threads_of(threads), .isa = isa_of(isa)}};
}

struct FeatureAxes {
  const char* names;
  py::ssize_t channels;
  py::ssize_t height;
  histo::Layout layout;
};

FeatureAxes feature_axes(const py::object& layout) {
  if (one_of<histo::Layout>("layout", layout) == histo::Layout::nchw) {
    return {"(batch, channels, height, width)", 1, 2, histo::Layout::nchw};
  }
  return {"(batch, height, width, channels)", 3, 1, histo::Layout::nhwc};
}

// Calls `compute(features, shape, out)` with the features as float32 or bf16.
template <typename Compute>
py::array_t<float> head_output(const histo::FusedHead& head, const py::object& given,
                               const py::object& layout, bool bf16, const Compute& compute) {
  const py::array features = array_of("features", given);
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
    const Unlocked unlocked;
    compute(values, shape, out_view);
    return out;
  };
  if (bf16) {
    return computed(view<histo::Bfloat16, std::uint16_t>("features", features, axes.names, 4));
  }
  return computed(view<float>("features", features, axes.names, 4));
}

histo::Softmax softmax_of(bool softmax) { return softmax ? histo::Softmax::yes : histo::Softmax::no; }

py::array_t<float> run_head(const histo::FusedHead& head, const py::object& features, bool softmax,
                            const py::object& layout, bool bf16) {
  return head_output(head, features, layout, bf16, [&](auto values, auto shape, auto out) {
    head.run(values, shape, out, softmax_of(softmax));
  });
}

py::array_t<float> run_head_reference(const histo::FusedHead& head, const py::object& features, bool softmax,
                                      const py::object& layout, bool bf16) {
  return head_output(head, features, layout, bf16, [&](auto values, auto shape, auto out) {
    head.run_reference(values, shape, out, softmax_of(softmax));
  });
}

// --- documentation ---------------------------------------------------------------------------------------

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
    threads: of one call, including the caller's; 0 means ``usable_cpus()``.
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
The definition, computed cell by cell in float64 and rounded once. Slow: it is the reference in tests of run().

Arguments, result and errors are those of run().
)";

}  // namespace

void register_head(py::module_& m) {
  py::class_<histo::FusedHead>(m, "FusedHead", head_doc)
      .def(py::init(&make_head), py::arg("weight"), py::arg("bias"), py::arg("pool"), py::kw_only(),
           py::arg("threads") = 1, py::arg("isa") = py::none())
      .def("run", &run_head, py::arg("features"), py::arg("softmax") = false, py::kw_only(),
           py::arg("layout") = "nchw", py::arg("bf16") = false, run_head_doc)
      .def("__call__", &run_head, py::arg("features"), py::arg("softmax") = false, py::kw_only(),
           py::arg("layout") = "nchw", py::arg("bf16") = false, "The same as run().")
      .def("run_reference", &run_head_reference, py::arg("features"), py::arg("softmax") = false,
           py::kw_only(), py::arg("layout") = "nchw", py::arg("bf16") = false, reference_doc)
      .def_property_readonly("pool", &histo::FusedHead::pool, "Bins along each side of the map.")
      .def_property_readonly("channels", &histo::FusedHead::channels, "Channels of the feature map.")
      .def_property_readonly("classes", &histo::FusedHead::classes, "Number of logits.")
      .def_property_readonly("threads", &histo::FusedHead::threads,
                             "Threads of one call, including the caller's.")
      .def_property_readonly(
          "isa", [](const histo::FusedHead& head) { return name(head.isa()); },
          "The instruction set that its kernels are written in.")
      .def("__repr__", [](const histo::FusedHead& head) {
        return "<FusedHead: pool " + std::to_string(head.pool()) + ", " +
               counted(head.channels(), "channel") + ", " + counted(head.classes(), "class", "classes") +
               ", " + std::string(name(head.isa())) + ", " + counted(head.threads(), "thread") + ">";
      });
}

}  // namespace bindings
