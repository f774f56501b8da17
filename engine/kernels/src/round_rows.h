// Rows rounded to whole numbers times a scale of their own: of 8 bits, as dynamic activations ask for, or of 16.
#pragma once

#include <algorithm>
#include <limits>

#include "bf16.h"

namespace distllm {

// The largest magnitude of a row, and 0, or NaN where an element is not finite.
struct RowRange {
  float largest, not_finite;
};

// The largest of x [count], a multiple of 16, none negative; NaN where one is NaN: its bits are the largest of all.
inline float largest_of(const float* x, int count) {
  I32x16 top = broadcast_word(0);
  for (int i = 0; i < count; i += 16) {
    const F32x16 own = load(x + i);
    unrolled<kParts>([&](auto part) DISTLLM_INLINE_LAMBDA {
      const Words bits = (Words)own.part[part] & 0x7fffffff;
      top.part[part] = top.part[part] > bits ? top.part[part] : bits;
    });
  }
  int32_t lane[16];
  write_parts(top.part, lane);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = std::max(lane[i], lane[i + width]);
  float largest;
  std::memcpy(&largest, lane, 4);
  return largest;
}

template <class T>
RowRange range_of(const T* x, int depth) {
  F32x16 top = zeros(), not_finite = zeros();
  for (int k = 0; k < depth; k += 16) {
    const F32x16 own = load_first(x + k, std::min(16, depth - k));
    top = max(top, max(own, zeros() - own));
    not_finite = fma(own, zeros(), not_finite);
  }
  return {max_of_lanes(top), sum_of_lanes(not_finite)};
}

// Rounds x [depth] to codes [padded], zeros behind; returns the scale, NaN where an input is not finite.
template <class Code, class T>
float round_row(const T* x, int depth, int padded, Code* codes) {
  typedef Code Lanes __attribute__((vector_size(kLanes * sizeof(Code))));
  const auto [largest, not_finite] = range_of(x, depth);
  const F32x16 inverse = broadcast(largest > 1e-30f ? 127.0f / largest : 0.0f);
  for (int k = 0; k < padded; k += 16) {
    const int count = std::max(0, std::min(16, depth - k));
    const F32x16 whole = round(load_first(x + (count ? k : 0), count) * inverse);
    Lanes lanes[kParts];
    unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
      lanes[i] = __builtin_convertvector(__builtin_convertvector(whole.part[i], Words), Lanes);
    });
    Code all[16];
    write_parts(lanes, all);
    std::memcpy(codes + k, all, (size_t)std::min(16, padded - k) * sizeof(Code));
  }
  return largest / 127.0f + not_finite;
}

// The sixteen whole numbers of x as int16.
DISTLLM_INLINE void store_words(int16_t* to, const F32x16& x) {
  typedef int16_t Shorts __attribute__((vector_size(kLanes * 2)));
  Shorts shorts[kParts];
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
    shorts[i] = __builtin_convertvector(__builtin_convertvector(x.part[i], Words), Shorts);
  });
  write_parts(shorts, to);
}

constexpr float kMostWord = 32767.0f;

// Rounds bf16 x [depth] to words [padded], zeros behind. Returns the scale, NaN where an x is not finite: the power of two
// with which the largest just fits 16 bits, so that nothing is lost of what is less than 2^7 times smaller.
inline float round_span(const uint16_t* x, int depth, int padded, int16_t* words) {
  int32_t bits = 0;
  for (int k = 0; k < depth; ++k) bits = std::max(bits, (int32_t)(x[k] & 0x7fff));
  const int32_t exponent = std::max(bits >> 7, 15);  // for the scale, 2^-14 of it, to be a normal number
  const F32x16 inverse = broadcast(float_from_bf16((uint16_t)((268 - exponent) << 7)));
  for (int k = 0; k < padded; k += 16) {
    const int count = std::clamp(depth - k, 0, 16);
    int16_t all[16];
    store_words(all, round(load_first(x + (count ? k : 0), count) * inverse));
    std::memcpy(words + k, all, (size_t)std::min(16, padded - k) * sizeof(*all));
  }
  return exponent == 255 ? std::numeric_limits<float>::quiet_NaN() : float_from_bf16((uint16_t)((exponent - 14) << 7));
}

// Rounds x [count], a multiple of 16, none negative, to pairs [count / 2]; returns the scale, NaN where an x is NaN.
inline float round_words(const float* x, int count, int32_t* pairs) {
  const float largest = largest_of(x, count);
  const F32x16 inverse = broadcast(largest > 1e-30f ? kMostWord / largest : 0.0f);
  for (int i = 0; i < count; i += 16) store_words((int16_t*)pairs + i, round(load(x + i) * inverse));
  return largest / kMostWord;
}

}  // namespace distllm
