// The bytes of a file, mapped or copied.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace histo {

// Read-only bytes and the object that keeps them alive. The first byte is aligned to at least 8 bytes. Copies
// share the memory.
struct FileBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// Maps a regular file; reads it on a system without mmap. The file may be deleted afterwards, but must not be
// changed. Throws Error (io) whose message does not name the file: the caller adds the name.
[[nodiscard]] FileBytes map_file(const std::filesystem::path& file);

[[nodiscard]] FileBytes copy_bytes(std::span<const std::byte> bytes);

}  // namespace histo
