/// \file
/// Threads that engines share, with names and CPUs of their own or those of the host.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "histo/api.h"

namespace histo {

class ThreadPool;

/// What a ThreadTeam is made with; the defaults are those of an Engine without a team.
struct ThreadTeamOptions {
  unsigned threads = 0;  ///< that a loop runs on, the caller's included; 0: usable_cpus(). At most 4096

  /// Numbers of the CPUs that the threads may run on, the caller's excepted; empty: those of the thread that
  /// starts them. On Linux alone.
  std::vector<unsigned> cpus{};

  /// What debuggers and top call the threads, the caller's excepted. Linux shows 15 bytes of it.
  std::string name = "histo";
};

/// A loop of the host: calls `body()` up to `threads` times at once, on threads of its own and perhaps on the
/// caller's, and returns when these calls have returned.
///
/// Each call takes parts of the work until none is left, and the caller does what nobody took. So nothing is
/// wrong where the host makes fewer calls, or none at all because its threads are busy; where it makes more;
/// or where a call begins after the loop has ended. When the team and the engines of it go, no call may be
/// running or begin any more.
///
/// While the caller waits for the loop, it must not do other work of the host that calls the same engine or
/// its queue: that call would wait for the run of which it is a part.
///
/// \code
/// const histo::ParallelFor on_tbb = [](std::size_t threads, const std::function<void()>& body) {
///   tbb::this_task_arena::isolate(
///       [&] { tbb::parallel_for(std::size_t{0}, threads, [&](std::size_t) { body(); }); });
/// };
/// \endcode
///
/// It is called in the floating-point environment of the library, which its threads get back as it was. An
/// exception that leaves it comes out of the call of the engine.
using ParallelFor = std::function<void(std::size_t threads, const std::function<void()>& body)>;

/// Threads that loops run on. Engines of one team, and their copies, use the same threads: see
/// EngineOptions::team. Where several of them run at the same time, each loop (about two in a layer) has the
/// team for itself if it is free, and runs on the caller's thread alone if not. Results do not depend on it.
///
/// No thread is started before a loop needs it; making an Engine, which packs its weights, is the first use.
/// The threads sleep between runs, have signals blocked, and end with the last engine and the last handle of
/// the team. In a forked child loops run on the caller's thread alone.
///
/// \code
/// const auto team = std::make_shared<histo::ThreadTeam>(histo::ThreadTeamOptions{.threads = 4});
/// const histo::Engine tumour(tumour_model, {.team = team});
/// const histo::Engine grade(grade_model, {.team = team});
/// \endcode
class HISTO_API ThreadTeam {
 public:
  /// Threads of the library.
  /// \throws Error  invalid_argument for more than 4096 threads
  /// Later, at the first loop: unsupported where the system does not start that many threads, or cannot bind
  /// them to CPUs; invalid_argument where the calling thread may not run on one of `cpus` itself.
  explicit ThreadTeam(const ThreadTeamOptions& options = {});

  /// Threads of the host. `parallel_for` may be called by several threads at once, but not for one team.
  /// \param threads  that a loop is divided between; 0: usable_cpus()
  /// \throws Error   invalid_argument for more than 4096 threads, or where `parallel_for` is empty
  ThreadTeam(unsigned threads, ParallelFor parallel_for);

  // Shared, and not copied: see EngineOptions::team.
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  ~ThreadTeam();

  [[nodiscard]] unsigned threads() const noexcept;

 private:
  friend class Engine;
  std::shared_ptr<ThreadPool> pool_;
};

}  // namespace histo
