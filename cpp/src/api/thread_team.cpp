#include "histo/thread_team.h"

#include <utility>

#include "cpu/thread_pool.h"
#include "histo/cpu.h"
#include "histo/error.h"

namespace histo {
namespace {

unsigned threads_or_default(unsigned threads) { return threads == 0 ? usable_cpus() : threads; }

ParallelFor required(ParallelFor parallel_for) {
  if (!parallel_for) {
    throw Error(ErrorCode::invalid_argument, "parallel_for is empty", "give a function that runs a loop");
  }
  return parallel_for;
}

}  // namespace

ThreadTeam::ThreadTeam(const ThreadTeamOptions& options)
    : pool_(std::make_shared<ThreadPool>(ThreadPool::Options{.threads = threads_or_default(options.threads),
                                                             .cpus = options.cpus,
                                                             .name = options.name,
                                                             .host = {}})) {}

ThreadTeam::ThreadTeam(unsigned threads, ParallelFor parallel_for)
    : pool_(std::make_shared<ThreadPool>(ThreadPool::Options{.threads = threads_or_default(threads),
                                                             .cpus = {},
                                                             .name = {},
                                                             .host = required(std::move(parallel_for))})) {}

ThreadTeam::~ThreadTeam() = default;

unsigned ThreadTeam::threads() const noexcept { return pool_->threads(); }

}  // namespace histo
