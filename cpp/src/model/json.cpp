#include "model/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

#include "histo/error.h"

#ifndef __cpp_lib_to_chars
#include <locale>
#include <sstream>
#endif

namespace histo::json {
namespace {

constexpr std::size_t max_depth = 16;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, std::uint32_t code_point) {
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  const auto put_rest = [&](unsigned shift) { put(0x80U | (code_point >> shift & 0x3FU)); };
  if (code_point < 0x80U) {
    put(code_point);
  } else if (code_point < 0x800U) {
    put(0xC0U | code_point >> 6U);
    put_rest(0);
  } else if (code_point < 0x10000U) {
    put(0xE0U | code_point >> 12U);
    put_rest(6);
    put_rest(0);
  } else {
    put(0xF0U | code_point >> 18U);
    put_rest(12);
    put_rest(6);
    put_rest(0);
  }
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value document() {
    Value result = value(0);
    skip_space();
    if (at_ != text_.size()) {
      fail("there is text after the value");
    }
    return result;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Error(ErrorCode::invalid_file,
                std::string("bad JSON at byte ") + std::to_string(at_) + ": " + what);
  }

  // The next byte, or 0 at the end; JSON does not allow the byte 0 itself.
  [[nodiscard]] char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    if (at_ < text_.size() && text_[at_] == c) {
      ++at_;
      return true;
    }
    return false;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_).starts_with(word)) {
      at_ += word.size();
      return true;
    }
    return false;
  }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') {
      ++at_;
    }
  }

  Value value(std::size_t depth) {
    skip_space();
    switch (peek()) {
      case '{':
        return {object(depth + 1)};
      case '[':
        return {array(depth + 1)};
      case '"':
        return {string()};
      default:
        break;
    }
    if (peek() == '-' || is_digit(peek())) {
      return {number()};
    }
    if (take("null")) {
      return {nullptr};
    }
    if (take("true")) {
      return {true};
    }
    if (take("false")) {
      return {false};
    }
    fail("a value was expected");
  }

  Value::Array array(std::size_t depth) {
    check_depth(depth);
    Value::Array elements;
    take('[');
    skip_space();
    if (take(']')) {
      return elements;
    }
    do {
      elements.push_back(value(depth));
      skip_space();
    } while (take(','));
    if (!take(']')) {
      fail("a comma or ] was expected");
    }
    return elements;
  }

  Value::Object object(std::size_t depth) {
    check_depth(depth);
    Value::Object members;
    take('{');
    skip_space();
    if (take('}')) {
      return members;
    }
    do {
      skip_space();
      std::string key = string();
      skip_space();
      if (!take(':')) {
        fail("a colon was expected");
      }
      members.push_back({std::move(key), value(depth)});
      skip_space();
    } while (take(','));
    if (!take('}')) {
      fail("a comma or } was expected");
    }
    std::ranges::sort(members, {}, &Member::key);
    if (std::ranges::adjacent_find(members, {}, &Member::key) != members.end()) {
      fail("the object that ends here has the same key twice");
    }
    return members;
  }

  void check_depth(std::size_t depth) const {
    if (depth > max_depth) {
      fail("arrays and objects nest too deeply");
    }
  }

  double number() {
    const std::size_t begin = at_;
    take('-');
    if (!take('0')) {
      digits();
    }
    if (take('.')) {
      digits();
    }
    if (take('e') || take('E')) {
      if (!take('+')) {
        take('-');
      }
      digits();
    }
    const std::optional<double> result = to_double(text_.substr(begin, at_ - begin));
    if (!result) {
      fail("the number that ends here does not fit a double");
    }
    return *result;
  }

  // nullopt for a number that is too large, and for one that is too small and not zero.
  static std::optional<double> to_double(std::string_view digits) {
    double result = 0;
#ifdef __cpp_lib_to_chars
    if (std::from_chars(digits.data(), digits.data() + digits.size(), result).ec != std::errc()) {
      return std::nullopt;
    }
#else  // the standard library of LLVM, before version 20; slower, and exact too
    std::istringstream stream{std::string(digits)};
    stream.imbue(std::locale::classic());
    if (!(stream >> result)) {
      return std::nullopt;
    }
#endif
    return result;
  }

  void digits() {
    if (!is_digit(peek())) {
      fail("a digit was expected");
    }
    while (is_digit(peek())) {
      ++at_;
    }
  }

  std::string string() {
    if (!take('"')) {
      fail("a string was expected");
    }
    std::string result;
    while (!take('"')) {
      if (at_ == text_.size()) {
        fail("the string is not closed");
      }
      if (take('\\')) {
        append_utf8(result, escape());
      } else if (static_cast<unsigned char>(peek()) < 0x20U) {
        fail("a control character in a string must be escaped");
      } else {
        const std::size_t length = utf8_length();
        result.append(text_, at_, length);
        at_ += length;
      }
    }
    return result;
  }

  // Bytes that the character at the cursor takes. Well-formed sequences are those of table 3-7 of the Unicode
  // Standard: no overlong forms, no surrogates, nothing above U+10FFFF.
  [[nodiscard]] std::size_t utf8_length() const {
    const auto byte = [&](std::size_t i) -> unsigned {
      return at_ + i < text_.size() ? static_cast<unsigned char>(text_[at_ + i]) : 0U;
    };
    const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
    const unsigned first = byte(0);
    if (first < 0x80U) {
      return 1;
    }
    if (first >= 0xC2U && first <= 0xDFU && continues(1)) {
      return 2;
    }
    const bool overlong = (first == 0xE0U && byte(1) < 0xA0U) || (first == 0xF0U && byte(1) < 0x90U);
    const bool beyond = (first == 0xEDU && byte(1) > 0x9FU) || (first == 0xF4U && byte(1) > 0x8FU);
    if (!overlong && !beyond && continues(1) && continues(2)) {
      if (first >= 0xE0U && first <= 0xEFU) {
        return 3;
      }
      if (first >= 0xF0U && first <= 0xF4U && continues(3)) {
        return 4;
      }
    }
    fail("invalid UTF-8");
  }

  std::uint32_t escape() {
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view characters = "\"\\/\b\f\n\r\t";
    const char name = peek();
    if (const std::size_t found = names.find(name); found != std::string_view::npos) {
      ++at_;
      return static_cast<unsigned char>(characters[found]);
    }
    if (!take('u')) {
      fail("unknown escape");
    }
    const std::uint32_t unit = hex4();
    if (unit < 0xD800U || unit > 0xDFFFU) {
      return unit;
    }
    if (unit <= 0xDBFFU && take("\\u")) {
      const std::uint32_t low = hex4();
      if (low >= 0xDC00U && low <= 0xDFFFU) {
        return 0x10000U + ((unit - 0xD800U) << 10U) + (low - 0xDC00U);
      }
    }
    fail("incomplete surrogate pair");
  }

  std::uint32_t hex4() {
    const std::string_view digits = text_.substr(at_, 4);
    std::uint32_t unit = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), unit, 16);
    if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) {
      fail("four hexadecimal digits were expected");
    }
    at_ += 4;
    return unit;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

std::optional<std::size_t> Value::unsigned_integer() const noexcept {
  constexpr double limit = std::min(9007199254740992.0,  // 2^53
                                    static_cast<double>(std::numeric_limits<std::size_t>::max()));
  const double* const value = number();
  if (value == nullptr || !(*value >= 0 && *value < limit) || std::floor(*value) != *value) {
    return std::nullopt;
  }
  return static_cast<std::size_t>(*value);
}

const Value* Value::find(std::string_view key) const noexcept {
  const Object* const members = object();
  if (members == nullptr) {
    return nullptr;
  }
  const auto found = std::ranges::lower_bound(*members, key, {}, &Member::key);
  return found != members->end() && found->key == key ? &found->value : nullptr;
}

Value parse(std::string_view text) { return Parser(text).document(); }

}  // namespace histo::json
