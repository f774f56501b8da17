// What every linear layer does around its inner loop: rows cut into tiles, inputs arranged for panels, totals stored.
#pragma once

#include <algorithm>

#include "bf16.h"
#include "packed.h"
#include "panel.h"
#include "pool.h"

namespace distllm {

constexpr int kBlockRows = 96;
constexpr int kTallPanels = kParts == 1 ? 2 : 1;  // best for many rows
constexpr int kMaxPanels = kMaxAccumulators >= 4 * kParts ? 4 : 2;  // best for one row

struct LinearCall {
  const void* x;
  ptrdiff_t x_stride;
  DType x_type;
  const void* weight;
  const void* bias;  // of bias_type, or null
  DType bias_type;
  void* out;
  ptrdiff_t out_stride;
  DType out_type;
  int rows;
  int depth;
  int features;
  const float* row_scales = nullptr;  // [rows], by which totals are multiplied, or null
};

// Rows cut evenly into tiles of at most `most` rows.
struct Tiling {
  int rows, count;

  Tiling(int rows, int most) : rows(rows), count((rows + most - 1) / most) {}
  int begin(int tile) const { return tile * (rows / count) + std::min(tile, rows % count); }
  int size(int tile) const { return begin(tile + 1) - begin(tile); }
};

// Rows of `depth` inputs as floats [padded][rows], zeros behind.
template <class T>
void widen_tile(const T* x, ptrdiff_t stride, int rows, int depth, int padded, float* to) {
  for (int r = 0; r < rows; ++r) {
    const T* const row = x + r * stride;
    for (int k = 0; k < depth; ++k) convert(row[k], to[(size_t)k * rows + r]);
    for (int k = depth; k < padded; ++k) to[(size_t)k * rows + r] = 0.0f;
  }
}

// The same as pairs of bf16 [padded / 2][rows].
inline void pair_tile(const uint16_t* x, ptrdiff_t stride, int rows, int depth, int padded, int32_t* to) {
  for (int r = 0; r < rows; ++r) {
    const uint16_t* const row = x + r * stride;
    for (int k = 0; k + 1 < depth; k += 2) std::memcpy(&to[(size_t)(k / 2) * rows + r], row + k, 4);
    if (depth % 2) to[(size_t)(depth / 2) * rows + r] = row[depth - 1];
    for (int k = (depth + 1) / 2; k < padded / 2; ++k) to[(size_t)k * rows + r] = 0;
  }
}

// Inputs of one row, in Input units: k for float inputs, pairs for dot products.
template <Kind kind>
size_t input_size(int depth) {
  return kind == Kind::kBf16Dot ? padded_depth((size_t)depth) / 2 : padded_depth((size_t)depth);
}

inline F32x16 load_bias(const LinearCall& call, int feature, int count) {
  if (call.bias_type == DType::kFloat32) return load_first((const float*)call.bias + feature, count);
  return load_first((const uint16_t*)call.bias + feature, count);
}

// Scales rows of 16-wide totals, adds the bias and stores the `features` of them that exist.
template <class T>
void finish(const LinearCall& call, const float* total, int total_stride, int row, int rows, int feature, int features) {
  for (int f = 0; f < features; f += kPanelWidth) {
    const int count = std::min(kPanelWidth, features - f);
    const F32x16 bias = call.bias ? load_bias(call, feature + f, count) : zeros();
    for (int r = 0; r < rows; ++r) {
      F32x16 sum = load(total + r * total_stride + f);
      if (call.row_scales) sum = sum * broadcast(call.row_scales[row + r]);
      if (call.bias) sum = sum + bias;
      T* const to = (T*)call.out + (row + r) * call.out_stride + feature + f;
      store_first(to, sum, count);
    }
  }
}

}  // namespace distllm
