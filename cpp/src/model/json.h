// A strict reader of JSON (RFC 8259), for the small texts in a model file.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace histo::json {

struct Member;

struct Value {
  using Array = std::vector<Value>;
  using Object = std::vector<Member>;  // sorted by key; keys are unique

  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> data;

  // The value as this type; null where it has another type.
  [[nodiscard]] const double* number() const noexcept { return std::get_if<double>(&data); }
  [[nodiscard]] const std::string* string() const noexcept { return std::get_if<std::string>(&data); }
  [[nodiscard]] const Array* array() const noexcept { return std::get_if<Array>(&data); }
  [[nodiscard]] const Object* object() const noexcept { return std::get_if<Object>(&data); }
  [[nodiscard]] bool is_null() const noexcept { return std::holds_alternative<std::nullptr_t>(data); }

  // The number where it is an integer from 0 to below 2^53; a double cannot hold every integer above that.
  [[nodiscard]] std::optional<std::size_t> unsigned_integer() const noexcept;

  // The value of `key`; null where the object lacks the key, or where this value is not an object.
  [[nodiscard]] const Value* find(std::string_view key) const noexcept;
};

struct Member {
  std::string key;
  Value value;
};

// Parses `text`, which is one value with optional white space around it. Stricter than RFC 8259: keys must be
// unique, numbers must fit a double, \u escapes of surrogates must come in pairs, and arrays and objects nest
// at most 16 deep, so that no text can exhaust the stack.
// Throws Error (invalid_file) with the position of the fault, in bytes, and without a remedy: the caller
// knows where the text comes from.
[[nodiscard]] Value parse(std::string_view text);

}  // namespace histo::json
