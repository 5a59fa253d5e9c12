#include "model/safetensors.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "histo/error.h"
#include "model_file.h"

namespace {

using histo::Error;
using histo::ErrorCode;
using histo::Safetensors;

histo::LoadedSafetensors load(std::span<const std::byte> file) {
  return histo::load_safetensors(file.size(), histo::read_from(file), [](const Safetensors&) {});
}

// The message of the error that `bytes` must give.
std::string complaint(std::span<const std::byte> bytes) {
  const std::vector<std::byte> file(bytes.begin(), bytes.end());
  try {
    (void)load(file);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::invalid_file);
    CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos);
    CHECK_FALSE(error.remedy().empty());
    return std::string(error.message());
  }
  FAIL("taken for valid");
  return {};
}

// The same for a header over `data_size` bytes of zeros.
std::string complaint(const std::string& header, std::size_t data_size) {
  return complaint(safetensors_file(header, std::vector<std::byte>(data_size)));
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// An entry of a header.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}";
}

std::vector<std::byte> with_length(std::uint64_t length, std::string_view rest) {
  std::vector<std::byte> file;
  for (unsigned i = 0; i < 8; ++i) {
    file.push_back(static_cast<std::byte>(length >> (8 * i) & 0xFFU));
  }
  const auto bytes = std::as_bytes(std::span(rest));
  file.insert(file.end(), bytes.begin(), bytes.end());
  return file;
}

std::vector<std::byte> small_file() {
  SafetensorsWriter writer(R"({"key":"value","other":""})");
  writer.add<double>("b", "F64", {2}, std::array{1.5, -2.5});
  writer.add<float>("a", "F32", {2, 1, 2}, std::array{1.0F, 2.0F, 3.0F, 4.0F});
  writer.add<std::uint8_t>("nothing", "U8", {0, 3}, std::array<std::uint8_t, 0>());
  writer.add<std::uint8_t>("c", "U8", {3}, std::array<std::uint8_t, 3>{7, 8, 9});
  writer.add<std::uint8_t>("scalar", "U8", {}, std::array<std::uint8_t, 1>{5});
  return writer.file();
}

TEST_CASE("safetensors: a valid file") {
  const std::vector<std::byte> bytes = small_file();
  const histo::LoadedSafetensors loaded = load(bytes);
  const Safetensors& file = loaded.container;
  REQUIRE(file.tensors.size() == 5);
  CHECK(file.tensors[0].name == "a");

  REQUIRE(file.find("a") != nullptr);
  CHECK(file.find("a")->dtype == "F32");
  CHECK(file.find("a")->shape == std::vector<std::size_t>{2, 1, 2});
  const auto a = file.find("a")->values<float>();
  CHECK(std::vector(a.begin(), a.end()) == std::vector{1.0F, 2.0F, 3.0F, 4.0F});
  const auto b = file.find("b")->values<double>();
  CHECK(std::vector(b.begin(), b.end()) == std::vector{1.5, -2.5});
  const auto c = file.find("c")->values<std::uint8_t>();
  CHECK(std::vector(c.begin(), c.end()) == std::vector<std::uint8_t>{7, 8, 9});
  CHECK(file.find("nothing")->values<std::uint8_t>().empty());
  CHECK(file.find("scalar")->shape.empty());
  CHECK(file.find("scalar")->values<std::uint8_t>()[0] == 5);
  CHECK(file.find("d") == nullptr);

  REQUIRE(file.find_metadata("key") != nullptr);
  CHECK(*file.find_metadata("key") == "value");
  CHECK(file.find_metadata("other")->empty());
  CHECK(file.find_metadata("none") == nullptr);

  CHECK_THROWS_WITH_AS((void)file.find("a")->values<double>(), "tensor \"a\" is F32; it must be F64", Error);
  CHECK_THROWS_WITH_AS(file.find("a")->check_shape(std::array<std::size_t, 1>{4}),
                       "tensor \"a\" has the shape [2, 1, 2]; it must be [4]", Error);
  CHECK_NOTHROW(file.find("a")->check_shape(std::array<std::size_t, 3>{2, 1, 2}));
}

TEST_CASE("safetensors: only tensors that are selected are read, and no byte twice") {
  const std::vector<std::byte> bytes = small_file();
  std::vector<int> reads(bytes.size());
  const histo::ReadAt from = histo::read_from(bytes);
  const histo::LoadedSafetensors loaded = histo::load_safetensors(
      bytes.size(),
      [&](std::size_t offset, std::span<std::byte> to) {
        for (std::size_t i = 0; i < to.size(); ++i) {
          ++reads.at(offset + i);
        }
        from(offset, to);
      },
      [](Safetensors& header) {
        std::erase_if(header.tensors, [](const histo::StoredTensor& tensor) { return tensor.name == "a"; });
      });
  CHECK(loaded.container.find("a") == nullptr);
  CHECK(loaded.container.find("b")->values<double>()[1] == -2.5);
  CHECK(std::ranges::count(reads, 0) == 16);  // the bytes of "a"
  CHECK(std::ranges::max(reads) == 1);
}

TEST_CASE("safetensors: a header alone, without metadata, with white space behind it") {
  CHECK(load(safetensors_file("{}     \n", {})).container.tensors.empty());
}

TEST_CASE("safetensors: truncated at every byte, or with bytes too many") {
  std::vector<std::byte> file = small_file();
  for (std::size_t size = 0; size < file.size(); ++size) {
    CAPTURE(size);
    CHECK_FALSE(complaint(std::span(file).first(size)).empty());
  }
  file.push_back(std::byte{0});
  CHECK(complaint(file) == "1 bytes follow the last tensor");
  CHECK(complaint("{}", 1) == "1 bytes follow the last tensor");
  CHECK(complaint(std::span<const std::byte>()) == "is empty");
  CHECK(contains(complaint(std::vector<std::byte>(7)), "has 7 bytes"));
}

TEST_CASE("safetensors: a header length that lies") {
  CHECK(contains(complaint(with_length(0, "{}")), "does not begin with {"));
  CHECK(contains(complaint(with_length(1, "{}")), "bad JSON"));
  CHECK(contains(complaint(with_length(3, "{}")), "is truncated"));
  CHECK(contains(complaint(with_length(1U << 20U, "{}")), "is truncated"));
  for (const std::uint64_t length :
       {std::uint64_t{(1U << 20U) + 1}, std::uint64_t{1} << 32U, std::uint64_t{1} << 63U,
        std::numeric_limits<std::uint64_t>::max(), std::numeric_limits<std::uint64_t>::max() - 7}) {
    CAPTURE(length);
    CHECK(contains(complaint(with_length(length, "{}")), "its header would take " + std::to_string(length)));
  }
}

TEST_CASE("safetensors: a header that is not an object of entries") {
  CHECK(contains(complaint("[]", 0), "does not begin with {"));
  CHECK(contains(complaint(" {}", 0), "does not begin with {"));
  CHECK(contains(complaint("\xEF\xBB\xBF{}", 0), "does not begin with {"));
  CHECK(contains(complaint("{", 0), "bad JSON"));
  CHECK(contains(complaint("{\"\xFF\":1}", 0), "invalid UTF-8"));
  CHECK(contains(complaint(R"({"a":)" + std::string(50, '['), 0), "nest too deeply"));
  for (const char* value : {"1", "null", "[]", "\"x\"", "{}"}) {
    CHECK(contains(complaint(R"({"a":)" + std::string(value) + "}", 0), "tensor \"a\" is not described by"));
  }
  CHECK(contains(complaint(R"({"a":{"dtype":"U8","shape":[1],"offsets":[0,1]}})", 1), "has no data_offsets"));
  CHECK(contains(complaint(R"({"a":{"dtype":"U8","size":[1],"data_offsets":[0,1]}})", 1), "has no shape"));
  CHECK(contains(complaint(R"({"a":{"type":"U8","shape":[1],"data_offsets":[0,1]}})", 1), "has no dtype"));
  CHECK(contains(complaint(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":0}})", 1),
                 "is not described by"));
}

TEST_CASE("safetensors: a dtype that is unknown") {
  CHECK(contains(complaint("{" + entry("a", "F31", "[1]", "[0,4]") + "}", 4), "unknown dtype \"F31\""));
  CHECK(contains(complaint("{" + entry("a", "f32", "[1]", "[0,4]") + "}", 4), "unknown dtype"));
  CHECK(contains(complaint("{" + entry("a", "", "[1]", "[0,4]") + "}", 4), "unknown dtype"));
  CHECK(contains(complaint(R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})", 4), "not a string"));
}

TEST_CASE("safetensors: a shape that lies") {
  for (const char* shape : {"[-1]", "[1.5]", "[\"1\"]", "[null]", "[[1]]", "[1e300]", "[9007199254740992]"}) {
    CAPTURE(shape);
    CHECK(contains(complaint("{" + entry("a", "F32", shape, "[0,4]") + "}", 4),
                   "in its shape that is not an integer"));
  }
  CHECK(contains(complaint("{" + entry("a", "F32", "1", "[0,4]") + "}", 4), "shape that is not an array"));
  CHECK(contains(complaint("{" + entry("a", "F32", "[2]", "[0,4]") + "}", 4), "takes 8 bytes, but has 4"));
  CHECK(contains(complaint("{" + entry("a", "F32", "[0]", "[0,4]") + "}", 4), "takes 0 bytes, but has 4"));
  CHECK(contains(complaint("{" + entry("a", "F64", "[1]", "[0,4]") + "}", 4), "takes 8 bytes, but has 4"));
  // Products that would be 0 or 4 were they to wrap round at 2^64.
  for (const char* shape : {"[4294967296,4294967296]", "[4503599627370496,4096]", "[2147483648,2147483648]",
                            "[1,4294967296,1073741824]", "[4294967296,4294967296,0]"}) {
    CAPTURE(shape);
    CHECK(contains(complaint("{" + entry("a", "F32", shape, "[0,0]") + "}", 0), "larger than any memory"));
  }
}

TEST_CASE("safetensors: offsets that lie") {
  for (const char* offsets : {"[-4,0]", "[0,-4]", "[0.5,4.5]", "[0,null]", "[0,1e300]"}) {
    CAPTURE(offsets);
    CHECK(contains(complaint("{" + entry("a", "F32", "[1]", offsets) + "}", 4),
                   "in its data_offsets that is not"));
  }
  for (const char* offsets : {"[]", "[4]", "[0,4,4]", "[4,0]"}) {
    CAPTURE(offsets);
    CHECK(contains(complaint("{" + entry("a", "F32", "[1]", offsets) + "}", 4),
                   "which are not a begin and an end"));
  }
  CHECK(
      contains(complaint("{" + entry("a", "F32", "[1]", "4") + "}", 4), "data_offsets that is not an array"));
  CHECK(contains(complaint("{" + entry("a", "F32", "[2]", "[0,8]") + "}", 7),
                 "ends at byte 8 of the data, of which"));
  CHECK(contains(complaint("{" + entry("a", "F32", "[1]", "[9007199254740984,9007199254740988]") + "}", 4),
                 "ends at byte 9007199254740988"));
  CHECK(contains(complaint("{" + entry("a", "U8", "[0]", "[5,5]") + "}", 4), "ends at byte 5"));
}

TEST_CASE("safetensors: overlaps and gaps") {
  const std::string a = entry("a", "F32", "[2]", "[0,8]");
  CHECK(
      contains(complaint("{" + a + "," + entry("b", "F32", "[2]", "[4,12]") + "}", 12), "begins at byte 4"));
  CHECK(contains(complaint("{" + a + "," + entry("b", "F32", "[2]", "[0,8]") + "}", 8), "begins at byte 0"));
  CHECK(contains(complaint("{" + a + "," + entry("b", "F32", "[1]", "[12,16]") + "}", 16), "ends at 8"));
  CHECK(contains(complaint("{" + a + "," + entry("b", "U8", "[0]", "[4,4]") + "}", 8),
                 "but the tensor before"));
  CHECK(
      contains(complaint("{" + entry("a", "F32", "[1]", "[4,8]") + "}", 8), "tensor \"a\" begins at byte 4"));
  CHECK(contains(complaint("{" + a + "}", 9), "1 bytes follow the last tensor"));
}

TEST_CASE("safetensors: data that could not be used in place") {
  const std::string byte = entry("b", "U8", "[1]", "[0,1]");
  CHECK(contains(complaint("{" + byte + "," + entry("a", "F32", "[1]", "[1,5]") + "}", 5),
                 "is not aligned to the 4 bytes"));
  CHECK(contains(
      complaint("{" + entry("b", "F32", "[1]", "[0,4]") + "," + entry("a", "F64", "[1]", "[4,12]") + "}", 12),
      "is not aligned to the 8 bytes"));
  // A header of odd length moves all data.
  std::string header = "{" + entry("a", "F32", "[1]", "[0,4]") + "}";
  header.resize(header.size() | 1U, ' ');
  CHECK(contains(complaint(with_length(header.size(), header + std::string(4, '\0'))),
                 "is not aligned to the 4 bytes"));
}

TEST_CASE("safetensors: the same name twice") {
  const std::string twice =
      "{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry("a", "F32", "[1]", "[4,8]") + "}";
  CHECK(contains(complaint(twice, 8), "same key twice"));
  CHECK(contains(complaint(R"({"__metadata__":{},"__metadata__":{}})", 0), "same key twice"));
  CHECK(contains(complaint(R"({"__metadata__":{"a":"1","a":"1"}})", 0), "same key twice"));
}

TEST_CASE("safetensors: metadata that are not strings") {
  CHECK(complaint(R"({"__metadata__":[]})", 0) == "__metadata__ is not an object");
  CHECK(complaint(R"({"__metadata__":"x"})", 0) == "__metadata__ is not an object");
  for (const char* value : {"1", "null", "true", "{}", "[\"x\"]"}) {
    CAPTURE(value);
    CHECK(complaint(R"({"__metadata__":{"a":)" + std::string(value) + "}}", 0) ==
          "__metadata__ has a value at \"a\" that is not a string");
  }
}

TEST_CASE("safetensors: a name cannot break the message that it stands in") {
  CHECK(histo::in_quotes("layer1") == "\"layer1\"");
  CHECK(histo::in_quotes("a\n\x1B[31m\x7F") == "\"a??[31m?\"");
  CHECK(histo::in_quotes(std::string(80, 'x')) == "\"" + std::string(80, 'x') + "\"");
  CHECK(histo::in_quotes(std::string(81, 'x')) == "\"" + std::string(80, 'x') + "...\"");
  CHECK(histo::in_quotes(std::string(79, 'x') + "\xC3\xA9") == "\"" + std::string(79, 'x') + "...\"");
  CHECK(complaint(R"({"a\nb":1})", 0).starts_with("tensor \"a?b\""));
}

TEST_CASE("check_finite finds what is not, wherever it is") {
  const std::vector<float> edges{std::numeric_limits<float>::max(), std::numeric_limits<float>::lowest(),
                                 std::numeric_limits<float>::denorm_min(), -0.0F};
  const histo::StoredTensor tensor{
      .name = "w", .dtype = "F32", .shape = {}, .begin = 0, .size = 0, .bytes = {}};
  CHECK_NOTHROW(histo::check_finite(tensor, edges));
  CHECK_NOTHROW(histo::check_finite(tensor, {}));
  for (const std::size_t size : {1U, 3U, 16U, 33U}) {
    for (std::size_t at = 0; at < size; ++at) {
      std::vector<float> values(size, 1.0F);
      const std::string place = " as element " + std::to_string(at) + "; export the file again";
      values[at] = std::numeric_limits<float>::quiet_NaN();
      CHECK_THROWS_WITH_AS(histo::check_finite(tensor, values), ("tensor \"w\" has NaN" + place).c_str(),
                           Error);
      for (const float sign : {1.0F, -1.0F}) {
        values[at] = sign * std::numeric_limits<float>::infinity();
        CHECK_THROWS_WITH_AS(histo::check_finite(tensor, values),
                             ("tensor \"w\" has infinity" + place).c_str(), Error);
      }
    }
  }
}

}  // namespace
