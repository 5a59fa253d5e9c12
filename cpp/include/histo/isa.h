/// \file
/// The instruction set that kernels are written in, and the choice among those that this machine has.
#pragma once

#include <vector>

#include "histo/api.h"
#include "histo/names.h"

namespace histo {

/// The instruction sets that this machine can run and this library was built for, lowest first; Isa::portable
/// is always there.
///
/// Where the CPU has AMX the first call asks Linux for the use of its registers, for this process and the
/// threads that it will start. Isa::amx is usable where that is granted; containers and old kernels refuse.
[[nodiscard]] HISTO_API std::vector<Isa> usable_isas();

/// The highest usable instruction set, or the one that the environment variable `HISTO_ISA` names.
///
/// The variable is read at each call; what was made before a change keeps what it was made with.
///
/// \throws Error  invalid_argument where `HISTO_ISA` names no instruction set, unsupported where it names one
///                that this machine lacks
[[nodiscard]] HISTO_API Isa default_isa();

/// `isa` itself.
/// \throws Error  unsupported where this machine cannot run it
HISTO_API Isa require_usable(Isa isa);

}  // namespace histo
