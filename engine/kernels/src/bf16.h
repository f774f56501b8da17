// bfloat16 as the upper half of a float32: reading is exact, writing rounds to nearest even and keeps NaN.
#pragma once

#include "simd.h"

namespace distllm {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1 };  // the numbers that ops.py passes

DISTLLM_INLINE float float_from_bf16(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

DISTLLM_INLINE uint16_t bf16_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

DISTLLM_INLINE void convert(float x, float& to) { to = x; }
DISTLLM_INLINE void convert(float x, uint16_t& to) { to = bf16_from_float(x); }
DISTLLM_INLINE void convert(uint16_t x, float& to) { to = float_from_bf16(x); }
DISTLLM_INLINE void convert(uint16_t x, uint16_t& to) { to = x; }
DISTLLM_INLINE void convert(int8_t x, float& to) { to = (float)x; }

typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

DISTLLM_INLINE F32x16 load(const uint16_t* from) {
  Halves halves[kParts];
  read_parts(halves, from);
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA {
    return (Floats)(__builtin_convertvector(halves[i], Words) << 16);
  });
}

// The bf16 nearest to each lane, in the lower half of its word.
DISTLLM_INLINE Words nearest_bf16(Floats x) {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  const Bits bits = (Bits)x;
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits quiet_nan = (bits >> 16) | 0x40;
  const Bits is_nan = (Bits)(x != x);
  return (Words)((quiet_nan & is_nan) | (rounded & ~is_nan));
}

DISTLLM_INLINE void store(uint16_t* to, const F32x16& x) {
  Halves halves[kParts];
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
    halves[i] = __builtin_convertvector(nearest_bf16(x.part[i]), Halves);
  });
  write_parts(halves, to);
}

// x as it reads back after being stored as T.
template <class T>
DISTLLM_INLINE F32x16 rounded_to(const F32x16& x) {
  if constexpr (sizeof(T) == 4) return x;
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return (Floats)(nearest_bf16(x.part[i]) << 16); });
}

// The first `count` of sixteen elements; the others read as 0.
template <class T>
DISTLLM_INLINE F32x16 load_first(const T* from, int count) {
  if (count == 16) return load(from);
  T padded[16] = {};
  std::memcpy(padded, from, (size_t)count * sizeof(T));
  return load(padded);
}
template <class T>
DISTLLM_INLINE void store_first(T* to, const F32x16& x, int count) {
  if (count == 16) return store(to, x);
  T padded[16];
  store(padded, x);
  std::memcpy(to, padded, (size_t)count * sizeof(T));
}

}  // namespace distllm
