// All kernels of float32 over `Vec`. A file per instruction set defines `Vec`, includes this, and puts
// fp32_convolutions, max_pool and head into its KernelSet.

#include "conv.inl"
#include "head.inl"
#include "pool.inl"
#include "winograd.inl"

namespace {

[[gnu::always_inline]] inline const float* floats(const Unit* p) { return reinterpret_cast<const float*>(p); }
[[gnu::always_inline]] inline float* floats(Unit* p) { return reinterpret_cast<float*>(p); }

// Whether a lane of a vector can be a factor: see conv.inl.
template <typename V>
struct LanesOf {};
template <typename V>
  requires(V::multiplies_lanes)
struct LanesOf<V> {
  static constexpr bool multiplies_lanes = true;
};

// A unit is a float. Maps are float32 always, so the formats of an Epilogue are not read.
struct Fp32 : LanesOf<Vec> {
  using Units = Vec;
  using Sum = Vec;
  using Kept = float;

  static Units broadcast(const Unit* p) { return Vec::broadcast(*floats(p)); }
  static Units load(const Unit* p) { return Vec::load(floats(p)); }
  static Units load_factors(const Unit* p) { return load(p); }
  static Sum plus_product(Sum sum, Units a, Units b) { return sum.plus_product(a, b); }
  template <int lane, typename V = Vec>
  static V plus_lane_product(V sum, V a, V b) {
    return sum.template plus_lane_product<lane>(a, b);
  }
  static Sum start(const Epilogue& e, std::size_t channel) { return Vec::load(e.bias + channel); }
  static Sum resume(const Kept* p) { return Vec::load(p); }
  static void keep(Sum sum, Kept* p) { sum.store(p); }

  // `sum` has the bias in it already.
  [[gnu::always_inline]] static void finish(const Epilogue& e, Sum sum, std::size_t channel,
                                            const Unit* residual, Unit* output) {
    if (e.residual != nullptr) {
      sum = sum.plus(Vec::load(floats(residual) + channel));
    }
    if (e.relu) {
      sum = sum.relu();
    }
    sum.store(floats(output) + channel);
  }
};

struct Fp32Winograd {
  using Products = Fp32;
  using Numbers = Vec;
  static constexpr std::size_t map_channels = 1, channels_per_unit = 1, weights_per_unit = 1;

  static Numbers read(const Unit* pixel, std::size_t channel) { return Vec::load(floats(pixel) + channel); }
  static void write(Numbers v, Unit* row, std::size_t channel) { v.store(floats(row) + channel); }
  static Numbers read_weight(const Unit* p) { return Vec::load(floats(p)); }
  static Numbers resume_weight(const Unit* p) { return read_weight(p); }
  static void keep_weight(Numbers v, Unit* p) { v.store(floats(p)); }
  static Products::Units factor(Numbers weight) { return weight; }
  static void finish(const Epilogue& e, Vec sum, Vec bias, std::size_t channel, const Unit* residual,
                     Unit* output) {
    Products::finish(e, sum.plus(bias), channel, residual, output);
  }
};

void max_pool(const float* input, std::size_t input_row, Unit* output, std::size_t output_row,
              std::size_t output_column, MapFormat /*format*/, std::size_t height, std::size_t width,
              std::size_t channels) {
  pool(input, input_row, output, output_row, output_column, height, width, channels,
       [](Vec largest, Unit* pixel, std::size_t channel) { largest.store(floats(pixel) + channel); });
}

constexpr ConvKernels fp32_convolutions{
    .block = conv_block,
    .direct = conv<Fp32>,
    .winograd2 = {.input = winograd_input<F2, Fp32Winograd>, .output = winograd_output<F2, Fp32Winograd>},
    .winograd4 = {.input = winograd_input<F4, Fp32Winograd>,
                  .output = winograd_output<F4, Fp32Winograd>,
                  .weights = winograd_weights<F4, Fp32Winograd>}};

template <typename Feature>
constexpr HeadKernels<Feature> head_kernels{.runs = head_runs<Feature>,
                                            .rows = head_rows<Feature>,
                                            .bin = head_bin<Feature>,
                                            .sum_bin = sum_bin<Feature>};

constexpr HeadTable head{.f32 = head_kernels<float>, .bf16 = head_kernels<std::uint16_t>};

constexpr KernelSet fp32_kernels{.lanes = Vec::lanes,
                                 .of = {.fp32 = &fp32_convolutions},
                                 .stem = {.fp32 = &fp32_convolutions},
                                 .split = nullptr,
                                 .max_pool = max_pool,
                                 .head = &head};

}  // namespace
