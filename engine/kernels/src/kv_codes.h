// A quantized KV cache: one byte an element, in the order in which kv_layout.h lays out bf16, and a scale for each
// token and head, [block][kv head][16] float32, of keys and of values.
//
// An element is scale * code, or scale * e4m3(code). Both codes are exact in bf16, so a span of blocks is widened to
// bf16 panels; scores are then scaled by token, as are weights before they meet values.
#pragma once

#include <cmath>

#include "kv_layout.h"
#include "quantized.h"
#include "round_rows.h"

namespace distllm {

enum class KvCodes : int { kNone = 0, kInt8 = 1, kFloat8 = 2 };  // the numbers that ops.py passes

// The e4m3 number nearest to x, |x| <= 448.
inline uint8_t e4m3_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude < 121u << 23) return (uint8_t)(sign | (uint32_t)std::nearbyintf(std::fabs(x) * 512.0f));
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

// The code in the lowest byte of each word.
template <KvCodes codes>
DISTLLM_INLINE Words decode_kv(Words words) {
  if constexpr (codes == KvCodes::kInt8) return (Words)__builtin_convertvector((words << 24) >> 24, Floats);
  return (Words)decode<Codes::kFloat8, 0>(words & 0xff, Floats{});
}

// Codes two by two, as words, to pairs of bf16.
template <KvCodes codes>
DISTLLM_INLINE Words widen_pairs(const uint8_t* from) {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  Halves pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  const Words words = __builtin_convertvector(pairs, Words);
  return (Words)((Bits)decode_kv<codes>(words) >> 16 | (Bits)decode_kv<codes>(words >> 8));
}

// `count` codes, a multiple of 16, to bf16; meanwhile those at `next` are fetched.
template <KvCodes codes>
void widen_kv(const uint8_t* from, const uint8_t* next, size_t count, uint16_t* to) {
  constexpr size_t kStep = 2 * kLanes;
  for (size_t i = 0; i + kStep <= count; i += kStep) {
    if (i % 64 == 0) __builtin_prefetch(next + i);
    const Words pairs = widen_pairs<codes>(from + i);
    std::memcpy(to + i, &pairs, sizeof(pairs));
  }
  if (count % kStep == 0) return;
  uint8_t last[kStep] = {};  // of an odd number of dimensions
  std::memcpy(last, from + count / kStep * kStep, count % kStep);
  const Words pairs = widen_pairs<codes>(last);
  std::memcpy(to + count / kStep * kStep, &pairs, 2 * (count % kStep));
}

}  // namespace distllm
