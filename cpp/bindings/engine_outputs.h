// The methods of Engine that give more than logits.
#pragma once

#include <pybind11/pybind11.h>

#include "histo/engine.h"

namespace bindings {

void register_outputs(pybind11::class_<histo::Engine>& engine);

}  // namespace bindings
