#include "histo/self_test.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/model.h"
#include "model_file.h"

namespace {

namespace fs = std::filesystem;

using histo::Error;
using histo::ErrorCode;
using histo::SelfTestResult;

constexpr std::size_t crop = 32;
constexpr std::size_t side = 48;  // what make_model_file says for this crop
constexpr std::size_t classes = 3;
constexpr std::size_t count = 11;  // more than the tiles of one call, and no multiple of them

const histo::Engine& engine() {
  static const histo::Engine made(histo::Model::from_memory(make_model_file(2, classes, crop, 7)),
                                  {.threads = 1, .isa = {}});
  return made;
}

std::vector<std::uint8_t> noise(std::size_t tiles) {
  std::mt19937 generator(3);
  std::vector<std::uint8_t> bytes(tiles * side * side * 3);
  for (std::uint8_t& byte : bytes) {
    byte = static_cast<std::uint8_t>(generator() & 0xFFU);
  }
  return bytes;
}

const std::vector<std::uint8_t>& tiles() {
  static const std::vector<std::uint8_t> made = noise(count);
  return made;
}

// The engine's own logits: that they are right is for the tests of the engine to show.
std::vector<double> engine_logits() {
  std::vector<float> logits(count * classes);
  engine().run(tiles(), {.batch = count, .height = side, .width = side}, logits);
  return {logits.begin(), logits.end()};
}

double unit(const std::vector<double>& logits, std::size_t tile) {
  double largest = 1;
  for (std::size_t k = 0; k < classes; ++k) {
    largest = std::max(largest, std::abs(logits[tile * classes + k]));
  }
  return largest;
}

// A file that goes away with its object.
class GoldenFile {
 public:
  explicit GoldenFile(std::span<const std::byte> bytes)
      : path_(fs::temp_directory_path() / ("histo-golden-" + std::to_string(std::random_device()()))) {
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(file.flush());
  }
  GoldenFile(const GoldenFile&) = delete;
  GoldenFile& operator=(const GoldenFile&) = delete;
  ~GoldenFile() { fs::remove(path_); }

  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

SafetensorsWriter writer(std::span<const double> logits) {
  SafetensorsWriter golden(R"({"histo.format":"1","histo.real":"2"})");
  golden.add<double>("logits", "F64", {count, classes}, logits);
  golden.add<float>("stage.stem", "F32", {2, 1, 1, 1}, std::array{1.0F, 2.0F});
  golden.add<std::uint8_t>("tiles", "U8", {count, side, side, 3}, tiles());
  return golden;
}

SelfTestResult check(const std::vector<double>& logits) {
  return histo::self_test(engine(), GoldenFile(writer(logits).file()).path());
}

std::string complaint(ErrorCode code, const histo::Engine& tested, std::span<const std::byte> bytes) {
  const GoldenFile file(bytes);
  try {
    (void)histo::self_test(tested, file.path());
  } catch (const Error& error) {
    CHECK(error.code() == code);
    CHECK(std::string_view(error.what()).starts_with(file.path().string() + ": "));
    return error.what();
  }
  FAIL("no histo::Error was thrown");
  return {};
}

std::string complaint(std::span<const std::byte> bytes) {
  return complaint(ErrorCode::invalid_file, engine(), bytes);
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

TEST_CASE("self_test: the engine's own logits pass") {
  const SelfTestResult result = check(engine_logits());
  CHECK(result.passed);
  CHECK(result.tiles == count);
  CHECK(result.max_abs == 0);
  CHECK(result.max_relative == 0);
  CHECK(result.tolerance == 5e-5);
}

TEST_CASE("self_test: one logit beyond the tolerance fails, in the unit of its own tile") {
  for (const std::size_t tile : {std::size_t{0}, count - 1}) {
    std::vector<double> logits = engine_logits();
    const double scale = unit(logits, tile);
    // Towards zero, so that the unit stays or shrinks by a negligible part.
    double& logit = logits[tile * classes + 1];
    const double direction = logit > 0 ? -1 : 1;
    logit += direction * 4e-5 * scale;
    const SelfTestResult within = check(logits);
    CHECK(within.passed);
    CHECK(within.max_relative == doctest::Approx(4e-5).epsilon(1e-3));
    CHECK(within.max_abs == doctest::Approx(4e-5 * scale).epsilon(1e-3));

    logit += direction * 2e-5 * scale;
    const SelfTestResult beyond = check(logits);
    CHECK_FALSE(beyond.passed);
    CHECK(beyond.max_relative == doctest::Approx(6e-5).epsilon(1e-3));
  }
}

TEST_CASE("self_test: logits that are another tile's fail") {
  std::vector<double> logits = engine_logits();
  std::rotate(logits.begin(), logits.begin() + classes, logits.end());
  CHECK_FALSE(check(logits).passed);
}

TEST_CASE("self_test: a file that cannot be read") {
  try {
    (void)histo::self_test(engine(), "nowhere/golden.safetensors");
    FAIL("no histo::Error was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::io);
    CHECK(std::string_view(error.what()).starts_with("nowhere/golden.safetensors: cannot be opened"));
  }
  CHECK(contains(complaint({}), "is empty"));
  const std::vector<std::byte> whole = writer(engine_logits()).file();
  CHECK(contains(complaint(std::span(whole).first(whole.size() - 1)), "truncated or damaged"));
}

TEST_CASE("self_test: a file that is not a golden file") {
  const std::vector<double> logits = engine_logits();
  const auto changed = [&](std::string_view from, std::string_view to) {
    const std::vector<std::byte> file = writer(logits).file();
    auto [header, data] = split_safetensors(file);
    REQUIRE(header.find(from) != std::string::npos);
    return safetensors_file(header.replace(header.find(from), from.size(), to), data);
  };
  CHECK(contains(complaint(changed("\"tiles\"", "\"tales\"")), "it has no tensor \"tiles\""));
  CHECK(contains(complaint(changed("\"logits\"", "\"legits\"")), "it has no tensor \"logits\""));
  CHECK(contains(complaint(changed("\"stage.stem\"", "\"stem\"")), "\"stem\" is not part of a golden file"));
  CHECK(contains(complaint(changed("\"histo.format\":\"1\"", "\"histo.format\":\"2\"")),
                 "histo.format is \"2\""));
  CHECK(contains(complaint(changed("\"F64\"", "\"I64\"")), "\"logits\" is I64; it must be F64"));
  CHECK(contains(complaint(changed("\"U8\"", "\"I8\"")), "\"tiles\" is I8; it must be U8"));
  CHECK(contains(complaint(changed("\"F32\"", "\"U32\"")), "\"stage.stem\" is U32; it must be F32"));
  CHECK(contains(complaint(changed("[11,48,48,3]", "[11,48,3,48]")), "it must be [11, 48, 48, 3]"));
  CHECK(contains(complaint(changed("[11,48,48,3]", "[11,96,24,3]")), "it must be [11, 96, 96, 3]"));
  CHECK(contains(complaint(changed("[11,48,48,3]", "[76032]")), "it must be [76032, 0, 0, 3]"));
  CHECK(contains(complaint(changed("[11,3]", "[3,11]")), "it must be [11, 11]"));
  CHECK(contains(complaint(changed("[11,3]", "[33]")), "it must be [11, 0]"));

  SafetensorsWriter none("{}");
  none.add<double>("logits", "F64", {0, classes}, {});
  none.add<std::uint8_t>("tiles", "U8", {0, side, side, 3}, {});
  CHECK(contains(complaint(none.file()), "are empty"));
}

TEST_CASE("self_test: a reference that is not finite") {
  std::vector<double> logits = engine_logits();
  for (const double value :
       {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
    logits.back() = value;
    CHECK(contains(complaint(writer(logits).file()), "\"logits\" has NaN or infinity"));
  }
  logits.back() = 0;
}

// Sparse files, which take no space: only what their headers say is large.
TEST_CASE("self_test: a golden file that is larger than memory") {
  constexpr std::size_t huge = std::size_t{1} << 40U;
  const auto sparse = [](const std::string& header, std::size_t data, std::size_t written,
                         std::span<const std::byte> first) {
    std::vector<std::byte> bytes = safetensors_file(header, first);
    auto file = std::make_unique<GoldenFile>(bytes);
    std::error_code refused;  // by file systems with smaller files
    fs::resize_file(file->path(), bytes.size() - written + data, refused);
    if (refused) {
      MESSAGE("not tested: " << refused.message());
      file.reset();
    }
    return file;
  };
  const std::vector<double> logits = engine_logits();
  const auto reference = std::as_bytes(std::span(logits));
  const std::size_t tile_bytes = side * side * 3;
  const auto entry = [](const std::string& name, const std::string& dtype, const std::string& shape,
                        std::size_t begin, std::size_t end) {
    return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[)" +
           std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  // Stages are not read, so that their size does not matter.
  std::vector<std::byte> data(reference.begin(), reference.end());
  const auto pixels = std::as_bytes(std::span(tiles()));
  data.insert(data.end(), pixels.begin(), pixels.end());
  std::string header =
      "{" + entry("logits", "F64", "[11,3]", 0, reference.size()) + "," +
      entry("tiles", "U8", "[11,48,48,3]", reference.size(), data.size()) + "," +
      entry("stage.stem", "F32", "[" + std::to_string(huge / 4) + "]", data.size(), data.size() + huge) + "}";
  if (const auto file = sparse(header, data.size() + huge, data.size(), data)) {
    CHECK(histo::self_test(engine(), file->path()).passed);
  }
  const auto complaint_of = [&](ErrorCode code, const fs::path& path) -> std::string {
    try {
      (void)histo::self_test(engine(), path);
    } catch (const Error& error) {
      CHECK(error.code() == code);
      return error.what();
    }
    return "";
  };
  const std::size_t many = huge / tile_bytes;
  header =
      "{" + entry("logits", "F64", "[" + std::to_string(many) + ",3]", 0, many * 24) + "," +
      entry("tiles", "U8", "[" + std::to_string(many) + ",48,48,3]", many * 24, many * (24 + tile_bytes)) +
      "}";
  if (const auto file = sparse(header, many * (24 + tile_bytes), 0, {})) {
    CHECK(contains(complaint_of(ErrorCode::invalid_file, file->path()), "tiles; at most 1024 are read"));
  }
  header = "{" + entry("logits", "F64", "[1,3]", 0, 24) + "," +
           entry("tiles", "U8", "[1,500000,500000,3]", 24, 24 + 750'000'000'000) + "}";
  if (const auto file = sparse(header, 24 + 750'000'000'000, 0, {})) {
    CHECK(contains(complaint_of(ErrorCode::size_mismatch, file->path()), "tiles of side 500000"));
  }
}

TEST_CASE("self_test: golden tiles of another model") {
  SafetensorsWriter fewer("{}");
  fewer.add<double>("logits", "F64", {1, 2}, std::array{0.0, 1.0});
  fewer.add<std::uint8_t>("tiles", "U8", {1, side, side, 3}, std::span(tiles()).first(side * side * 3));
  CHECK(contains(complaint(ErrorCode::size_mismatch, engine(), fewer.file()),
                 "it has classes 2, the engine 3"));

  SafetensorsWriter smaller("{}");
  smaller.add<double>("logits", "F64", {1, 3}, std::array{0.0, 1.0, 2.0});
  smaller.add<std::uint8_t>("tiles", "U8", {1, 40, 40, 3},
                            std::span(tiles()).first(std::size_t{40} * 40 * 3));
  CHECK(contains(complaint(ErrorCode::size_mismatch, engine(), smaller.file()),
                 "tiles of side 40, the engine 48"));

  // Pool 1 fits any map, so this engine exists; the reference is for the model's own crop.
  const histo::Engine other(histo::Model::from_memory(make_model_file(1, classes, crop, 7)),
                            {.threads = 1, .isa = {}, .crop = 40});
  CHECK(contains(complaint(ErrorCode::size_mismatch, other, writer(engine_logits()).file()),
                 "logits for the crop 32, the engine 40"));
}

TEST_CASE(
    "self_test: each precision has a tolerance of its own, and reference logits of another model are "
    "outside") {
  const auto file = make_model_file(2, classes, crop, 7, [](const std::string&) { return true; });
  const histo::Model model = histo::Model::from_memory(file);
  const std::vector<histo::Precision> usable = histo::usable_precisions();
  for (const auto& [precision, tolerance] :
       {std::pair{histo::Precision::bf16, 0.05}, std::pair{histo::Precision::bf16x3, 5e-4},
        std::pair{histo::Precision::int8, 0.25}}) {
    if (std::ranges::find(usable, precision) == usable.end()) {
      MESSAGE("this machine cannot run " << histo::name(precision) << ", which is not tested");
      continue;
    }
    const histo::Engine low(model, {.threads = 1, .precision = precision});
    // The scales of this file clip, as calibrated ones do not: int8 is held to its own logits.
    std::vector<double> logits = engine_logits();
    if (precision == histo::Precision::int8) {
      std::vector<float> own(logits.size());
      low.run(tiles(), {.batch = count, .height = side, .width = side}, own);
      std::ranges::copy(own, logits.begin());
    }
    const SelfTestResult right = histo::self_test(low, GoldenFile(writer(logits).file()).path());
    CHECK(right.tolerance == tolerance);
    CHECK(right.passed);
    std::vector<double> other = logits;
    std::rotate(other.begin(), other.begin() + 1, other.end());
    CHECK_FALSE(histo::self_test(low, GoldenFile(writer(other).file()).path()).passed);
  }
}

}  // namespace
