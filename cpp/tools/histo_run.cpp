// histo-run: classifies image files with a model.safetensors. Uses nothing but the public headers.

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "histo/build_config.h"
#include "histo/cpu.h"
#include "histo/engine.h"
#include "histo/error.h"
#include "histo/model.h"
#include "histo/names.h"
#include "histo/self_test.h"

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#endif

namespace {

namespace fs = std::filesystem;

// Words of the command line and messages are UTF-8 on Windows, and the system's own bytes elsewhere.
fs::path path_of(const std::string& utf8) { return std::u8string(utf8.begin(), utf8.end()); }

std::string utf8(const fs::path& path) {
  const std::u8string text = path.u8string();
  return {text.begin(), text.end()};
}

std::FILE* open_to_read(const std::string& path) {
#ifdef _WIN32
  return _wfopen(path_of(path).c_str(), L"rb");
#else
  return std::fopen(path.c_str(), "rb");
#endif
}

constexpr const char* usage = R"(Usage: histo-run [OPTIONS] MODEL TILE...
       histo-run [OPTIONS] --self-test MODEL [GOLDEN]

Classifies tiles with a model.safetensors, or with the bundle that contains one, on the native engine. Prints
one line for each tile: its name, its logits and the name of its top class, separated by tabs. The logits have
nine digits, which are enough to represent a float32 exactly. Control characters in names, and backslashes, are
written as in C: \t, \x1b, \\.

TILE is a file with one or more PNM images (P6: RGB of 8 bits) one after the other, or - for standard input.
The first image of a file is printed under the file's name, the next with #1 after it, and so on.

  --raw HxW         files hold raw RGB tiles of HxW pixels, 3 bytes per pixel, one after the other
  --probabilities   print class probabilities (softmax) in place of logits
  --batch N         tiles per run of the engine (default 32); does not change any logit
  --threads N       threads (default: the CPUs that this process may use)
  --isa NAME        portable, avx2, avx512, amx or neon (default: $HISTO_ISA, or else the highest that runs here)
  --precision NAME  fp32 (default), bf16x3, bf16 or int8; the last needs a model that was exported for it
  --self-test       run GOLDEN (default: golden.safetensors beside MODEL) and compare its logits
  --version         print the version and exit
  --help            print this and exit

Exit code: 0; 1 if something failed (the tiles before it are printed); 2 for wrong usage.
)";

// An error with the message for the user: "thing: cause. Next step."
class Failure : public std::runtime_error {
 public:
  Failure(int exit_code, const std::string& message) : std::runtime_error(message), exit_code_(exit_code) {}

  [[nodiscard]] int exit_code() const noexcept { return exit_code_; }

 private:
  int exit_code_;
};

[[noreturn]] void usage_error(const std::string& message) { throw Failure(2, message); }

[[noreturn]] void failure(const std::string& message) { throw Failure(1, message); }

// A name as a table and a terminal can show it: control characters, and the backslash that stands for them,
// are written as in C. Nothing else is changed. A name of a model or of a file may hold any of them.
std::string escaped(std::string_view name) {
  std::string text;
  const auto hexadecimal = [&text](unsigned byte) {
    constexpr const char* digits = "0123456789abcdef";
    text.append("\\x").append(1, digits[byte >> 4U]).append(1, digits[byte & 15U]);
  };
  for (std::size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    const unsigned next = i + 1 < name.size() ? static_cast<unsigned char>(name[i + 1]) : 0U;
    if (const auto letter = std::string_view("\t\n\r\\").find(name[i]); letter != std::string_view::npos) {
      text.append(1, '\\').append(1, "tnr\\"[letter]);
    } else if (byte < 0x20U || byte == 0x7FU) {
      hexadecimal(byte);
    } else if (byte == 0xC2U && next >= 0x80U &&
               next < 0xA0U) {  // the control characters beyond ASCII, in UTF-8
      hexadecimal(byte);
      hexadecimal(next);
      ++i;
    } else {
      text.push_back(name[i]);
    }
  }
  return text;
}

// The same for a path. On Windows no path has such characters, and every one has backslashes.
std::string shown_path(const std::string& path) {
#ifdef _WIN32
  return path;
#else
  return escaped(path);
#endif
}

// An Error of the library in the style of this program: "What is wrong. What to do."
std::string sentences(const histo::Error& error) {
  std::string text(error.message());
  if (std::string remedy(error.remedy()); !remedy.empty()) {
    remedy.front() = static_cast<char>(std::toupper(static_cast<unsigned char>(remedy.front())));
    text += ". " + remedy;
  }
  return text;
}

// --- the command line ------------------------------------------------------------------------------------

struct Extent {
  std::size_t height;
  std::size_t width;
};

struct Arguments {
  std::optional<Extent> raw;
  bool probabilities = false;
  bool self_test = false;
  std::size_t batch = 32;
  histo::EngineOptions engine;
  fs::path model;
  std::vector<std::string> files;  // tiles, or the golden file
};

constexpr std::size_t largest_side = 32768;

// An integer from 1 to `largest`.
std::optional<std::size_t> integer(std::string_view text, std::size_t largest) {
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 1 || number > largest) {
    return std::nullopt;
  }
  return number;
}

std::size_t number_argument(const std::string& option, const std::string& value, std::size_t largest) {
  const auto number = integer(value, largest);
  if (!number) {
    usage_error(option + " " + value + ": is not an integer from 1 to " + std::to_string(largest) +
                ". Give such a number");
  }
  return *number;
}

Extent extent_argument(const std::string& value) {
  const std::size_t x = value.find('x');
  if (x != std::string::npos) {
    const auto height = integer(std::string_view(value).substr(0, x), largest_side);
    const auto width = integer(std::string_view(value).substr(x + 1), largest_side);
    if (height && width) {
      return {*height, *width};
    }
  }
  usage_error("--raw " + value + ": is not a height and width of at most " + std::to_string(largest_side) +
              " pixels. Write it like --raw 150x150");
}

// Calls `choose`, and turns the Error of a choice that is unknown or not possible here into wrong usage.
template <typename Choose>
auto choice(const Choose& choose) {
  try {
    return choose();
  } catch (const histo::Error& error) {
    usage_error(sentences(error));
  }
}

// nullopt for --help and --version, which are printed here.
std::optional<Arguments> parse(std::vector<std::string> words) {
  Arguments arguments;
  std::vector<std::string> names;
  bool options_end = false;
  for (std::size_t i = 0; i < words.size(); ++i) {
    std::string word = words[i];
    if (options_end || word == "-" || !word.starts_with('-')) {
      names.push_back(std::move(word));
      continue;
    }
    if (word == "--") {
      options_end = true;
      continue;
    }
    std::optional<std::string> attached;  // --option=value
    if (const std::size_t equals = word.find('='); equals != std::string::npos) {
      attached = word.substr(equals + 1);
      word.resize(equals);
    }
    const auto value = [&] {
      if (!attached && i + 1 == words.size()) {
        usage_error(word + ": its value is missing. See histo-run --help");
      }
      return attached ? *std::exchange(attached, std::nullopt) : words[++i];
    };
    if (word == "--help" || word == "-h") {
      std::fputs(usage, stdout);
      return std::nullopt;
    }
    if (word == "--version") {
      std::printf("histo-run %s\n", std::string(histo::build_config().version).c_str());
      return std::nullopt;
    }
    if (word == "--raw") {
      arguments.raw = extent_argument(value());
    } else if (word == "--probabilities") {
      arguments.probabilities = true;
    } else if (word == "--self-test") {
      arguments.self_test = true;
    } else if (word == "--batch") {
      arguments.batch = number_argument(word, value(), 65536);
    } else if (word == "--threads") {
      arguments.engine.threads = static_cast<unsigned>(number_argument(word, value(), 1024));
    } else if (word == "--isa") {
      arguments.engine.isa =
          choice([&] { return histo::require_usable(histo::from_name<histo::Isa>(word, value())); });
    } else if (word == "--precision") {
      arguments.engine.precision = choice([&] { return histo::from_name<histo::Precision>(word, value()); });
    } else {
      usage_error(word + ": is unknown. See histo-run --help");
    }
    if (attached) {
      usage_error(word + ": takes no value. Leave out =" + *attached);
    }
  }
  if (names.empty()) {
    usage_error("MODEL: is missing. See histo-run --help");
  }
  arguments.model = path_of(names.front());
  arguments.files.assign(names.begin() + 1, names.end());
  if (arguments.self_test && arguments.files.size() > 1) {
    usage_error(arguments.files[1] + ": --self-test takes no tiles. Classify them in a separate call");
  }
  if (!arguments.self_test && arguments.files.empty()) {
    usage_error("TILE: is missing. Name image files, or - for standard input");
  }
  if (std::error_code ignored; fs::is_directory(arguments.model, ignored)) {
    arguments.model /= "model.safetensors";
  }
  return arguments;
}

// --- tiles -----------------------------------------------------------------------------------------------

struct Tile {
  std::string name;
  Extent extent;
  std::vector<std::uint8_t> pixels;  // RGB, row-major
};

// Reads the tiles of one file, one after the other.
class TileFile {
 public:
  TileFile(std::string path, std::optional<Extent> raw) : path_(std::move(path)), raw_(raw) {
    file_ = path_ == "-" ? stdin : open_to_read(path_);
    if (file_ == nullptr) {
      failure(path_ + ": cannot be opened (" + std::generic_category().message(errno) + "). Check the path");
    }
  }
  TileFile(const TileFile&) = delete;
  TileFile& operator=(const TileFile&) = delete;
  ~TileFile() {
    if (file_ != stdin) {
      std::fclose(file_);
    }
  }

  // The next tile; nullopt at the end of the file. A file without any tile is a failure.
  std::optional<Tile> next() {
    Tile tile{.name = count_ == 0 ? path_ : path_ + "#" + std::to_string(count_), .extent = {}, .pixels = {}};
    if (!more()) {
      if (count_ == 0) {
        failure(path_ + ": is empty. " + advice());
      }
      return std::nullopt;
    }
    tile.extent = raw_ ? *raw_ : read_header(tile.name);
    tile.pixels = read_pixels(tile.name, tile.extent.height * tile.extent.width * 3);
    ++count_;
    return tile;
  }

 private:
  [[nodiscard]] std::string advice() const {
    return raw_ ? "Check --raw" : "Give a PNM file (P6), or raw RGB bytes with --raw HxW";
  }

  int read_byte() {
    const int byte = std::getc(file_);
    if (byte == EOF && std::ferror(file_) != 0) {
      failure(path_ + ": cannot be read (" + std::generic_category().message(errno) + "). Check the file");
    }
    return byte;
  }

  bool more() {
    const int byte = read_byte();
    return byte != EOF && std::ungetc(byte, file_) != EOF;
  }

  // http://netpbm.sourceforge.net/doc/ppm.html: "P6", width, height and maxval, separated by white space and
  // comments, then one byte of white space. A header whose lines end by CR LF ends by both.
  Extent read_header(const std::string& name) {
    if (read_byte() != 'P' || read_byte() != '6') {
      failure(name + ": is not a PNM file of type P6. " + advice());
    }
    int byte = read_byte();
    crlf_ = false;
    const std::size_t width = read_number(name, "width", largest_side, byte);
    const std::size_t height = read_number(name, "height", largest_side, byte);
    if (read_number(name, "maxval", 65535, byte) != 255) {
      failure(name + ": has a maxval other than 255. Convert it to 8 bits per channel");
    }
    if (byte == '\r' && crlf_) {
      if (const int after = read_byte(); after != '\n' && after != EOF) {
        std::ungetc(after, file_);
      }
    }
    return {height, width};
  }

  // `byte` is the next byte of the file that is not yet used; on return, the one behind the number.
  std::size_t read_number(const std::string& name, const char* what, std::size_t largest, int& byte) {
    // A comment may fill a file of any size, so its length is limited.
    constexpr int longest_gap = 65536;
    int gap = 0;
    bool comment = false;
    for (int before = 0; comment || byte == '#' || is_space(byte); before = byte, byte = read_byte()) {
      crlf_ = crlf_ || (before == '\r' && byte == '\n');
      comment = (comment || byte == '#') && byte != '\n' && byte != '\r' && byte != EOF;
      if (++gap > longest_gap) {
        failure(name + ": has more than 64 KiB of comments in its header. " + advice());
      }
    }
    std::size_t number = 0;
    const bool digits = gap > 0 && is_digit(byte);
    for (; is_digit(byte) && number <= largest; byte = read_byte()) {
      number = number * 10 + static_cast<std::size_t>(byte - '0');
    }
    if (!digits || number < 1 || number > largest || !is_space(byte)) {
      failure(name + ": has no " + what + " from 1 to " + std::to_string(largest) + " in its header. " +
              advice());
    }
    return number;
  }

  static bool is_space(int byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }
  static bool is_digit(int byte) { return byte >= '0' && byte <= '9'; }

  // Reads in parts of 1 MiB: a header with wrong sizes must not allocate more memory than the file has bytes.
  std::vector<std::uint8_t> read_pixels(const std::string& name, std::size_t size) {
    constexpr std::size_t part = std::size_t{1} << 20U;
    std::vector<std::uint8_t> pixels;
    while (pixels.size() < size) {
      const std::size_t done = pixels.size();
      const std::size_t wanted = std::min(part, size - done);
      pixels.resize(done + wanted);
      const std::size_t got = std::fread(pixels.data() + done, 1, wanted, file_);
      if (got < wanted) {
        failure(name + ": ends after " + std::to_string(done + got) + " of " + std::to_string(size) +
                " bytes of pixels. " + (raw_ ? "Check --raw" : "Create the file again"));
      }
    }
    return pixels;
  }

  std::string path_;
  std::optional<Extent> raw_;
  std::FILE* file_;
  std::size_t count_ = 0;
  bool crlf_ = false;  // a line of the header that is being read ended by CR LF
};

// --- classification --------------------------------------------------------------------------------------

void to_probabilities(std::span<float> logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(logit - largest);
  }
  for (float& value : logits) {
    value = static_cast<float>(std::exp(value - largest) / sum);
  }
}

// Collects tiles of one size and runs them together.
class Batch {
 public:
  Batch(const histo::Engine& engine, const Arguments& arguments)
      : engine_(engine),
        crop_(engine.info().crop),
        largest_(arguments.batch),
        probabilities_(arguments.probabilities) {}

  void add(Tile tile) {
    constexpr std::size_t most_bytes = std::size_t{1} << 28U;
    const bool same = tile.extent.height == extent_.height && tile.extent.width == extent_.width;
    if (!same || names_.size() == largest_ || pixels_.size() + tile.pixels.size() > most_bytes) {
      flush();
    }
    if (tile.extent.height < crop_ || tile.extent.width < crop_) {
      failure(tile.name + ": is " + std::to_string(tile.extent.height) + " x " +
              std::to_string(tile.extent.width) + " pixels, and the model needs at least " +
              std::to_string(crop_) + " x " + std::to_string(crop_) + ". Give larger tiles");
    }
    extent_ = tile.extent;
    names_.push_back(std::move(tile.name));
    pixels_.insert(pixels_.end(), tile.pixels.begin(), tile.pixels.end());
  }

  void flush() {
    if (names_.empty()) {
      return;
    }
    const std::size_t classes = engine_.classes();
    std::vector<float> logits(names_.size() * classes);
    engine_.run(std::span<const std::uint8_t>(pixels_),
                {.batch = names_.size(), .height = extent_.height, .width = extent_.width}, logits);
    for (std::size_t i = 0; i < names_.size(); ++i) {
      print(names_[i], std::span(logits).subspan(i * classes, classes));
    }
    names_.clear();
    pixels_.clear();
  }

 private:
  void print(const std::string& name, std::span<float> values) const {
    const auto top = static_cast<std::size_t>(std::ranges::max_element(values) - values.begin());
    if (probabilities_) {
      to_probabilities(values);
    }
    std::fputs(shown_path(name).c_str(), stdout);
    for (const float value : values) {
      std::printf("\t%.9g", static_cast<double>(value));
    }
    std::printf("\t%s\n", escaped(engine_.model().spec().classes[top]).c_str());
  }

  const histo::Engine& engine_;
  std::size_t crop_;
  std::size_t largest_;
  bool probabilities_;
  Extent extent_{};
  std::vector<std::string> names_;
  std::vector<std::uint8_t> pixels_;
};

void classify(const histo::Engine& engine, const Arguments& arguments) {
  Batch batch(engine, arguments);
  try {
    for (const std::string& path : arguments.files) {
      TileFile file(path, arguments.raw);
      while (auto tile = file.next()) {
        batch.add(std::move(*tile));
      }
    }
  } catch (const Failure&) {
    batch.flush();
    throw;
  }
  batch.flush();
}

void self_test(const histo::Engine& engine, const Arguments& arguments) {
  const fs::path golden = arguments.files.empty() ? arguments.model.parent_path() / "golden.safetensors"
                                                  : path_of(arguments.files.front());
  const histo::SelfTestResult result = histo::self_test(engine, golden);
  std::printf("%s: %zu tiles, |delta logit| at most %.2g, %.2g of a tile's largest (allowed %.2g): %s\n",
              shown_path(utf8(golden)).c_str(), result.tiles, result.max_abs, result.max_relative,
              result.tolerance, result.passed ? "passed" : "FAILED");
  if (!result.passed) {
    failure(utf8(arguments.model) + ": the engine's logits differ from those of the bundle (" +
            std::string(histo::name(engine.info().precision)) + ", " +
            std::string(histo::name(engine.info().isa)) +
            "). Check the files with histo verify, and try --isa portable");
  }
}

int run(const std::vector<std::string>& words) {
  if (const auto arguments = parse(words)) {
    const histo::Engine engine(histo::Model::open(arguments->model), arguments->engine);
    if (arguments->self_test) {
      self_test(engine, *arguments);
    } else {
      classify(engine, *arguments);
    }
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    failure("standard output: cannot be written to. Check what reads it, and the disk's free space");
  }
  return 0;
}

// `words()`: the command line without the program's name.
template <typename Words>
int guarded_run(const Words& words) {
  int exit_code = 1;
  std::string message;
  try {
    return run(words());
  } catch (const Failure& failure) {
    exit_code = failure.exit_code();
    message = failure.what();
  } catch (const histo::Error& error) {
    message = sentences(error);
  } catch (const std::bad_alloc&) {
    message = "there is not enough memory. Try a smaller --batch";
  } catch (const std::exception& error) {
    message = error.what();
  }
  std::fflush(stdout);
  std::ranges::replace(message, '\n', ' ');
  std::fprintf(stderr, "histo-run: %s\n", shown_path(message).c_str());
  return exit_code;
}

}  // namespace

#ifdef _WIN32

// The console's encoding is UTF-8 while this program writes to it.
class Utf8Console {
 public:
  Utf8Console() { SetConsoleOutputCP(CP_UTF8); }
  Utf8Console(const Utf8Console&) = delete;
  Utf8Console& operator=(const Utf8Console&) = delete;
  ~Utf8Console() { SetConsoleOutputCP(before_); }

 private:
  UINT before_ = GetConsoleOutputCP();
};

// The wide command line: the other one has only the characters of the user's code page.
int wmain(int argc, wchar_t** argv) {
  _setmode(_fileno(stdin), _O_BINARY);   // tiles
  _setmode(_fileno(stdout), _O_BINARY);  // the same lines as on other systems
  const Utf8Console console;
  return guarded_run([&] {
    std::vector<std::string> words;
    for (int i = 1; i < argc; ++i) {
      words.push_back(utf8(argv[i]));
    }
    return words;
  });
}

#else

int main(int argc, char** argv) {
  return guarded_run([&] { return std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc); });
}

#endif
