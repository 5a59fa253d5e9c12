// The tables of histo/names.h: every name leads back to its value, and what is unknown is refused in one way.
#include "histo/names.h"

#include <doctest/doctest.h>

#include <array>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include "histo/error.h"

namespace {

using histo::Precision;

TEST_CASE_TEMPLATE("names: each leads to its value and back", Value, histo::Isa, Precision, histo::Profile,
                   histo::AlgorithmPolicy, histo::Algorithm, histo::Layout, histo::OnError,
                   histo::PixelFormat, histo::ErrorCode) {
  std::set<std::string_view> names;
  for (const auto& [value, text] : histo::name_table<Value>) {
    const std::string_view name = text;  // Clang 14 captures no binding
    CAPTURE(name);
    CHECK(histo::name(value) == name);
    CHECK(histo::from_name<Value>("option", name) == value);
    CHECK(std::string(name.data()) == name);  // a C string, too
    names.insert(name);
  }
  CHECK(names.size() == histo::name_table<Value>.size());
}

TEST_CASE("names: one that is unknown is refused with those that are known") {
  for (const std::string_view text : {"fp64", "FP32", "fp3", "fp32 ", ""}) {
    CAPTURE(text);
    try {
      static_cast<void>(histo::from_name<Precision>("--precision", text));
      FAIL("nothing was thrown");
    } catch (const histo::Error& error) {
      CHECK(error.code() == histo::ErrorCode::invalid_argument);
      CHECK(error.message() == "--precision \"" + std::string(text) + "\" is unknown");
      CHECK(error.remedy() == "choose from fp32, bf16x3, bf16, int8");
    }
  }
}

TEST_CASE("names: a number that is not in the table has a name, too") {
  CHECK(histo::name(static_cast<Precision>(99)) == "unknown");
}

TEST_CASE("names: a list of some") {
  constexpr std::array some{histo::Isa::avx2, histo::Isa::portable};
  CHECK(histo::name_list(std::span<const histo::Isa>(some)) == "avx2, portable");
  CHECK(histo::name_list<histo::Layout>() == "nchw, nhwc");
}

TEST_CASE("names: the blocks of ResNet34 lie in the stages between stem and head") {
  CHECK(histo::stage_names.size() == histo::block_counts.size() + 2);
}

TEST_CASE("error: what() is the message and the remedy, which are also there apart") {
  const histo::Error both(histo::ErrorCode::io, "a.bin: cannot be read", "check the path");
  CHECK(std::string(both.what()) == "a.bin: cannot be read; check the path");
  CHECK(both.message() == "a.bin: cannot be read");
  CHECK(both.remedy() == "check the path");

  const histo::Error one(histo::ErrorCode::failed, "a; b");  // a semicolon of the message is not the border
  CHECK(std::string(one.what()) == "a; b");
  CHECK(one.message() == "a; b");
  CHECK(one.remedy().empty());
}

}  // namespace
