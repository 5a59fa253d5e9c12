/// \file
/// The one exception type that this library throws.
#pragma once

#include <stdexcept>
#include <string>

#include "histo/api.h"

namespace histo {

/// What went wrong. The numbers are stable: new codes are appended, none is reused.
enum class ErrorCode : int {
  invalid_argument = 1,  ///< an argument is null, zero or outside its range
  size_mismatch = 2,     ///< a buffer does not hold as many elements as the shape says
  size_overflow = 3,     ///< a shape's number of elements does not fit in std::size_t
  io = 4,                ///< a file cannot be opened or read
  invalid_file = 5,      ///< a file is not what it says it is: damaged, of another format, or lying
  unsupported = 6,       ///< valid, but not possible here: an instruction set, a precision, a size
  out_of_memory = 7,     ///< an allocation failed
  cancelled = 8,         ///< the caller asked for an end
  failed = 9,            ///< a callback or a foreign runtime failed; the message is its own
};

/// Thrown by every function of this library that documents an error; `what()` names the argument, what is
/// wrong with it and what was expected.
///
/// Example:
/// \code
/// try {
///   histo::FusedHead head(0, 512, 6, weight, bias);
/// } catch (const histo::Error& error) {
///   assert(error.code() == histo::ErrorCode::invalid_argument);
/// }
/// \endcode
class HISTO_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace histo
