// The Python module histo_export._core. Types are in python/histo_export/_core.pyi; tests/test_core_stub.py
// checks that the two agree.

#include <pybind11/pybind11.h>

#include "errors.h"
#include "initialised.h"
#include "register.h"

namespace {

constexpr const char* module_doc = R"(
The C++ core of histo_export.

Arrays are read where they are: they must be C-contiguous and of the dtype that is named, and nothing is
converted or copied silently. The GIL is released while the core works.

What goes wrong in the core is a ValueError (an argument, or the contents of a file), an OSError (a file that
cannot be read), a MemoryError, or a RuntimeError (not possible on this machine; cancelled; failed). The text of
such an exception says what is wrong and what to do about it; its attributes ``message`` and ``remedy`` are these
two parts (``remedy`` is empty where the core cannot know one).

``ISAS``, ``PRECISIONS``, ``PROFILES``, ``ALGORITHM_POLICIES``, ``LAYER_ALGORITHMS``, ``LAYOUTS`` and
``PIXEL_FORMATS`` are the names that the arguments and results of those kinds can have, ``STAGES`` those of the network's stages, in the order of the
computation, and ``BLOCK_COUNTS`` the numbers of residual blocks in the stages between the first and the last.
)";

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = module_doc;
  bindings::translate_errors();
  bindings::register_head(m);
  bindings::register_model(m);
  bindings::register_engine(m);
  bindings::register_batch_runner(m);
  bindings::register_tile_queue(m);
  bindings::register_machine(m);
  bindings::refuse_uninitialised(m);
}
