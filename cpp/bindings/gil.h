// Giving up Python's lock (the GIL) and taking it again, at any time: also while the interpreter ends.
//
// When a program ends, Python does not wait for daemon threads, nor for the threads of the batch loop. Before
// 3.14 it ends such a thread by pthread_exit() as soon as the thread asks for the lock. With glibc that
// unwinds the thread's stack as an exception would, and a destructor or a `catch (...)` that it meets ends
// the whole process with abort(). So whatever may wait for the lock is called here, and a thread that would
// be ended sleeps instead until the process is gone. Python 3.14 does the same by itself.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace bindings {

namespace py = pybind11;

// The stack is not unwound: its destructors would release Python's objects without the lock.
[[noreturn]] inline void sleep_until_the_process_ends() {
  for (;;) {
    std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Whether the interpreter ends or has ended. Its locks and thread states may be gone then.
inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0 || Py_IsInitialized() == 0;
#else
  return _Py_IsFinalizing() != 0 || Py_IsInitialized() == 0;
#endif
}

// `wait()` calls C functions of Python alone, which throw nothing themselves.
template <typename Wait>
auto waiting_for_python(const Wait& wait) noexcept {
  try {
    return wait();
  } catch (...) {
    sleep_until_the_process_ends();
  }
}

// Gives up the lock in a scope.
class Unlocked {
 public:
  Unlocked() = default;
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    if (!ends_python_ && interpreter_ends()) {
      sleep_until_the_process_ends();
    }
    waiting_for_python([this] { PyEval_RestoreThread(state_); });
  }

 private:
  const bool ends_python_ = interpreter_ends();  // the thread that has the lock then is the one that ends it
  PyThreadState* state_ = PyEval_SaveThread();
};

// Takes the lock in a scope, in any thread.
class Locked {
 public:
  Locked() = default;
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
  ~Locked() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_ = waiting_for_python([] {
    if (interpreter_ends()) {
      sleep_until_the_process_ends();
    }
    return PyGILState_Ensure();
  });
};

// function(argument), or function() where `argument` is null. Python's code gives up the lock now and then.
inline py::object call(const py::handle& function, const py::handle& argument = {}) {
  PyObject* const result = waiting_for_python([&] {
    return argument ? PyObject_CallOneArg(function.ptr(), argument.ptr())
                    : PyObject_CallNoArgs(function.ptr());
  });
  if (result == nullptr) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(result);
}

}  // namespace bindings
