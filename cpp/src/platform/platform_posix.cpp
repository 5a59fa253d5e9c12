#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "histo/error.h"
#include "platform/cgroup.h"
#include "platform/platform.h"

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif

namespace histo {

// --- files -----------------------------------------------------------------------------------------------

namespace {

[[noreturn]] void fail_with_errno(const char* what, const char* remedy) {
  const std::string cause = std::generic_category().message(errno);
  throw Error(ErrorCode::io, std::string(what) + ": " + cause, remedy);
}

struct Descriptor {
  int number;

  explicit Descriptor(int opened) : number(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number >= 0) {
      ::close(number);
    }
  }
};

}  // namespace

FileBytes map_file(const std::filesystem::path& file) {
  // Without O_NONBLOCK, opening a pipe would wait for its writer before it could be refused.
  const Descriptor descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status{};
  if (descriptor.number < 0 || ::fstat(descriptor.number, &status) != 0) {
    fail_with_errno("cannot be opened", "check the path and its permissions");
  }
  if (S_ISDIR(status.st_mode)) {
    throw Error(ErrorCode::io, "is a folder, not a file", "give the path of a file");
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorCode::io, "is not a regular file", "copy what it delivers into a file");
  }
  if (status.st_size == 0) {
    return {};  // an empty range cannot be mapped
  }
  if (!std::in_range<std::size_t>(status.st_size)) {
    throw Error(ErrorCode::io, "is larger than the address space", "use a 64-bit system");
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor.number, 0);
  if (address == MAP_FAILED) {
    fail_with_errno("cannot be mapped into memory", "copy the file to a local disk");
  }
  const auto unmap = [size](const void* mapped) { ::munmap(const_cast<void*>(mapped), size); };
  return {.bytes = {static_cast<const std::byte*>(address), size},
          .owner = std::shared_ptr<const void>(address, unmap)};
}

std::string utf8(const std::filesystem::path& path) { return path.string(); }

std::filesystem::path path_from_utf8(std::string_view text) { return text; }

// --- memory ----------------------------------------------------------------------------------------------

void FreePages::operator()(void* pages) const noexcept { std::free(pages); }

std::unique_ptr<void, FreePages> zeroed_pages(std::size_t bytes) {
  constexpr std::size_t small_page = 4096, huge_page = std::size_t{1} << 21U;
  const std::size_t page = bytes >= huge_page ? huge_page : small_page;
  const std::size_t rounded = (bytes + page - 1) / page * page;
  std::unique_ptr<void, FreePages> pages(std::aligned_alloc(page, rounded));
  if (pages != nullptr) {
#ifdef __linux__
    if (page == huge_page) {
      madvise(pages.get(), rounded, MADV_HUGEPAGE);  // a hint: where it is refused, only speed is lost
    }
#endif
    std::memset(pages.get(), 0, rounded);
  }
  return pages;
}

// --- threads ---------------------------------------------------------------------------------------------

void sleep_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept {
  value.wait(old, std::memory_order_acquire);
}

void wake_one(std::atomic<std::uint32_t>& value) noexcept { value.notify_one(); }

void wake_all(std::atomic<std::uint32_t>& value) noexcept { value.notify_all(); }

// --- the process -----------------------------------------------------------------------------------------

unsigned long process_id() noexcept { return static_cast<unsigned long>(getpid()); }

std::optional<std::string> environment_variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

unsigned cpus_in_affinity_mask() {
#ifdef __linux__
  // The kernel refuses a mask that is smaller than its own, which may be larger than cpu_set_t's 1024 CPUs.
  for (int cpus = CPU_SETSIZE; cpus <= 1 << 20; cpus *= 2) {
    cpu_set_t* mask = CPU_ALLOC(static_cast<std::size_t>(cpus));
    if (mask == nullptr) {
      break;
    }
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(cpus));
    const int count = sched_getaffinity(0, bytes, mask) == 0 ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (count > 0) {
      return static_cast<unsigned>(count);
    }
  }
#endif
  return std::max(1U, std::thread::hardware_concurrency());  // 0 where it is not known
}

std::optional<double> cpu_quota() {
#ifdef __linux__
  return cgroup_cpu_quota("/");
#else
  return std::nullopt;
#endif
}

// Linux saves the 8 KiB of AMX registers only for processes that have asked for them.
// Source: Documentation/arch/x86/xstate.rst of the Linux kernel.
bool ask_for_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int request_permission = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace histo
