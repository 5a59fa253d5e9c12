// What differs between operating systems. platform_posix.cpp is for Linux, macOS and other POSIX systems,
// platform_windows.cpp for Windows; no other file of the library depends on the system, but for
// the features of Arm CPUs (cpp/src/cpu/capabilities.cpp).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace histo {

// --- files -----------------------------------------------------------------------------------------------

// Read-only bytes and the object that keeps them alive. The first byte is aligned to at least 8 bytes. Copies
// share the memory.
struct FileBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// Maps a regular file, which must not be changed afterwards. It may be deleted, but not on Windows. Throws
// Error (io) whose message does not name the file: the caller adds the name.
[[nodiscard]] FileBytes map_file(const std::filesystem::path& file);

[[nodiscard]] inline FileBytes copy_bytes(std::span<const std::byte> bytes) {
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 8, "the allocator must align for doubles");
  const auto owner = std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
  return {.bytes = *owner, .owner = owner};
}

// Paths in messages and in the C interface are UTF-8 on Windows, and the system's own bytes elsewhere.
[[nodiscard]] std::string utf8(const std::filesystem::path& path);

// Throws Error (invalid_argument) where `text` is not UTF-8, on Windows.
[[nodiscard]] std::filesystem::path path_from_utf8(std::string_view text);

// --- memory ----------------------------------------------------------------------------------------------

struct FreePages {
  void operator()(void* pages) const noexcept;
};

// Memory that begins on a page and is zero. From 2 MiB on it asks for huge pages where the system has them.
// Null where memory is exhausted; `bytes` must be at least 1 and at most SIZE_MAX - 2 MiB.
[[nodiscard]] std::unique_ptr<void, FreePages> zeroed_pages(std::size_t bytes);

// --- threads ---------------------------------------------------------------------------------------------

// Sleeps until `value` is no longer `old`; it may return too early. Whoever changes it calls wake_*()
// afterwards. Not std::atomic's own wait(): on Windows, that of libstdc++ 12 compares and sleeps in two
// steps, and sleeps for ever if the change and the call come between them.
void sleep_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept;
void wake_one(std::atomic<std::uint32_t>& value) noexcept;
void wake_all(std::atomic<std::uint32_t>& value) noexcept;

// --- the process -----------------------------------------------------------------------------------------

// Differs between a process and its forked child.
[[nodiscard]] unsigned long process_id() noexcept;

// The variable as it is now, also where another C runtime of the same process has changed it.
[[nodiscard]] std::optional<std::string> environment_variable(const char* name);

// The CPUs that this thread may run on; on Windows, and where the system has no affinity, that the process
// may. At least 1.
[[nodiscard]] unsigned cpus_in_affinity_mask();

// The CPU time that this process may have, in CPUs (1.5 is one and a half): the cgroup's quota on Linux.
[[nodiscard]] std::optional<double> cpu_quota();

// Asks the system to save the registers of AMX for this process; whether it does. Only Linux is asked.
[[nodiscard]] bool ask_for_amx();

}  // namespace histo
