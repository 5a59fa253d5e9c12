/// \file
/// What the library tells while it works. Off unless a host asks for it.
#pragma once

#include "histo/api.h"
#include "histo/names.h"

namespace histo {

/// Receives one line of UTF-8, without a line end, which is valid during the call. Called by any thread,
/// several at once, also those of the library, in which signals are blocked. It must not throw, and should
/// return soon.
using LogCallback = void (*)(void* user, LogLevel level, const char* message);

/// Sends what the library tells to `callback`, from now on and for the whole process; null turns it off, as
/// it is at the beginning. Off, it costs the load of one variable, a few times for each engine and queue, and
/// not once for each run.
///
/// A call of the former callback may still be in progress when this returns, so `user` must stay valid.
///
/// \param user    passed to the callback unchanged
/// \throws Error  out_of_memory
///
/// \code
/// histo::set_log([](void*, histo::LogLevel, const char* line) { std::fprintf(stderr, "histo: %s\n", line);
/// });
/// \endcode
HISTO_API void set_log(LogCallback callback, void* user = nullptr);

}  // namespace histo
