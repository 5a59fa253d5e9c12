// The queue before an engine for Python: tiles are submitted one by one, and answers are taken in groups.
//
// The thread of the queue never waits for the GIL, however busy Python is: an answer goes into a list of C++,
// and the next batch begins. The threads that take answers wait without the GIL.

#include "histo/tile_queue.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "arrays.h"
#include "gil.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "register.h"

namespace bindings {
namespace {

using histo::TileQueueStats;

// TileAnswer in Python.
struct Answer {
  std::uint64_t id = 0;
  std::vector<float> logits;
  std::optional<std::string> error;
  bool cancelled = false;
};

// Answers that nobody has taken yet. A submission gets its place in a list before it is submitted, so that
// answering it needs no memory.
class Answers {
 public:
  using Place = std::list<Answer>::iterator;

  Place expect(std::size_t classes) {
    std::list<Answer> one(1);
    one.front().logits.resize(classes);
    const std::lock_guard lock(mutex_);
    expected_.splice(expected_.end(), one);
    return std::prev(expected_.end());
  }

  // Nothing was submitted.
  void forget(Place place) {
    const std::lock_guard lock(mutex_);
    expected_.erase(place);
    changed_.notify_all();
  }

  void put(Place place, const histo::TileAnswer& answer) {
    place->id = answer.id;
    std::copy(answer.logits.begin(), answer.logits.end(), place->logits.begin());
    if (answer.error != nullptr) {
      place->cancelled = answer.error->code() == histo::ErrorCode::cancelled;
      try {
        place->error = answer.error->what();
      } catch (const std::bad_alloc&) {
        place->error.emplace();
      }
    }
    const std::lock_guard lock(mutex_);
    ready_.splice(ready_.end(), expected_, place);
    changed_.notify_all();
  }

  // All that are ready, after at most `wait`; nullopt where none will come any more.
  std::optional<std::list<Answer>> take(std::chrono::milliseconds wait) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, wait, [this] { return !ready_.empty() || over(); });
    if (ready_.empty() && over()) {
      return std::nullopt;
    }
    return std::exchange(ready_, {});
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  [[nodiscard]] bool over() const { return closed_ && expected_.empty(); }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Answer> expected_;
  std::list<Answer> ready_;
  bool closed_ = false;
};

// TileQueue in Python. Its functions are called with the GIL.
class Queue {
 public:
  Queue(const histo::Engine& engine, const histo::TileQueueOptions& options)
      : classes_(engine.classes()),
        answers_(std::make_shared<Answers>()),
        queue_(std::make_shared<histo::TileQueue>(engine, options)) {
    open().insert(this);
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() { close(); }

  std::optional<std::uint64_t> try_submit(const py::object& given) {
    constexpr const char* axes = "(height, width, 3)";
    const py::array tile = array_of("tile", given);
    const auto bytes = view<std::uint8_t>("tile", tile, axes, 3);
    if (tile.shape(2) != 3) {
      throw py::value_error("tile has shape " + shape_of(tile) + "; " + axes + " is needed");
    }
    const std::size_t height = extent(tile, 0);
    const std::size_t width = extent(tile, 1);
    const std::shared_ptr<histo::TileQueue> queue = opened();  // another thread may close it meanwhile
    std::optional<std::uint64_t> id;
    {
      const Unlocked unlocked;
      const auto answers = answers_;
      const auto place = answers->expect(classes_);
      try {
        id = queue->try_submit(bytes, height, width,
                               [answers, place](const histo::TileAnswer& a) { answers->put(place, a); });
      } catch (...) {
        answers->forget(place);
        throw;
      }
      if (!id) {
        answers->forget(place);
      }
    }
    return id;
  }

  bool cancel(const py::object& given) {
    const py::int_ id = integer("id", given);
    if (id < py::int_(0) || id > py::int_(std::numeric_limits<std::uint64_t>::max())) {
      return false;
    }
    const auto number = id.cast<std::uint64_t>();
    const std::shared_ptr<histo::TileQueue> queue = queue_;
    const Unlocked unlocked;
    return queue != nullptr && queue->cancel(number);
  }

  void drain() {
    const std::shared_ptr<histo::TileQueue> queue = queue_;
    const Unlocked unlocked;
    if (queue != nullptr) {
      queue->drain();
    }
  }

  // The answers that are ready, at least one; stops where the queue is closed and all were taken.
  py::list next() {
    for (;;) {
      if (PyErr_CheckSignals() != 0) {
        throw py::error_already_set();
      }
      std::optional<std::list<Answer>> taken;
      {
        const auto answers = answers_;
        const Unlocked unlocked;
        taken = answers->take(std::chrono::milliseconds(50));
      }
      if (!taken) {
        throw py::stop_iteration();
      }
      if (!taken->empty()) {
        py::list result;
        for (Answer& answer : *taken) {
          result.append(py::cast(std::move(answer)));
        }
        return result;
      }
    }
  }

  [[nodiscard]] TileQueueStats stats() const { return queue_ == nullptr ? last_ : queue_->stats(); }

  void close() {
    open().erase(this);
    if (queue_ == nullptr) {
      return;
    }
    last_ = queue_->stats();
    std::shared_ptr<histo::TileQueue> queue = std::exchange(queue_, nullptr);
    const auto answers = answers_;
    const Unlocked unlocked;
    queue->cancel_all();  // a thread that is in drain() or try_submit() has the queue, too
    queue.reset();
    answers->close();
  }

  // Called when Python exits: the threads of the queues would outlive what they use.
  static void close_all() {
    while (!open().empty()) {
      (*open().begin())->close();
    }
  }

 private:
  // All queues that are not closed.
  static std::set<Queue*>& open() {
    static std::set<Queue*> all;
    return all;
  }

  [[nodiscard]] std::shared_ptr<histo::TileQueue> opened() const {
    if (queue_ == nullptr) {
      throw py::value_error("the queue is closed");
    }
    return queue_;
  }

  std::size_t classes_;
  std::shared_ptr<Answers> answers_;  // also owned by callbacks
  std::shared_ptr<histo::TileQueue> queue_;
  TileQueueStats last_;
};

std::unique_ptr<Queue> make_queue(const py::object& engine, const py::object& batch,
                                  const py::object& max_wait, const py::object& capacity) {
  constexpr double longest = 3600;
  constexpr double microseconds = 1e6;
  if (PyFloat_Check(max_wait.ptr()) == 0 && PyLong_Check(max_wait.ptr()) == 0) {
    wrong_type("max_wait", max_wait, "a number of seconds");
  }
  const auto seconds = max_wait.cast<double>();
  if (!(seconds >= 0 && seconds <= longest)) {
    throw py::value_error("max_wait is " + std::string(py::str(max_wait)) +
                          "; it must be a number of seconds from 0 to 3600");
  }
  const histo::TileQueueOptions options{
      .max_batch = at_least_one("batch", batch),
      .max_wait = std::chrono::microseconds(static_cast<std::int64_t>(seconds * microseconds)),
      .capacity = at_least_one("capacity", capacity)};
  return std::make_unique<Queue>(instance_of<histo::Engine>("engine", engine, "an Engine"), options);
}

// --- documentation ---------------------------------------------------------------------------------------

constexpr const char* queue_doc = R"(
A queue before an engine: any number of threads submit single tiles, which run in batches in the order of
submission. Each submission gets exactly one answer, with the logits that Engine.run() gives to the bit.

Iterate over the queue, in one thread, for the answers: each step is a list of the TileAnswer that have come since the
last one, and the iteration ends when the queue is closed and all answers were taken. The engine does not wait for the
thread that takes them, nor for the GIL.

A forked child makes a queue of its own.

Args:
    engine: the queue runs a copy of it, which shares its weights.
    batch: tiles per run of the engine, at most.
    max_wait: seconds that the oldest tile may wait for a full batch, at most 3600. 0: the engine never rests while a
        tile waits; tiles that arrive during a run make the next batch.
    capacity: tiles that may wait, besides the batch that runs.

Raises:
    TypeError, ValueError: an argument is of the wrong type or out of its range.
)";

constexpr const char* try_submit_doc = R"(
Submits a tile, of which the centre crop is copied.

Args:
    tile: C-contiguous uint8 RGB ``(height, width, 3)``, at least as large as the crop.

Returns:
    The id that its answer has; None where the queue is full.

Raises:
    TypeError, ValueError: the tile is of a wrong type, dtype or shape, or the queue is closed.
)";

}  // namespace

void register_tile_queue(py::module_& m) {
  py::class_<Answer>(m, "TileAnswer",
                     "The answer to a submission.\n\nExactly one of logits and error is None.")
      .def_readonly("id", &Answer::id, "What TileQueue.try_submit() returned.")
      .def_property_readonly(
          "logits",
          [](const Answer& answer) -> std::optional<py::array_t<float>> {
            if (answer.error) {
              return std::nullopt;
            }
            return py::array_t<float>(static_cast<py::ssize_t>(answer.logits.size()), answer.logits.data());
          },
          "float32 (classes,); None where the tile failed.")
      .def_readonly("error", &Answer::error, "Why the tile failed; None where it did not.")
      .def_readonly("cancelled", &Answer::cancelled, "Whether it failed because it was cancelled.")
      .def("__repr__", [](const Answer& answer) {
        return "<TileAnswer " + std::to_string(answer.id) + ": " +
               (answer.cancelled ? "cancelled"
                : answer.error   ? "failed"
                                 : counted(answer.logits.size(), "logit")) +
               ">";
      });

  py::class_<TileQueueStats>(m, "TileQueueStats", "What a queue has done so far.")
      .def_readonly("submitted", &TileQueueStats::submitted, "Tiles.")
      .def_readonly("answered", &TileQueueStats::answered, "Tiles, failed and cancelled ones included.")
      .def_readonly("failed", &TileQueueStats::failed, "Answered with an error other than by a cancellation.")
      .def_readonly("cancelled", &TileQueueStats::cancelled, "Answered because they were cancelled.")
      .def_readonly("batches", &TileQueueStats::batches, "That the engine ran.")
      .def_readonly("waiting", &TileQueueStats::waiting, "Tiles that wait for a batch.")
      .def("__repr__", [](const TileQueueStats& stats) {
        return "<TileQueueStats: " + counted(stats.submitted, "tile") + ", " +
               std::to_string(stats.answered) + " answered, " + counted(stats.batches, "batch", "batches") +
               ">";
      });

  py::class_<Queue>(m, "TileQueue", queue_doc)
      .def(py::init(&make_queue), py::arg("engine"), py::kw_only(), py::arg("batch") = 32,
           py::arg("max_wait") = 0.0, py::arg("capacity") = 1024)
      .def("try_submit", &Queue::try_submit, py::arg("tile"), try_submit_doc)
      .def("cancel", &Queue::cancel, py::arg("id"),
           "Answers a submission with an error now; False where it has its answer, or there never was one.")
      .def("drain", &Queue::drain,
           "Waits until every submission has its answer; meanwhile batches do not wait until they are full.")
      .def("close", &Queue::close,
           "Cancels what waits, ends the run of the engine before its next layer, and ends the iteration.")
      .def("__iter__", [](const py::object& self) { return self; })
      .def("__next__", &Queue::next)
      .def("__enter__", [](const py::object& self) { return self; })
      .def("__exit__", [](Queue& self, const py::args&) { self.close(); })
      .def_property_readonly("stats", &Queue::stats,
                             "The TileQueueStats; of a closed queue, those before it was closed.")
      .def("__repr__", [](const Queue& self) {
        const TileQueueStats stats = self.stats();
        return "<TileQueue: " + counted(stats.submitted, "tile") + ", " + std::to_string(stats.waiting) +
               " waiting>";
      });

  py::module_::import("atexit").attr("register")(py::cpp_function(&Queue::close_all));
}

}  // namespace bindings
