// The bytes of a file, mapped or copied.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace histo {

// Read-only bytes and what keeps them there. The first byte is aligned to at least 8 bytes. Copies share.
struct FileBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// Maps a regular file; where the system has no mmap, reads it. The file may be deleted afterwards, but must
// not be changed. Throws Error (io) without the file's name, which the caller knows.
[[nodiscard]] FileBytes map_file(const std::filesystem::path& file);

[[nodiscard]] FileBytes copy_bytes(std::span<const std::byte> bytes);

}  // namespace histo
