// The parts of the Python module _core. Each function adds its classes and functions to the module;
// module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace bindings {

void register_head(pybind11::module_& m);          // FusedHead
void register_model(pybind11::module_& m);         // Model
void register_engine(pybind11::module_& m);        // Engine, preprocess, self_test
void register_batch_runner(pybind11::module_& m);  // BatchRunner, BatchResults, BatchRunnerStats, TileResult
void register_tile_queue(pybind11::module_& m);    // TileQueue, TileAnswer, TileQueueStats
void register_machine(pybind11::module_& m);       // the names, the build, the CPU

}  // namespace bindings
