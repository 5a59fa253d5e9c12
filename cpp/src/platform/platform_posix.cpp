#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
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
#include <vector>

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

// -1 where it cannot be opened. On some file systems a signal interrupts the call.
int open_for_reading(const std::filesystem::path& file) {
  int descriptor = -1;
  do {
    // Without O_NONBLOCK, opening a pipe would wait for its writer before it could be refused. A terminal
    // must not become that of the process before it is refused.
    descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

// When the contents were changed, as far as the system tells.
std::int64_t change_time(const struct stat& status) {
#ifdef __APPLE__
  const timespec time = status.st_mtimespec;
#else
  const timespec time = status.st_mtim;
#endif
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

void require_regular(const struct stat& status) {
  if (S_ISDIR(status.st_mode)) {
    throw Error(ErrorCode::io, "is a folder, not a file", "give the path of a file");
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorCode::io, "is not a regular file", "copy what it delivers into a file");
  }
  if (!std::in_range<std::size_t>(status.st_size)) {
    throw Error(ErrorCode::io, "is larger than the address space", "use a 64-bit system");
  }
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& file) : handle_(open_for_reading(file)) {
  const int descriptor = static_cast<int>(handle_);
  struct stat status{};
  if (descriptor < 0) {
    fail_with_errno("cannot be opened", "check the path and its permissions");
  }
  try {
    if (::fstat(descriptor, &status) != 0) {
      fail_with_errno("cannot be opened", "check the path and its permissions");
    }
    require_regular(status);
  } catch (...) {
    ::close(descriptor);
    throw;
  }
  size_ = static_cast<std::size_t>(status.st_size);
  file_ = static_cast<std::uint64_t>(status.st_ino);
  changed_ = change_time(status);
}

InputFile::~InputFile() { ::close(static_cast<int>(handle_)); }

void InputFile::read(std::size_t offset, std::span<std::byte> to) {
  constexpr std::size_t most = std::size_t{1} << 30U;  // Linux reads no more than 2 GiB at once
  const int descriptor = static_cast<int>(handle_);
  while (!to.empty()) {
    const ssize_t count =
        ::pread(descriptor, to.data(), std::min(to.size(), most), static_cast<off_t>(offset));
    if (count < 0 && errno != EINTR) {
      fail_with_errno("cannot be read", "copy the file to a local disk");
    }
    if (count == 0) {
      break;
    }
    if (count > 0) {
      to = to.subspan(static_cast<std::size_t>(count));
      offset += static_cast<std::size_t>(count);
    }
  }
  struct stat status{};
  if (!to.empty() || (::fstat(descriptor, &status) == 0 &&
                      (change_time(status) != changed_ || std::cmp_not_equal(status.st_size, size_) ||
                       static_cast<std::uint64_t>(status.st_ino) != file_))) {
    throw Error(ErrorCode::io, "was changed while it was read", "try again when it is complete");
  }
}

std::string utf8(const std::filesystem::path& path) { return path.string(); }

std::filesystem::path path_from_utf8(std::string_view text) { return text; }

// --- memory ----------------------------------------------------------------------------------------------

void FreePages::operator()(void* pages) const noexcept { std::free(pages); }

Pages allocate_pages(std::size_t bytes) {
  if (bytes > SIZE_MAX - huge_page) {  // which in_pages() cannot round up
    return nullptr;
  }
  const bool huge = bytes >= huge_page;
  Pages pages(std::aligned_alloc(huge ? huge_page : small_page, in_pages(bytes)));
#ifdef __linux__
  if (pages != nullptr && huge) {
    madvise(pages.get(), in_pages(bytes), MADV_HUGEPAGE);  // a hint: where it is refused, only speed is lost
  }
#endif
  return pages;
}

// --- threads ---------------------------------------------------------------------------------------------

void sleep_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept {
  value.wait(old, std::memory_order_acquire);
}

void wake_one(std::atomic<std::uint32_t>& value) noexcept { value.notify_one(); }

void wake_all(std::atomic<std::uint32_t>& value) noexcept { value.notify_all(); }

// --- the calling thread ----------------------------------------------------------------------------------

#ifdef PTHREAD_CANCEL_DISABLE  // Android has no cancellation

CancellationDisabled::CancellationDisabled() noexcept {
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_);
}
CancellationDisabled::~CancellationDisabled() {
  int ignored = 0;  // some systems want a place for it
  pthread_setcancelstate(before_, &ignored);
}

#else

CancellationDisabled::CancellationDisabled() noexcept = default;
CancellationDisabled::~CancellationDisabled() = default;

#endif

SignalsBlocked::SignalsBlocked() noexcept {
  static_assert(sizeof(sigset_t) <= mask_bytes);
  sigset_t blocked;
  sigset_t before;
  sigfillset(&blocked);
  // A blocked one of these ends the process without the host's handler.
  for (const int raised : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP}) {
    sigdelset(&blocked, raised);
  }
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  std::memcpy(before_, &before, sizeof before);
}

SignalsBlocked::~SignalsBlocked() {
  sigset_t before;
  std::memcpy(&before, before_, sizeof before);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

#ifdef __linux__

namespace {

// A mask of as many CPUs as the kernel has: it refuses one that is smaller than its own, which may be larger
// than cpu_set_t's 1024.
struct CpuMask {
  int cpus;
  cpu_set_t* set;

  explicit CpuMask(int count) : cpus(count), set(CPU_ALLOC(static_cast<std::size_t>(count))) {
    if (set != nullptr) {
      CPU_ZERO_S(bytes(), set);
    }
  }
  CpuMask(const CpuMask&) = delete;
  CpuMask& operator=(const CpuMask&) = delete;
  ~CpuMask() { CPU_FREE(set); }

  [[nodiscard]] std::size_t bytes() const { return CPU_ALLOC_SIZE(static_cast<std::size_t>(cpus)); }
};

constexpr int most_cpus = 1 << 20;

// The CPUs that this thread may run on; none where the system does not tell.
std::vector<unsigned> allowed_cpus() {
  std::vector<unsigned> allowed;
  for (int cpus = CPU_SETSIZE; cpus <= most_cpus && allowed.empty(); cpus *= 2) {
    const CpuMask mask(cpus);
    if (mask.set == nullptr || sched_getaffinity(0, mask.bytes(), mask.set) != 0) {
      continue;
    }
    for (unsigned cpu = 0; cpu < 8 * mask.bytes(); ++cpu) {
      if (CPU_ISSET_S(cpu, mask.bytes(), mask.set)) {
        allowed.push_back(cpu);
      }
    }
  }
  return allowed;
}

bool allow_cpus(std::span<const unsigned> cpus) {
  const CpuMask mask(static_cast<int>(std::ranges::max(cpus)) + 1);
  if (mask.set == nullptr) {
    return false;
  }
  for (const unsigned cpu : cpus) {
    CPU_SET_S(cpu, mask.bytes(), mask.set);
  }
  return sched_setaffinity(0, mask.bytes(), mask.set) == 0;
}

}  // namespace

ThreadAffinity::ThreadAffinity(std::span<const unsigned> cpus) {
  if (cpus.empty()) {
    return;
  }
  std::vector<unsigned> allowed = allowed_cpus();
  const auto forbidden =
      std::ranges::find_if(cpus, [&](unsigned cpu) { return !std::ranges::binary_search(allowed, cpu); });
  if (forbidden != cpus.end() || !allow_cpus(cpus)) {
    throw Error(ErrorCode::invalid_argument,
                "this thread may not run on CPU " +
                    std::to_string(forbidden != cpus.end() ? *forbidden : cpus.front()),
                "name CPUs of its affinity mask (taskset -p, cpuset.cpus)");
  }
  before_ = std::move(allowed);  // nothing can fail any more
}

ThreadAffinity::~ThreadAffinity() {
  if (!before_.empty()) {
    static_cast<void>(allow_cpus(before_));
  }
}

#else

ThreadAffinity::ThreadAffinity(std::span<const unsigned> cpus) {
  if (!cpus.empty()) {
    throw Error(ErrorCode::unsupported, "threads cannot be bound to CPUs on this system", "leave cpus empty");
  }
}
ThreadAffinity::~ThreadAffinity() = default;

#endif

void name_this_thread(const std::string& name) noexcept {
#ifdef __linux__
  constexpr std::size_t longest = 15;
  char shown[longest + 1] = "";
  name.copy(shown, longest);
  pthread_setname_np(pthread_self(), shown);
#elif defined(__APPLE__)
  pthread_setname_np(name.c_str());
#else
  static_cast<void>(name);
#endif
}

// --- the process -----------------------------------------------------------------------------------------

unsigned long process_id() noexcept { return static_cast<unsigned long>(getpid()); }

std::optional<std::string> environment_variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

unsigned cpus_in_affinity_mask() {
#ifdef __linux__
  if (const std::size_t allowed = allowed_cpus().size(); allowed > 0) {
    return static_cast<unsigned>(allowed);
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
  // Asked each time: a child that is forked while another thread is inside would wait for a static variable.
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace histo
