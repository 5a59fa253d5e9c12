/// \file
/// The one exception type that this library throws.
#pragma once

#include <stdexcept>
#include <string>

namespace histo {

/// What went wrong. The numbers are stable: new codes are appended, none is reused.
enum class ErrorCode : int {
  invalid_argument = 1,  ///< an argument is null, zero or outside its range
  size_mismatch = 2,     ///< a buffer does not hold as many elements as the shape says
  size_overflow = 3,     ///< a shape's number of elements does not fit in std::size_t
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
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace histo
