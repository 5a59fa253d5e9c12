// The functions that exist once per instruction set, as tables of pointers.
//
// Contract of all: pointers are valid for the extents that the arguments state and need no alignment beyond
// that of their type; nothing is allocated, nothing throws. Each output element is a sum in one fixed order,
// which depends on the instruction set and on the extents of one tile, but not on how many tiles or pixels
// are handled in one call: that is what makes a tile's logits independent of its batch and of the threads.
//
// The kernels are written once, as templates over a vector type (vec_portable.h, vec_avx2.h, vec_avx512.h,
// vec_neon.h) and over the arithmetic of a precision:
//   conv.inl, winograd.inl       convolutions, for any arithmetic
//   fp32.inl                     the arithmetic of float32, and the kernels that need no other
//   low_precision.inl            what bf16 and int8 have in common
//   vnni.inl, amx.inl            int8 by VNNI; convolution by AMX
//   neon_*.inl                   the same of NEON: bf16 without its instructions, products of pairs
//   pool.inl, head.inl           the stem's maximum; the head
// The files NAME.cpp compile them, each for one IsaRecord, NAME_record, which it defines: portable.cpp for
// every CPU; avx2.cpp, avx_vnni.cpp, avx512.cpp, avx512_vnni.cpp, avx512_bf16.cpp and amx.cpp for x86-64;
// neon.cpp, neon_dotprod.cpp, neon_i8mm.cpp and neon_bf16.cpp for AArch64.
//
// Those files must not use inline functions of the standard library: the linker merges such functions over
// all object files and might keep a copy that this machine cannot run (tests/test_embedding.py looks for
// them).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa_records.h"
#include "plan/map_format.h"
#include "plan/per_precision.h"
#include "range.h"

namespace histo::kernels {

// 32 bits of a map or of packed weights: one float, two bf16 or int16, or four bytes. Every broadcast and
// every vector load of a convolution moves whole units, so one code serves all precisions.
using Unit = std::uint32_t;

// Where the pixels of channels-last maps lie: units from one column, row and image to the next, and from one
// group of interleaved images to the next. Images that are not interleaved are groups of one.
struct Strides {
  std::size_t column, row, image, group;
};

// What becomes of a convolution's sums: output = relu(sum [* scale] + bias + residual), in the format of its
// map. float32 kernels take `scale` and both formats for their defaults and do not read them.
struct Epilogue {
  const float* bias;   // (blocks * block) floats
  const float* scale;  // the same, of int8 sums; else null
  std::size_t channels;
  const Unit* residual;  // of image 0, pixel (0, 0); or null
  Strides residual_strides;
  MapFormat residual_format;
  Unit* output;  // of image 0, pixel (0, 0)
  Strides output_strides;
  MapFormat output_format;
  std::size_t height, width;  // of the output
  bool relu;
  const std::int32_t* start = nullptr;  // set by neon_dotprod.cpp for itself: what a block's sums start from
};

// A direct convolution over channels-last images with a border of zeros: see conv.inl.
struct Conv {
  const Unit* input;        // of image 0, at the first unit of the window of output pixel (0, 0)
  Strides input_strides;    // from one output pixel's window to the next
  std::size_t window_rows;  // kernel rows
  std::size_t window_run;   // contiguous units of one row of the window
  std::size_t window_row;   // units from one row of the window to the next
  const Unit* weight;       // (blocks, window_rows, window_run, block); see also ConvKernels::pair
  Epilogue epilogue;
  // Interleaved images lie side by side in the maps, pixel by pixel. Output pixels are counted group by
  // group, and in a group image by image at each place; the last group may have fewer images. A row of the
  // window then has gaps: it is `window_parts` runs of `window_run` units, `window_part` units from one to
  // the next.
  std::size_t interleaved = 1;
  std::size_t images = 1, window_parts = 1, window_part = 0;  // not read where `interleaved` is 1
};

// A 3 x 3 convolution of stride 1 by Winograd's algorithm: see winograd.inl. The output is cut into tiles of
// m x m pixels, which are counted over all images, row by row; the last of a row or column may reach over the
// edge of the output. Whole tiles of input, (m + 2) x (m + 2), are read nevertheless.
//
// In bf16 the transformed numbers are rounded to it once more; the transforms are computed in float32. In
// int8 the transformed numbers are integers of 16 bits.
struct Winograd {
  const Unit* input;  // of image 0, at the first unit of the window of output pixel (0, 0)
  Strides input_strides;
  std::size_t channels;  // of the input
  std::size_t tile_rows, tile_columns;
  const Unit* weight;  // transformed: (blocks, (m + 2) * (m + 2), units of the channels, block)
  // Or, of at most most_tiles_on_the_fly tiles at a time, as trained; null where `weight` is wanted: (blocks,
  // vectors of the block, units of the channels, 9, lanes, channels of a unit).
  const Unit* plain_weight;
  Epilogue epilogue;
};

// Tiles that WinogradKernels::output can take untransformed weights for: their sums stay in registers.
constexpr std::size_t most_tiles_on_the_fly = 4;

struct WinogradKernels {
  // Transforms the input of the tiles [tiles.begin, tiles.end) to `out`:
  // ((m + 2) * (m + 2), tiles, units of the channels), its outermost stride being `plane` units.
  void (*input)(const Winograd& w, Range tiles, Unit* out, std::size_t plane);

  // From there to the output of the same tiles, for the output channel blocks [blocks.begin, blocks.end).
  // `products` has room for ((m + 2) * (m + 2), tiles, block) floats, outermost stride `products_plane`.
  void (*output)(const Winograd& w, Range tiles, Range blocks, const Unit* input, std::size_t plane,
                 float* products, std::size_t products_plane);

  // Transforms the weights of one block, from `plain` (as Winograd::plain_weight) to `out` (as
  // Winograd::weight). `units`: of the input channels. Null where packing.cpp does it, and `output` reads
  // transformed weights alone.
  void (*weights)(const Unit* plain, std::size_t units, Unit* out) = nullptr;
};

// The convolutions of one precision.
struct ConvKernels {
  std::size_t block;    // output channels that are computed together; weights are packed for it
  bool pair = false;    // two units of a channel lie side by side in packed weights
  std::size_t run = 1;  // Conv::window_run is a multiple of it: packed rows of a window may end in zeros
  // How `direct` is called best: with blocks that share the pixels in the first-level cache, and with a
  // multiple of so many pixels.
  std::size_t call_blocks = 1, call_pixels = 1;

  // Output pixels [pixels.begin, pixels.end), counted over all images, of the output channel blocks
  // [blocks.begin, blocks.end).
  void (*direct)(const Conv& conv, Range pixels, Range blocks);

  WinogradKernels winograd2{}, winograd4{};  // tiles of 2 x 2 and of 4 x 4 pixels; null where there are none
};

// The features that the head takes dot products of, for several tiles at once: see head.inl. `Feature` is
// float, or std::uint16_t for bf16.
template <typename Feature>
struct HeadTiles {
  const Feature* first;  // tile 0's
  std::size_t stride;    // features from one tile's to the next
  std::size_t count;
};

// Runs of `length` features.
template <typename Feature>
struct HeadRuns {
  HeadTiles<Feature> tiles;
  std::size_t length;
};

// Maps (channels, height, width), whose rows are summed by `bins` before anything is multiplied.
template <typename Feature>
struct HeadRows {
  HeadTiles<Feature> tiles;
  std::size_t channels, height, width;
  std::size_t slots;  // channels that share a vector: HeadPlan::slots
  const Range* bins;  // of rows
  std::size_t bin_count;
};

// Maps (height, width, channels), of which one bin's cells are summed before anything is multiplied.
template <typename Feature>
struct HeadBin {
  HeadTiles<Feature> tiles;     // from the first channel wanted on
  std::size_t channels, count;  // of the map, and those wanted
  std::size_t width;
  Range rows, columns;
};

// What the dot products are taken with. A step is one vector of what became of the features.
struct HeadWeights {
  const float* first;  // (steps, classes, lanes), from the first class wanted on
  std::size_t stride;  // floats from one step to the next
  std::size_t classes;
};

// Each adds to `sums` (tiles, classes, lanes): features * weights, lane by lane.
template <typename Feature>
struct HeadKernels {
  void (*runs)(const HeadRuns<Feature>& runs, const HeadWeights& weights, float* sums);
  void (*rows)(const HeadRows<Feature>& rows, const HeadWeights& weights, float* sums);
  void (*bin)(const HeadBin<Feature>& bin, const HeadWeights& weights, float* sums);

  // Another form: out (channels wanted) = the sum over the bin's cells of tile 0. `out` has room for whole
  // vectors.
  void (*sum_bin)(const HeadBin<Feature>& bin, float* out);
};

struct HeadTable {
  HeadKernels<float> f32;
  HeadKernels<std::uint16_t> bf16;
};

// All that one IsaRecord executes.
struct KernelSet {
  std::size_t lanes;            // floats in a vector
  std::size_t interleaved = 1;  // images that are interleaved where there are as many

  // Null for a precision without kernels. An int8 network also has layers in bf16, so a set for int8 has
  // both. `stem`: of the first convolution, whose windows may have an odd number of units.
  PerPrecision<const ConvKernels*> of, stem;

  // `count` floats, of at least one vector, as bf16: `high` nearest to them and, unless it is null, `low`
  // nearest to what that leaves. Null where all precisions are float32.
  void (*split)(const float* x, std::size_t count, std::uint16_t* high, std::uint16_t* low);

  // 3 x 3 maximum with stride 2 over one channels-last float32 image that has a border of zeros, to a map of
  // `format`; all values >= 0 or NaN, which stays NaN. Rows and columns as in Strides. A set for float32
  // alone writes that and does not read `format`.
  void (*max_pool)(const float* input, std::size_t input_row, Unit* output, std::size_t output_row,
                   std::size_t output_column, MapFormat format, std::size_t height, std::size_t width,
                   std::size_t channels);

  const HeadTable* head = nullptr;  // where float32 is executed
};

// What the sets of avx512_bf16.cpp and amx.cpp take from other files.
extern const ConvKernels avx512_int8;  // of avx512_vnni.cpp
extern const ConvKernels avx512_bf16;

}  // namespace histo::kernels
