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

// A regular file. What has been read is the reader's own: whatever happens to the file later, on a disk or on
// a network share, changes nothing. Errors are Error (io) whose message does not name the file: the caller
// adds the name.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& file);
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile();

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  // The bytes from `offset` on. Throws where the file has changed since it was opened, as far as the system
  // tells.
  void read(std::size_t offset, std::span<std::byte> to);

 private:
  std::intptr_t handle_;
  std::size_t size_ = 0;
  // Which file it is, and when it was changed, as the system counts. Unused where nobody else may write.
  [[maybe_unused]] std::uint64_t file_ = 0;
  [[maybe_unused]] std::int64_t changed_ = 0;
};

// Paths in messages and in the C interface are UTF-8 on Windows, and the system's own bytes elsewhere.
[[nodiscard]] std::string utf8(const std::filesystem::path& path);

// Throws Error (invalid_argument) where `text` is not UTF-8, on Windows.
[[nodiscard]] std::filesystem::path path_from_utf8(std::string_view text);

// --- memory ----------------------------------------------------------------------------------------------

struct FreePages {
  void operator()(void* pages) const noexcept;
};

using Pages = std::unique_ptr<void, FreePages>;

// Memory that begins on a page, with undefined contents. From 2 MiB on it asks for huge pages where the
// system has them. Null where memory is exhausted, or would be for so many; `bytes` must be at least 1.
[[nodiscard]] Pages allocate_pages(std::size_t bytes);

inline constexpr std::size_t small_page = 4096, huge_page = std::size_t{1} << 21U;

// What allocate_pages() takes for so many: whole pages, huge ones where it asks for them. Saturates.
[[nodiscard]] constexpr std::size_t in_pages(std::size_t bytes) noexcept {
  const std::size_t page = bytes >= huge_page ? huge_page : small_page;
  return bytes > SIZE_MAX - page ? SIZE_MAX / page * page : (bytes + page - 1) / page * page;
}

// --- the calling thread ----------------------------------------------------------------------------------

// The floating-point environment that the library computes in: to nearest, without flush-to-zero and traps.
// The host's, which the thread had before, is put aside with its flags as long as this lives.
class FloatEnvironment {
 public:
  FloatEnvironment() noexcept;
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
  ~FloatEnvironment();

  // The host's again, for its own code, as long as this lives. What that code sets, stays the host's.
  class Host {
   public:
    explicit Host(FloatEnvironment& library) noexcept : library_(library) { library_.exchange(); }
    Host(const Host&) = delete;
    Host& operator=(const Host&) = delete;
    ~Host() { library_.exchange(); }

   private:
    FloatEnvironment& library_;
  };

  static constexpr std::size_t saved_bytes = 64;

 private:
  // Puts the environment of the thread aside, and sets that which was put aside before.
  void exchange() noexcept;

  alignas(16) unsigned char saved_[saved_bytes];
};

// As long as this lives, pthread_cancel() does not end the thread: it would unwind through noexcept
// functions, which ends the process. The thread is ended at its next chance after that. Does nothing on
// Windows.
class CancellationDisabled {
 public:
  CancellationDisabled() noexcept;
  CancellationDisabled(const CancellationDisabled&) = delete;
  CancellationDisabled& operator=(const CancellationDisabled&) = delete;
  ~CancellationDisabled();

 private:
  [[maybe_unused]] int before_ = 0;
};

// As long as this lives, the thread has all signals blocked but those that its own instructions raise, and so
// have, for good, the threads that it starts: the host's handlers run in the host's threads. Does nothing on
// Windows.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept;
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked();

 private:
  static constexpr std::size_t mask_bytes = 128;
  [[maybe_unused]] alignas(16) unsigned char before_[mask_bytes];  // a sigset_t
};

// As long as this lives, the thread may run on `cpus` alone, and so may, for good, the threads that it
// starts. Without `cpus` it does nothing.
class ThreadAffinity {
 public:
  // Throws Error: invalid_argument where this thread may not run on one of them, unsupported where the system
  // has no such affinity (all but Linux).
  explicit ThreadAffinity(std::span<const unsigned> cpus);
  ThreadAffinity(const ThreadAffinity&) = delete;
  ThreadAffinity& operator=(const ThreadAffinity&) = delete;
  ~ThreadAffinity();

 private:
  [[maybe_unused]] std::vector<unsigned> before_;
};

// --- threads ---------------------------------------------------------------------------------------------

// What debuggers and tools such as top call this thread. Linux shows 15 bytes of it.
void name_this_thread(const std::string& name) noexcept;

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
