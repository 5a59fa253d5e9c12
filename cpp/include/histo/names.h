/// \file
/// Every closed set of this library: its values, and their names in options, messages, reports and files.
///
/// This is the one place that spells them. To add a value, add it to the enumeration and to the table behind
/// it; options, error messages, the C interface, the Python module and histo-run follow.
///
/// \code
/// histo::name(histo::Isa::avx2);                                     // "avx2"
/// histo::from_name<histo::Precision>("precision", text);             // throws an Error that lists the names
/// for (const auto& [isa, name] : histo::name_table<histo::Isa>) {}   // all of them, in order
/// \endcode
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "histo/api.h"

namespace histo {

/// A value and its name, which ends with NUL in memory, so that `name.data()` can be handed to C.
template <typename Value>
struct Named {
  Value value;
  std::string_view name;
};

/// The values of a closed set with their names, in the order in which they are listed for people. Empty for
/// a type that is not a closed set.
template <typename Value>
inline constexpr std::array<Named<Value>, 0> name_table{};

// --- the machine -----------------------------------------------------------------------------------------

/// Instruction sets with kernels of their own: those of x86-64 from the lowest to the highest, then that of
/// AArch64. The numbers are stable and not an order: usable_isas() has the order on this machine.
enum class Isa : int {
  portable = 0,  ///< what the library was compiled for: x86-64-v2, Armv8-A, or else the compiler's default
  avx2 = 1,      ///< AVX2 and FMA; VNNI where the CPU has it for these registers
  avx512 = 2,    ///< AVX-512 F, BW, DQ and VL; VNNI and BF16 where the CPU has them
  amx = 3,       ///< the matrix unit, bf16 and int8; float32 runs as avx512
  neon = 4,      ///< NEON of AArch64; DOTPROD, I8MM and BF16 where the CPU has them
};

template <>
inline constexpr auto name_table<Isa> = std::to_array<Named<Isa>>({
    {Isa::portable, "portable"},
    {Isa::avx2, "avx2"},
    {Isa::avx512, "avx512"},
    {Isa::amx, "amx"},
    {Isa::neon, "neon"},
});

// --- the arithmetic --------------------------------------------------------------------------------------

/// Arithmetic of the convolutions, and the number format of the maps between them. The head always
/// multiplies in float32. Listed from the most to the least accurate.
enum class Precision : int {
  fp32 = 0,    ///< float32 throughout
  bf16 = 1,    ///< maps and weights bf16, sums float32
  bf16x3 = 2,  ///< each number in two bf16 parts, three products: operands of 16 bits, near float32
  int8 = 3,    ///< maps u8, weights s8, sums int32, by the scales in the model file; other layers bf16
};

template <>
inline constexpr auto name_table<Precision> = std::to_array<Named<Precision>>({
    {Precision::fp32, "fp32"},
    {Precision::bf16x3, "bf16x3"},
    {Precision::bf16, "bf16"},
    {Precision::int8, "int8"},
});

/// What the algorithms are chosen for. The choice is made once for an Engine and does not depend on the batch
/// that is run, so that a tile's logits do not depend on its batch.
enum class Profile : int {
  throughput = 0,  ///< fewest operations: for every batch; best from 8 tiles on
  latency = 1,     ///< a little faster for single tiles, slower for batches
};

template <>
inline constexpr auto name_table<Profile> = std::to_array<Named<Profile>>({
    {Profile::throughput, "throughput"},
    {Profile::latency, "latency"},
});

/// Which algorithms an Engine may use for its convolutions.
enum class AlgorithmPolicy : int {
  fastest =
      0,       ///< Winograd's where it applies: 4 times fewer multiplications, about twice the rounding error
  direct = 1,  ///< the definition alone
};

template <>
inline constexpr auto name_table<AlgorithmPolicy> = std::to_array<Named<AlgorithmPolicy>>({
    {AlgorithmPolicy::fastest, "fastest"},
    {AlgorithmPolicy::direct, "direct"},
});

/// The algorithm that a layer runs.
enum class Algorithm : int {
  direct = 0,
  winograd2 = 1,  ///< Winograd's F(2 x 2, 3 x 3)
  winograd4 = 2,  ///< Winograd's F(4 x 4, 3 x 3)
};

template <>
inline constexpr auto name_table<Algorithm> = std::to_array<Named<Algorithm>>({
    {Algorithm::direct, "direct"},
    {Algorithm::winograd2, "winograd2"},
    {Algorithm::winograd4, "winograd4"},
});

// --- the network -----------------------------------------------------------------------------------------

/// The stages of the network, in the order of the computation: see Engine::stages().
inline constexpr std::array<std::string_view, 6> stage_names{"stem",   "layer1", "layer2",
                                                             "layer3", "layer4", "head"};

/// Residual blocks in each of the stages layer1 to layer4: those of ResNet34.
inline constexpr std::array<std::size_t, 4> block_counts{3, 4, 6, 3};

/// Order of a feature map's axes in memory.
enum class Layout : int {
  nchw = 0,  ///< row-major `(batch, channels, height, width)`
  nhwc = 1,  ///< row-major `(batch, height, width, channels)`, "channels last"
};

template <>
inline constexpr auto name_table<Layout> = std::to_array<Named<Layout>>({
    {Layout::nchw, "nchw"},
    {Layout::nhwc, "nhwc"},
});

// --- pixels ----------------------------------------------------------------------------------------------

/// What the bytes of a pixel are, in the order in which they lie in memory: see ImageView.
enum class PixelFormat : int {
  rgb = 0,
  bgr = 1,
  rgba = 2,  ///< the alpha is ignored: the colours are taken as they are
  bgra = 3,  ///< the same
  bgra_premultiplied =
      4,     ///< the colours are multiplied by alpha already; composited on white. On little-endian machines
             ///< this is the ARGB32 of Cairo and of OpenSlide's C interface
  grey = 5,  ///< one byte, which is red, green and blue
};

template <>
inline constexpr auto name_table<PixelFormat> = std::to_array<Named<PixelFormat>>({
    {PixelFormat::rgb, "rgb"},
    {PixelFormat::bgr, "bgr"},
    {PixelFormat::rgba, "rgba"},
    {PixelFormat::bgra, "bgra"},
    {PixelFormat::bgra_premultiplied, "bgra_premultiplied"},
    {PixelFormat::grey, "grey"},
});

// --- the batch loop --------------------------------------------------------------------------------------

/// What BatchRunner does when a tile is lost: its source threw, or the runtime failed for its batch.
enum class OnError : bool {
  stop,    ///< the tiles before it are delivered, no more tiles are read, and run() throws
  report,  ///< the tile is delivered as a TileResult with an error, and the loop continues
};

template <>
inline constexpr auto name_table<OnError> = std::to_array<Named<OnError>>({
    {OnError::stop, "stop"},
    {OnError::report, "report"},
});

// --- messages --------------------------------------------------------------------------------------------

/// How much a message of the library matters: see set_log().
enum class LogLevel : int {
  info = 0,     ///< what was done, as an engine that was made
  warning = 1,  ///< what went wrong without an error for the caller, as an exception of a callback
};

template <>
inline constexpr auto name_table<LogLevel> = std::to_array<Named<LogLevel>>({
    {LogLevel::info, "info"},
    {LogLevel::warning, "warning"},
});

// --- errors ----------------------------------------------------------------------------------------------

/// What went wrong. The numbers are stable: new codes are appended, and no number is used again.
enum class ErrorCode : int {
  invalid_argument = 1,  ///< an argument is null, zero or outside its range
  size_mismatch = 2,     ///< a buffer does not hold as many elements as the shape needs
  size_overflow = 3,     ///< a shape's number of elements does not fit in std::size_t
  io = 4,                ///< a file cannot be opened or read
  invalid_file = 5,      ///< a file is not what it claims to be: damaged, or of another format
  unsupported = 6,       ///< valid, but not possible here: an instruction set, a precision, a size
  out_of_memory = 7,     ///< an allocation failed
  cancelled = 8,         ///< the caller asked to stop
  failed = 9,            ///< a callback or a foreign runtime failed; the message is its own
  busy = 10,             ///< no room at the moment: a queue is full
};

template <>
inline constexpr auto name_table<ErrorCode> = std::to_array<Named<ErrorCode>>({
    {ErrorCode::invalid_argument, "invalid_argument"},
    {ErrorCode::size_mismatch, "size_mismatch"},
    {ErrorCode::size_overflow, "size_overflow"},
    {ErrorCode::io, "io"},
    {ErrorCode::invalid_file, "invalid_file"},
    {ErrorCode::unsupported, "unsupported"},
    {ErrorCode::out_of_memory, "out_of_memory"},
    {ErrorCode::cancelled, "cancelled"},
    {ErrorCode::failed, "failed"},
    {ErrorCode::busy, "busy"},
});

// --- from a value to its name and back -------------------------------------------------------------------

/// A type whose values are listed above.
template <typename Value>
concept ClosedSet = !name_table<Value>.empty();

/// The name of `value`; "unknown" for a number that the enumeration does not list.
template <ClosedSet Value>
[[nodiscard]] constexpr std::string_view name(Value value) noexcept {
  for (const Named<Value>& entry : name_table<Value>) {
    if (entry.value == value) {
      return entry.name;
    }
  }
  return "unknown";
}

/// The names of `values` for a message: "portable, avx2".
template <ClosedSet Value>
[[nodiscard]] std::string name_list(std::span<const Value> values) {
  std::string list;
  for (const Value value : values) {
    list.append(list.empty() ? "" : ", ").append(name(value));
  }
  return list;
}

/// All names of a closed set for a message: "fp32, bf16x3, bf16, int8".
template <ClosedSet Value>
[[nodiscard]] std::string name_list() {
  std::string list;
  for (const Named<Value>& entry : name_table<Value>) {
    list.append(list.empty() ? "" : ", ").append(entry.name);
  }
  return list;
}

/// Throws the Error of from_name(): `WHAT "TEXT" is unknown; choose from CHOICES`.
[[noreturn]] HISTO_API void throw_unknown_name(std::string_view what, std::string_view text,
                                               std::string_view choices);

/// The value whose name is `text`.
/// \param what    what is chosen, for the message: an option, an argument or an environment variable
/// \throws Error  invalid_argument where no value has that name
template <ClosedSet Value>
[[nodiscard]] Value from_name(std::string_view what, std::string_view text) {
  for (const Named<Value>& entry : name_table<Value>) {
    if (entry.name == text) {
      return entry.value;
    }
  }
  throw_unknown_name(what, text, name_list<Value>());
}

}  // namespace histo
