#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "histo/error.h"
#include "model/json.h"

namespace histo {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are used in place, without conversion");

constexpr std::size_t length_bytes = 8;
constexpr std::size_t largest_element = 8;
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

[[noreturn]] void fail(const std::string& message, const std::string& remedy = "export the file again") {
  throw Error(ErrorCode::invalid_file, message, remedy);
}

[[noreturn]] void fail_at(std::string_view tensor, const std::string& message,
                          const std::string& remedy = "export the file again") {
  fail("tensor " + in_quotes(tensor) + " " + message, remedy);
}

constexpr const char* copy_again = "copy or export the file again";

std::optional<std::size_t> product(std::size_t a, std::size_t b) {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) {
    return std::nullopt;
  }
  return a * b;
}

// The bytes of the header of a file of `file_size` bytes, whose first bytes are `length_field`.
std::size_t header_size(std::span<const std::byte> length_field, std::size_t file_size) {
  if (file_size == 0) {
    fail("is empty", copy_again);
  }
  if (file_size < length_bytes) {
    fail("has " + std::to_string(file_size) + " bytes, too few for a safetensors file", copy_again);
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length |= std::to_integer<std::uint64_t>(length_field[i]) << (8 * i);
  }
  if (length > max_header_bytes) {
    fail("is not a safetensors file: its header would take " + std::to_string(length) + " bytes (at most " +
             std::to_string(max_header_bytes) + " are read)",
         "give a model.safetensors");
  }
  if (length > file_size - length_bytes) {
    fail("is truncated: its header takes " + std::to_string(length) + " bytes, and the file has only " +
             std::to_string(file_size - length_bytes) + " more",
         copy_again);
  }
  return static_cast<std::size_t>(length);
}

json::Value parsed(std::string_view header) {
  try {
    return json::parse(header);
  } catch (const Error& error) {
    fail(std::string(error.message()), copy_again);
  }
}

const json::Value& required(std::string_view tensor, const json::Value& entry, const char* key) {
  const json::Value* const value = entry.find(key);
  if (value == nullptr) {
    fail_at(tensor, std::string("has no ") + key);
  }
  return *value;
}

Dtype dtype_of(std::string_view tensor, const json::Value& entry) {
  const std::string* const name = required(tensor, entry, "dtype").string();
  if (name == nullptr) {
    fail_at(tensor, "has a dtype that is not a string");
  }
  const auto* const found = std::ranges::find(dtypes, *name, &Dtype::name);
  if (found == dtypes.end()) {
    fail_at(tensor, "has the unknown dtype " + in_quotes(*name));
  }
  return *found;
}

std::vector<std::size_t> unsigned_integers(std::string_view tensor, const json::Value& entry,
                                           const char* key) {
  const json::Value::Array* const array = required(tensor, entry, key).array();
  if (array == nullptr) {
    fail_at(tensor, std::string("has a ") + key + " that is not an array");
  }
  std::vector<std::size_t> numbers;
  numbers.reserve(array->size());
  for (const json::Value& element : *array) {
    const std::optional<std::size_t> number = element.unsigned_integer();
    if (!number) {
      fail_at(tensor, std::string("has an element in its ") + key + " that is not an integer of at least 0");
    }
    numbers.push_back(*number);
  }
  return numbers;
}

// Where the data of a file lie, in bytes.
struct Data {
  std::size_t first, size;
};

// The tensor that `entry` describes. Checks that its bytes lie inside `data` and are as many as its shape
// needs.
StoredTensor read_tensor(const std::string& name, const json::Value& entry, const Data& data) {
  if (entry.object() == nullptr || entry.object()->size() != 3) {
    fail_at(name, "is not described by exactly dtype, shape and data_offsets");
  }
  const Dtype dtype = dtype_of(name, entry);
  std::vector<std::size_t> shape = unsigned_integers(name, entry, "shape");
  const std::vector<std::size_t> offsets = unsigned_integers(name, entry, "data_offsets");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    fail_at(name, "has data_offsets " + shape_text(offsets) + ", which are not a begin and an end");
  }
  const std::size_t begin = offsets[0];
  const std::size_t end = offsets[1];
  if (end > data.size) {
    fail_at(name,
            "ends at byte " + std::to_string(end) + " of the data, of which the file has " +
                std::to_string(data.size) + ": the file is truncated or damaged",
            copy_again);
  }
  std::optional<std::size_t> size = dtype.size;
  for (const std::size_t extent : shape) {
    size = product(*size, extent);
    if (!size) {
      fail_at(name, "has the shape " + shape_text(shape) + ", which is larger than any memory");
    }
  }
  if (*size != end - begin) {
    fail_at(name, "is " + std::string(dtype.name) + " " + shape_text(shape) + ", which takes " +
                      std::to_string(*size) + " bytes, but has " + std::to_string(end - begin));
  }
  if ((data.first + begin) % dtype.size != 0) {
    fail_at(name, "is not aligned to the " + std::to_string(dtype.size) + " bytes of its elements",
            "write the file with safetensors 0.3.1 or newer");
  }
  return {.name = name,
          .dtype = dtype.name,
          .shape = std::move(shape),
          .begin = begin,
          .size = end - begin,
          .bytes = {}};
}

// Every byte of the data must belong to exactly one tensor.
void check_coverage(std::span<const StoredTensor> tensors, std::size_t data_size) {
  std::vector<const StoredTensor*> in_order;
  in_order.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) {
    in_order.push_back(&tensor);
  }
  // Of two tensors that begin at the same byte, the empty one comes first.
  std::ranges::sort(in_order, {},
                    [](const StoredTensor* tensor) { return std::pair(tensor->begin, tensor->size); });
  std::size_t covered = 0;
  for (const StoredTensor* const tensor : in_order) {
    if (tensor->begin != covered) {
      fail_at(tensor->name, "begins at byte " + std::to_string(tensor->begin) +
                                " of the data, but the tensor before it ends at " + std::to_string(covered));
    }
    covered += tensor->size;
  }
  if (covered != data_size) {
    fail(std::to_string(data_size - covered) + " bytes follow the last tensor");
  }
}

Safetensors read_header(std::string_view header, const Data& data) {
  // The format requires the brace as the first byte, as a signature of the file type.
  if (!header.starts_with('{')) {
    fail("is not a safetensors file: its header does not begin with {", "give a model.safetensors");
  }
  const json::Value root = parsed(header);
  Safetensors result;
  for (const json::Member& member : *root.object()) {
    if (member.key != "__metadata__") {
      result.tensors.push_back(read_tensor(member.key, member.value, data));
      continue;
    }
    if (member.value.object() == nullptr) {
      fail("__metadata__ is not an object");
    }
    for (const json::Member& entry : *member.value.object()) {
      if (entry.value.string() == nullptr) {
        fail("__metadata__ has a value at " + in_quotes(entry.key) + " that is not a string");
      }
      result.metadata.emplace_back(entry.key, *entry.value.string());
    }
  }
  check_coverage(result.tensors, data.size);
  return result;
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

void StoredTensor::check_shape(std::span<const std::size_t> expected) const {
  if (!std::ranges::equal(shape, expected)) {
    fail_at(name, "has the shape " + shape_text(shape), "it must be " + shape_text(expected));
  }
}

void StoredTensor::check_dtype(std::string_view expected) const {
  if (dtype != expected) {
    fail_at(name, "is " + std::string(dtype), "it must be " + std::string(expected));
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

LoadedSafetensors load_safetensors(std::size_t size, const ReadAt& read_at,
                                   const std::function<void(Safetensors&)>& select) {
  std::array<std::byte, length_bytes> length_field{};
  read_at(0, std::span(length_field).first(std::min(size, length_bytes)));
  std::vector<std::byte> header(header_size(length_field, size));
  read_at(length_bytes, header);
  const Data data{length_bytes + header.size(), size - length_bytes - header.size()};
  Safetensors container = read_header(as_text(header), data);
  select(container);
  const auto padded = [](std::size_t bytes) {
    return (bytes + largest_element - 1) & ~(largest_element - 1);
  };
  std::size_t total = 0;  // less than `size`: a tensor takes more of the header than its padding
  for (const StoredTensor& tensor : container.tensors) {
    total += padded(tensor.size);
  }
  Pages memory = allocate_pages(std::max<std::size_t>(total, 1));
  if (memory == nullptr) {
    throw Error(ErrorCode::out_of_memory,
                "there is not enough memory for its " + std::to_string(total >> 20U) + " MiB",
                "end other programs, or use a machine with more memory");
  }
  std::span<std::byte> rest(static_cast<std::byte*>(memory.get()), total);
  for (StoredTensor& tensor : container.tensors) {
    const std::span<std::byte> bytes = rest.first(tensor.size);
    read_at(data.first + tensor.begin, bytes);
    tensor.bytes = bytes;
    rest = rest.subspan(padded(tensor.size));
  }
  return {.memory = std::move(memory), .size = size, .container = std::move(container)};
}

ReadAt read_from(std::span<const std::byte> file) {
  return [file](std::size_t offset, std::span<std::byte> to) {
    std::ranges::copy(file.subspan(offset, to.size()), to.begin());
  };
}

void check_finite(const StoredTensor& tensor, std::span<const float> values) {
  // Without the sign bit, the bits of NaN and infinity are integers above those of the largest float.
  // Comparing integers has no branch, so that the loop is vectorised.
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
  fail_at(tensor.name, "has " + std::string(magnitude(*found) > largest + 1 ? "NaN" : "infinity") +
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
