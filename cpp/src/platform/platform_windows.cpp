#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <malloc.h>
#include <windows.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "histo/error.h"
#include "platform/platform.h"

namespace histo {
namespace {

// Of UTF-16; what is not valid becomes U+FFFD.
std::string utf8(std::wstring_view text) {
  const int length = static_cast<int>(text.size());
  std::string bytes(text.size() * 3, '\0');  // the most that a unit of UTF-16 takes
  const int size = WideCharToMultiByte(CP_UTF8, 0, text.data(), length, bytes.data(),
                                       static_cast<int>(bytes.size()), nullptr, nullptr);
  bytes.resize(static_cast<std::size_t>(size));
  return bytes;
}

// What Windows says about its last error, without the full stop and the line's end.
std::string last_error() {
  const DWORD code = GetLastError();
  wchar_t text[512];
  const DWORD length = FormatMessageW(
      FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS | FORMAT_MESSAGE_MAX_WIDTH_MASK, nullptr,
      code, 0, text, static_cast<DWORD>(std::size(text)), nullptr);
  std::wstring_view message(text, length);
  while (message.ends_with(L' ') || message.ends_with(L'.')) {
    message.remove_suffix(1);
  }
  return message.empty() ? "error " + std::to_string(code) : utf8(message);
}

[[noreturn]] void fail_with_last_error(const char* what, const char* remedy) {
  const std::string cause = last_error();
  throw Error(ErrorCode::io, std::string(what) + ": " + cause, remedy);
}

HANDLE handle_of(std::intptr_t number) { return reinterpret_cast<HANDLE>(number); }

constexpr const char* check_path = "check the path and its permissions";

// The size of a file that was opened.
std::size_t size_of(HANDLE opened) {
  if (GetFileType(opened) != FILE_TYPE_DISK) {
    throw Error(ErrorCode::io, "is not a regular file", "copy what it delivers into a file");
  }
  LARGE_INTEGER length{};
  if (GetFileSizeEx(opened, &length) == 0) {
    fail_with_last_error("cannot be opened", check_path);
  }
  if (!std::in_range<std::size_t>(length.QuadPart)) {
    throw Error(ErrorCode::io, "is larger than the address space", "use a 64-bit system");
  }
  return static_cast<std::size_t>(length.QuadPart);
}

}  // namespace

// --- files -----------------------------------------------------------------------------------------------

// Nobody else may write to the file as long as it is open here.
InputFile::InputFile(const std::filesystem::path& file) : handle_(0) {
  const DWORD attributes = GetFileAttributesW(file.c_str());
  if (attributes == INVALID_FILE_ATTRIBUTES) {
    fail_with_last_error("cannot be opened", check_path);
  }
  if ((attributes & FILE_ATTRIBUTE_DIRECTORY) != 0) {  // which CreateFileW() calls "access denied"
    throw Error(ErrorCode::io, "is a folder, not a file", "give the path of a file");
  }
  HANDLE const opened = CreateFileW(file.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                                    OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (opened == INVALID_HANDLE_VALUE) {
    fail_with_last_error("cannot be opened", check_path);
  }
  try {
    size_ = size_of(opened);
  } catch (...) {
    CloseHandle(opened);
    throw;
  }
  handle_ = reinterpret_cast<std::intptr_t>(opened);
}

InputFile::~InputFile() { CloseHandle(handle_of(handle_)); }

void InputFile::read(std::size_t offset, std::span<std::byte> to) {
  constexpr std::size_t most = std::size_t{1} << 30U;  // a DWORD counts them
  while (!to.empty()) {
    DWORD count = 0;
    OVERLAPPED from{};
    from.Offset = static_cast<DWORD>(std::uint64_t{offset} & 0xFFFFFFFFU);
    from.OffsetHigh = static_cast<DWORD>(std::uint64_t{offset} >> 32U);
    if (ReadFile(handle_of(handle_), to.data(), static_cast<DWORD>(std::min(to.size(), most)), &count,
                 &from) == 0 &&
        GetLastError() != ERROR_HANDLE_EOF) {
      fail_with_last_error("cannot be read", "copy the file to a local disk");
    }
    if (count == 0) {
      throw Error(ErrorCode::io, "was changed while it was read", "try again when it is complete");
    }
    to = to.subspan(count);
    offset += count;
  }
}

std::string utf8(const std::filesystem::path& path) { return utf8(std::wstring_view(path.native())); }

std::filesystem::path path_from_utf8(std::string_view text) {
  if (text.empty()) {
    return {};
  }
  std::wstring path(text.size(), L'\0');  // at most as many units as bytes
  const int size =
      MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text.data(), static_cast<int>(text.size()),
                          path.data(), static_cast<int>(path.size()));
  if (size == 0) {
    throw Error(ErrorCode::invalid_argument, "a path is not UTF-8", "give it in UTF-8");
  }
  path.resize(static_cast<std::size_t>(size));
  return path;
}

// --- memory ----------------------------------------------------------------------------------------------

void FreePages::operator()(void* pages) const noexcept { _aligned_free(pages); }

// Huge pages would need a right that users do not have.
Pages allocate_pages(std::size_t bytes) {
  constexpr std::size_t page = 4096;
  if (bytes > SIZE_MAX - page) {  // which would wrap
    return nullptr;
  }
  return Pages(_aligned_malloc((bytes + page - 1) / page * page, page));
}

// --- threads ---------------------------------------------------------------------------------------------

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

void sleep_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept {
  WaitOnAddress(const_cast<std::atomic<std::uint32_t>*>(&value), &old, sizeof old, INFINITE);
}

void wake_one(std::atomic<std::uint32_t>& value) noexcept { WakeByAddressSingle(&value); }

void wake_all(std::atomic<std::uint32_t>& value) noexcept { WakeByAddressAll(&value); }

// --- the calling thread ----------------------------------------------------------------------------------

CancellationDisabled::CancellationDisabled() noexcept = default;
CancellationDisabled::~CancellationDisabled() = default;

SignalsBlocked::SignalsBlocked() noexcept : before_{} {}
SignalsBlocked::~SignalsBlocked() = default;

ThreadAffinity::ThreadAffinity(std::span<const unsigned> cpus) {
  if (!cpus.empty()) {
    throw Error(ErrorCode::unsupported, "threads cannot be bound to CPUs on this system", "leave cpus empty");
  }
}
ThreadAffinity::~ThreadAffinity() = default;

// Windows has names since version 10, so the function is looked for.
void name_this_thread(const std::string& name) noexcept {
  using SetDescription = HRESULT(WINAPI*)(HANDLE, PCWSTR);
  const auto function = reinterpret_cast<SetDescription>(
      reinterpret_cast<void*>(GetProcAddress(GetModuleHandleW(L"kernel32.dll"), "SetThreadDescription")));
  if (function != nullptr) {
    try {
      function(GetCurrentThread(), path_from_utf8(name).c_str());
    } catch (...) {  // a name that is not UTF-8, or no memory for it: the thread stays without
    }
  }
}

// --- the process -----------------------------------------------------------------------------------------

unsigned long process_id() noexcept { return GetCurrentProcessId(); }

// Not getenv(), which sees a copy that the C runtime made: Python and a MinGW build have different ones.
std::optional<std::string> environment_variable(const char* name) {
  const std::wstring wide_name = path_from_utf8(name).native();
  std::wstring value(256, L'\0');
  for (;;) {
    SetLastError(ERROR_SUCCESS);
    const DWORD length =
        GetEnvironmentVariableW(wide_name.c_str(), value.data(), static_cast<DWORD>(value.size()));
    if (length == 0 && GetLastError() == ERROR_ENVVAR_NOT_FOUND) {
      return std::nullopt;
    }
    const bool fits = length < value.size();
    value.resize(length);  // where it does not fit, with the zero at its end
    if (fits) {
      return utf8(std::wstring_view(value));
    }
  }
}

// The mask is of the processor group that the process is in, which has at most 64 CPUs. Where it is
// restricted, it counts; else the process may use all groups.
unsigned cpus_in_affinity_mask() {
  DWORD_PTR mask = 0;
  DWORD_PTR all = 0;
  if (GetProcessAffinityMask(GetCurrentProcess(), &mask, &all) != 0 && mask != 0 && mask != all) {
    return static_cast<unsigned>(std::popcount(mask));
  }
  return std::max<unsigned>(1, GetActiveProcessorCount(ALL_PROCESSOR_GROUPS));
}

std::optional<double> cpu_quota() { return std::nullopt; }

bool ask_for_amx() { return false; }

}  // namespace histo
