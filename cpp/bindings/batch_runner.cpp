// The batch loop for Python: tiles from arrays, iterators and callbacks, run by an engine or by any callable.
//
// The loop's threads hold the GIL only while they run Python code. Python objects are created, copied and
// released only with the GIL: the objects that the callbacks need belong to objects that Python destroys, and
// the std::functions hold plain pointers. Callbacks are called by call(), because the interpreter may end
// meanwhile: see gil.h.

#include "histo/batch_runner.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arguments.h"
#include "arrays.h"
#include "gil.h"
#include "histo/error.h"
#include "histo/names.h"
#include "register.h"

namespace bindings {
namespace {

using histo::BatchRunnerStats;
using Side = std::pair<std::size_t, std::size_t>;

[[noreturn]] void raise(PyObject* type, const std::string& message) {
  py::set_error(type, message.c_str());
  throw py::error_already_set();
}

// "ValueError: its message", like the last line of a traceback.
std::string text_of(const py::handle& exception) {
  return type_of(exception) + ": " + std::string(py::str(exception));
}

// The exception with its traceback, which Python before 3.12 stores separately.
py::object exception_of(const py::error_already_set& error) {
  if (error.trace()) {
    PyException_SetTraceback(error.value().ptr(), error.trace().ptr());
  }
  return error.value();
}

// --- the tiles -------------------------------------------------------------------------------------------

bool is_byte_array(const py::handle& object) { return py::isinstance<py::array_t<std::uint8_t>>(object); }

// Height and width of one tile; raises TypeError or ValueError where it is not one.
Side side_of(const py::handle& tile) {
  if (!py::isinstance<py::array>(tile)) {
    raise(PyExc_TypeError, "a tile is " + type_of(tile) + "; a uint8 array (height, width, 3) is needed");
  }
  const auto array = py::reinterpret_borrow<py::array>(tile);
  if (!is_byte_array(array)) {
    raise(PyExc_TypeError, "a tile has dtype " + dtype_of(array) + "; uint8 is needed");
  }
  if (array.ndim() != 3 || array.shape(2) != 3) {
    raise(PyExc_ValueError, "a tile has shape " + shape_of(array) + "; (height, width, 3) is needed");
  }
  return {extent(array, 0), extent(array, 1)};
}

// The argument `shape`: None, or height and width.
std::optional<Side> side_of_shape(const py::object& shape) {
  if (shape.is_none()) {
    return std::nullopt;
  }
  if (!py::isinstance<py::sequence>(shape) || py::len(shape) != 2) {
    wrong_type("shape", shape, "(height, width)");
  }
  return Side(at_least_one("height", shape[py::int_(0)]), at_least_one("width", shape[py::int_(1)]));
}

// A copy where the array is not C-contiguous.
template <typename T>
py::array_t<T> contiguous(const py::handle& array) {
  auto result = py::array_t<T, py::array::c_style>::ensure(array);
  if (!result) {
    raise(PyExc_MemoryError, "there is not enough memory for a copy of an array");
  }
  return result;
}

// An array, an iterable or a callback as a stream of tiles. With the GIL, except for copy_next().
class Tiles {
 public:
  Tiles(const py::object& source, const std::optional<Side>& side, histo::OnError on_error)
      : on_error_(on_error) {
    if (py::isinstance<py::array>(source)) {
      take_array(py::reinterpret_borrow<py::array>(source), side);
    } else if (py::hasattr(source, "__iter__")) {
      next_ = py::iter(source).attr("__next__");
    } else if (PyCallable_Check(source.ptr()) != 0) {
      next_ = source;
      ends_with_none_ = true;
    } else {
      raise(PyExc_TypeError, "source is " + type_of(source) +
                                 "; a uint8 array (tiles, height, width, 3), an iterable of uint8 arrays "
                                 "(height, width, 3) or a function that returns them is needed");
    }
    if (next_) {
      side_ = side ? *side : first_side();
    }
  }

  [[nodiscard]] Side side() const { return side_; }

  // Whether the tiles lie in one array. Then call copy_next(), which needs no GIL; else call next().
  [[nodiscard]] bool in_one_array() const { return !next_; }

  bool copy_next(std::span<std::uint8_t> tile) {
    if (left_ == 0) {
      return false;
    }
    std::memcpy(tile.data(), bytes_, tile.size());
    bytes_ += tile.size();
    --left_;
    return true;
  }

  bool next(std::span<std::uint8_t> tile) {
    const py::object item = pull();
    if (!item) {
      return false;
    }
    if (PyExceptionInstance_Check(item.ptr())) {
      PyErr_SetObject(py::type::handle_of(item).ptr(), item.ptr());
      throw py::error_already_set();
    }
    if (side_of(item) != side_) {
      raise(PyExc_ValueError, "a tile has shape " + shape_of(py::reinterpret_borrow<py::array>(item)) +
                                  "; the loop runs on tiles of (" + std::to_string(side_.first) + ", " +
                                  std::to_string(side_.second) + ", 3)");
    }
    // The tile is copied here in any case, so it may have any strides.
    std::memcpy(tile.data(), contiguous<std::uint8_t>(item).data(), tile.size());
    return true;
  }

 private:
  void take_array(const py::array& array, const std::optional<Side>& side) {
    if (!is_byte_array(array)) {
      raise(PyExc_TypeError, "source has dtype " + dtype_of(array) + "; uint8 is needed");
    }
    if (array.ndim() != 4 || array.shape(3) != 3) {
      raise(PyExc_ValueError,
            "source has shape " + shape_of(array) + "; (tiles, height, width, 3) is needed");
    }
    side_ = {extent(array, 1), extent(array, 2)};
    if (side && *side != side_) {
      raise(PyExc_ValueError, "shape contradicts source, which has shape " + shape_of(array));
    }
    if ((array.flags() & py::array::c_style) != 0) {
      array_ = array;
      bytes_ = static_cast<const std::uint8_t*>(array.data());
      left_ = extent(array, 0);
    } else {  // tile by tile, because a contiguous copy of the array may not fit into memory
      next_ = py::iter(array).attr("__next__");
    }
  }

  // The next item; null at the end.
  py::object pull() {
    if (pulled_.empty()) {
      return fetch();
    }
    py::object item = std::move(pulled_.front());
    pulled_.pop_front();
    return item;
  }

  // The next item from the source itself; null at the end.
  py::object fetch() {
    try {
      py::object item = call(next_);
      return ends_with_none_ && item.is_none() ? py::object() : item;
    } catch (const py::error_already_set& error) {
      if (error.matches(PyExc_StopIteration)) {
        return {};
      }
      throw;
    }
  }

  // The side of the first tile that is not lost. The items up to it stay in the stream, a lost tile as its
  // exception.
  Side first_side() {
    for (;;) {
      try {
        const py::object item = fetch();
        if (!item) {
          break;
        }
        const bool lost = PyExceptionInstance_Check(item.ptr()) != 0;
        const Side side = lost ? Side() : side_of(item);
        pulled_.push_back(item);
        if (!lost) {
          return side;
        }
      } catch (const py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) {
          throw;
        }
        pulled_.push_back(exception_of(error));
      }
      if (on_error_ == histo::OnError::stop) {
        break;
      }
    }
    return {1, 1};  // unused: no tile will be copied
  }

  histo::OnError on_error_;
  py::array array_;
  const std::uint8_t* bytes_ = nullptr;  // of the tiles in `array_` that are left
  std::size_t left_ = 0;
  py::object next_;
  bool ends_with_none_ = false;
  std::deque<py::object> pulled_;
  Side side_;
};

// --- the runtime -----------------------------------------------------------------------------------------

// BatchRunner in Python: a loop over an engine, or the settings for a loop over the Python function `infer`.
struct Runner {
  static constexpr py::ssize_t most_classes = 1'000'000;

  std::optional<histo::BatchRunner> over_engine;
  py::object infer;
  std::size_t classes = 0;
  histo::BatchRunnerOptions options;
};

std::unique_ptr<Runner> make_runner(const py::object& runtime, const py::object& given_classes,
                                    const py::object& batch, const py::object& queued,
                                    const py::object& on_error) {
  const std::optional<std::size_t> classes =
      at_least_one_or_none("classes", given_classes, Runner::most_classes);
  auto runner = std::make_unique<Runner>();
  runner->options = {.batch = at_least_one("batch", batch),
                     .queued = at_least_one("queued", queued),
                     .on_error = one_of<histo::OnError>("on_error", on_error)};
  if (py::isinstance<histo::Engine>(runtime)) {
    const auto& engine = runtime.cast<const histo::Engine&>();
    if (classes && *classes != engine.classes()) {
      raise(PyExc_ValueError, "classes is " + std::to_string(*classes) + "; the engine has " +
                                  std::to_string(engine.classes()));
    }
    runner->over_engine.emplace(engine, runner->options);
    return runner;
  }
  runner->infer = py::hasattr(runtime, "run") ? py::object(runtime.attr("run")) : runtime;
  if (PyCallable_Check(runner->infer.ptr()) == 0) {
    raise(PyExc_TypeError, "runtime is " + type_of(runtime) +
                               "; an Engine, an object with a method run(tiles) or a function is needed");
  }
  if (!classes) {
    raise(PyExc_TypeError, "classes is missing; only an Engine has this number itself");
  }
  runner->classes = *classes;
  return runner;
}

// --- one run ---------------------------------------------------------------------------------------------

// One run of the loop over Python objects. Constructed and destroyed with the GIL, run without it.
class Loop {
 public:
  Loop(const Runner& runner, const py::object& source, const std::optional<Side>& side, py::object progress)
      : runner_(runner), tiles_(source, side, runner.options.on_error), progress_(std::move(progress)) {
    if (!progress_.is_none() && PyCallable_Check(progress_.ptr()) == 0) {
      raise(PyExc_TypeError, "progress is " + type_of(progress_) + "; a function or None is needed");
    }
  }

  // Raises the exception of a callback: see BatchRunner::run() and the documentation below.
  BatchRunnerStats run(const histo::TileSink& sink, const histo::Progress& watch) {
    const histo::TileSource source = [this](std::span<std::uint8_t> tile) { return next(tile); };
    const histo::Progress progress = [this, &watch](const BatchRunnerStats& stats) {
      return watch(stats) && report(stats);
    };
    const auto [height, width] = tiles_.side();
    try {
      const BatchRunnerStats stats = runner_.over_engine
                                         ? runner_.over_engine->run(height, width, source, sink, progress)
                                         : over_python().run(height, width, source, sink, progress);
      raise_fatal();
      return stats;
    } catch (const histo::Error& error) {
      raise_fatal();
      if (error.code() == histo::ErrorCode::failed) {
        raise_kept(error.what());
      }
      throw;
    }
  }

 private:
  histo::BatchRunner over_python() {
    return histo::BatchRunner([this](auto tiles, auto shape, auto logits) { infer(tiles, shape, logits); },
                              runner_.classes, runner_.options);
  }

  bool next(std::span<std::uint8_t> tile) {
    if (tiles_.in_one_array()) {
      return tiles_.copy_next(tile);
    }
    return guarded(source_error_, [&] { return tiles_.next(tile); });
  }

  void infer(std::span<const std::uint8_t> tiles, histo::TileShape shape, std::span<float> logits) {
    guarded(infer_error_, [&] {
      // A copy, because the function may keep the array for longer than the loop keeps the tiles.
      py::array_t<std::uint8_t> input({shape.batch, shape.height, shape.width, std::size_t{3}});
      std::memcpy(input.mutable_data(), tiles.data(), tiles.size());
      const py::object output = call(runner_.infer, input);
      if (!py::isinstance<py::array>(output)) {
        raise(PyExc_TypeError, "the runtime returned " + type_of(output) + "; a float32 array is needed");
      }
      const auto array = py::reinterpret_borrow<py::array>(output);
      if (!py::isinstance<py::array_t<float>>(array)) {
        raise(PyExc_TypeError, "the runtime's logits have dtype " + dtype_of(array) + "; float32 is needed");
      }
      if (array.ndim() != 2 || extent(array, 0) != shape.batch || extent(array, 1) != runner_.classes) {
        raise(PyExc_ValueError, "the runtime's logits have shape " + shape_of(array) + "; (" +
                                    std::to_string(shape.batch) + ", " + std::to_string(runner_.classes) +
                                    ") is needed");
      }
      std::memcpy(logits.data(), contiguous<float>(array).data(), logits.size_bytes());
      return true;
    });
  }

  // Python's signal handlers run here if run() was called in the main thread.
  bool report(const BatchRunnerStats& stats) {
    raise_fatal();
    const Locked locked;
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
    return progress_.is_none() || !call(progress_, py::cast(stats)).is(py::bool_(false));
  }

  // Calls `work` with the GIL. Its exception is stored in `kept`, because the loop passes on the text only.
  // KeyboardInterrupt and SystemExit are not a failure of a tile: they end the loop under any `on_error`.
  template <typename Work>
  bool guarded(py::object& kept, const Work& work) {
    const Locked locked;
    try {
      return work();
    } catch (const py::error_already_set& error) {
      kept = exception_of(error);
      if (!error.matches(PyExc_Exception)) {
        const std::lock_guard lock(mutex_);
        fatal_ = std::current_exception();
      }
      throw std::runtime_error(text_of(kept));
    }
  }

  void raise_fatal() {
    const std::lock_guard lock(mutex_);
    if (fatal_) {
      std::rethrow_exception(fatal_);
    }
  }

  // `what` begins with the name of the tile. Where both the source and the runtime failed, the tiles of the
  // runtime's failure came first.
  void raise_kept(const std::string& what) {
    const Locked locked;
    const py::object& error = infer_error_ ? infer_error_ : source_error_;
    if (error) {
      error.attr("add_note")("in the batch loop, at " + what.substr(0, what.find(": ")));
      PyErr_SetObject(py::type::handle_of(error).ptr(), error.ptr());
      throw py::error_already_set();
    }
  }

  const Runner& runner_;
  Tiles tiles_;
  py::object progress_;
  py::object source_error_;
  py::object infer_error_;
  std::mutex mutex_;
  std::exception_ptr fatal_;
};

// --- results by callback ---------------------------------------------------------------------------------

// TileResult in Python.
struct Result {
  std::size_t index;
  std::vector<float> logits;
  std::optional<std::string> error;

  explicit Result(const histo::TileResult& tile)
      : index(tile.index),
        logits(tile.logits.begin(), tile.logits.end()),
        error(tile.error == nullptr ? std::nullopt : std::optional(*tile.error)) {}
};

BatchRunnerStats run_to_sink(const Runner& runner, const py::object& source, const py::object& sink,
                             const py::object& shape, const py::object& progress) {
  if (PyCallable_Check(sink.ptr()) == 0) {
    raise(PyExc_TypeError, "sink is " + type_of(sink) + "; a function of a TileResult is needed");
  }
  Loop loop(runner, source, side_of_shape(shape), progress);
  const Unlocked unlocked;
  return loop.run(
      [&sink](const histo::TileResult& tile) {
        const Locked locked;
        call(sink, py::cast(Result(tile)));
      },
      [](const BatchRunnerStats&) { return true; });
}

// --- results by iteration --------------------------------------------------------------------------------

// BatchResults in Python: the loop in a thread of its own, and a bounded queue of its results. No thread
// waits for the GIL while it holds the mutex.
class Results {
 public:
  Results(py::object runner, const py::object& source, const std::optional<Side>& shape, py::object progress)
      : runner_(std::move(runner)),
        loop_(runner_.cast<const Runner&>(), source, shape, std::move(progress)),
        limit_(runner_.cast<const Runner&>().options.batch * runner_.cast<const Runner&>().options.queued),
        thread_([this] { work(); }) {}
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;
  ~Results() { close(); }

  Result next() {
    for (;;) {
      if (PyErr_CheckSignals() != 0) {  // each time, because list() and similar callers do not check
        cancel();
        throw py::error_already_set();
      }
      std::optional<Result> result;
      std::exception_ptr error;
      bool over = false;
      {
        const Unlocked unlocked;
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, std::chrono::milliseconds(50),
                          [this] { return !results_.empty() || ended_ || closed_; });
        if (!closed_ && !results_.empty()) {
          result = std::move(results_.front());
          results_.pop_front();
          changed_.notify_all();
        } else if (closed_ || ended_) {
          over = true;
          error = std::exchange(error_, nullptr);
        }
      }
      if (result) {
        return *std::move(result);
      }
      if (error) {
        std::rethrow_exception(error);
      }
      if (over) {
        throw py::stop_iteration();
      }
    }
  }

  [[nodiscard]] BatchRunnerStats stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  // Ends the loop and waits until its threads have ended. Several threads may close one object: the one that
  // destroys it must not do so while another one still waits, as close_all() may.
  void close() {
    cancel();
    if (thread_id_ == std::this_thread::get_id()) {
      return;  // called by `progress`
    }
    open().erase(this);
    const Unlocked unlocked;
    const std::lock_guard lock(joining_);
    if (thread_.joinable()) {
      thread_.join();
    }
  }

  // Called when Python exits: it does not wait for these threads, which must not call it afterwards.
  static void close_all() {
    while (!open().empty()) {
      (*open().begin())->close();
    }
  }

  // All objects whose loop may be running. Call it with the GIL.
  static std::set<Results*>& open() {
    static std::set<Results*> all;
    return all;
  }

 private:
  struct Cancelled {};

  void cancel() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

  void work() {
    std::exception_ptr error;
    try {
      const BatchRunnerStats stats = loop_.run([this](const histo::TileResult& tile) { deliver(tile); },
                                               [this](const BatchRunnerStats& now) { return watch(now); });
      watch(stats);
    } catch (const Cancelled&) {
      // cancel() was called, and no caller waits for a result
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    error_ = std::exchange(error, nullptr);
    ended_ = true;
    changed_.notify_all();
  }

  void deliver(const histo::TileResult& tile) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return results_.size() < limit_ || closed_; });
    if (closed_) {
      throw Cancelled();
    }
    results_.emplace_back(tile);
    changed_.notify_all();
  }

  bool watch(const BatchRunnerStats& stats) {
    const std::lock_guard lock(mutex_);
    stats_ = stats;
    return !closed_;
  }

  py::object runner_;
  Loop loop_;
  std::size_t limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Result> results_;
  BatchRunnerStats stats_;
  std::exception_ptr error_;
  bool ended_ = false;
  bool closed_ = false;
  std::mutex joining_;  // of `thread_`
  std::thread thread_;
  const std::thread::id thread_id_ = thread_.get_id();
};

std::unique_ptr<Results> results(py::object runner, const py::object& source, const py::object& shape,
                                 py::object progress) {
  auto made = std::make_unique<Results>(std::move(runner), source, side_of_shape(shape), std::move(progress));
  Results::open().insert(made.get());
  return made;
}

std::string progress_text(const BatchRunnerStats& stats) {
  return counted(stats.tiles, "tile") + ", " + std::to_string(stats.failed) + " failed, " +
         counted(stats.batches, "batch", "batches");
}

// --- documentation ---------------------------------------------------------------------------------------

constexpr const char* runner_doc = R"(
The batch inference loop: takes tiles and delivers logits in the same order. Preparing, inference and delivery
overlap.

Memory is bounded by ``(2 * queued + 3) * batch`` tiles, however many there are.

Args:
    runtime: an Engine (the loop runs a copy, which shares its weights); or an object with a method ``run`` or
        a function that takes uint8 ``(n, height, width, 3)`` and returns float32 ``(n, classes)``, called from
        one thread of the loop.
    classes: logits per tile, at most 1,000,000; needed unless ``runtime`` is an Engine.
    batch: tiles per call of the runtime; the last batch may be smaller.
    queued: batches that may wait between two stages.
    on_error: "stop" ends the loop at the first tile that fails and raises its exception; "report" delivers that
        tile with an error, and the loop continues. If a batch fails, all of its tiles fail.
)";

constexpr const char* run_doc = R"(
Runs until the source ends, and returns when every result has been delivered.

Args:
    source: the tiles, all of one size: a uint8 array ``(tiles, height, width, 3)``, which is read in place; an
        iterable of uint8 arrays ``(height, width, 3)``, which are copied; or a function that returns one such
        array at each call, and None at the end. An exception object in the place of a tile, or None in an
        iterable, means that this tile is lost. So does an exception that the source raises, but a generator ends
        with it.
    sink: called with each TileResult, in order, in the calling thread.
    shape: ``(height, width)`` of the tiles. None means that of the first tile, which is then read in the calling
        thread; the others are read in a thread of the loop.
    progress: called with the BatchRunnerStats in the calling thread after each delivered batch and at least
        every 100 ms; returning False cancels.

Returns:
    The totals of the loop.

Raises:
    Exception: the exception of a callback, unchanged, after all threads have ended; under "stop" with a note that
        names the tile. A failure of an engine is a RuntimeError that names the tile.
    KeyboardInterrupt: Ctrl-C takes effect within 100 ms and ends the loop after the current batch.
    RuntimeError: ``progress`` returned False.
    TypeError, ValueError: an argument is of the wrong type or out of its range.
)";

constexpr const char* results_doc = R"(
The same as an iterator over the results, for a ``for`` loop.

The loop runs ahead by a bounded number of tiles, in a thread of its own, which also calls ``progress``. If the
iteration stops early, the loop ends at once with ``close()`` or at the end of a ``with`` statement, else when the
iterator is deleted.

Returns:
    An iterator of TileResult that raises the exceptions of run().
)";

}  // namespace

void register_batch_runner(py::module_& m) {
  py::class_<BatchRunnerStats>(
      m, "BatchRunnerStats",
      "The progress of the loop, or its totals.\n\nThe stages overlap, so the sum of their times may exceed "
      "`seconds`.")
      .def_readonly("tiles", &BatchRunnerStats::tiles, "Delivered, including the failed ones.")
      .def_readonly("failed", &BatchRunnerStats::failed, "Delivered with an error.")
      .def_readonly("batches", &BatchRunnerStats::batches, "That the runtime ran.")
      .def_readonly("seconds", &BatchRunnerStats::seconds, "Since run() was called.")
      .def_readonly("prepare_seconds", &BatchRunnerStats::prepare_seconds, "Spent in the source.")
      .def_readonly("infer_seconds", &BatchRunnerStats::infer_seconds, "Spent in the runtime.")
      .def_readonly("deliver_seconds", &BatchRunnerStats::deliver_seconds, "Spent in the sink.")
      .def_property_readonly("tiles_per_second", &BatchRunnerStats::tiles_per_second,
                             "0 before time has passed.")
      .def("__repr__",
           [](const BatchRunnerStats& stats) { return "<BatchRunnerStats: " + progress_text(stats) + ">"; });

  py::class_<Result>(m, "TileResult", "The result for a tile.\n\nExactly one of logits and error is None.")
      .def_readonly("index", &Result::index, "Counted from 0 in the order of the source.")
      .def_property_readonly(
          "logits",
          [](const Result& result) -> std::optional<py::array_t<float>> {
            if (result.error) {
              return std::nullopt;
            }
            return py::array_t<float>(static_cast<py::ssize_t>(result.logits.size()), result.logits.data());
          },
          "float32 (classes,); None where the tile failed.")
      .def_readonly("error", &Result::error, "Why the tile failed; None where it did not.")
      .def("__repr__", [](const Result& result) {
        return "<TileResult " + std::to_string(result.index) + ": " +
               (result.error ? "failed" : counted(result.logits.size(), "logit")) + ">";
      });

  py::class_<Results>(m, "BatchResults",
                      "The results of BatchRunner.results(), in order.\n\nMay be used in a `with` statement.")
      .def("__iter__", [](const py::object& self) { return self; })
      .def("__next__", &Results::next)
      .def("__enter__", [](const py::object& self) { return self; })
      .def("__exit__", [](Results& self, const py::args&) { self.close(); })
      .def("close", &Results::close, "Ends the loop after the current batch and waits for its threads.")
      .def_property_readonly("stats", &Results::stats, "The progress of the loop, or its totals.")
      .def("__repr__", [](Results& self) { return "<BatchResults: " + progress_text(self.stats()) + ">"; });

  py::class_<Runner>(m, "BatchRunner", runner_doc)
      .def(py::init(&make_runner), py::arg("runtime"), py::arg("classes") = py::none(), py::kw_only(),
           py::arg("batch") = 32, py::arg("queued") = 2, py::arg("on_error") = "stop")
      .def("run", &run_to_sink, py::arg("source"), py::arg("sink"), py::kw_only(),
           py::arg("shape") = py::none(), py::arg("progress") = py::none(), run_doc)
      .def("results", &results, py::arg("source"), py::kw_only(), py::arg("shape") = py::none(),
           py::arg("progress") = py::none(), results_doc)
      .def("__repr__", [](const Runner& runner) {
        return std::string("<BatchRunner: ") + (runner.over_engine ? "an Engine" : "a Python function") +
               ", batches of " + counted(runner.options.batch, "tile") + ", on_error " +
               std::string(name(runner.options.on_error)) + ">";
      });

  py::module_::import("atexit").attr("register")(py::cpp_function(&Results::close_all));
}

}  // namespace bindings
