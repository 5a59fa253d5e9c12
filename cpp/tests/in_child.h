// Tests of what would spoil the process, in a forked child.
#pragma once

#ifndef _WIN32

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sanitizers.h"

// ThreadSanitizer allows the child of a process with threads none of its own.
#if HISTO_THREAD_SANITIZER
inline constexpr bool child_may_start_threads = false;
#else
inline constexpr bool child_may_start_threads = true;
#endif

// True where `test` returned true in the child.
template <typename Test>
bool passes_in_child(const Test& test) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(60);  // a hang is a failure, too
    _exit(test() ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#endif
