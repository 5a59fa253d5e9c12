// Executes a program on the CPU's threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "aligned_buffer.h"
#include "cpu/isa_records.h"
#include "cpu/partition.h"
#include "cpu/prepared.h"
#include "cpu/stem.h"
#include "cpu/thread_pool.h"
#include "plan/backend.h"

namespace histo {

class Executor final : public Backend {
 public:
  Executor(std::shared_ptr<const Program> program, const IsaRecord& isa, unsigned threads);

  [[nodiscard]] std::unique_ptr<Backend> copy() const override;
  void run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits,
           const RunRecord& record) override;
  void run(std::span<const float> tiles, TileShape shape, std::span<float> logits,
           const RunRecord& record) override;
  [[nodiscard]] Info info() const override;

 private:
  Executor(std::shared_ptr<const Prepared> prepared, unsigned threads);

  template <typename Value>
  void run_all(const Value* tiles, TileShape shape, float* logits, const RunRecord& record);
  template <typename Value>
  void run_images(const Value* tiles, TileShape shape, std::size_t count, float* logits,
                  const RunRecord& record);
  template <typename Value>
  void run_stem(const Value* tiles, TileShape shape, std::size_t first, std::size_t count);
  void run_steps(Range steps, std::size_t first, std::size_t count, const RunRecord& record);
  void run_step(std::size_t index, std::size_t first, std::size_t count);
  void run_direct(const Step& step, const PackedLayer& packed, const kernels::Epilogue& epilogue,
                  std::size_t first, std::size_t count);
  void run_winograd(const Step& step, const PackedLayer& packed, const kernels::Epilogue& epilogue,
                    std::size_t first, std::size_t count);
  void run_head(std::size_t count, float* logits);

  kernels::Epilogue epilogue_of(const Step& step, const PackedLayer& packed, std::size_t first);
  WinogradTasks tasks_of(const Step& step, std::size_t count) const;
  std::uint32_t* pixels(std::size_t map, std::size_t first);

  // Allocates what up to `count` images need.
  void reserve(std::size_t count);
  struct Scratch {
    std::size_t of_thread, shared;  // units
  };
  [[nodiscard]] Scratch scratch_for(std::size_t images) const;

  // body(task, slot) for all tasks; slot, less than the number of threads, is never in use twice at a time.
  template <typename Body>
  void for_each(std::size_t tasks, const Body& body) {
    std::atomic<std::size_t> next{0};
    threads_.for_each(std::min<std::size_t>(tasks, threads_.threads()), [&](std::size_t slot) {
      for (std::size_t i = next.fetch_add(1, std::memory_order_relaxed); i < tasks;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        body(i, slot);
      }
    });
  }

  ThreadPool threads_;  // before `prepared_`, which packs its weights on them
  std::shared_ptr<const Prepared> prepared_;
  Stem stem_;

  std::mutex one_run_;  // guards all that follows
  std::vector<AlignedBuffer> maps_;
  std::size_t images_ = 0;  // that the maps hold, at most
  AlignedBuffer shared_scratch_;
  std::vector<AlignedBuffer> private_scratch_;  // per thread
  std::atomic<std::size_t> workspace_bytes_{0};
  std::vector<std::atomic<bool>> not_finite_;  // of the images in the maps; int8 only: see run_images()
};

// Which of Winograd's algorithms `isa` has kernels for.
PerPrecision<AlgorithmSupport> algorithm_support(const IsaRecord& isa);

}  // namespace histo
