// histo_torch_test MODEL.pt: prints the logits of a made tile, after it has tried what must fail.
// tests/test_libtorch.py makes the model and compares the logits with those of TorchScript in Python.

#include "histo/torch_runtime.h"

#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "histo/error.h"

namespace {

using histo::ErrorCode;
using histo::TorchRuntime;

int failures = 0;

void check(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "failed: %s\n", what);
    ++failures;
  }
}

void check_error(ErrorCode code, const char* what, const std::function<void()>& call) {
  try {
    call();
  } catch (const histo::Error& error) {
    std::fprintf(stderr, "%s: %s\n", what, error.what());
    check(error.code() == code, what);
    return;
  }
  check(false, what);
}

int run(const std::string& model) {
  const TorchRuntime runtime(model, {.threads = 2});
  const std::size_t classes = runtime.classes();
  const std::size_t side = runtime.tile_size();
  check(side == runtime.crop() + 11, "tile size");
  constexpr std::size_t batch = 2;
  const histo::TileShape shape{.batch = batch, .height = side, .width = side};

  std::vector<std::uint8_t> bytes(batch * side * side * 3);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::uint8_t>(i * 31 % 251);
  }
  std::vector<float> floats(bytes.size());
  for (std::size_t n = 0; n < batch; ++n) {
    for (std::size_t pixel = 0; pixel < side * side; ++pixel) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        floats[(n * 3 + channel) * side * side + pixel] =
            static_cast<float>(bytes[(n * side * side + pixel) * 3 + channel]) / 255;
      }
    }
  }

  runtime.warmup(batch, side);
  std::vector<float> logits(batch * classes);
  runtime.run(bytes, shape, logits);
  std::vector<float> of_floats(batch * classes);
  runtime.run(floats, shape, of_floats);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float difference = logits[i] - of_floats[i];
    check(difference * difference < 1e-8F, "floats and bytes give the same logits");
    std::printf("%.9g\n", static_cast<double>(logits[i]));
  }
  const std::vector<histo::Stage> stages = runtime.stages(bytes, shape);
  check(stages.size() == 6 && stages[5].name == "head" && stages[5].data.size() == logits.size(), "stages");
  check(runtime.executed() == "cpu fp32, frozen", "executed");

  const auto logits_of = [&](histo::TileShape wrong) { runtime.run(bytes, wrong, logits); };
  check_error(ErrorCode::invalid_argument, "no tiles", [&] { logits_of({0, side, side}); });
  check_error(ErrorCode::invalid_argument, "no height", [&] { logits_of({batch, 0, side}); });
  check_error(ErrorCode::invalid_argument, "tiny tile", [&] { logits_of({batch, side, side - 1}); });
  check_error(ErrorCode::size_mismatch, "one tile too many", [&] { logits_of({batch + 1, side, side}); });
  check_error(ErrorCode::size_overflow, "an impossible size",
              [&] { logits_of({~std::size_t{0}, side, side}); });
  check_error(ErrorCode::size_mismatch, "one logit too few",
              [&] { runtime.run(bytes, shape, std::span(logits).first(logits.size() - 1)); });
  check_error(ErrorCode::invalid_argument, "null tiles",
              [&] { runtime.run(std::span<const std::uint8_t>(), shape, logits); });
  check_error(ErrorCode::invalid_argument, "null logits", [&] { runtime.run(bytes, shape, {}); });

  const std::string garbage = model + ".garbage";
  std::ofstream(garbage) << "not a model";
  check_error(ErrorCode::invalid_file, "garbage", [&] { TorchRuntime runtime_of_garbage(garbage); });
  check_error(ErrorCode::io, "missing file", [&] { TorchRuntime missing(model + ".missing"); });
  check_error(ErrorCode::io, "folder", [&] { TorchRuntime folder("/"); });
  check_error(ErrorCode::invalid_argument, "no such device",
              [&] { TorchRuntime tpu(model, {.device = "abacus"}); });
  check_error(ErrorCode::unsupported, "no such GPU", [&] { TorchRuntime gpu(model, {.device = "cuda:99"}); });
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL.pt\n", argv[0]);
    return 2;
  }
  try {
    return run(argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
