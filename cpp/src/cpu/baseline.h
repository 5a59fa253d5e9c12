// The oldest CPU that the library is compiled for.
#pragma once

namespace histo {

// Ends the process with a message on standard error where the CPU lacks a part of the baseline; it would die
// from an illegal instruction soon, without a word. Runs by itself when the library is loaded. The calls are
// for static libraries, which would leave out a file that nobody calls.
void require_baseline() noexcept;

}  // namespace histo
