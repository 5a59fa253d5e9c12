#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "histo/error.h"
#include "model/json.h"

namespace histo {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are used as they lie in the file");

constexpr std::size_t length_bytes = 8;
constexpr std::size_t max_header_bytes = std::size_t{1} << 20U;

struct Dtype {
  std::string_view name;
  std::size_t size;  // bytes per element
};

constexpr std::array<Dtype, 13> dtypes{{{"BOOL", 1},
                                        {"U8", 1},
                                        {"I8", 1},
                                        {"U16", 2},
                                        {"I16", 2},
                                        {"F16", 2},
                                        {"BF16", 2},
                                        {"U32", 4},
                                        {"I32", 4},
                                        {"F32", 4},
                                        {"U64", 8},
                                        {"I64", 8},
                                        {"F64", 8}}};

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorCode::invalid_file, message); }

[[noreturn]] void fail(std::string_view tensor, const std::string& message) {
  fail("tensor " + in_quotes(tensor) + " " + message);
}

std::optional<std::size_t> product(std::size_t a, std::size_t b) {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) {
    return std::nullopt;
  }
  return a * b;
}

std::string_view header_of(std::span<const std::byte> file) {
  if (file.empty()) {
    fail("is empty");
  }
  if (file.size() < length_bytes) {
    fail("has " + std::to_string(file.size()) + " bytes, too few for a safetensors file");
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
  }
  if (length > max_header_bytes) {
    fail("is no safetensors file: its header would take " + std::to_string(length) + " bytes (at most " +
         std::to_string(max_header_bytes) + " are read)");
  }
  if (length > file.size() - length_bytes) {
    fail("is truncated: its header takes " + std::to_string(length) + " bytes, and " +
         std::to_string(file.size() - length_bytes) + " are there");
  }
  const auto bytes = file.subspan(length_bytes, static_cast<std::size_t>(length));
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

const json::Value& required(std::string_view tensor, const json::Value& entry, const char* key) {
  const json::Value* const value = entry.find(key);
  if (value == nullptr) {
    fail(tensor, std::string("has no ") + key);
  }
  return *value;
}

Dtype dtype_of(std::string_view tensor, const json::Value& entry) {
  const std::string* const name = required(tensor, entry, "dtype").string();
  if (name == nullptr) {
    fail(tensor, "has a dtype that is no string");
  }
  const auto* const found = std::ranges::find(dtypes, *name, &Dtype::name);
  if (found == dtypes.end()) {
    fail(tensor, "has the unknown dtype " + in_quotes(*name));
  }
  return *found;
}

std::vector<std::size_t> whole_numbers(std::string_view tensor, const json::Value& entry, const char* key) {
  const json::Value::Array* const array = required(tensor, entry, key).array();
  if (array == nullptr) {
    fail(tensor, std::string("has ") + key + " that is no array");
  }
  std::vector<std::size_t> numbers;
  numbers.reserve(array->size());
  for (const json::Value& element : *array) {
    const std::optional<std::size_t> number = element.whole();
    if (!number) {
      fail(tensor, std::string("has something in its ") + key + " that is not a whole number from 0 up");
    }
    numbers.push_back(*number);
  }
  return numbers;
}

// The tensor that `entry` describes, in itself: its data lie inside `data` and are as long as its shape says.
StoredTensor read_tensor(const std::string& name, const json::Value& entry, std::span<const std::byte> data) {
  if (entry.object() == nullptr || entry.object()->size() != 3) {
    fail(name, "is not described by dtype, shape and data_offsets alone");
  }
  const Dtype dtype = dtype_of(name, entry);
  std::vector<std::size_t> shape = whole_numbers(name, entry, "shape");
  const std::vector<std::size_t> offsets = whole_numbers(name, entry, "data_offsets");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    fail(name, "has data_offsets " + shape_text(offsets) + ", which are not a begin and an end behind it");
  }
  const std::size_t begin = offsets[0];
  const std::size_t end = offsets[1];
  if (end > data.size()) {
    fail(name, "ends at byte " + std::to_string(end) + " of the data, of which the file has " +
                   std::to_string(data.size()) + "; it is truncated or damaged");
  }
  std::optional<std::size_t> size = dtype.size;
  for (const std::size_t extent : shape) {
    size = product(*size, extent);
    if (!size) {
      fail(name, "has the shape " + shape_text(shape) + ", which is larger than any memory");
    }
  }
  if (*size != end - begin) {
    fail(name, "is " + std::string(dtype.name) + " " + shape_text(shape) + ", which takes " +
                   std::to_string(*size) + " bytes, but has " + std::to_string(end - begin));
  }
  const auto bytes = data.subspan(begin, end - begin);
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % dtype.size != 0) {
    fail(name, "is not aligned to the " + std::to_string(dtype.size) +
                   " bytes of its elements; write the file with safetensors 0.3.1 or newer");
  }
  return {.name = name, .dtype = dtype.name, .shape = std::move(shape), .bytes = bytes};
}

// Every byte of `data` must belong to exactly one tensor.
void check_coverage(std::span<const StoredTensor> tensors, std::span<const std::byte> data) {
  std::vector<const StoredTensor*> in_order;
  in_order.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) {
    in_order.push_back(&tensor);
  }
  const auto begin = [&](const StoredTensor* tensor) {
    return static_cast<std::size_t>(tensor->bytes.data() - data.data());
  };
  // Of two tensors that begin together at most one may hold anything, and that one is the later.
  std::ranges::sort(in_order, {}, [&](const StoredTensor* tensor) {
    return std::pair(begin(tensor), tensor->bytes.size());
  });
  std::size_t covered = 0;
  for (const StoredTensor* const tensor : in_order) {
    if (begin(tensor) != covered) {
      fail(tensor->name, "begins at byte " + std::to_string(begin(tensor)) +
                             " of the data, but what is before it ends at " + std::to_string(covered));
    }
    covered += tensor->bytes.size();
  }
  if (covered != data.size()) {
    fail(std::to_string(data.size() - covered) + " bytes follow the last tensor");
  }
}

}  // namespace

void StoredTensor::check_shape(std::span<const std::size_t> expected) const {
  if (!std::ranges::equal(shape, expected)) {
    fail(name, "has the shape " + shape_text(shape) + "; it must be " + shape_text(expected));
  }
}

void StoredTensor::check_dtype(std::string_view expected) const {
  if (dtype != expected) {
    fail(name, "is " + std::string(dtype) + "; it must be " + std::string(expected));
  }
}

const StoredTensor* Safetensors::find(std::string_view name) const noexcept {
  const auto found = std::ranges::lower_bound(tensors, name, {}, &StoredTensor::name);
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

const std::string* Safetensors::find_metadata(std::string_view key) const noexcept {
  const auto found = std::ranges::find(metadata, key, &std::pair<std::string, std::string>::first);
  return found != metadata.end() ? &found->second : nullptr;
}

Safetensors read_safetensors(std::span<const std::byte> file) {
  const std::string_view header = header_of(file);
  // The container wants the brace first, so that a file can be told by it.
  if (!header.starts_with('{')) {
    fail("is no safetensors file: its header does not begin with {");
  }
  const json::Value root = json::parse(header);
  const auto data = file.subspan(length_bytes + header.size());
  Safetensors result;
  for (const json::Member& member : *root.object()) {
    if (member.key != "__metadata__") {
      result.tensors.push_back(read_tensor(member.key, member.value, data));
      continue;
    }
    if (member.value.object() == nullptr) {
      fail("__metadata__ is no object");
    }
    for (const json::Member& entry : *member.value.object()) {
      if (entry.value.string() == nullptr) {
        fail("__metadata__ has something at " + in_quotes(entry.key) + " that is no string");
      }
      result.metadata.emplace_back(entry.key, *entry.value.string());
    }
  }
  check_coverage(result.tensors, data);
  return result;
}

void check_finite(const StoredTensor& tensor, std::span<const float> values) {
  // Integers compare without branches, so the loop is vectorised: without its sign, what is not finite is
  // above the largest float.
  constexpr std::uint32_t largest = std::bit_cast<std::uint32_t>(std::numeric_limits<float>::max());
  const auto magnitude = [](float value) { return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU; };
  std::uint32_t worst = 0;
  for (const float value : values) {
    worst = std::max(worst, magnitude(value));
  }
  if (worst <= largest) {
    return;
  }
  const auto found = std::ranges::find_if(values, [&](float value) { return magnitude(value) > largest; });
  fail(tensor.name, "has " + std::string(magnitude(*found) > largest + 1 ? "NaN" : "infinity") +
                        " as element " + std::to_string(found - values.begin()));
}

std::string in_quotes(std::string_view name) {
  constexpr std::size_t longest = 80;
  std::size_t size = std::min(name.size(), longest);
  while (size < name.size() && size > 0 && (static_cast<unsigned char>(name[size]) & 0xC0U) == 0x80U) {
    --size;  // not inside a UTF-8 sequence
  }
  std::string result = "\"";
  for (const char c : name.substr(0, size)) {
    result.push_back(static_cast<unsigned char>(c) < 0x20U || c == '\x7F' ? '?' : c);
  }
  result += size < name.size() ? "...\"" : "\"";
  return result;
}

std::string shape_text(std::span<const std::size_t> shape) {
  std::string text = "[";
  for (const std::size_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

}  // namespace histo
