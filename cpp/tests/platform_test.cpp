#include "platform/platform.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "aligned_buffer.h"
#include "histo/error.h"
#include "sanitizers.h"

namespace {

namespace fs = std::filesystem;

// Removed at the end, with what is in it.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& name)
      : path_(fs::temp_directory_path() / ("histo-platform-" + std::to_string(std::random_device{}()))) {
    fs::create_directories(path_ / name);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { fs::remove_all(path_); }

  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string text_of(const fs::path& file) {
  histo::InputFile input(file);
  std::string text(input.size(), '\0');
  input.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

TEST_CASE("platform: files whose names no code page has") {
  constexpr const char* name = "\xE6\xA8\xA1 \xC3\xA4";  // U+6A21, a space, U+00E4
  const fs::path folder = histo::path_from_utf8(name);
  CHECK(histo::utf8(folder) == name);
  CHECK(folder == fs::path(u8"\u6A21 \u00E4"));
  const TemporaryFolder temporary(folder);
  const fs::path file = temporary.path() / folder / folder;
  std::ofstream(file, std::ios::binary) << "a\r\nb\x1A"
                                           "c";
  CHECK(text_of(file) ==
        "a\r\nb\x1A"
        "c");
  CHECK(text_of(histo::path_from_utf8(histo::utf8(file))).size() == 6);
}

TEST_CASE("platform: parts of a file are read, and an empty one has no bytes") {
  const TemporaryFolder temporary("");
  std::ofstream(temporary.path() / "a", std::ios::binary)
      << std::string(60000, 'x') + std::string(40000, 'y');
  std::ofstream(temporary.path() / "empty", std::ios::binary).flush();
  histo::InputFile input(temporary.path() / "a");
  REQUIRE(input.size() == 100000);
  std::string first(60000, '\0');
  std::string second(40000, '\0');
  input.read(60000, std::as_writable_bytes(std::span(second)));
  input.read(0, std::as_writable_bytes(std::span(first)));
  CHECK(first == std::string(60000, 'x'));
  CHECK(second == std::string(40000, 'y'));
  CHECK(text_of(temporary.path() / "empty").empty());
}

#ifndef _WIN32  // where nobody else may write meanwhile
TEST_CASE("platform: a file that changes while it is read") {
  const TemporaryFolder temporary("");
  const fs::path file = temporary.path() / "a";
  const auto complaint = [&](const auto& change) -> std::string {
    std::ofstream(file, std::ios::binary) << std::string(100000, 'x');
    histo::InputFile input(file);
    std::string text(input.size(), '\0');
    const auto bytes = std::as_writable_bytes(std::span(text));
    input.read(0, bytes.first(1000));
    change();
    try {
      input.read(1000, bytes.subspan(1000));
    } catch (const histo::Error& error) {
      CHECK(error.code() == histo::ErrorCode::io);
      return std::string(error.message());
    }
    return "";
  };
  const std::string changed = "was changed while it was read";
  CHECK(complaint([] {}).empty());
  CHECK(complaint([&] { fs::resize_file(file, 5000); }) == changed);
  CHECK(complaint([&] { fs::resize_file(file, 200000); }) == changed);
  CHECK(complaint([&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));  // clocks of file systems are coarse
          std::fstream(file, std::ios::binary | std::ios::in | std::ios::out).seekp(50000).write("yyy", 3);
        }) == changed);
  CHECK(complaint([&] { fs::remove(file); }).empty());  // what was opened is still there
}
#endif

#ifdef _WIN32
TEST_CASE("platform: a path that is not UTF-8") {
  CHECK_THROWS_AS((void)histo::path_from_utf8("\xFF\xFE"), histo::Error);
  CHECK(histo::path_from_utf8("").empty());
}
#endif

TEST_CASE("platform: buffers are zero and begin on a page") {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4097}, (std::size_t{1} << 21U) + 1}) {
    for (int again = 0; again < 3; ++again) {  // memory that was used before
      histo::AlignedBuffer buffer(bytes);
      CHECK(reinterpret_cast<std::uintptr_t>(buffer.units()) % 4096 == 0);
      const std::span<std::uint32_t> content(buffer.units(), bytes);
      CHECK(std::ranges::count(content, 0U) == static_cast<std::ptrdiff_t>(bytes));
      std::ranges::fill(content, 0xFFFFFFFFU);
    }
  }
#if !HISTO_ADDRESS_SANITIZER && !HISTO_THREAD_SANITIZER  // which end the process instead
  CHECK(histo::allocate_pages(std::size_t{1} << 60U) == nullptr);
  CHECK(histo::allocate_pages(SIZE_MAX) == nullptr);  // which would wrap to a few bytes
  CHECK(histo::allocate_pages(SIZE_MAX - 4096) == nullptr);
#endif
}

TEST_CASE("platform: variables of the environment are read when they are asked for") {
  const auto set = [](const char* assignment, const char* name, const char* value) {
#ifdef _WIN32
    static_cast<void>(name);
    static_cast<void>(value);
    return _putenv(assignment);
#else
    static_cast<void>(assignment);
    return *value == '\0' ? unsetenv(name) : setenv(name, value, 1);
#endif
  };
  constexpr const char* variable = "HISTO_PLATFORM_TEST";
  CHECK_FALSE(histo::environment_variable(variable));
  const std::string value(1000, 'v');
  REQUIRE(set(("HISTO_PLATFORM_TEST=" + value).c_str(), "HISTO_PLATFORM_TEST", value.c_str()) == 0);
  CHECK(histo::environment_variable(variable) == value);
  REQUIRE(set("HISTO_PLATFORM_TEST=", "HISTO_PLATFORM_TEST", "") == 0);
  CHECK_FALSE(histo::environment_variable(variable));
}

TEST_CASE("platform: processes and their CPUs") {
  CHECK(histo::process_id() != 0);
  const unsigned cpus = histo::cpus_in_affinity_mask();
  CHECK(cpus >= 1);
  if (std::thread::hardware_concurrency() != 0) {
    CHECK(cpus <= std::thread::hardware_concurrency());
  }
}

}  // namespace
