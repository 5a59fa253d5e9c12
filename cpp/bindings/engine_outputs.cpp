// What an Engine gives for Python besides logits, and the formats of its pixels.

#include "engine_outputs.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "arrays.h"
#include "gil.h"
#include "histo/image_view.h"
#include "histo/names.h"

namespace bindings {
namespace {

using Shape = std::vector<std::size_t>;

// The arrays that a caller has asked for by name, in his order.
class WantedOutputs {
 public:
  WantedOutputs(const histo::Engine& engine, const py::object& names, const py::object& top,
                std::size_t batch) {
    const histo::EngineInfo info = engine.info();
    const std::size_t classes = engine.classes();
    if (py::isinstance<py::str>(names) || !py::isinstance<py::iterable>(names)) {
      wrong_type("names", names, "a tuple or list of names");
    }
    for (const py::handle& given : names) {
      const std::string name = string_of("a name of an output", given);
      if (name == "logits") {
        outputs_.logits = add<float>(name, {batch, classes});
      } else if (name == "probabilities") {
        outputs_.probabilities = add<float>(name, {batch, classes});
      } else if (name == "embedding") {
        outputs_.embedding = add<float>(name, {batch, info.embedding_size});
      } else if (name == "contributions") {
        outputs_.contributions = add<float>(name, {batch, classes, info.map_side, info.map_side});
      } else {
        histo::throw_unknown_name("output", name, "logits, probabilities, embedding, contributions");
      }
    }
    if (!top.is_none()) {
      outputs_.top = at_least_one("top", top, static_cast<py::ssize_t>(classes));
      outputs_.top_classes = add<std::uint32_t>("top_classes", {batch, outputs_.top});
      outputs_.top_probabilities = add<float>("top_probabilities", {batch, outputs_.top});
    }
  }

  [[nodiscard]] const histo::Outputs& outputs() const { return outputs_; }
  [[nodiscard]] py::dict arrays() { return std::move(arrays_); }

 private:
  template <typename Value>
  std::span<Value> add(const std::string& name, const Shape& shape) {
    py::array_t<Value> array(shape);
    arrays_[py::str(name)] = array;
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
  }

  histo::Outputs outputs_;
  py::dict arrays_;
};

// Of one image, `bytes` beginning with its first pixel.
histo::ImageView view_of(std::span<const std::uint8_t> bytes, std::size_t height, std::size_t width,
                         histo::PixelFormat format, std::size_t row_stride = 0) {
  return {.bytes = bytes, .height = height, .width = width, .format = format, .row_stride = row_stride};
}

py::dict outputs(const histo::Engine& engine, const py::object& given, const py::object& names,
                 const py::object& top, const py::object& pixel_format) {
  const py::array tiles = array_of("tiles", given);
  const auto format = one_of<histo::PixelFormat>("format", pixel_format);
  const auto run = [&](std::size_t batch, const auto& call) {
    WantedOutputs wanted(engine, names, top, batch);
    {
      const Unlocked unlocked;
      call(wanted.outputs());
    }
    return wanted.arrays();
  };
  if (py::isinstance<py::array_t<float>>(tiles)) {
    if (format != histo::PixelFormat::rgb) {
      throw py::value_error("tiles has dtype float32, which is RGB; leave format out");
    }
    histo::TileShape shape{};
    const auto floats = float_tiles(tiles, shape);
    return run(shape.batch, [&](const histo::Outputs& to) { engine.run(floats, shape, to); });
  }
  const std::size_t channels = bytes_of_pixel(format);
  const std::string axes = "(batch, height, width, " + std::to_string(channels) + ")";
  const auto bytes = view<std::uint8_t>("tiles", tiles, axes.c_str(), 4);
  if (extent(tiles, 3) != channels) {
    throw py::value_error("tiles has shape " + shape_of(tiles) + "; " + axes + " is needed");
  }
  std::vector<histo::ImageView> views;
  const std::size_t size = extent(tiles, 0) == 0 ? 0 : bytes.size() / extent(tiles, 0);
  for (std::size_t i = 0; i < extent(tiles, 0); ++i) {
    views.push_back(view_of(bytes.subspan(i * size, size), extent(tiles, 1), extent(tiles, 2), format));
  }
  return run(views.size(), [&](const histo::Outputs& to) { engine.run(views, to); });
}

// An image `(height, width, channels)` whose rows may lie apart, such as a part of a larger array.
histo::ImageView image_of(const py::array& image, histo::PixelFormat format) {
  const std::size_t channels = bytes_of_pixel(format);
  const std::string axes = "(height, width, " + std::to_string(channels) + ")";
  if (!py::isinstance<py::array_t<std::uint8_t>>(image)) {
    throw py::type_error("image has dtype " + dtype_of(image) + "; uint8 " + axes + " is needed");
  }
  if (image.ndim() != 3 || extent(image, 2) != channels) {
    throw py::value_error("image has shape " + shape_of(image) + "; " + axes + " is needed");
  }
  const auto row = static_cast<py::ssize_t>(extent(image, 1) * channels);
  // NumPy gives an axis of one element any stride.
  const bool pixels_lie_together =
      (channels == 1 || image.strides(2) == 1) &&
      (image.shape(1) == 1 || image.strides(1) == static_cast<py::ssize_t>(channels));
  if (image.size() > 0 && (!pixels_lie_together || (image.shape(0) > 1 && image.strides(0) < row))) {
    throw py::value_error("image of shape " + shape_of(image) +
                          " has rows that are not contiguous, or that go upwards. Convert it with "
                          "numpy.ascontiguousarray(image)");
  }
  const std::size_t stride = image.shape(0) > 1 ? static_cast<std::size_t>(image.strides(0)) : 0;
  const std::size_t size =
      image.size() == 0 ? 0 : (extent(image, 0) - 1) * stride + static_cast<std::size_t>(row);
  return view_of({static_cast<const std::uint8_t*>(image.data()), size}, extent(image, 0), extent(image, 1),
                 format, stride);
}

py::dict outputs_of_regions(const histo::Engine& engine, const py::object& given, const py::object& corners,
                            const py::object& side, const py::object& names, const py::object& top,
                            const py::object& pixel_format) {
  const py::array array = array_of("image", given);
  const histo::ImageView image = image_of(array, one_of<histo::PixelFormat>("format", pixel_format));
  const std::size_t pixels = at_least_one("side", side);
  const auto places = view<std::int64_t>("corners", array_of("corners", corners), "(regions, 2)", 2);
  if (places.size() % 2 != 0 || array_of("corners", corners).shape(1) != 2) {
    throw py::value_error("corners has shape " + shape_of(array_of("corners", corners)) +
                          "; (regions, 2) is needed");
  }
  std::vector<histo::ImageView> views;
  for (std::size_t i = 0; i < places.size(); i += 2) {
    if (places[i] < 0 || places[i + 1] < 0) {
      throw py::value_error("corner " + std::to_string(i / 2) + " is (" + std::to_string(places[i]) + ", " +
                            std::to_string(places[i + 1]) + "); both must be at least 0");
    }
    views.push_back(image.region({.x = static_cast<std::size_t>(places[i]),
                                  .y = static_cast<std::size_t>(places[i + 1]),
                                  .height = pixels,
                                  .width = pixels}));
  }
  WantedOutputs wanted(engine, names, top, views.size());
  {
    const Unlocked unlocked;
    engine.run(views, wanted.outputs());
  }
  return wanted.arrays();
}

constexpr const char* outputs_doc = R"(
More than logits, and of pixels in other formats than RGB.

Args:
    tiles: C-contiguous; uint8 ``(batch, height, width, channels)``, the channels as ``format`` says, or float32
        ``(batch, 3, height, width)`` in [0, 1], RGB.
    names: some of "logits", "probabilities", "embedding" and "contributions".
    top: how many of the likeliest classes to tell, too; None is none of them.
    format: one of ``PIXEL_FORMATS``. Alpha is ignored, but premultiplied colours are composited on white.

Returns:
    By name. ``logits`` and ``probabilities``: float32 ``(batch, classes)``. ``embedding``: float32
    ``(batch, channels * pool * pool)``, the input of the trained linear layer. ``contributions``: float32
    ``(batch, classes, map_side, map_side)``, the share of each cell of the last feature map in each logit; with the
    bias they add up to it. With ``top``: ``top_classes`` uint32 and ``top_probabilities`` float32, ``(batch, top)``,
    the likeliest first.

Raises:
    TypeError, ValueError: as run(); ValueError also for a name that is unknown, or none at all.
)";

constexpr const char* outputs_of_regions_doc = R"(
The same for square parts of one large image, which are not copied.

Args:
    image: uint8 ``(height, width, channels)``; its rows may lie apart, as those of a part of a larger array.
    corners: int64 ``(regions, 2)``: x and y of the upper left corner of each, in pixels.
    side: of the regions, in pixels; at least the crop.
    names, top, format: as for outputs().

Returns:
    As outputs(), in the order of ``corners``.

Raises:
    TypeError, ValueError: as outputs(); ValueError also where a region is not inside the image.
)";

}  // namespace

void register_outputs(py::class_<histo::Engine>& engine) {
  const py::tuple logits = py::make_tuple("logits");
  engine
      .def("outputs", &outputs, py::arg("tiles"), py::arg("names") = logits, py::kw_only(),
           py::arg("top") = py::none(), py::arg("format") = "rgb", outputs_doc)
      .def("outputs_of_regions", &outputs_of_regions, py::arg("image"), py::arg("corners"), py::arg("side"),
           py::arg("names") = logits, py::kw_only(), py::arg("top") = py::none(), py::arg("format") = "rgb",
           outputs_of_regions_doc);
}

}  // namespace bindings
