// How the functions of the C interface call C++: handles to objects, exceptions to status numbers, options
// with a size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>

#include "histo/build_config.h"
#include "histo/c_api.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/model.h"
#include "histo/names.h"
#include "histo/thread_team.h"
#include "platform/platform.h"

struct histo_model {
  histo::Model model;
};

struct histo_engine {
  histo::Engine engine;
};

struct histo_team {
  std::shared_ptr<histo::ThreadTeam> team;
};

namespace histo::c_api {

constexpr histo_status status_of(ErrorCode code) { return static_cast<histo_status>(code); }

// Keeps a failure for histo_last_error() and returns `status`. `sentence` ends with `remedy`, which may be
// empty.
histo_status fail(histo_status status, std::string_view sentence, std::string_view remedy) noexcept;

// Runs `body`; no exception leaves this function, nor does pthread_cancel(), which unwinds like one.
template <typename Body>
histo_status guarded(const Body& body) noexcept {
  const CancellationDisabled until_the_end;
  try {
    body();
    return HISTO_OK;
  } catch (const Error& error) {
    return fail(status_of(error.code()), error.what(), error.remedy());
  } catch (const std::bad_alloc&) {
    return fail(HISTO_OUT_OF_MEMORY, "there is not enough memory; use smaller batches or fewer threads",
                "use smaller batches or fewer threads");
  } catch (const std::exception& error) {
    return fail(HISTO_FAILED, error.what(), {});
  } catch (...) {
    return fail(HISTO_FAILED, "unknown exception", {});
  }
}

template <typename Pointer>
void require(Pointer pointer, const char* name) {
  if (pointer == nullptr) {
    throw Error(ErrorCode::invalid_argument, std::string(name) + " is a null pointer", "it must not be null");
  }
}

// Sets `*handle` to a new handle for what `make` returns, or to null where it throws.
template <typename Handle, typename Make>
histo_status make_handle(Handle** handle, const char* name, const Make& make) noexcept {
  if (handle != nullptr) {
    *handle = nullptr;
  }
  return guarded([&] {
    require(handle, name);
    *handle = new Handle{make()};
  });
}

void check_struct_size(const char* name, std::size_t size, std::size_t smallest);

// Copies the caller's options. The caller may have been compiled with an older structure: the fields that it
// lacks become zero. Or with a newer one: the fields that this library lacks must be zero, because it cannot
// do what they ask for. `smallest` is the size of the first version.
template <typename Options>
Options read_options(const char* name, const Options* given, std::size_t smallest) {
  Options options{};
  if (given != nullptr) {
    const std::size_t size = given->struct_size;
    check_struct_size(name, size, smallest);
    const auto* const bytes = reinterpret_cast<const unsigned char*>(given);
    if (size > sizeof(Options) &&
        std::any_of(bytes + sizeof(Options), bytes + size, [](unsigned char byte) { return byte != 0; })) {
      throw Error(ErrorCode::unsupported,
                  std::string(name) + " sets a field that version " + std::string(build_config().version) +
                      " of the library does not know",
                  "leave it zero, or use a newer library");
    }
    std::memcpy(&options, given, std::min(size, sizeof(Options)));
  }
  return options;
}

// Copies a result to the caller, whose structure may be older or newer: a newer caller gets zeros in the
// fields that this library lacks.
template <typename Result>
void write_result(Result* result, const Result& values) {
  const std::size_t size = result->struct_size;
  auto* const bytes = reinterpret_cast<unsigned char*>(result);
  std::memcpy(bytes, &values, std::min(size, sizeof(Result)));
  if (size > sizeof(Result)) {
    std::memset(bytes + sizeof(Result), 0, size - sizeof(Result));
  }
  result->struct_size = size;
}

// The value that has this name; null means `otherwise`.
template <typename Value>
Value named(const char* what, const char* name, Value otherwise) {
  return name == nullptr ? otherwise : from_name<Value>(what, name);
}

inline std::optional<Isa> isa_of(const char* name) {
  return name == nullptr ? std::nullopt : std::optional(from_name<Isa>("isa", name));
}

EngineOptions engine_options(const histo_engine_options* options);

}  // namespace histo::c_api

// The end of `field`, the last field of the first version of a structure.
#define HISTO_SIZE_UP_TO(type, field) (offsetof(type, field) + sizeof(type::field))
