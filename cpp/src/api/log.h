// What the library tells its host: see histo/log.h.
#pragma once

#include <string>

#include "histo/log.h"

namespace histo {

[[nodiscard]] bool log_is_on() noexcept;

// One line: characters that control a terminal become spaces.
void write_log(LogLevel level, std::string message) noexcept;

// `message()` is called where someone listens. Nothing fails because of a message.
template <typename Message>
void log(LogLevel level, const Message& message) noexcept {
  if (log_is_on()) {
    try {
      write_log(level, message());
    } catch (...) {  // no memory for the text
      write_log(LogLevel::warning, {});
    }
  }
}

}  // namespace histo
