#include "model/file_bytes.h"

#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "histo/error.h"

#if __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#else
#include <fstream>
#endif

namespace histo {
namespace {

constexpr const char* check_path = "check the path and its permissions";

FileBytes own(std::vector<std::byte> bytes) {
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 8, "the allocator must align for doubles");
  const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  return {.bytes = *owner, .owner = owner};
}

#if __has_include(<sys/mman.h>)

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

#endif

}  // namespace

#if __has_include(<sys/mman.h>)

FileBytes map_file(const std::filesystem::path& file) {
  // Without O_NONBLOCK, opening a pipe would wait for its writer before it could be refused.
  const Descriptor descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status{};
  if (descriptor.number < 0 || ::fstat(descriptor.number, &status) != 0) {
    fail_with_errno("cannot be opened", check_path);
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

#else

FileBytes map_file(const std::filesystem::path& file) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  if (error) {
    throw Error(ErrorCode::io, "cannot be opened: " + error.message(), check_path);
  }
  if (!std::in_range<std::streamsize>(size) || !std::in_range<std::size_t>(size)) {
    throw Error(ErrorCode::io, "is larger than the address space", "use a 64-bit system");
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  std::ifstream stream(file, std::ios::binary);
  if (!stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size))) {
    throw Error(ErrorCode::io, "cannot be read", "check the disk");
  }
  return own(std::move(bytes));
}

#endif

FileBytes copy_bytes(std::span<const std::byte> bytes) { return own({bytes.begin(), bytes.end()}); }

}  // namespace histo
