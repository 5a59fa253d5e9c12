// What a host may ask before and beside a run: versions, messages, the description of a file, memory; and how
// it stops a run.

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "error_code.h"
#include "histo/build_config.h"
#include "histo/c_api.h"
#include "histo/cancel_flag.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/estimate.h"
#include "histo/log.h"
#include "histo/model_info.h"
#include "histo/thread_team.h"
#include "histo/tile_queue.h"
#include "joined_threads.h"
#include "model_file.h"

namespace {

using histo::Engine;
using histo::EngineOptions;
using histo::ErrorCode;
using histo::Model;
using histo::Precision;
using histo::TileShape;

const std::vector<std::byte>& model_bytes() {
  static const std::vector<std::byte> bytes =
      make_model_file(2, 6, 32, 1, [](const std::string&) { return true; });
  return bytes;
}

const Model& model() {
  static const Model opened = Model::from_memory(model_bytes());
  return opened;
}

// --- versions ----------------------------------------------------------------------------------------------

TEST_CASE("version: headers and library are compared") {
  CHECK(histo::version_number() == HISTO_VERSION_NUMBER);
  CHECK(std::to_string(HISTO_VERSION_MAJOR) + "." + std::to_string(HISTO_VERSION_MINOR) + "." +
            std::to_string(HISTO_VERSION_PATCH) ==
        histo::build_config().version);
  histo::require_version();
  for (const int other : {HISTO_VERSION_NUMBER + 1, HISTO_VERSION_NUMBER + 100, HISTO_VERSION_NUMBER + 10000,
                          HISTO_VERSION_NUMBER - 100, 0, -1}) {
    CAPTURE(other);
    CHECK(code_of([&] { histo::require_version(other); }) == ErrorCode::unsupported);
    CHECK(histo_require_version(other) == HISTO_UNSUPPORTED);
  }
}

// --- the description of a file -----------------------------------------------------------------------------

class File {
 public:
  explicit File(std::span<const std::byte> bytes)
      : path_(std::filesystem::temp_directory_path() /
              ("histo-info-" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) + "-" +
               std::to_string(std::hash<std::thread::id>()(std::this_thread::get_id())))) {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { std::filesystem::remove(path_); }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST_CASE("model info: what the file says, without its weights") {
  std::vector<std::byte> bytes = model_bytes();
  // Weights that Model::open() refuses: NaN everywhere. They are not looked at.
  const std::size_t header = bytes.size() - split_safetensors(bytes).second.size();
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(header), bytes.end(), std::byte{0xFF});
  const File file(bytes);
  CHECK(code_of([&] { (void)Model::open(file.path()); }) == ErrorCode::invalid_file);
  const histo::ModelInfo info = histo::read_model_info(file.path());
  CHECK(info.spec.classes == model().spec().classes);
  CHECK(info.spec.crop == 32);
  CHECK(info.spec.tile_size == 48);
  CHECK(info.spec.pool == 2);
  CHECK(info.spec.mpp == 0.5);
  CHECK(info.file_bytes == bytes.size());
  CHECK(info.int8);
  std::vector<std::string> keys;
  for (const auto& [key, value] : info.metadata) {
    keys.push_back(key);
    CHECK_FALSE(value.empty());
  }
  CHECK(keys == std::vector<std::string>{"histo.format", "histo.head_pool", "histo.spec"});
}

TEST_CASE("model info: a file that is not a model is refused") {
  CHECK(code_of([] { (void)histo::read_model_info("/nowhere/model.safetensors"); }) == ErrorCode::io);
  const std::vector<std::byte>& bytes = model_bytes();
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{1000}, bytes.size() - 1}) {
    CAPTURE(size);
    const File file(std::span<const std::byte>(bytes).first(size));
    CHECK(code_of([&] { (void)histo::read_model_info(file.path()); }) == ErrorCode::invalid_file);
  }
  const File other(SafetensorsWriter("{}").file());
  CHECK(code_of([&] { (void)histo::read_model_info(other.path()); }) == ErrorCode::invalid_file);
}

// --- memory ------------------------------------------------------------------------------------------------

TEST_CASE("engine: an estimate fails as the engine would") {
  CHECK(code_of([] { (void)histo::estimate(model(), {}, 0); }) == ErrorCode::invalid_argument);
  CHECK(code_of([] { (void)histo::estimate(model(), {.threads = 5000}, 1); }) == ErrorCode::invalid_argument);
  CHECK(code_of([] { (void)histo::estimate(model(), {.crop = 10000}, 1); }) == ErrorCode::unsupported);
  const Model unscaled = Model::from_memory(make_model_file(1, 2, 32, 1));
  const std::vector<Precision> usable = histo::usable_precisions();
  if (std::ranges::find(usable, Precision::int8) != usable.end()) {
    CHECK(code_of([&] { (void)histo::estimate(unscaled, {.precision = Precision::int8}, 1); }) ==
          ErrorCode::unsupported);
  }
  const auto team = std::make_shared<histo::ThreadTeam>(histo::ThreadTeamOptions{.threads = 2});
  CHECK(histo::estimate(model(), {.team = team}, 2).workspace_bytes ==
        histo::estimate(model(), {.threads = 2}, 2).workspace_bytes);
  // A batch that runs in parts takes no more than one of them.
  const std::size_t large = std::numeric_limits<std::size_t>::max();
  CHECK(histo::estimate(model(), {.threads = 1}, large).workspace_bytes ==
        histo::estimate(model(), {.threads = 1}, large - 1).workspace_bytes);
}

// --- messages ----------------------------------------------------------------------------------------------

struct Messages {
  std::atomic<int> infos{0}, warnings{0};
  static void take(void* user, histo::LogLevel level, const char* message) {
    auto& mine = *static_cast<Messages*>(user);
    CHECK(std::string(message).find('\n') == std::string::npos);
    ++(level == histo::LogLevel::info ? mine.infos : mine.warnings);
  }
};

TEST_CASE("log: off, on, and what it tells") {
  static Messages first, second;  // a call may come late
  const EngineOptions options{.threads = 1, .algorithm = histo::AlgorithmPolicy::direct};
  const Engine silent(model(), options);
  histo::set_log(Messages::take, &first);
  const Engine heard(model(), options);
  CHECK(first.infos == 1);
  histo::set_log(Messages::take, &second);
  {
    histo::TileQueue queue([](auto, TileShape, auto) { throw 1; }, 1, 1);
    queue.submit(std::vector<std::uint8_t>(3), 1, 1,
                 [](const auto&) { throw std::runtime_error("of two\nlines"); });
    queue.drain();
  }
  CHECK(second.warnings == 2);  // the batch, and the callback
  histo::set_log(nullptr);
  const Engine again(model(), options);
  CHECK(first.infos + second.infos == 1);
}

// --- stopping a run ----------------------------------------------------------------------------------------

TEST_CASE("engine: a cancelled run ends between layers with its own error, its output untouched") {
  const Engine engine(model(), {.threads = 2, .algorithm = histo::AlgorithmPolicy::direct});
  constexpr std::size_t batch = 40;
  const TileShape shape{.batch = batch, .height = 32, .width = 32};
  const std::vector<std::uint8_t> tiles(batch * 32 * 32 * 3, 77);
  const std::vector<float> floats(batch * 32 * 32 * 3, 0.5F);
  std::vector<float> expected(batch * 6), logits(batch * 6, -1);
  engine.run(std::span<const std::uint8_t>(tiles), shape, expected);

  histo::CancelFlag flag;
  flag.cancel();
  CHECK(flag.cancelled());
  const std::vector<float> untouched = logits;
  CHECK(code_of([&] { engine.run(std::span<const std::uint8_t>(tiles), shape, logits, flag); }) ==
        ErrorCode::cancelled);
  CHECK(code_of([&] { engine.run(std::span<const float>(floats), shape, logits, flag); }) ==
        ErrorCode::cancelled);
  CHECK(logits == untouched);
  flag.reset();
  engine.run(std::span<const std::uint8_t>(tiles), shape, logits, flag);
  CHECK(logits == expected);

  // From another thread, at any time of the run: all or nothing.
  int stopped = 0;
  for (int round = 0; round < 8; ++round) {
    std::ranges::fill(logits, -1.0F);
    flag.reset();
    JoinedThreads threads;
    std::atomic<bool> started{false};
    threads.emplace_back([&] {
      while (!started) {
        std::this_thread::yield();
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
      flag.cancel();
    });
    started = true;
    try {
      engine.run(std::span<const std::uint8_t>(tiles), shape, logits, flag);
      CHECK(logits == expected);
    } catch (const histo::Error& error) {
      CHECK(error.code() == ErrorCode::cancelled);
      CHECK(logits == untouched);
      ++stopped;
    }
  }
  CHECK(stopped > 0);
  engine.run(std::span<const std::uint8_t>(tiles), shape, logits);
  CHECK(logits == expected);
}

}  // namespace
