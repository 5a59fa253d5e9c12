// Exceptions as text, to be told to others in another thread: an exception object may only be valid in its
// own.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "histo/error.h"

namespace histo {

struct Failure {
  ErrorCode code;
  std::string message;
  std::string remedy;  // may be empty
};

inline Failure failure(ErrorCode code, std::string_view message, std::string_view remedy = {}) noexcept {
  try {
    return {code, std::string(message), std::string(remedy)};
  } catch (...) {
    return {ErrorCode::out_of_memory, "out of memory", {}};  // so short that the string needs no allocation
  }
}

// The exception that is being handled.
inline Failure current_failure() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return failure(error.code(), error.message(), error.remedy());
  } catch (const std::bad_alloc&) {
    return failure(ErrorCode::out_of_memory, "there is not enough memory", "use a smaller batch");
  } catch (const std::exception& error) {
    return failure(ErrorCode::failed, error.what());
  } catch (...) {
    return failure(ErrorCode::failed, "unknown exception");
  }
}

}  // namespace histo
