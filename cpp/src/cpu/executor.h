// Executes a program on the CPU's threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "aligned_buffer.h"
#include "cpu/isa_records.h"
#include "cpu/partition.h"
#include "cpu/prepared.h"
#include "cpu/results.h"
#include "cpu/stem.h"
#include "cpu/thread_pool.h"
#include "histo/estimate.h"
#include "plan/backend.h"
#include "platform/exclusive.h"

namespace histo {

class Executor final : public Backend {
 public:
  // `team`: threads that others use, too, also the copies of this; null for `threads` of its own.
  Executor(std::shared_ptr<const Program> program, const IsaRecord& isa, unsigned threads,
           std::shared_ptr<ThreadPool> team);

  // Of an executor that has run `batch` images. Packs no weights and starts no thread.
  [[nodiscard]] static MemoryEstimate estimate(std::shared_ptr<const Program> program, const IsaRecord& isa,
                                               unsigned threads, std::size_t batch);

  [[nodiscard]] std::unique_ptr<Backend> copy() const override;
  void run(const ByteTiles& tiles, const Outputs& outputs, const RunRecord& record) override;
  void run(const FloatTiles& tiles, const Outputs& outputs, const RunRecord& record) override;
  [[nodiscard]] Info info() const override;

 private:
  Executor(std::shared_ptr<const Prepared> prepared, std::shared_ptr<ThreadPool> threads,
           bool shares_threads);

  // What a run works in. Only one does at a time.
  struct Workspace {
    std::vector<AlignedBuffer> maps;
    std::size_t images = 0;       // that the maps hold, at most
    std::size_t interleaved = 1;  // images in the maps but that of the features; see kernels::Conv
    std::vector<std::shared_ptr<const AlignedBuffer>>
        transformed;  // Prepared::transformed() of steps that need it
    AlignedBuffer shared_scratch;
    std::vector<AlignedBuffer> private_scratch;  // per thread
    std::vector<std::atomic<bool>> not_finite;   // of the images in the maps; int8 only: see run_images()
    Results results;
  };

  template <typename Tiles>
  void run_all(const Tiles& tiles, const Outputs& outputs, const RunRecord& record);
  // Runs the tiles `images`, of at most Workspace::images.
  template <typename Tiles>
  void run_images(Workspace& workspace, const Tiles& tiles, Range images, const RunRecord& record);
  // Runs tile `tile` and those behind it, as images `first` and those behind it.
  template <typename Tiles>
  void run_stem(Workspace& workspace, const Tiles& tiles, std::size_t tile, std::size_t first,
                std::size_t count);
  void run_steps(Workspace& workspace, Range steps, std::size_t first, std::size_t count,
                 const RunRecord& record);
  void run_step(Workspace& workspace, std::size_t index, std::size_t first, std::size_t count);
  void run_direct(Workspace& workspace, const Step& step, const PackedLayer& packed,
                  const kernels::Epilogue& epilogue, std::size_t first, std::size_t count);
  void run_winograd(Workspace& workspace, std::size_t index, const kernels::Epilogue& epilogue,
                    std::size_t first, std::size_t count);
  void run_head(Workspace& workspace, Range images);
  void run_map_outputs(Workspace& workspace, Range images);

  kernels::Epilogue epilogue_of(Workspace& workspace, const Step& step, const PackedLayer& packed,
                                std::size_t first) const;
  [[nodiscard]] kernels::Strides strides(const Workspace& workspace, std::size_t map) const;
  // Pixel (0, 0) of image `image`.
  std::uint32_t* pixels(Workspace& workspace, std::size_t map, std::size_t image) const;
  // Images to interleave in maps of so many.
  [[nodiscard]] std::size_t interleaved(std::size_t images) const;
  WinogradTasks tasks_of(const Step& step, std::size_t count) const;
  // Whether so many images are too many to transform the weights of this step on the fly.
  bool needs_transformed(const Step& step, std::size_t images) const;
  // Bytes of the weights that step `index` reads for so many images.
  [[nodiscard]] std::size_t weight_bytes_of(const Workspace& workspace, std::size_t index,
                                            std::size_t images) const;

  // Allocates what up to `count` images need.
  void reserve(Workspace& workspace, std::size_t count);
  struct Scratch {
    std::size_t of_thread, shared;  // units
  };
  [[nodiscard]] Scratch scratch_for(std::size_t images) const;
  [[nodiscard]] std::size_t map_units(const Map& map, std::size_t images) const;
  [[nodiscard]] std::vector<std::size_t> buffers(std::size_t images) const;  // units of a workspace's

  // body(task, slot) for all tasks; slot, less than the number of threads, is never in use twice at a time.
  template <typename Body>
  void for_each(std::size_t tasks, const Body& body) {
    std::atomic<std::size_t> next{0};
    threads_->for_each(std::min<std::size_t>(tasks, threads_->threads()), [&](std::size_t slot) {
      for (std::size_t i = next.fetch_add(1, std::memory_order_relaxed); i < tasks;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        body(i, slot);
      }
    });
  }

  std::shared_ptr<ThreadPool> threads_;  // before `prepared_`, which packs its weights on them
  bool shares_threads_;                  // with copies of this
  std::shared_ptr<const Prepared> prepared_;
  Stem stem_;

  Exclusive<Workspace> workspace_;
  std::atomic<std::size_t> workspace_bytes_{0};
};

// Which of Winograd's algorithms `isa` has kernels for.
PerPrecision<AlgorithmSupport> algorithm_support(const IsaRecord& isa);

}  // namespace histo
