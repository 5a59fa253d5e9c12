// The functions that exist once per instruction set, behind one table of pointers.
//
// Contract of all: pointers are valid for the extents that the arguments state and need no alignment beyond
// that of their type; nothing is allocated, nothing throws. Each output element is a sum in one fixed order,
// which depends on the instruction set and on the extents of one tile, but not on how many tiles or pixels
// are handled in one call: that is what makes a tile's logits independent of its batch and of the threads.
//
// The kernels are written once, in conv.inl, head.inl, pool.inl and winograd.inl, gathered by table.inl, over
// the vector type of vec_portable.h, vec_avx2.h or vec_avx512.h, and compiled once per instruction set in
// portable.cpp, avx2.cpp and avx512.cpp. Those below float32 add dot.inl and amx.inl, and are compiled in
// avx512_dot.cpp and amx.cpp. These five files must not use inline functions of the standard library: the
// linker merges those over all object files and might keep a copy that this machine cannot run
// (tests/test_embedding.py looks for such).
#pragma once

#include <cstddef>
#include <cstdint>

#include "histo/cpu.h"

namespace histo::kernels {

// Cells begin <= i < end along one axis.
struct Range {
  std::size_t begin;
  std::size_t end;
};

// Where the pixels of channels-last maps lie: units of 32 bits from one column, row and image to the next.
struct Strides {
  std::size_t column, row, image;
};

// What becomes of a convolution's sums: output = relu(sum + bias + residual). Both convolutions below have
// it.
struct Epilogue {
  const float* bias;      // (blocks * conv_block) floats
  const float* residual;  // of image 0, pixel (0, 0); or null
  Strides residual_strides;
  float* output;  // of image 0, pixel (0, 0)
  Strides output_strides;
  std::size_t height, width;  // of the output
  bool relu;
};

// A direct convolution over channels-last images with a border of zeros: see conv.inl. A unit holds one
// float, two bf16 or four bytes.
template <typename UnitType, typename EpilogueType>
struct ConvOf {
  using Unit = UnitType;
  const Unit* input;        // of image 0, at the first cell of the window of output pixel (0, 0)
  Strides input_strides;    // from one output pixel's window to the next
  std::size_t window_rows;  // kernel rows
  std::size_t window_run;   // contiguous units of one row of the window
  std::size_t window_row;   // units from one row of the window to the next
  const Unit* weight;       // (blocks, window_rows, window_run, conv_block)
  EpilogueType epilogue;
};
using Conv = ConvOf<float, Epilogue>;

// What the numbers of a channels-last map are stored as.
enum class Cell : int {
  f32,     // one unit per channel
  bf16,    // two channels to a unit
  bf16x3,  // a number in two parts, high and low, whose sum it is to 16 bits: per pixel all high parts, all
           // low parts and all high parts again, so that a dot product with (high, high, low) parts of
           // weights is the sum of the three products that count
  u8,      // four channels to a unit; the number is `scale` times the byte
};

struct CellFormat {
  Cell cell = Cell::f32;
  float scale = 1, inverse = 1;  // u8 alone: of a byte, and its reciprocal
};

// `channels` is a multiple of four.
constexpr std::size_t units_of_pixel(Cell cell, std::size_t channels) {
  switch (cell) {
    case Cell::bf16:
      return channels / 2;
    case Cell::bf16x3:
      return channels / 2 * 3;
    case Cell::u8:
      return channels / 4;
    default:
      return channels;
  }
}

// What becomes of a dot product's sums: output = relu(sum [* scale] + bias + residual), in the format of its
// map.
struct DotEpilogue {
  const float* bias;   // (blocks * conv_block) floats
  const float* scale;  // the same, of int8 sums; else null
  std::size_t channels;
  const std::uint32_t* residual;  // of image 0, pixel (0, 0); or null
  Strides residual_strides;
  CellFormat residual_format;
  std::uint32_t* output;  // of image 0, pixel (0, 0)
  Strides output_strides;
  CellFormat output_format;
  std::size_t height, width;  // of the output
  bool relu;
};
using DotConv = ConvOf<std::uint32_t, DotEpilogue>;

// A 3 x 3 convolution of stride 1 by Winograd's algorithm: see winograd.inl. The output is cut into tiles of
// m x m pixels, which are counted over all images, row by row; the last of a row or column may reach over the
// edge of the output. Whole tiles of input, (m + 2) x (m + 2), are read nevertheless.
//
// In bf16 the transformed numbers are rounded to it once more; the transforms are computed in float32. Those
// of int8 are whole numbers.
template <typename UnitType, typename EpilogueType>
struct WinogradOf {
  using Unit = UnitType;
  const Unit* input;  // of image 0, at the first cell of the window of output pixel (0, 0)
  Strides input_strides;
  std::size_t channels;  // of the input
  std::size_t tile_rows, tile_columns;
  const Unit* weight;  // transformed: (blocks, (m + 2) * (m + 2), units of the channels, conv_block)
  EpilogueType epilogue;
};
using Winograd = WinogradOf<float, Epilogue>;
using DotWinograd = WinogradOf<std::uint32_t, DotEpilogue>;

template <typename Problem>
struct WinogradKernelsOf {
  using Unit = typename Problem::Unit;

  // Transforms the input of the tiles [tiles.begin, tiles.end) to `out`:
  // ((m + 2) * (m + 2), tiles, channels), its outermost stride being `plane` units.
  void (*input)(const Problem& w, Range tiles, Unit* out, std::size_t plane);

  // From there to the output of the same tiles, for the output channel blocks [blocks.begin, blocks.end).
  // `products` has room for ((m + 2) * (m + 2), tiles, conv_block) floats, outermost stride
  // `products_plane`.
  void (*output)(const Problem& w, Range tiles, Range blocks, const Unit* input, std::size_t plane,
                 float* products, std::size_t products_plane);
};
using WinogradKernels = WinogradKernelsOf<Winograd>;

// The features that the head takes dot products of, for several tiles at once: see head.inl.
template <typename Cell>
struct HeadTiles {
  const Cell* first;   // tile 0's
  std::size_t stride;  // cells from one tile's to the next
  std::size_t count;
};

// Runs of `length` cells.
template <typename Cell>
struct HeadCells {
  HeadTiles<Cell> tiles;
  std::size_t length;
};

// Maps (channels, height, width), whose rows are summed by `bins` before anything is multiplied.
template <typename Cell>
struct HeadRows {
  HeadTiles<Cell> tiles;
  std::size_t channels, height, width;
  const Range* bins;  // of rows
  std::size_t bin_count;
};

// Maps (height, width, channels), of which one bin's cells are summed before anything is multiplied.
template <typename Cell>
struct HeadBin {
  HeadTiles<Cell> tiles;        // from the first channel wanted on
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

struct Table {
  std::size_t lanes;       // floats in a vector
  std::size_t conv_block;  // output channels that the convolution computes together

  // Output pixels [pixels.begin, pixels.end), counted over all images, of the output channel blocks
  // [blocks.begin, blocks.end).
  void (*conv)(const Conv& conv, Range pixels, Range blocks);

  WinogradKernels winograd2, winograd4;  // tiles of 2 x 2 and of 4 x 4 pixels

  // 3 x 3 maximum with stride 2 over one channels-last image that has a border of zeros; all values >= 0 or
  // NaN, which stays NaN. Strides as in Strides.
  void (*max_pool)(const float* input, std::size_t input_row, float* output, std::size_t output_row,
                   std::size_t height, std::size_t width, std::size_t channels);

  // sums (tiles, classes, lanes) += features * weights, lane by lane.
  void (*head_cells_f32)(const HeadCells<float>& cells, const HeadWeights& weights, float* sums);
  void (*head_cells_bf16)(const HeadCells<std::uint16_t>& cells, const HeadWeights& weights, float* sums);
  void (*head_rows_f32)(const HeadRows<float>& rows, const HeadWeights& weights, float* sums);
  void (*head_rows_bf16)(const HeadRows<std::uint16_t>& rows, const HeadWeights& weights, float* sums);

  void (*head_bin_f32)(const HeadBin<float>& bin, const HeadWeights& weights, float* sums);
  void (*head_bin_bf16)(const HeadBin<std::uint16_t>& bin, const HeadWeights& weights, float* sums);

  // out (channels wanted): the sum over the cells of tile 0. `out` has room for whole vectors.
  void (*sum_bin_f32)(const HeadBin<float>& bin, float* out);
  void (*sum_bin_bf16)(const HeadBin<std::uint16_t>& bin, float* out);
};

// The kernels of low precision. All of one kind give the same bits, except that the bf16 ones sum in
// different orders.
struct DotTable {
  std::size_t conv_block;

  // Output pixels and channel blocks as Table::conv. Input and weights are bf16, sums float32.
  void (*conv_bf16)(const DotConv& conv, Range pixels, Range blocks);

  // The same from bf16 maps by Winograd's algorithm, tiles of 2 x 2 pixels.
  WinogradKernelsOf<DotWinograd> winograd2_bf16;

  // Input u8, weights s8, sums int32, which no window of the network overflows.
  void (*conv_int8)(const DotConv& conv, Range pixels, Range blocks);

  // The same, to the bit, in tiles of 4 x 4 pixels, where fits_winograd() of weight_packing.h is true. Input
  // and weights are transformed to words.
  WinogradKernelsOf<DotWinograd> winograd4_int8;

  // AMX has neither of Winograd's: its products are so much faster than the transforms that these would take
  // longer than what they save.

  // `count` floats, of at least one vector, as bf16: `high` nearest to them and, unless it is null, `low`
  // nearest to what that leaves.
  void (*split)(const float* x, std::size_t count, std::uint16_t* high, std::uint16_t* low);

  // As Table::max_pool, from float32 to a map of any format.
  void (*max_pool)(const float* input, std::size_t input_row, std::uint32_t* output, std::size_t output_row,
                   CellFormat format, std::size_t height, std::size_t width, std::size_t channels);
};

// How many channels share a vector of `lanes` floats in HeadRows: each has a slot of 4, 8, 16, ... lanes that
// holds a row of `width` cells. 1 where a row needs whole vectors.
constexpr std::size_t head_row_slots(std::size_t width, std::size_t lanes) {
  std::size_t slot = 4;
  while (slot < width && slot < lanes) {
    slot *= 2;
  }
  return lanes / slot;
}

// The kernels for `isa`, which must be usable here.
const Table& table(Isa isa);

// Those of low precision; null where `isa` has none. AMX leaves the stem, whose windows are no multiple of
// its tiles, to the vectors. int8 needs VNNI or AMX, which is the caller's to check.
struct DotTables {
  const DotTable* layers = nullptr;
  const DotTable* stem = nullptr;
};
DotTables dot_tables(Isa isa);

extern const Table portable_table;
#ifdef HISTO_X86_KERNELS
extern const Table avx2_table;
extern const Table avx512_table;

extern const DotTable avx512_vnni_table;  // needs VNNI; multiplies bf16 as floats
extern const DotTable avx512_bf16_table;  // needs VNNI and BF16
extern const DotTable amx_table;
#endif

}  // namespace histo::kernels
