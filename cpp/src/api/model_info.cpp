#include "histo/model_info.h"

#include <algorithm>

#include "histo/error.h"
#include "model/model_format.h"
#include "model/safetensors.h"
#include "platform/platform.h"

namespace histo {

ModelInfo read_model_info(const std::filesystem::path& file) {
  const FloatEnvironment environment;  // numbers in the header are read
  try {
    InputFile input(file);
    ModelInfo info{.spec = {}, .file_bytes = input.size(), .int8 = false};
    const ReadAt read_at = [&input](std::size_t offset, std::span<std::byte> to) { input.read(offset, to); };
    static_cast<void>(load_safetensors(input.size(), read_at, [&info](Safetensors& header) {
      info.spec = read_model_spec(header);
      check_model_tensors(header, info.spec);
      info.int8 = std::ranges::any_of(
          header.tensors, [](const StoredTensor& tensor) { return tensor.name.ends_with(".input_scale"); });
      info.metadata = header.metadata;
      header.tensors.clear();  // so that none is read
    }));
    return info;
  } catch (const Error& error) {
    throw Error(error.code(), utf8(file) + ": " + std::string(error.message()), error.remedy());
  }
}

}  // namespace histo
