#include "model/json.h"

#include <doctest/doctest.h>

#include <string>
#include <string_view>

#include "histo/error.h"

namespace {

namespace json = histo::json;
using namespace std::string_literals;

// The message of the error that `text` must give.
std::string complaint(std::string_view text) {
  try {
    (void)json::parse(text);
  } catch (const histo::Error& error) {
    CHECK(error.code() == histo::ErrorCode::invalid_file);
    return error.what();
  }
  FAIL("taken for valid: " << text);
  return {};
}

bool refused(std::string_view text) { return complaint(text).starts_with("bad JSON at byte "); }

std::string string_of(std::string_view text) {
  const json::Value value = json::parse(text);
  REQUIRE(value.string() != nullptr);
  return *value.string();
}

double number_of(std::string_view text) {
  const json::Value value = json::parse(text);
  REQUIRE(value.number() != nullptr);
  return *value.number();
}

TEST_CASE("json: every kind of value") {
  const json::Value value =
      json::parse(" {\"b\" : [1, -2.5e1,\ttrue, false, null, \"x\", {}, []] ,\r\n \"a\":{\"c\":\"d\"}} ");
  REQUIRE(value.object() != nullptr);
  CHECK(value.object()->size() == 2);
  CHECK(value.object()->front().key == "a");  // sorted
  REQUIRE(value.find("a") != nullptr);
  REQUIRE(value.find("a")->find("c") != nullptr);
  CHECK(*value.find("a")->find("c")->string() == "d");
  CHECK(value.find("c") == nullptr);
  CHECK(value.find("z") == nullptr);

  REQUIRE(value.find("b") != nullptr);
  REQUIRE(value.find("b")->array() != nullptr);
  const json::Value::Array& b = *value.find("b")->array();
  REQUIRE(b.size() == 8);
  CHECK(*b[0].number() == 1);
  CHECK(*b[1].number() == -25);
  CHECK(std::get<bool>(b[2].data));
  CHECK_FALSE(std::get<bool>(b[3].data));
  CHECK(b[4].is_null());
  CHECK(*b[5].string() == "x");
  CHECK(b[6].object()->empty());
  CHECK(b[7].array()->empty());
  CHECK(b[0].string() == nullptr);
  CHECK(b[0].array() == nullptr);
  CHECK(b[0].object() == nullptr);
  CHECK(b[0].find("a") == nullptr);
  CHECK(b[5].number() == nullptr);
  CHECK_FALSE(b[5].is_null());
}

TEST_CASE("json: numbers") {
  CHECK(number_of("0") == 0);
  CHECK(number_of("-0.0") == 0);
  CHECK(number_of("1E+2") == 100);
  CHECK(number_of("0.485") == 0.485);
  CHECK(number_of("123456789012345678901234567890") == 123456789012345678901234567890.0);
  for (const char* bad : {"01", "-", "+1", ".5", "1.", "1e", "1e+", "0x10", "NaN", "Infinity", "-Infinity",
                          "1_000", "1e400", "-1e400", "--1", "1 2"}) {
    CAPTURE(bad);
    CHECK(refused(bad));
  }
}

TEST_CASE("json: whole numbers are those that a double holds exactly") {
  CHECK(json::parse("0").unsigned_integer() == 0U);
  CHECK(json::parse("9007199254740991").unsigned_integer() == 9007199254740991U);
  for (const char* bad : {"9007199254740992", "9007199254740993", "18446744073709551616", "1e300", "-1",
                          "0.5", "\"1\"", "true", "null", "[1]"}) {
    CAPTURE(bad);
    CHECK_FALSE(json::parse(bad).unsigned_integer());
  }
}

TEST_CASE("json: strings and escapes") {
  CHECK(string_of(R"("")").empty());
  CHECK(string_of(R"("\"\\\/\b\f\n\r\t")") == "\"\\/\b\f\n\r\t");
  CHECK(string_of(R"("\u0041\u00e9\u20AC\ud83D\uDE00")") == "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK(string_of(R"("\u0000")") == "\0"s);
  CHECK(string_of("\"\x7F\xC3\xA9\xE2\x82\xAC\xED\x9F\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\"") ==
        "\x7F\xC3\xA9\xE2\x82\xAC\xED\x9F\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF");
  for (const char* bad : {R"(")",
                          R"("a)",
                          R"("\)",
                          R"("\")",
                          R"("\x41")",
                          R"("\u")",
                          R"("\u12")",
                          R"("\u12G4")",
                          R"("\u-123")",
                          R"("\u 123")",
                          R"("\ud800")",
                          R"("\ud800x")",
                          R"("\ud800\n")",
                          R"("\ud800\ud800")",
                          R"("\ud800\u0041")",
                          R"("\udc00")",
                          R"("\udc00\ud800")",
                          "\"\t\"",
                          "\"\n\"",
                          "'a'"}) {
    CAPTURE(bad);
    CHECK(refused(bad));
  }
  CHECK(refused("\"\0\""s));
}

TEST_CASE("json: text that is not UTF-8") {
  for (const char* bad : {"\x80",              // a continuation without a start
                          "\xC3",              // a start without its continuation
                          "\xC3(",             //
                          "\xC0\x80",          // overlong
                          "\xC1\xBF",          //
                          "\xE0\x9F\xBF",      //
                          "\xF0\x8F\xBF\xBF",  //
                          "\xED\xA0\x80",      // a surrogate
                          "\xF4\x90\x80\x80",  // above U+10FFFF
                          "\xF5\x80\x80\x80",  //
                          "\xE2\x82",          // short of bytes
                          "\xF0\x9F\x98",      //
                          "\xE2\x28\xAC",      //
                          "\xF0\x9F\x28\x80",  //
                          "\xF0\x9F\x98\x28",  //
                          "\xFF"}) {
    CAPTURE(bad);
    CHECK(complaint("\"" + std::string(bad) + "\"").ends_with("invalid UTF-8"));
    CHECK(complaint("\"" + std::string(bad)).ends_with("invalid UTF-8"));  // nothing behind it
    CHECK(refused(bad));
  }
  CHECK(refused("\xEF\xBB\xBF{}"));  // a byte order mark
}

TEST_CASE("json: bad structure") {
  for (const char* bad : {"",
                          " ",
                          "{",
                          "}",
                          "[",
                          "]",
                          "{]",
                          "[}",
                          "[1",
                          "[1,",
                          "[1,]",
                          "[,1]",
                          "[1 2]",
                          "{\"a\"",
                          "{\"a\":",
                          "{a:1}",
                          "{\"a\" 1}",
                          "{\"a\":1,}",
                          "{\"a\":1 \"b\":2}",
                          "{1:2}",
                          "{} {}",
                          "{}x",
                          "nul",
                          "True",
                          "tru",
                          "// x\n1"}) {
    CAPTURE(bad);
    CHECK(refused(bad));
  }
  CHECK(refused("{}\0"s));
  CHECK(complaint("[1, 2, x]") == "bad JSON at byte 7: a value was expected");
}

TEST_CASE("json: a key that occurs twice") {
  CHECK(complaint(R"({"a":1,"b":2,"a":3})").ends_with("has the same key twice"));
  CHECK(complaint(R"({"a":1,"\u0061":3})").ends_with("has the same key twice"));
  CHECK(complaint(R"([{"x":{"":1,"":1}}])").ends_with("has the same key twice"));
}

TEST_CASE("json: nesting has an end") {
  CHECK_NOTHROW((void)json::parse(std::string(16, '[') + std::string(16, ']')));
  CHECK(complaint(std::string(17, '[') + std::string(17, ']')).ends_with("nest too deeply"));
  CHECK(complaint(std::string(1000000, '[')).ends_with("nest too deeply"));
  std::string objects;
  for (int i = 0; i < 100000; ++i) {
    objects += "{\"a\":";
  }
  CHECK(complaint(objects).ends_with("nest too deeply"));
}

TEST_CASE("json: every beginning of a text is refused") {
  const std::string text = R"({"a":[1.5e-3,"\ud83d\ude00 é",true,null],"b":{}})";
  CHECK_NOTHROW((void)json::parse(text));
  for (std::size_t size = 0; size < text.size(); ++size) {
    CAPTURE(size);
    CHECK(refused(text.substr(0, size)));
  }
}

}  // namespace
