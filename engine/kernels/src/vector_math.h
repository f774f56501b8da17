// exp, tanh, the logistic function: within 2 units in the last place, the same bits on every level that has
// fused multiply-add. Polynomials after Cephes (expf, tanhf).
#pragma once

#include "simd.h"

namespace distllm {

// 0 below -87.3 (the smallest normal number), the largest power kept below 88.37; exp(0) is 1; NaN stays NaN.
DISTLLM_INLINE F32x16 exp(const F32x16& x) {
  const F32x16 bounded = min(broadcast(88.37f), max(broadcast(-87.33f), x));
  const F32x16 n = round(bounded * broadcast(1.44269504f));
  F32x16 r = fma(n, broadcast(-0.693359375f), bounded);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32x16 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  return zero_where_below(x, -87.33f, p * power_of_two(n));
}

// 1 / (1 + exp(-x))
DISTLLM_INLINE F32x16 logistic(const F32x16& x) {
  return broadcast(1.0f) / (broadcast(1.0f) + exp(zeros() - x));
}

DISTLLM_INLINE F32x16 tanh(const F32x16& x) {
  const F32x16 square = x * x;
  F32x16 p = broadcast(-5.70498872745e-3f);
  p = fma(p, square, broadcast(2.06390887954e-2f));
  p = fma(p, square, broadcast(-5.37397155531e-2f));
  p = fma(p, square, broadcast(1.33314422036e-1f));
  p = fma(p, square, broadcast(-3.33332819422e-1f));
  const F32x16 near_zero = fma(p * square, x, x);
  const F32x16 elsewhere = broadcast(1.0f) - broadcast(2.0f) / (exp(x + x) + broadcast(1.0f));
  return where_small(x, 0.625f, near_zero, elsewhere);
}

}  // namespace distllm
