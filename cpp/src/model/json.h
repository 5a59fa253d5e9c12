// A strict reader of JSON (RFC 8259), for the small texts that a model file holds.
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
  using Object = std::vector<Member>;  // sorted by key, and no key is there twice

  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> data;

  // What the value holds; null where it is of another kind.
  [[nodiscard]] const double* number() const noexcept { return std::get_if<double>(&data); }
  [[nodiscard]] const std::string* string() const noexcept { return std::get_if<std::string>(&data); }
  [[nodiscard]] const Array* array() const noexcept { return std::get_if<Array>(&data); }
  [[nodiscard]] const Object* object() const noexcept { return std::get_if<Object>(&data); }
  [[nodiscard]] bool is_null() const noexcept { return std::holds_alternative<std::nullptr_t>(data); }

  // The number where it is whole, not negative and below 2^53, beyond which a double skips whole numbers.
  [[nodiscard]] std::optional<std::size_t> whole() const noexcept;

  // The value of `key`; null where there is none, or where this is no object.
  [[nodiscard]] const Value* find(std::string_view key) const noexcept;
};

struct Member {
  std::string key;
  Value value;
};

// The one value that `text` consists of, with nothing but white space around it. Stricter than it must be:
// keys must be unique, numbers must fit a double, \u escapes must be whole surrogate pairs, and arrays and
// objects nest at most 16 deep, so that no text can exhaust the stack.
// Throws Error (invalid_file) with the offset in bytes of what is wrong.
[[nodiscard]] Value parse(std::string_view text);

}  // namespace histo::json
