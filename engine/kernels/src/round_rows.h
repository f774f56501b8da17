// Dynamic activations: each row rounded to whole numbers in [-127, 127] times a scale of its own.
#pragma once

#include <algorithm>

#include "bf16.h"

namespace distllm {

// The largest magnitude of a row, and 0, or NaN where an element is not finite.
struct RowRange {
  float largest, not_finite;
};

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
template <class T>
float round_row(const T* x, int depth, int padded, int8_t* codes) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  const auto [largest, not_finite] = range_of(x, depth);
  const F32x16 inverse = broadcast(largest > 1e-30f ? 127.0f / largest : 0.0f);
  for (int k = 0; k < padded; k += 16) {
    const int count = std::max(0, std::min(16, depth - k));
    const F32x16 whole = round(load_first(x + (count ? k : 0), count) * inverse);
    Bytes bytes[kParts];
    unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
      bytes[i] = __builtin_convertvector(__builtin_convertvector(whole.part[i], Words), Bytes);
    });
    int8_t all[16];
    write_parts(bytes, all);
    std::memcpy(codes + k, all, (size_t)std::min(16, padded - k));
  }
  return largest / 127.0f + not_finite;
}

}  // namespace distllm
