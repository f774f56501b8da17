// The layout of a quantized weight [N, K], and its way back to the panels of panel.h.
//
//   codes   [panel][padded K / c][16]   words of c codes: 4 of eight bits, 8 of four bits; input k in word k / c of its
//                                       output feature, the first k in the lowest bits; K padded to a multiple of 8
//   scales  [panel][group][16]          float32 or bf16
//   zeros   [panel][group][16]          bytes, or null: 128 of eight bits, 8 of four
//
// A weight is scale * (code - zero), or scale * e4m3(code) for kFloat8. Inputs of bf16 are rounded to whole numbers, which
// meet codes of whole numbers as they are. For others a span of a panel is widened to floats (code - zero, or e4m3(code)),
// or to bf16 for dot products, where they are exact as well, multiplied as panel.h does, and then scaled.
#pragma once

#include "bf16.h"
#include "packed.h"

namespace distllm {

enum class Codes : int { kInt8 = 0, kInt4 = 1, kFloat8 = 2 };  // the numbers that quantized.py passes

template <Codes codes>
constexpr int kCodesPerWord = codes == Codes::kInt4 ? 8 : 4;

constexpr int kDepthMultiple = 8;
constexpr int kWidenedSpan = 64;   // most inputs that are widened at a time: four panels of them stay in the first level
constexpr int kCodesAhead = 512;   // words between what is read and what is fetched

// A whole number below 2^23 in the lowest bits of this float is added to 2^23, exactly.
constexpr int32_t kUnitsOfOne = 0x4b000000;

inline int padded_codes(int depth) { return (depth + kDepthMultiple - 1) / kDepthMultiple * kDepthMultiple; }

// Code i of each word, less its zero point. In two operations where the code's bits fit a mantissa unshifted: of a
// float that begins with kUnitsOfOne they are code * 2^shift above 2^23, and a fused multiply-add brings both down.
template <Codes codes, int i>
DISTLLM_INLINE Floats decode(Words words, Floats zero) {
  constexpr int kBits = 32 / kCodesPerWord<codes>, kMask = (1 << kBits) - 1, kFitting = 23 / kBits;
  if constexpr (codes == Codes::kFloat8) {  // as the upper bits of a float32, its exponent is 120 too small
    const Words code = words >> (kBits * i);
    return (Floats)((code & 0x80) << 24 | (code & 0x7f) << 20) * native_broadcast(0x1p120f);
  } else {
    constexpr int kShift = i % kFitting * kBits;
    const Words kept = (words >> (i / kFitting * kFitting * kBits)) & (kMask << kShift);
    const Floats down = native_broadcast(1.0f / (1 << kShift)), units = native_broadcast((float)(1 << (23 - kShift)));
    return native_fma((Floats)(kept | kUnitsOfOne), down, zero - units);
  }
}

// Pair i of a word's codes as int16, less their zero points, given as pairs too: codes that lie sixteen bits apart, so
// that they need not be moved together.
template <Codes codes, int i>
DISTLLM_INLINE I32x16 code_pairs(I32x16 words, const I32x16& zeros) {
  typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
  constexpr int kBits = 32 / kCodesPerWord<codes>;
  constexpr int32_t kMask = (1 << kBits) - 1;
  unrolled<kParts>([&](auto part) DISTLLM_INLINE_LAMBDA {
    const Words kept = (words.part[part] >> (kBits * i)) & (kMask << 16 | kMask);
    words.part[part] = (Words)((Shorts)kept - (Shorts)zeros.part[part]);
  });
  return words;
}

// `depth` inputs of one panel, from words to a panel of floats. `zero` is minus the zero point.
template <Codes codes>
void widen_codes(const uint32_t* words, const F32x16& zero, int depth, float* panel) {
  constexpr int kCount = kCodesPerWord<codes>;
  for (int k = 0; k < depth; k += kCount, words += 16) {
    __builtin_prefetch(words + kCodesAhead);
    const I32x16 group = load_words(words);
    unrolled<kCount>([&](auto i) DISTLLM_INLINE_LAMBDA {
      store(panel + (k + i) * 16,
            each_part([&](auto part) DISTLLM_INLINE_LAMBDA { return decode<codes, i>(group.part[part], zero.part[part]); }));
    });
  }
}

// The same to a panel of bf16 pairs, where all those numbers are exact.
template <Codes codes>
void widen_codes(const uint32_t* words, const F32x16& zero, int depth, uint16_t* panel) {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr int kCount = kCodesPerWord<codes>;
  for (int k = 0; k < depth; k += kCount, words += 16) {
    __builtin_prefetch(words + kCodesAhead);
    const I32x16 group = load_words(words);
    unrolled<kCount / 2>([&](auto pair) DISTLLM_INLINE_LAMBDA {
      Words pairs[kParts];
      unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
        const Bits low = (Bits)decode<codes, 2 * pair>(group.part[i], zero.part[i]);
        const Bits high = (Bits)decode<codes, 2 * pair + 1>(group.part[i], zero.part[i]);
        pairs[i] = (Words)(low >> 16 | high);
      });
      write_parts(pairs, panel + (k + 2 * pair) * 16);
    });
  }
}

}  // namespace distllm
