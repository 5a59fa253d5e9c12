// A strict reader of the safetensors container (https://github.com/huggingface/safetensors):
//
//     8 bytes   n, little-endian
//     n bytes   JSON: {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
//                      "__metadata__": {"KEY": "VALUE", ..}}
//     the rest  the tensors' data, row-major and little-endian; offsets count from here
//
// The file is untrusted input: nothing in it is used before it has been checked.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "exact_arithmetic.h"
#include "platform/platform.h"

namespace histo {

struct StoredTensor {
  std::string name;
  std::string_view dtype;  // "F32", "F64", "U8", .. as in the file
  std::vector<std::size_t> shape;
  std::size_t begin, size;  // in bytes, of the data
  // `size` of them, aligned to the size of an element. Empty where only the header was read.
  std::span<const std::byte> bytes;

  // The elements as float (F32), double (F64) or std::uint8_t (U8). Throws Error (invalid_file) where the
  // tensor is of another dtype.
  template <typename T>
  [[nodiscard]] std::span<const T> values() const {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, std::uint8_t>);
    check_dtype(std::is_same_v<T, float> ? "F32" : std::is_same_v<T, double> ? "F64" : "U8");
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }

  // Throws Error (invalid_file) where the tensor is of another shape.
  void check_shape(std::span<const std::size_t> expected) const;

 private:
  void check_dtype(std::string_view expected) const;
};

struct Safetensors {
  std::vector<StoredTensor> tensors;                          // sorted by name; names are unique
  std::vector<std::pair<std::string, std::string>> metadata;  // sorted by key; keys are unique

  // Null where the file has no tensor of that name, or no such key.
  [[nodiscard]] const StoredTensor* find(std::string_view name) const noexcept;
  [[nodiscard]] const std::string* find_metadata(std::string_view key) const noexcept;
};

// Tensors of a file, in memory of their own, which `container` points into.
struct LoadedSafetensors {
  Pages memory;
  std::size_t size;  // of the file, in bytes
  Safetensors container;
};

// Fills a buffer with the bytes of a file from `offset` on.
using ReadAt = std::function<void(std::size_t offset, std::span<std::byte>)>;

// Reads a file of `size` bytes, none of them twice.
//
// Checks what the format requires: unique names, sizes that match, no overlap, no gap, and no bytes after the
// last tensor. Two limits go beyond the format: a header takes at most 1 MiB, and data are aligned to the
// size of their elements. Sub-byte and complex dtypes are not supported.
//
// `select` gets the header, whose tensors have no bytes yet, and may remove tensors, which are then not read.
// Memory for the others is allocated when the header is right and `select` has not thrown.
//
// Throws Error whose message does not name the file, because the caller adds the name: invalid_file,
// out_of_memory, and what `read_at` and `select` throw.
[[nodiscard]] LoadedSafetensors load_safetensors(std::size_t size, const ReadAt& read_at,
                                                 const std::function<void(Safetensors&)>& select);

// Of the contents of a file in memory.
[[nodiscard]] ReadAt read_from(std::span<const std::byte> file);

// Throws Error (invalid_file) where a value is NaN or infinite. Limited by the bandwidth of memory.
void check_finite(const StoredTensor& tensor, std::span<const float> values);

// A name from a file, made safe for a message: in quotes, cut to 80 bytes, without control characters.
[[nodiscard]] std::string in_quotes(std::string_view name);

// "[64, 3, 7, 7]"
[[nodiscard]] std::string shape_text(std::span<const std::size_t> shape);

}  // namespace histo
