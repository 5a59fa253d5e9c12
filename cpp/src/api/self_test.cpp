#include "histo/self_test.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "histo/error.h"
#include "model/safetensors.h"
#include "platform/platform.h"

namespace histo {
namespace {

// The largest relative difference that is allowed. fp32: TOLERANCE in python/histo_export/parity.py, which
// gives the reason; the others: see self_test.h.
double tolerance(Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return 0.05;
    case Precision::bf16x3:
      return 5e-4;
    case Precision::int8:
      return 0.25;
    case Precision::fp32:
      break;
  }
  return 5e-5;
}

// Tiles per call of the engine, so that its workspace does not grow with the file.
constexpr std::size_t batch = 8;

// A golden file has 33. More than this is none, and must not fill the memory.
constexpr std::size_t most_tiles = 1024;

struct Golden {
  std::size_t count;
  std::size_t side;
  std::size_t classes;
  std::span<const std::uint8_t> tiles;  // (count, side, side, 3)
  std::span<const double> logits;       // (count, classes)
};

[[noreturn]] void fail(const std::string& message, const std::string& remedy = "export the bundle again") {
  throw Error(ErrorCode::invalid_file, message, remedy);
}

const StoredTensor& required(const Safetensors& file, const char* name) {
  const StoredTensor* const tensor = file.find(name);
  if (tensor == nullptr) {
    fail(std::string("is not a golden file: it has no tensor ") + in_quotes(name),
         "give the golden.safetensors of a bundle");
  }
  return *tensor;
}

// The outputs of the stages show in which stage an export differs from its checkpoint (histo verify). They
// are neither read nor compared here.
bool is_stage(const StoredTensor& tensor) { return std::string_view(tensor.name).starts_with("stage."); }

// What its metadata and its shapes say, before its values are read.
void check_header(const Safetensors& file) {
  if (const std::string* const format = file.find_metadata("histo.format"); format && *format != "1") {
    fail("histo.format is " + in_quotes(*format) + ", and this version reads \"1\"",
         "export the bundle again, or update histo");
  }
  const StoredTensor& tiles = required(file, "tiles");
  const StoredTensor& logits = required(file, "logits");
  const std::size_t count = tiles.shape.empty() ? 0 : tiles.shape[0];
  const std::size_t side = tiles.shape.size() < 2 ? 0 : tiles.shape[1];
  const std::size_t classes = logits.shape.size() < 2 ? 0 : logits.shape[1];
  (void)tiles.values<std::uint8_t>();
  (void)logits.values<double>();
  tiles.check_shape(std::array{count, side, side, std::size_t{3}});
  logits.check_shape(std::array{count, classes});
  if (count == 0 || side == 0 || classes == 0) {
    fail("tensors \"tiles\" and \"logits\" are empty");
  }
  if (count > most_tiles) {
    fail("tensor \"tiles\" has " + std::to_string(count) + " tiles; at most " + std::to_string(most_tiles) +
         " are read");
  }
  for (const StoredTensor& tensor : file.tensors) {
    if (is_stage(tensor)) {
      (void)tensor.values<float>();
    } else if (tensor.name != "tiles" && tensor.name != "logits") {
      fail("tensor " + in_quotes(tensor.name) + " is not part of a golden file");
    }
  }
}

// Of a file whose header was checked.
Golden read_golden(const Safetensors& file) {
  const StoredTensor& tiles = required(file, "tiles");
  const StoredTensor& logits = required(file, "logits");
  const Golden golden{.count = tiles.shape[0],
                      .side = tiles.shape[1],
                      .classes = logits.shape[1],
                      .tiles = tiles.values<std::uint8_t>(),
                      .logits = logits.values<double>()};
  if (!std::ranges::all_of(golden.logits, [](double value) { return std::isfinite(value); })) {
    fail("tensor \"logits\" has NaN or infinity");
  }
  return golden;
}

// Whether a file whose header was checked is for the model of `engine`.
void check_fits(const Safetensors& file, const Engine& engine) {
  const ModelSpec& spec = engine.model().spec();
  const auto differ = [](const std::string& what, std::size_t theirs, std::size_t ours) {
    throw Error(ErrorCode::size_mismatch,
                "belongs to another model: it has " + what + " " + std::to_string(theirs) + ", the engine " +
                    std::to_string(ours),
                "give the golden file of the same bundle");
  };
  const std::size_t side = required(file, "tiles").shape[1], classes = required(file, "logits").shape[1];
  if (classes != engine.classes()) {
    differ("classes", classes, engine.classes());
  }
  if (side != spec.tile_size) {
    differ("tiles of side", side, spec.tile_size);
  }
  if (engine.info().crop != spec.crop) {
    differ("logits for the crop", spec.crop, engine.info().crop);
  }
}

// Adds one tile to `result`. The top class is not compared: within the tolerance, two logits can only change
// places where they differ by less than twice the tolerance, which is a tie.
void compare(std::span<const float> logits, std::span<const double> reference, SelfTestResult& result) {
  double max_abs = 0;
  double magnitude = 1;
  for (std::size_t k = 0; k < reference.size(); ++k) {
    const double delta = std::abs(static_cast<double>(logits[k]) - reference[k]);
    max_abs = std::max(max_abs, std::isnan(delta) ? std::numeric_limits<double>::infinity() : delta);
    magnitude = std::max(magnitude, std::abs(reference[k]));
  }
  result.max_abs = std::max(result.max_abs, max_abs);
  result.max_relative = std::max(result.max_relative, max_abs / magnitude);
}

SelfTestResult replay(const Engine& engine, const Golden& golden) {
  SelfTestResult result{.tiles = golden.count, .tolerance = tolerance(engine.info().precision)};
  const std::size_t tile_bytes = golden.tiles.size() / golden.count;
  std::vector<float> logits;
  for (std::size_t first = 0; first < golden.count; first += batch) {
    const std::size_t count = std::min(batch, golden.count - first);
    logits.resize(count * golden.classes);
    engine.run(golden.tiles.subspan(first * tile_bytes, count * tile_bytes),
               {.batch = count, .height = golden.side, .width = golden.side}, logits);
    for (std::size_t i = 0; i < count; ++i) {
      compare(std::span(logits).subspan(i * golden.classes, golden.classes),
              golden.logits.subspan((first + i) * golden.classes, golden.classes), result);
    }
  }
  result.passed = result.max_relative <= result.tolerance;
  return result;
}

}  // namespace

SelfTestResult self_test(const Engine& engine, const std::filesystem::path& golden) {
  const FloatEnvironment environment;
  try {
    InputFile input(golden);
    const LoadedSafetensors file = load_safetensors(
        input.size(), [&input](std::size_t offset, std::span<std::byte> to) { input.read(offset, to); },
        [&engine](Safetensors& header) {
          check_header(header);
          check_fits(header, engine);
          std::erase_if(header.tensors, is_stage);
        });
    return replay(engine, read_golden(file.container));
  } catch (const Error& error) {
    throw Error(error.code(), utf8(golden) + ": " + std::string(error.message()), error.remedy());
  }
}

}  // namespace histo
