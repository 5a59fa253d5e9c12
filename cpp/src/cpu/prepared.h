// A program with its weights packed for one set of kernels.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "aligned_buffer.h"
#include "cpu/isa_records.h"
#include "cpu/kernels/kernels.h"
#include "cpu/map_outputs.h"
#include "cpu/normaliser.h"
#include "cpu/packing.h"
#include "cpu/thread_pool.h"
#include "histo/fused_head.h"
#include "plan/backend.h"
#include "platform/exclusive.h"

namespace histo {

// Shared between copies of an Executor. Never changes once made, but for transformed().
struct Prepared {
  std::shared_ptr<const Program> program;
  const kernels::KernelSet& kernels;
  FusedHead head;
  MapOutputs map_outputs;
  Normaliser normaliser;
  PackedLayer stem;
  std::vector<PackedLayer> layers;  // of the plan's steps

  // Without packed weights, for an estimate.
  Prepared(std::shared_ptr<const Program> program, const IsaRecord& isa);

  // Packs on all `threads`.
  Prepared(std::shared_ptr<const Program> program, const IsaRecord& isa, ThreadPool& threads);

  [[nodiscard]] const Plan& plan() const { return program->plan; }
  [[nodiscard]] const kernels::ConvKernels& kernels_of(const Step& step) const {
    return *kernels.of[step.precision];
  }
  [[nodiscard]] const kernels::ConvKernels& stem_kernels() const {
    return *kernels.stem[plan().stem_precision];
  }

  // How the weights of the stem and of each step are packed.
  [[nodiscard]] std::vector<Packing> packings() const;
  [[nodiscard]] Packing packing_of(const Step& step) const;

  // The weights of step `index`, which has Step::weights_on_the_fly, for many tiles. Made at the first call,
  // on `threads`, and kept. Throws Error (out_of_memory).
  [[nodiscard]] std::shared_ptr<const AlignedBuffer> transformed(std::size_t index,
                                                                 ThreadPool& threads) const;

  // Units of the buffers of packed weights, packed yet or not.
  [[nodiscard]] std::vector<std::size_t> buffers() const;

  // Of these, of the head as it is stored, and of what transformed() has made.
  [[nodiscard]] std::size_t weight_bytes() const;

 private:
  using Transformed = std::map<std::size_t, std::shared_ptr<const AlignedBuffer>>;
  mutable Exclusive<Transformed> transformed_;
  mutable std::atomic<std::size_t> transformed_units_{0};
};

// How the stem's weights are packed.
Packing stem_packing(const Program& program, const kernels::KernelSet& kernels);

}  // namespace histo
