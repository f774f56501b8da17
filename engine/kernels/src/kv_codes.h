// A quantized KV cache: one byte an element, in the order in which kv_layout.h lays out bf16, and a scale for each
// token and head, [block][kv head][16] float32, of keys and of values.
//
// An element is scale * code, or scale * e4m3(code). Scores are scaled by token, as are weights before they meet values.
//
// INT8 codes are panels of Kind::kInt8: queries and weights are rounded to whole numbers of 16 bits, and
// the products are exact. FP8 codes become bf16 by moving bits alone, while they are read or once for many rows, which
// leaves each 2^-120 of its value: queries and weights carry 2^64 of that, the scales and the result the rest. e4m3's subnormal
// numbers would be lost on the way and are not stored: what is below 2^-6 of 448 becomes 0 or 2^-6, whichever is nearer.
#pragma once

#include <cmath>

#include "kv_layout.h"
#include "quantized.h"
#include "round_rows.h"

namespace distllm {

enum class KvCodes : int { kNone = 0, kInt8 = 1, kFloat8 = 2 };  // the numbers that ops.py passes

enum class Float8 : uint8_t {};

constexpr float kFloat8InputUnit = 0x1p64f, kFloat8Rest = 0x1p56f;

// The normal e4m3 number, or 0, nearest to x, |x| <= 448.
inline uint8_t e4m3_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude < 121u << 23) return (uint8_t)(sign | (uint32_t)std::nearbyintf(std::fabs(x) * 64.0f) << 3);
  const uint32_t rounded = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
  return (uint8_t)(sign | (rounded - (120u << 3)));
}

// x [dim] as codes [dim], 16 of room; returns the scale, NaN where an element is not finite.
template <class T>
float encode_kv(KvCodes codes, const T* x, int dim, uint8_t* to) {
  const int padded = (dim + 15) / 16 * 16;
  if (codes == KvCodes::kInt8) return round_row(x, dim, padded, (int8_t*)to);
  const RowRange range = range_of(x, dim);
  const float inverse = range.largest > 1e-30f ? 448.0f / range.largest : 0.0f;
  for (int d = 0; d < dim; ++d) {
    float element;
    convert(x[d], element);
    to[d] = e4m3_from_float(element * inverse);
  }
  return range.largest / 448.0f + range.not_finite;
}

// Thirty-two e4m3 codes, two by two, as pairs of bf16 of 2^-120 times their values.
DISTLLM_INLINE Bf16Pairs load_pairs(const Float8* from) {
  typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
  const I32x16 codes = load_byte_pairs((const int8_t*)from);
  Bf16Pairs pairs;
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
    pairs.part[i] = (Words)((Shorts)codes.part[i] << 4) & (int32_t)0x87f087f0;
  });
  return pairs;
}

// The same of `count` codes, a multiple of 16; meanwhile those at `next` are fetched.
inline void widen_float8(const Float8* from, const Float8* next, size_t count, uint16_t* to) {
  size_t i = 0;
  for (; i + 32 <= count; i += 32) {
    if (i % 64 == 0) __builtin_prefetch(next + i, 0, 2);
    write_parts(load_pairs(from + i).part, to + i);
  }
  if (i == count) return;
  Float8 last[32] = {};  // of an odd number of dimensions
  std::memcpy(last, from + i, 16);
  const Bf16Pairs pairs = load_pairs(last);
  std::memcpy(to + i, pairs.part, 32);
}

}  // namespace distllm
