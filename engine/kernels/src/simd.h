// Sixteen float32 lanes over whatever vectors the instruction level has.
//
// A level is chosen by the compiler's flags alone (see setup.py); this is the one file that asks which it is. All
// kernels are written over F32x16, so every level adds in the same order. Levels with fused multiply-add give equal
// bits; the portable level rounds the product first. Compile with -ffp-contract=off, or the compiler decides that.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define DISTLLM_INLINE inline __attribute__((always_inline))
#define DISTLLM_INLINE_LAMBDA __attribute__((always_inline))

namespace distllm {

#if defined(__AVX512F__)

constexpr int kVectorBytes = 64;
constexpr int kMaxAccumulators = 24;  // of 32 registers
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Words __attribute__((vector_size(kVectorBytes)));

// maskz with a full mask is the plain instruction; GCC 12 warns about the header of the plain intrinsic.
DISTLLM_INLINE Floats native_broadcast(float x) { return (Floats)_mm512_set1_ps(x); }
DISTLLM_INLINE Floats native_fma(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps(a, b, c); }
DISTLLM_INLINE Floats native_max(Floats a, Floats b) { return (Floats)_mm512_maskz_max_ps(0xffff, a, b); }
DISTLLM_INLINE Floats native_min(Floats a, Floats b) { return (Floats)_mm512_maskz_min_ps(0xffff, a, b); }
DISTLLM_INLINE Floats native_round(Floats x) {
  return (Floats)_mm512_maskz_roundscale_ps(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#if defined(__AVX512VNNI__)
DISTLLM_INLINE Words native_dot_words(Words sum, Words a, Words b) {
  return (Words)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#else
DISTLLM_INLINE Words native_dot_words(Words sum, Words a, Words b) {
  return sum + (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#endif

#elif defined(__AVX2__)

constexpr int kVectorBytes = 32;
constexpr int kMaxAccumulators = 12;  // of 16 registers
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Words __attribute__((vector_size(kVectorBytes)));

DISTLLM_INLINE Floats native_broadcast(float x) { return (Floats)_mm256_set1_ps(x); }
DISTLLM_INLINE Floats native_fma(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps(a, b, c); }
DISTLLM_INLINE Floats native_max(Floats a, Floats b) { return (Floats)_mm256_max_ps(a, b); }
DISTLLM_INLINE Floats native_min(Floats a, Floats b) { return (Floats)_mm256_min_ps(a, b); }
DISTLLM_INLINE Floats native_round(Floats x) {
  return (Floats)_mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
DISTLLM_INLINE Words native_dot_words(Words sum, Words a, Words b) {
  return sum + (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

#else

constexpr int kVectorBytes = 16;
constexpr int kMaxAccumulators = 8;
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Words __attribute__((vector_size(kVectorBytes)));

DISTLLM_INLINE Floats native_broadcast(float x) { return Floats{x, x, x, x}; }
DISTLLM_INLINE Floats native_fma(Floats a, Floats b, Floats c) { return a * b + c; }
DISTLLM_INLINE Floats native_max(Floats a, Floats b) { return a > b ? a : b; }
DISTLLM_INLINE Floats native_min(Floats a, Floats b) { return a < b ? a : b; }
DISTLLM_INLINE Floats native_round(Floats x) {  // |x| < 2^22
  const Floats shift = native_broadcast(12582912.0f);
  return (x + shift) - shift;
}
#if defined(__SSE2__)
DISTLLM_INLINE Words native_dot_words(Words sum, Words a, Words b) {
  return sum + (Words)_mm_madd_epi16((__m128i)a, (__m128i)b);
}
#else
DISTLLM_INLINE Words native_dot_words(Words sum, Words a, Words b) {
  return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
#endif

#endif

constexpr int kLanes = kVectorBytes / 4;
constexpr int kParts = 16 / kLanes;

template <class F, int... I>
DISTLLM_INLINE void unrolled_over(std::integer_sequence<int, I...>, F&& body) {
  (body(std::integral_constant<int, I>{}), ...);
}

// body(0), ..., body(N - 1) with constant arguments, so that arrays indexed by them stay in registers.
template <int N, class F>
DISTLLM_INLINE void unrolled(F&& body) {
  unrolled_over(std::make_integer_sequence<int, N>{}, body);
}

struct F32x16 {
  Floats part[kParts];
};

struct I32x16 {
  Words part[kParts];
};

// Sixteen words, each of two bf16: the lower half first in memory.
struct Bf16Pairs {
  Words part[kParts];
};

template <class F>
DISTLLM_INLINE F32x16 each_part(F&& body) {
  F32x16 result;
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA { result.part[i] = body(i); });
  return result;
}

DISTLLM_INLINE F32x16 broadcast(float x) {
  const Floats all = native_broadcast(x);
  return each_part([&](auto) DISTLLM_INLINE_LAMBDA { return all; });
}
DISTLLM_INLINE F32x16 zeros() { return broadcast(0.0f); }

// Part by part: GCC copies a whole struct through the stack in smaller pieces.
template <class Part, class T>
DISTLLM_INLINE void read_parts(Part (&parts)[kParts], const T* from) {
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
    std::memcpy(&parts[i], (const char*)from + i * sizeof(Part), sizeof(Part));
  });
}
template <class Part, class T>
DISTLLM_INLINE void write_parts(const Part (&parts)[kParts], T* to) {
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
    std::memcpy((char*)to + i * sizeof(Part), &parts[i], sizeof(Part));
  });
}

DISTLLM_INLINE F32x16 load(const float* from) {
  F32x16 result;
  read_parts(result.part, from);
  return result;
}
DISTLLM_INLINE void store(float* to, const F32x16& x) { write_parts(x.part, to); }

DISTLLM_INLINE F32x16 operator+(const F32x16& a, const F32x16& b) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return a.part[i] + b.part[i]; });
}
DISTLLM_INLINE F32x16 operator-(const F32x16& a, const F32x16& b) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return a.part[i] - b.part[i]; });
}
DISTLLM_INLINE F32x16 operator*(const F32x16& a, const F32x16& b) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return a.part[i] * b.part[i]; });
}
DISTLLM_INLINE F32x16 operator/(const F32x16& a, const F32x16& b) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return a.part[i] / b.part[i]; });
}
// a * b + c
DISTLLM_INLINE F32x16 fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return native_fma(a.part[i], b.part[i], c.part[i]); });
}
// Where either is NaN, both return b: put the operand whose NaN must survive second.
DISTLLM_INLINE F32x16 max(const F32x16& a, const F32x16& b) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return native_max(a.part[i], b.part[i]); });
}
DISTLLM_INLINE F32x16 min(const F32x16& a, const F32x16& b) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return native_min(a.part[i], b.part[i]); });
}
DISTLLM_INLINE F32x16 round(const F32x16& x) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return native_round(x.part[i]); });
}
// 2^n for whole n in [-126, 127].
DISTLLM_INLINE F32x16 power_of_two(const F32x16& n) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA {
    return (Floats)((__builtin_convertvector(n.part[i], Words) + 127) << 23);
  });
}
// y where x >= limit or x is NaN, else 0.
DISTLLM_INLINE F32x16 zero_where_below(const F32x16& x, float limit, const F32x16& y) {
  const Floats bound = native_broadcast(limit);
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA {
    return (Floats)((Words)y.part[i] & ~(Words)(x.part[i] < bound));
  });
}
// a where |x| < limit, else b.
DISTLLM_INLINE F32x16 where_small(const F32x16& x, float limit, const F32x16& a, const F32x16& b) {
  const Floats bound = native_broadcast(limit);
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA {
    const Floats magnitude = (Floats)((Words)x.part[i] & 0x7fffffff);
    const Words small = (Words)(magnitude < bound);
    return (Floats)(((Words)a.part[i] & small) | ((Words)b.part[i] & ~small));
  });
}

// ((x0 + x8) + (x4 + x12)) + ... : halves folded together, the same order on every level.
DISTLLM_INLINE float sum_of_lanes(const F32x16& x) {
  float lane[16];
  store(lane, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
DISTLLM_INLINE float max_of_lanes(const F32x16& x) {
  float lane[16];
  store(lane, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

DISTLLM_INLINE I32x16 load_words(const uint32_t* from) {
  I32x16 result;
  read_parts(result.part, from);
  return result;
}
DISTLLM_INLINE I32x16 broadcast_word(int32_t x) {
  I32x16 result;
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA { result.part[i] = Words{} + x; });
  return result;
}
// Sixteen bytes, unsigned.
DISTLLM_INLINE I32x16 load_bytes(const uint8_t* from) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  typedef uint16_t Pairs __attribute__((vector_size(kLanes * 2)));  // GCC widens by two in one instruction, not by four
  Bytes bytes[kParts];
  read_parts(bytes, from);
  I32x16 result;
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
    result.part[i] = __builtin_convertvector(__builtin_convertvector(bytes[i], Pairs), Words);
  });
  return result;
}
// The nearest floats of whole numbers.
DISTLLM_INLINE F32x16 as_floats(const I32x16& x) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return __builtin_convertvector(x.part[i], Floats); });
}

DISTLLM_INLINE Bf16Pairs load_pairs(const uint16_t* from) {
  Bf16Pairs result;
  read_parts(result.part, from);
  return result;
}
DISTLLM_INLINE F32x16 low_halves(const Bf16Pairs& x) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return (Floats)(x.part[i] << 16); });
}
DISTLLM_INLINE F32x16 high_halves(const Bf16Pairs& x) {
  return each_part([&](auto i) DISTLLM_INLINE_LAMBDA { return (Floats)(x.part[i] & (int32_t)0xffff0000); });
}
DISTLLM_INLINE Bf16Pairs without_high_halves(Bf16Pairs x) {
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA { x.part[i] &= 0xffff; });
  return x;
}

#if defined(__AVX512BF16__)

constexpr bool kHasBf16Dot = true;

// sum + low(w) * low(x) + high(w) * high(x) in each lane; `pair` holds one pair of bf16, lower first.
DISTLLM_INLINE F32x16 dot_pairs(const F32x16& sum, const Bf16Pairs& w, int32_t pair) {
  __m512 result = sum.part[0];
  const __m512i all = _mm512_set1_epi32(pair);
  return {{(Floats)_mm512_dpbf16_ps(result, (__m512bh)w.part[0], (__m512bh)all)}};
}

#else

constexpr bool kHasBf16Dot = false;

DISTLLM_INLINE F32x16 dot_pairs(const F32x16& sum, const Bf16Pairs&, int32_t) { return sum; }

#endif

// sum + low(w) * low(x) + high(w) * high(x) in each lane; `pair` holds one pair of int16, lower first.
DISTLLM_INLINE I32x16 dot_words(I32x16 sum, const I32x16& w, int32_t pair) {
  const Words all = Words{} + pair;
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA { sum.part[i] = native_dot_words(sum.part[i], w.part[i], all); });
  return sum;
}
// Thirty-two signed bytes as pairs of int16.
DISTLLM_INLINE I32x16 load_byte_pairs(const int8_t* from) {
  typedef int8_t Bytes __attribute__((vector_size(kVectorBytes / 2)));
  typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
  Bytes bytes[kParts];
  read_parts(bytes, from);
  I32x16 result;
  unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
    result.part[i] = (Words)__builtin_convertvector(bytes[i], Shorts);
  });
  return result;
}

#if defined(__AVX512VNNI__)

constexpr bool kHasByteDot = true;

// sum + the products of four unsigned bytes a lane with the four signed ones of `quad`.
DISTLLM_INLINE I32x16 dot_quads(const I32x16& sum, const I32x16& w, int32_t quad) {
  return {{(Words)_mm512_dpbusd_epi32((__m512i)sum.part[0], (__m512i)w.part[0], _mm512_set1_epi32(quad))}};
}

#else

constexpr bool kHasByteDot = false;

DISTLLM_INLINE I32x16 dot_quads(const I32x16& sum, const I32x16&, int32_t) { return sum; }

#endif

}  // namespace distllm
