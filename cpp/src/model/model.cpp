#include "histo/model.h"

#include <cstddef>
#include <utility>

#include "checks.h"
#include "histo/error.h"
#include "model/model_format.h"
#include "model/safetensors.h"
#include "platform/platform.h"

namespace histo {

struct Model::Contents {
  ModelSpec spec;
  LoadedSafetensors file;

  Contents(std::size_t size, const ReadAt& read_at)
      : file(load_safetensors(size, read_at, [this](const Safetensors& header) {
          spec = read_model_spec(header);
          check_model_tensors(header, spec);
        })) {
    check_model_values(file.container, spec);
  }
};

Model::Model(std::shared_ptr<const Contents> contents) noexcept : contents_(std::move(contents)) {}

Model Model::open(const std::filesystem::path& file) {
  const FloatEnvironment environment;
  try {
    InputFile input(file);
    return Model(std::make_shared<const Contents>(
        input.size(), [&input](std::size_t offset, std::span<std::byte> to) { input.read(offset, to); }));
  } catch (const Error& error) {
    throw Error(error.code(), utf8(file) + ": " + std::string(error.message()), error.remedy());
  }
}

Model Model::from_memory(std::span<const std::byte> bytes) {
  if (bytes.empty()) {  // a null pointer, too
    throw Error(ErrorCode::invalid_argument, "bytes is null or empty",
                "give the contents of a model.safetensors");
  }
  const FloatEnvironment environment;
  try {
    return Model(std::make_shared<const Contents>(bytes.size(), read_from(bytes)));
  } catch (const Error& error) {
    throw Error(error.code(), "model in memory: " + std::string(error.message()), error.remedy());
  }
}

const ModelSpec& Model::spec() const noexcept { return contents_->spec; }

TensorView Model::tensor(std::string_view name) const {
  const std::optional<TensorView> tensor = find_tensor(name);
  if (!tensor) {
    throw Error(ErrorCode::invalid_argument, "the model has no tensor " + in_quotes(name),
                "see docs/bundle.md for the names");
  }
  return *tensor;
}

std::optional<TensorView> Model::find_tensor(std::string_view name) const {
  const StoredTensor* const tensor = contents_->file.container.find(name);
  if (tensor == nullptr) {
    return std::nullopt;
  }
  return TensorView{.shape = tensor->shape, .data = tensor->values<float>()};
}

std::size_t Model::embedding_size() const {
  const std::size_t pool = spec().pool, head_pool = spec().head_pool;
  const std::size_t channels = tensor("head.linear.weight").shape[1] / (head_pool * head_pool);
  return checked_size("an embedding", {{"channels", channels}, {"pool", pool}, {"pool", pool}});
}

std::size_t Model::size_bytes() const noexcept { return contents_->file.size; }

}  // namespace histo
