// A program with its weights packed for one set of kernels.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "cpu/isa_records.h"
#include "cpu/kernels/kernels.h"
#include "cpu/map_outputs.h"
#include "cpu/normaliser.h"
#include "cpu/packing.h"
#include "cpu/thread_pool.h"
#include "histo/fused_head.h"
#include "plan/backend.h"

namespace histo {

// Never changes once made, and is shared between copies of an Executor.
struct Prepared {
  std::shared_ptr<const Program> program;
  const kernels::KernelSet& kernels;
  FusedHead head;
  MapOutputs map_outputs;
  Normaliser normaliser;
  PackedLayer stem;
  std::vector<PackedLayer> layers;  // of the plan's steps

  // Packs on all `threads`.
  Prepared(std::shared_ptr<const Program> program, const IsaRecord& isa, ThreadPool& threads);

  [[nodiscard]] const Plan& plan() const { return program->plan; }
  [[nodiscard]] const kernels::ConvKernels& kernels_of(const Step& step) const {
    return *kernels.of[step.precision];
  }
  [[nodiscard]] const kernels::ConvKernels& stem_kernels() const {
    return *kernels.stem[plan().stem_precision];
  }

  // Of the packed layers, and of the head as it is stored.
  [[nodiscard]] std::size_t weight_bytes() const;
};

// How the stem's weights are packed.
Packing stem_packing(const Program& program, const kernels::KernelSet& kernels);

}  // namespace histo
