#include "histo/torch_runtime.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <new>
#include <string_view>
#include <utility>

#include "checks.h"
#include "histo/error.h"

namespace histo {
namespace {

// The profiling executor records shapes in the first run and compiles in the second; the third runs the
// result.
constexpr int warmup_runs = 3;

// libtorch's messages fill pages. In those of the interpreter, the last line names the fault; in all others,
// the first does.
std::string one_line(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
    text.remove_suffix(1);
  }
  const bool interpreter = text.find("Traceback of TorchScript") != std::string_view::npos;
  const std::size_t end = interpreter ? text.rfind('\n') : text.find('\n');
  if (end == std::string_view::npos) {
    return std::string(text);
  }
  return std::string(interpreter ? text.substr(end + 1) : text.substr(0, end));
}

constexpr const char* export_again = "export the model again with this version of torch";
constexpr const char* less_memory = "use smaller batches";

// Runs `work`; an exception of libtorch becomes an Error with `code` and `remedy`.
template <typename Work>
auto translated(const std::string& what, ErrorCode code, const char* remedy, Work work) {
  const auto message = [&what](const char* reason) { return what + ": " + one_line(reason); };
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc& error) {
    throw Error(ErrorCode::out_of_memory, message(error.what()), less_memory);
  } catch (const c10::OutOfMemoryError& error) {
    throw Error(ErrorCode::out_of_memory, message(error.what_without_backtrace()), less_memory);
  } catch (const c10::Error& error) {
    throw Error(code, message(error.what_without_backtrace()), remedy);
  } catch (const std::exception& error) {
    throw Error(code, message(error.what()), remedy);
  }
}

void check_readable(const std::filesystem::path& file) {
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) {
    throw Error(ErrorCode::io, file.string() + " is a folder", "give the path of a file");
  }
  if (!std::ifstream(file, std::ios::binary)) {
    throw Error(ErrorCode::io, file.string() + " cannot be opened for reading",
                "check the path and its permissions");
  }
}

c10::Device checked_device(const std::string& name) {
  const auto device = [&name]() -> std::optional<c10::Device> {
    try {
      return c10::Device(name);
    } catch (const c10::Error&) {
      return std::nullopt;
    }
  }();
  if (!device || !(device->is_cuda() || name == "cpu")) {
    throw Error(ErrorCode::invalid_argument, "device \"" + name + "\" is unknown",
                "choose from cpu, cuda, cuda:N");
  }
  if (device->is_cpu()) {
    return *device;
  }
  const std::size_t gpus = at::hasCUDA() ? at::getNumGPUs() : 0;
  const c10::Device chosen(c10::kCUDA, device->has_index() ? device->index() : c10::DeviceIndex{0});
  if (static_cast<std::size_t>(chosen.index()) >= gpus) {
    throw Error(ErrorCode::unsupported,
                "device \"" + name + "\" is not available: libtorch sees " +
                    (gpus == 0 ? "no GPU" : std::to_string(gpus) + " GPUs") + " here",
                gpus == 0 ? "use cpu" : "choose a GPU from 0 to " + std::to_string(gpus - 1));
  }
  return chosen;
}

std::vector<std::int64_t> sizes(std::initializer_list<std::size_t> extents) {
  return {extents.begin(), extents.end()};
}

// The network of a file that takes bytes, for floats: its stem has a second method for them.
torch::jit::Module with_stem_of_floats(const torch::jit::Module& stages) {
  torch::jit::Module network("network_of_floats");
  for (const std::string_view name : stage_names) {
    network.register_module(std::string(name), stages.attr(std::string(name)).toModule());
  }
  network.define(R"(def forward(self, tiles):
    x = self.stem.of_floats(tiles)
    x = self.layer2.forward(self.layer1.forward(x))
    return self.head.forward(self.layer4.forward(self.layer3.forward(x)))
)");
  network.eval();
  return network;
}

}  // namespace

struct TorchRuntime::State {
  c10::Device device;
  int threads;
  torch::jit::Module stages;             // as loaded; shares its weights with the others
  torch::jit::Module network;            // frozen
  torch::jit::Module network_of_floats;  // the same, unless the file takes bytes
  bool bytes;                            // whether the file takes bytes
  std::size_t crop;
  std::size_t tile_size;  // that all tiles have; 0 in files of older versions, which take larger tiles too
  std::size_t classes;
  at::Tensor
      white;  // 255 on the device. CUDA divides by it; by a number on the host it would multiply by 1/255

  State(const std::filesystem::path& file, const TorchOptions& options)
      : device(checked_device(options.device)), threads(static_cast<int>(options.threads)) {
    if (device.is_cuda()) {
      at::globalContext().setAllowTF32CuDNN(false);
      at::globalContext().setAllowTF32CuBLAS(false);
    }
    check_readable(file);
    translated(file.string() + " is not readable TorchScript", ErrorCode::invalid_file, export_again, [&] {
      stages = torch::jit::load(file.string(), device);
      stages.eval();
    });
    translated(file.string() + " is not a network that histo export wrote", ErrorCode::invalid_file,
               export_again, [&] {
                 torch::jit::Module stem = stages.attr("stem").toModule();
                 bytes = stem.attr("bytes").toBool();
                 const std::int64_t side = stem.attr("crop").toInt();
                 const std::int64_t whole = stem.hasattr("tile_size") ? stem.attr("tile_size").toInt() : 0;
                 const at::Tensor weight =
                     stages.attr("head").toModule().attr("linear").toModule().attr("weight").toTensor();
                 for (const std::string_view name : stage_names) {  // each is a child of the exported network
                   static_cast<void>(stages.attr(std::string(name)).toModule().get_method("forward"));
                 }
                 if (side < 1 || whole < 0 || weight.dim() != 2 || weight.size(0) < 1 ||
                     weight.scalar_type() != at::kFloat) {
                   throw Error(ErrorCode::invalid_file,
                               file.string() + " has a crop or a head of an impossible shape", export_again);
                 }
                 crop = static_cast<std::size_t>(side);
                 tile_size = static_cast<std::size_t>(whole);
                 classes = static_cast<std::size_t>(weight.size(0));
                 // optimize_for_inference() is not called: it rewrites the graph for oneDNN, without a
                 // measured gain here.
                 network = torch::jit::freeze(stages);
                 network_of_floats = network;
                 if (bytes && tile_size > 0) {
                   network_of_floats = torch::jit::freeze(with_stem_of_floats(stages));
                 } else if (bytes) {  // an older version's, which branches
                   stem.setattr("bytes", false);
                   network_of_floats = torch::jit::freeze(stages);
                   stem.setattr("bytes", true);
                 }
               });
    white = translated(options.device, ErrorCode::failed, "see histo doctor",
                       [&] { return at::scalar_tensor(255, at::TensorOptions(at::kFloat).device(device)); });
  }

  // Throws the same errors as Engine::run() for tiles that do not fit.
  template <typename T>
  void check(std::span<const T> tiles, TileShape shape) const {
    const std::size_t size = checked_size(
        "tiles", {{"batch", shape.batch}, {"height", shape.height}, {"width", shape.width}, {"channels", 3}});
    const bool fit = tile_size > 0 ? shape.height == tile_size && shape.width == tile_size
                                   : shape.height >= crop && shape.width >= crop;
    if (!fit) {
      const std::string side = std::to_string(tile_size > 0 ? tile_size : crop);
      throw Error(
          ErrorCode::invalid_argument,
          "tiles are " + std::to_string(shape.height) + " x " + std::to_string(shape.width) + " pixels",
          (tile_size > 0 ? "this model takes " : "this model's crop needs ") + side + " x " + side);
    }
    check_buffer("tiles", tiles, size);
  }

  // OpenMP keeps the number of threads per calling thread; get_num_threads() initialises it in a new one.
  void use_threads() const {
    if (threads > 0 && at::get_num_threads() != threads) {
      at::set_num_threads(threads);
    }
  }

  // The tiles on the device, as the stem of the file takes them: bytes, or float32 in [0, 1].
  at::Tensor input(std::span<const std::uint8_t> tiles, TileShape shape) const {
    // from_blob() takes a mutable pointer, but nothing writes through it.
    const at::Tensor host = at::from_blob(const_cast<std::uint8_t*>(tiles.data()),
                                          sizes({shape.batch, shape.height, shape.width, 3}), at::kByte);
    const at::Tensor moved = host.to(device);
    if (bytes) {
      return moved;
    }
    const at::Tensor planes = moved.permute({0, 3, 1, 2});
    return planes.to(at::kFloat, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous)
        .div(white);
  }

  void run(const torch::jit::Module& frozen, const at::Tensor& tiles, TileShape shape,
           std::span<float> logits) const {
    const at::Tensor out = frozen.get_method("forward")({tiles}).toTensor();
    if (out.sizes() != at::IntArrayRef(sizes({shape.batch, classes})) || out.scalar_type() != at::kFloat) {
      throw Error(ErrorCode::failed, "the network's output is not float32 (batch, classes)", export_again);
    }
    const at::Tensor host = out.to(at::kCPU).contiguous();
    std::copy_n(host.const_data_ptr<float>(), logits.size(), logits.data());
  }

  template <typename Work>
  auto infer(Work work) const {
    return translated("libtorch failed", ErrorCode::failed, "see histo doctor", [&] {
      const c10::InferenceMode inference;
      const c10::DeviceGuard guard(device);
      use_threads();
      return work();
    });
  }
};

TorchRuntime::TorchRuntime(const std::filesystem::path& file, const TorchOptions& options)
    : state_(std::make_unique<const State>(file, options)) {}
TorchRuntime::TorchRuntime(TorchRuntime&& other) noexcept = default;
TorchRuntime& TorchRuntime::operator=(TorchRuntime&& other) noexcept = default;
TorchRuntime::~TorchRuntime() = default;

void TorchRuntime::run(std::span<const std::uint8_t> tiles, TileShape shape, std::span<float> logits) const {
  state_->check(tiles, shape);
  check_buffer("logits", logits, checked_size("logits", {{"batch", shape.batch}, {"classes", classes()}}));
  state_->infer([&] { state_->run(state_->network, state_->input(tiles, shape), shape, logits); });
}

void TorchRuntime::run(std::span<const float> tiles, TileShape shape, std::span<float> logits) const {
  state_->check(tiles, shape);
  check_buffer("logits", logits, checked_size("logits", {{"batch", shape.batch}, {"classes", classes()}}));
  state_->infer([&] {
    const at::Tensor host = at::from_blob(const_cast<float*>(tiles.data()),
                                          sizes({shape.batch, 3, shape.height, shape.width}), at::kFloat);
    state_->run(state_->network_of_floats, host.to(state_->device), shape, logits);
  });
}

void TorchRuntime::warmup(std::size_t batch, std::size_t side) const {
  const std::size_t smallest = tile_size() > 0 ? tile_size() : crop();
  const TileShape shape{.batch = batch, .height = side ? side : smallest, .width = side ? side : smallest};
  const std::size_t size = checked_size(
      "tiles", {{"batch", batch}, {"height", shape.height}, {"width", shape.width}, {"channels", 3}});
  const std::vector<std::uint8_t> tiles = translated("warmup", ErrorCode::out_of_memory, less_memory,
                                                     [size] { return std::vector<std::uint8_t>(size); });
  std::vector<float> logits(batch * classes());
  for (int i = 0; i < warmup_runs; ++i) {
    run(tiles, shape, logits);
  }
}

std::vector<Stage> TorchRuntime::stages(std::span<const std::uint8_t> tiles, TileShape shape) const {
  state_->check(tiles, shape);
  return state_->infer([&] {
    std::vector<Stage> outputs;
    at::Tensor x = state_->input(tiles, shape);
    for (const std::string_view stage : stage_names) {
      const std::string name(stage);
      x = state_->stages.attr(name).toModule().get_method("forward")({x}).toTensor();
      const at::Tensor host = x.to(at::kCPU).contiguous();
      const float* data = host.const_data_ptr<float>();
      outputs.push_back({.name = name,
                         .shape = {host.sizes().begin(), host.sizes().end()},
                         .data = {data, data + host.numel()}});
    }
    return outputs;
  });
}

std::size_t TorchRuntime::classes() const noexcept { return state_->classes; }
std::size_t TorchRuntime::crop() const noexcept { return state_->crop; }
std::size_t TorchRuntime::tile_size() const noexcept { return state_->tile_size; }
std::string TorchRuntime::executed() const { return state_->device.str() + " fp32, frozen"; }

}  // namespace histo
