#include "histo/model.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "histo/error.h"
#include "joined_threads.h"
#include "model_file.h"

#ifndef _WIN32
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace {

namespace fs = std::filesystem;

using histo::Error;
using histo::ErrorCode;
using histo::Model;

// Made once: it takes 85 MB. Pool 3 does not divide the 2x2 map of a crop of 64, so the head is folded.
const std::vector<std::byte>& model_file() {
  static const std::vector<std::byte> file = make_model_file(3, 6, 64, 1);
  return file;
}

template <typename Function>
std::string complaint(ErrorCode code, Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos);
    CHECK_FALSE(error.remedy().empty());
    return error.what();
  }
  FAIL("no histo::Error was thrown");
  return {};
}

std::string complaint(std::span<const std::byte> file) {
  return complaint(ErrorCode::invalid_file, [&] { (void)Model::from_memory(file); });
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// A place for files that goes away with its object.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("histo-model-" + std::to_string(std::random_device()()))) {
    REQUIRE(fs::create_directory(path_));
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { fs::remove_all(path_); }

  [[nodiscard]] fs::path write(const std::string& name, std::span<const std::byte> bytes) const {
    std::ofstream file(path_ / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(file.flush());
    return path_ / name;
  }

  [[nodiscard]] fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

// The header of the valid file with `from`, which stands in it once, turned into `to`.
std::string changed_header(std::string_view from, std::string_view to) {
  std::string header = split_safetensors(model_file()).first;
  const std::size_t at = header.find(from);
  REQUIRE(at != std::string::npos);
  REQUIRE(header.find(from, at + 1) == std::string::npos);
  return header.replace(at, from.size(), to);
}

// The valid file after such a change.
std::vector<std::byte> with_header(std::string_view from, std::string_view to) {
  return safetensors_file(changed_header(from, to), split_safetensors(model_file()).second);
}

// What is said about a file with such a change in its header. Its data are a hole, for a header that lies is
// refused before they are looked at.
std::string complaint(std::string_view from, std::string_view to) {
  const Folder folder;
  const std::vector<std::byte> header = safetensors_file(changed_header(from, to), {});
  const fs::path path = folder.write("lie", header);
  fs::resize_file(path, header.size() + split_safetensors(model_file()).second.size());
  return complaint(ErrorCode::invalid_file, [&] { (void)Model::open(path); });
}

TEST_CASE("map_size: five halvings, each rounding up") {
  CHECK(histo::map_size(128) == 4);
  CHECK(histo::map_size(224) == 7);
  CHECK(histo::map_size(129) == 5);
  CHECK(histo::map_size(32) == 1);
  CHECK(histo::map_size(1) == 1);
  CHECK(histo::map_size(0) == 0);
  CHECK(histo::map_size(std::numeric_limits<std::size_t>::max()) ==
        std::numeric_limits<std::size_t>::max() / 32 + 1);
}

TEST_CASE("a model says what its file says") {
  const Model model = Model::from_memory(model_file());
  const histo::ModelSpec& spec = model.spec();
  CHECK(spec.pool == 3);
  CHECK(spec.head_pool == 2);
  CHECK(spec.classes ==
        std::vector<std::string>{"class 0", "class 1", "class 2", "class 3", "class 4", "class 5"});
  CHECK(spec.crop == 64);
  CHECK(spec.tile_size == 80);
  CHECK(spec.mean == std::array{0.485F, 0.456F, 0.406F});
  CHECK(spec.std == std::array{0.229F, 0.224F, 0.225F});
  CHECK(spec.mpp == 0.5);
  CHECK(model.size_bytes() == model_file().size());

  const auto [header, data] = split_safetensors(model_file());
  const histo::TensorView mean = model.tensor("stem.mean");
  CHECK(std::vector(mean.shape.begin(), mean.shape.end()) == std::vector<std::size_t>{3, 1, 1});
  CHECK(std::memcmp(mean.data.data(), data.data(), 12) == 0);  // the first tensor of the file
  const histo::TensorView stem = model.tensor("stem.conv.weight");
  CHECK(std::vector(stem.shape.begin(), stem.shape.end()) == std::vector<std::size_t>{64, 3, 7, 7});
  CHECK(stem.data.size() == 64U * 3 * 7 * 7);
  CHECK(model.tensor("layer4.0.shortcut.weight").shape[1] == 256);
  const histo::TensorView head = model.tensor("head.linear.weight");
  CHECK(std::vector(head.shape.begin(), head.shape.end()) == std::vector<std::size_t>{6, 512 * 2 * 2});
  const histo::TensorView bias = model.tensor("head.linear.bias");
  CHECK(std::memcmp(bias.data.data(), data.data() + data.size() - 24, 24) == 0);  // the last

  CHECK(contains(complaint(ErrorCode::invalid_argument, [&] { (void)model.tensor("layer5.0.conv1.weight"); }),
                 "layer5.0.conv1.weight"));
  CHECK(contains(complaint(ErrorCode::invalid_argument, [&] { (void)model.tensor(""); }), "\"\""));
}

TEST_CASE("random weights of a test model neither vanish nor explode") {
  const Model model = Model::from_memory(model_file());
  for (const char* name : {"stem.conv.weight", "layer1.0.conv1.weight", "layer4.2.conv1.weight"}) {
    const histo::TensorView weight = model.tensor(name);
    double sum = 0;
    double squares = 0;
    for (const float value : weight.data) {
      sum += static_cast<double>(value);
      squares += static_cast<double>(value) * static_cast<double>(value);
    }
    const auto count = static_cast<double>(weight.data.size());
    const auto fan_in = static_cast<double>(weight.shape[1] * weight.shape[2] * weight.shape[3]);
    CHECK(squares / count == doctest::Approx(2.0 / fan_in).epsilon(0.05));
    CHECK(std::abs(sum / count) < 4 * std::sqrt(2.0 / fan_in / count));
  }
}

TEST_CASE("copies share the weights, and keep them") {
  Model copy = Model::from_memory(model_file());
  const float* weights = nullptr;
  {
    const Model first = copy;
    weights = first.tensor("head.linear.weight").data.data();
  }
  CHECK(copy.tensor("head.linear.weight").data.data() == weights);
  const Model moved = std::move(copy);
  CHECK(moved.tensor("head.linear.weight").data.data() == weights);
  CHECK(std::isfinite(moved.tensor("head.linear.weight").data.back()));
}

TEST_CASE("a model from memory needs the memory no longer") {
  std::vector<std::byte> bytes = model_file();
  const Model model = Model::from_memory(bytes);
  std::ranges::fill(bytes, std::byte{0xFF});
  CHECK(model.tensor("stem.std").data[2] == 0.225F);
}

TEST_CASE("memory that is not aligned") {
  std::vector<std::byte> bytes(model_file().size() + 1);
  std::ranges::copy(model_file(), bytes.begin() + 1);
  CHECK(Model::from_memory(std::span(bytes).subspan(1)).tensor("stem.std").data[2] == 0.225F);
}

TEST_CASE("a file is read, shared, and may be deleted") {
  const Folder folder;
  const fs::path path = folder.write("model.safetensors", model_file());
  const Model one = Model::open(path);
  const Model two = Model::open(path);
  fs::remove(path);
  const Model copied = Model::from_memory(model_file());
  for (const char* name : {"stem.conv.bias", "layer3.5.conv2.weight", "head.linear.weight"}) {
    CHECK(std::ranges::equal(one.tensor(name).data, copied.tensor(name).data));
    CHECK(std::ranges::equal(two.tensor(name).data, copied.tensor(name).data));
  }
  CHECK(one.size_bytes() == model_file().size());
}

TEST_CASE("many threads read one model") {
  const Model model = Model::from_memory(model_file());
  const auto sum = [](const Model& shared) {
    double total = 0;
    for (const char* name : {"layer1.0.conv1.weight", "layer2.0.shortcut.weight", "head.linear.weight"}) {
      for (const float value : shared.tensor(name).data) {
        total += static_cast<double>(value);
      }
    }
    return total + static_cast<double>(shared.spec().classes.size());
  };
  std::vector<double> sums(4);
  {
    JoinedThreads threads;
    for (double& result : sums) {
      threads.emplace_back([&result, &sum, copy = model] { result = sum(copy); });
    }
  }
  CHECK(std::ranges::count(sums, sum(model)) == 4);
}

TEST_CASE("what is not a file is an input error that names it") {
  const Folder folder;
  const auto open_complaint = [](const fs::path& path) {
    const std::string message = complaint(ErrorCode::io, [&] { (void)Model::open(path); });
    CHECK(message.starts_with(path.string() + ": "));
    return message;
  };
  CHECK(contains(open_complaint(folder / "none"), "cannot be opened"));
  CHECK(contains(open_complaint(folder / ""), "is a folder"));
  CHECK(contains(open_complaint(""), "cannot be opened"));
  CHECK(contains(open_complaint(folder / std::string(300, 'x')), "cannot be opened"));
  CHECK(contains(open_complaint(folder.write("file", model_file()) / "below"), "cannot be opened"));
#ifndef _WIN32
  fs::create_symlink(folder / "loop", folder / "loop");
  CHECK(contains(open_complaint(folder / "loop"), "cannot be opened"));
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(contains(open_complaint(folder / "pipe"), "is not a regular file"));
  CHECK(contains(open_complaint("/dev/zero"), "is not a regular file"));

  // Root may read everything, so it becomes nobody for this one.
  fs::permissions(folder / "", fs::perms::all);
  fs::permissions(folder / "file", fs::perms::none);
  const uid_t user = geteuid();
  REQUIRE((user != 0 || seteuid(65534) == 0));
  const std::string message = open_complaint(folder / "file");
  REQUIRE((user != 0 || seteuid(user) == 0));
  CHECK(contains(message, "cannot be opened: Permission denied"));
#endif
}

TEST_CASE("a file that is not a model is named") {
  const Folder folder;
  const fs::path empty = folder.write("empty", {});
  CHECK(complaint(ErrorCode::invalid_file, [&] { (void)Model::open(empty); }) ==
        empty.string() + ": is empty; copy or export the file again");
  const fs::path cut = folder.write("cut", std::span(model_file()).first(model_file().size() - 1));
  CHECK(
      contains(complaint(ErrorCode::invalid_file, [&] { (void)Model::open(cut); }), "truncated or damaged"));
}

TEST_CASE("memory that is null or empty") {
  const std::vector<std::byte> one(1);
  CHECK(contains(complaint(ErrorCode::invalid_argument, [] { (void)Model::from_memory({}); }), "bytes"));
  CHECK(contains(
      complaint(ErrorCode::invalid_argument, [&] { (void)Model::from_memory(std::span(one).first(0)); }),
      "bytes"));
  CHECK(complaint(one).starts_with("model in memory: "));
}

TEST_CASE("a model that is truncated") {
  const std::size_t size = model_file().size();
  const std::size_t data = size - split_safetensors(model_file()).second.size();
  for (const std::size_t kept : {std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{9}, data - 1,
                                 data, data + 1, data + 12, size / 2, size - 24, size - 4, size - 1}) {
    CAPTURE(kept);
    CHECK_FALSE(complaint(std::span(model_file()).first(kept)).empty());
  }
  std::vector<std::byte> longer = model_file();
  longer.push_back(std::byte{0});
  CHECK(contains(complaint(longer), "1 bytes follow the last tensor"));
}

TEST_CASE("metadata that are not those of a model") {
  CHECK(contains(complaint(R"("histo.format":"1",)", ""), "has no histo.format"));
  CHECK(contains(complaint(R"("histo.format":"1",)", R"("histo.format":"3",)"), "histo.format is \"3\""));
  CHECK(contains(complaint(R"("histo.format":"1",)", R"("histo.format":"",)"), "histo.format is \"\""));
  CHECK(contains(complaint("\"histo.spec\"", "\"spec\""), "has no histo.spec"));
  CHECK(contains(complaint("\"histo.head_pool\"", "\"head_pool\""), "has no histo.head_pool"));
  CHECK(contains(complaint("\"__metadata__\":{", "\"__metadata__\":{\"n\":1,"), "that is not a string"));
  CHECK(contains(complaint(R"(:"{\"pool\")", R"(:"\"pool\")"), "histo.spec: bad JSON at byte 6"));
  CHECK(contains(complaint(R"({\"pool\")", R"([[{\"pool\")"), "histo.spec: bad JSON"));
  for (const char* pool : {"1", "3", "4", "", "two", "2 ", "+2", "02"}) {
    CAPTURE(pool);
    const std::string changed = R"("histo.head_pool":")" + std::string(pool) + "\"";
    CHECK(contains(complaint(R"("histo.head_pool":"2")", changed), "pool 3 on a 2x2 map needs 2"));
  }
  // More metadata are allowed: other tools add their own.
  CHECK(Model::from_memory(with_header("\"__metadata__\":{", "\"__metadata__\":{\"format\":\"pt\","))
            .spec()
            .pool == 3);
}

TEST_CASE("a spec whose sizes make no sense") {
  for (const char* field : {"pool", "crop", "tile_size", "classes", "mean", "std", "mpp"}) {
    CAPTURE(field);
    CHECK(contains(complaint("\\\"" + std::string(field) + "\\\"", "\\\"x\\\""),
                   "has no " + std::string(field)));
  }
  for (const char* value :
       {"0", "-1", "1.5", "65537", "9007199254740992", "1e300", "null", "true", R"(\"3\")", "[3]"}) {
    CAPTURE(value);
    const std::string v = value;
    CHECK(contains(complaint(R"(\"pool\": 3,)", R"(\"pool\": )" + v + ","),
                   "pool is not an integer from 1 to"));
    CHECK(contains(complaint(R"(\"crop\": 64,)", R"(\"crop\": )" + v + ","),
                   "crop is not an integer from 32 to"));
    CHECK(contains(complaint(R"(\"tile_size\": 80,)", R"(\"tile_size\": )" + v + ","),
                   "tile_size is not an integer from 64 to"));
  }
  CHECK(contains(complaint(R"(\"crop\": 64,)", R"(\"crop\": 31,)"), "crop is not"));
  CHECK(contains(complaint(R"(\"tile_size\": 80,)", R"(\"tile_size\": 63,)"), "tile_size is not"));
  // The largest head that a spec may ask for.
  CHECK(
      contains(complaint(R"(\"crop\": 64, \"tile_size\": 80,)", R"(\"crop\": 65536, \"tile_size\": 65536,)"),
               "pool 3 on a 2048x2048 map needs 2048"));
}

TEST_CASE("classes that are not names") {
  const auto classes_complaint = [](const std::string& classes) {
    const std::string names =
        R"([\"class 0\", \"class 1\", \"class 2\", \"class 3\", \"class 4\", \"class 5\"])";
    return complaint(names, classes);
  };
  for (const char* classes : {"[]", R"([\"one\"])", R"(\"one\")", "2", "null", "{}"}) {
    CAPTURE(classes);
    CHECK(contains(classes_complaint(classes), "classes are not an array of at least 2"));
  }
  CHECK(contains(classes_complaint(R"([\"a\", 1])"), "class 1 is not a name"));
  CHECK(contains(classes_complaint(R"([null, \"a\"])"), "class 0 is not a name"));
  CHECK(contains(classes_complaint(R"([\"a\", \"b\\u0000c\"])"), "class 1 is not a name"));
  CHECK(contains(classes_complaint(R"([\"a\", \"b\", \"a\"])"), "class \"a\" occurs twice"));
  // As many as the head has rows, or the tensors do not fit.
  CHECK(contains(classes_complaint(R"([\"a\", \"b\"])"), "it must be [2, 2048]"));
}

TEST_CASE("a mean, a standard deviation or a scale that is useless") {
  for (const char* value : {"[0.1, 0.2]", "[0.1, 0.2, 0.3, 0.4]", "0.5", "null", "[0.1, 0.2, null]",
                            "[0.1, 0.2, 1e39]", "[-1e300, 0.2, 0.3]", R"([0.1, 0.2, \"0.3\"])"}) {
    CAPTURE(value);
    CHECK(contains(complaint("[0.485, 0.456, 0.406]", value), "mean is not an array of three"));
    CHECK(contains(complaint("[0.229, 0.224, 0.225]", value), "std is not an array of three"));
  }
  CHECK(contains(complaint("[0.485, 0.456, 0.406]", "[NaN, 0.456, 0.406]"), "bad JSON"));
  for (const char* value : {"[0, 0.224, 0.225]", "[0.229, -0.224, 0.225]", "[0.229, 0.224, 1e-300]"}) {
    CAPTURE(value);
    CHECK(contains(complaint("[0.229, 0.224, 0.225]", value), "std is not greater than zero"));
  }
  // The tensors are what is used, so the two must agree.
  CHECK(contains(complaint(with_header("[0.485, 0.456, 0.406]", "[0.485, 0.456, 0.407]")),
                 "differ from mean and std"));
  CHECK(contains(complaint(with_header("[0.229, 0.224, 0.225]", "[0.229, 0.225, 0.225]")),
                 "differ from mean and std"));

  for (const char* value : {"0", "-0.5", R"(\"0.5\")", "true", "[0.5]"}) {
    CAPTURE(value);
    CHECK(contains(complaint(R"(\"mpp\": 0.5)", R"(\"mpp\": )" + std::string(value)),
                   "mpp is neither null nor"));
  }
  CHECK_FALSE(Model::from_memory(with_header(R"(\"mpp\": 0.5)", R"(\"mpp\": null)")).spec().mpp);
}

TEST_CASE("tensors that are not those of the network") {
  CHECK(contains(complaint("\"layer2.0.shortcut.bias\"", "\"layer2.0.shortcut.bios\""),
                 "tensor \"layer2.0.shortcut.bias\" is missing"));
  CHECK(contains(complaint("\"stem.mean\":",
                           "\"x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
                           "\"stem.mean\":"),
                 "tensor \"x\" is not part of the network"));
  CHECK(contains(complaint("\"head.linear.weight\"", "\"head.linear.bias\""), "same key twice"));
  CHECK(contains(complaint(R"("stem.mean":{"dtype":"F32")", R"("stem.mean":{"dtype":"I32")"),
                 "tensor \"stem.mean\" is I32; it must be F32"));
  // Wrong shapes of the right size.
  CHECK(
      contains(complaint("[64,3,7,7]", "[64,3,49]"), "has the shape [64, 3, 49]; it must be [64, 3, 7, 7]"));
  CHECK(contains(complaint("[64,3,7,7]", "[3,64,7,7]"), "it must be [64, 3, 7, 7]"));
  CHECK(contains(complaint("[6,2048]", "[6,512,2,2]"), "it must be [6, 2048]"));
  CHECK(contains(
      complaint(R"("stem.std":{"dtype":"F32","shape":[3,1,1])", R"("stem.std":{"dtype":"F32","shape":[3])"),
      "it must be [3, 1, 1]"));
  CHECK(contains(complaint("[64,3,7,7]", "[64,3,7,8]"), "takes 43008 bytes, but has 37632"));
}

TEST_CASE("weights that are not finite") {
  const std::size_t data = model_file().size() - split_safetensors(model_file()).second.size();
  const auto with_value = [&](std::size_t at, float value) {
    std::vector<std::byte> file = model_file();
    std::memcpy(file.data() + at, &value, sizeof value);
    return file;
  };
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(contains(complaint(with_value(data, nan)), "tensor \"stem.mean\" has NaN as element 0"));
  CHECK(contains(complaint(with_value(data + 24, -infinity)),
                 "tensor \"stem.conv.weight\" has infinity as element 0"));
  CHECK(contains(complaint(with_value(model_file().size() - 4, nan)),
                 "tensor \"head.linear.bias\" has NaN as element 5"));
}

TEST_CASE("the scales of int8: what a file of format 2 adds, and what is refused") {
  const auto file =
      make_model_file(2, 2, 32, 1, [](const std::string& reader) { return reader != "layer1.0.conv2"; });
  const Model model = Model::from_memory(file);
  CHECK(model.find_tensor("layer1.0.conv1.input_scale")->data.size() == 1);
  CHECK(model.find_tensor("layer2.0.shortcut.weight_scale")->data.size() == 128);
  CHECK_FALSE(model.find_tensor("layer1.0.conv2.input_scale"));
  CHECK_FALSE(model.find_tensor("stem.conv.input_scale"));

  const auto parts = split_safetensors(file);
  const auto& header = parts.first;
  const auto& data = parts.second;
  const auto with_header = [&](std::string_view from, std::string_view to) {
    std::string changed = header;
    const std::size_t at = changed.find(from);
    REQUIRE(at != std::string::npos);
    return complaint(safetensors_file(changed.replace(at, from.size(), to), data));
  };
  CHECK(
      contains(with_header(R"("histo.format":"2")", R"("histo.format":"1")"), "is not part of the network"));
  CHECK(contains(with_header("layer1.0.conv1.weight_scale", "layer1.0.conv1.weight_skale"),
                 "\"layer1.0.conv1.weight_scale\" is missing"));
  CHECK(contains(with_header("layer1.0.conv1.input_scale", "layer1.0.conv1.input_skale"),
                 "\"layer1.0.conv1.input_scale\" is missing"));
  CHECK(contains(with_header("layer1.0.conv1.input_scale", "stem.conv.input_scale"), "is missing"));

  const auto shared =
      make_model_file(2, 2, 32, 1, [](const std::string& reader) { return reader == "layer2.0.conv1"; });
  const auto [shared_header, shared_data] = split_safetensors(shared);
  std::string half = shared_header;
  for (const std::string_view part : {"layer2.0.shortcut.input_scale", "layer2.0.shortcut.weight_scale"}) {
    half.replace(half.find(part), part.size(),
                 std::string(part.size(), 'x').replace(0, 1, part.substr(28, 1)));
  }
  CHECK(contains(complaint(safetensors_file(half, shared_data)), "only one of the two is present"));

  // Values: the scale of layer2.0.conv1's input is the first four bytes of its tensor.
  const std::size_t entry = shared_header.find("layer2.0.conv1.input_scale");
  const std::size_t begin =
      std::stoul(shared_header.substr(shared_header.find("data_offsets\":[", entry) + 15));
  for (const auto& [scale, words] :
       {std::pair{0.0F, "not a positive number"}, std::pair{-0.1F, "not a positive number"},
        std::pair{1e-40F, "not a positive number"},
        std::pair{std::numeric_limits<float>::infinity(), "layer2.0.conv1.input_scale"},
        std::pair{0.5F, "scale the same map and differ"}}) {
    const float value = scale;  // Clang 14 captures no binding
    CAPTURE(value);
    std::vector<std::byte> changed = shared;
    std::memcpy(changed.data() + (changed.size() - shared_data.size()) + begin, &value, sizeof value);
    CHECK(contains(complaint(changed), words));
  }
}

}  // namespace
