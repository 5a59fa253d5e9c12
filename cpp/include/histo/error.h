/// \file
/// The one exception type that this library throws.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

#include "histo/api.h"
#include "histo/names.h"

namespace histo {

/// Thrown by every function of this library that documents an error.
///
/// `what()` is the whole sentence: what is wrong, with the argument or the file, then "; " and what to do
/// about it. message() and remedy() are its two parts.
///
/// \code
/// try {
///   histo::FusedHead head(0, 512, 6, weight, bias);
/// } catch (const histo::Error& error) {
///   assert(error.code() == histo::ErrorCode::invalid_argument);
///   std::cerr << error.message() << ". What to do: " << error.remedy() << '\n';
/// }
/// \endcode
class HISTO_API Error : public std::runtime_error {
 public:
  /// \param message  what is wrong, without a full stop
  /// \param remedy   what to do about it, beginning with a small letter; empty where the library cannot know,
  ///                 as after the failure of a callback
  Error(ErrorCode code, std::string_view message, std::string_view remedy = {})
      : std::runtime_error(sentence(message, remedy)), code_(code), message_size_(message.size()) {}

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }

  /// What is wrong. Lives as long as this object; so does remedy().
  [[nodiscard]] std::string_view message() const noexcept { return {what(), message_size_}; }

  /// What to do about it; may be empty.
  [[nodiscard]] std::string_view remedy() const noexcept {
    const std::string_view all = what();
    return all.substr(all.size() > message_size_ ? message_size_ + separator.size() : message_size_);
  }

 private:
  static constexpr std::string_view separator = "; ";

  static std::string sentence(std::string_view message, std::string_view remedy) {
    std::string text(message);
    if (!remedy.empty()) {
      text.append(separator).append(remedy);
    }
    return text;
  }

  ErrorCode code_;
  std::size_t message_size_;  // both parts point into what(), so that copying an Error cannot throw
};

}  // namespace histo
