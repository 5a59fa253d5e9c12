// The part of _core that batch_runner.cpp has.
#pragma once

#include <pybind11/pybind11.h>

namespace bindings {

// Adds BatchRunner, BatchResults, BatchRunnerStats and TileResult to the module.
void bind_batch_runner(pybind11::module_& m);

}  // namespace bindings
