// Fuzzes the reader of model files. A valid model has 85 MB, nearly all of them weights, and mutations would
// never produce one. So each input is read in three ways: as a file, as the text of histo.spec, and as a
// header in front of zeros, as many as its tensors need:
//
//     cmake -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DHISTO_BUILD_FUZZERS=ON && cmake --build build/fuzz
//     build/fuzz/histo_write_fuzz_seeds build/fuzz/corpus
//     build/fuzz/histo_model_fuzz -dict=cpp/fuzz/model.dict -max_total_time=600 build/fuzz/corpus
//
// A finding is a report of the sanitizers, an exception other than a histo::Error with the right code, or a
// claim below that does not hold.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "histo/error.h"
#include "histo/model.h"
#include "model/json.h"
#include "model/model_format.h"
#include "model/safetensors.h"

namespace {

using histo::LoadedSafetensors;
using histo::Safetensors;

void claim(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "does not hold: %s\n", what);
    std::abort();
  }
}

// Runs `read`, which must succeed or refuse the input with an invalid_file.
template <typename Read>
void refuse_or(const Read& read) {
  try {
    read();
  } catch (const histo::Error& error) {
    claim(error.code() == histo::ErrorCode::invalid_file, "a bad file is an invalid_file");
    claim(std::string_view(error.what()).find('\n') == std::string_view::npos, "a message is one line");
  }
}

// Claims of a spec that was accepted: an engine relies on them.
void check_spec(const histo::ModelSpec& spec) {
  claim(spec.crop >= 32 && spec.tile_size >= spec.crop && spec.pool >= 1, "sizes are in their range");
  claim(spec.head_pool >= 1 && histo::map_size(spec.crop) % spec.head_pool == 0, "head_pool divides the map");
  claim(spec.classes.size() >= 2, "there are classes");
  for (std::size_t c = 0; c < 3; ++c) {
    claim(std::isfinite(spec.mean[c]) && std::isfinite(spec.std[c]) && spec.std[c] > 0,
          "mean and std are finite");
  }
}

// Claims of tensors that were accepted: they lie inside the memory of the file and do not overlap.
void check_tensors(const LoadedSafetensors& file) {
  const auto* const memory = static_cast<const std::byte*>(file.memory.get());
  std::size_t total = 0;
  for (const histo::StoredTensor& tensor : file.container.tensors) {
    claim(tensor.bytes.data() >= memory && tensor.bytes.data() + tensor.bytes.size() <= memory + file.size,
          "a tensor lies inside the memory of the file");
    claim(file.container.find(tensor.name) == &tensor, "a tensor is found by its name");
    total += tensor.bytes.size();
  }
  claim(total <= file.size, "tensors do not overlap");
}

LoadedSafetensors load(std::span<const std::byte> bytes) {
  return histo::load_safetensors(bytes.size(), histo::read_from(bytes), [](const Safetensors&) {});
}

void read_model_parts(std::span<const std::byte> bytes) {
  const LoadedSafetensors file = load(bytes);
  check_tensors(file);
  const histo::ModelSpec spec = histo::read_model_spec(file.container);
  check_spec(spec);
  histo::check_model_tensors(file.container, spec);
}

// The input as a complete file, in a copy of exactly its size.
void fuzz_file(std::span<const std::byte> input) {
  refuse_or([&] {
    const std::vector<std::byte> file(input.begin(), input.end());
    const LoadedSafetensors loaded = load(file);
    check_tensors(loaded);
    for (const histo::StoredTensor& tensor : loaded.container.tensors) {
      if (tensor.dtype == "F32") {
        histo::check_finite(tensor, tensor.values<float>());
      }
    }
  });
  refuse_or([&] {
    if (!input.empty()) {
      (void)histo::Model::from_memory(input);
    }
  });
}

// The input as the text of histo.spec.
void fuzz_spec(std::string_view text) {
  const Safetensors file{
      .tensors = {},
      .metadata = {{"histo.format", "1"}, {"histo.head_pool", "4"}, {"histo.spec", std::string(text)}}};
  refuse_or([&] { check_spec(histo::read_model_spec(file)); });
}

// The input as a header, in front of as many bytes of data as it claims.
void fuzz_header(std::string_view header) {
  constexpr std::size_t max_header = std::size_t{1} << 16U;
  constexpr std::size_t max_data = std::size_t{1} << 28U;
  // Zero pages that are never written use no memory.
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  static const std::unique_ptr<std::byte, Free> memory(
      static_cast<std::byte*>(std::calloc(8 + max_header + max_data, 1)));
  if (header.size() > max_header) {
    return;
  }
  refuse_or([&] {
    const histo::json::Value root = histo::json::parse(header);
    std::size_t data = 0;
    if (root.object() != nullptr) {
      for (const histo::json::Member& member : *root.object()) {
        const histo::json::Value* const offsets = member.value.find("data_offsets");
        if (offsets != nullptr && offsets->array() != nullptr && offsets->array()->size() == 2) {
          data = std::max(data, (*offsets->array())[1].unsigned_integer().value_or(0));
        }
      }
    }
    const std::size_t padded = (header.size() + 7) / 8 * 8;
    const std::uint64_t length = padded;
    std::memcpy(memory.get(), &length, sizeof length);
    std::memcpy(memory.get() + 8, header.data(), header.size());
    std::memset(memory.get() + 8 + header.size(), ' ', padded - header.size());
    read_model_parts({memory.get(), 8 + padded + std::min(data, max_data)});
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(input, size));
  const std::string_view text(reinterpret_cast<const char*>(input), size);
  fuzz_file(bytes);
  fuzz_spec(text);
  fuzz_header(text);
  return 0;
}
