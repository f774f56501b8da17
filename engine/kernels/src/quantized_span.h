// The inner step of quantized linear layers: a tile of rows times one span of P panels, scaled and added to totals.
// quantized_linear.cpp says what spans are and in which order everything is summed.
#pragma once

#include <type_traits>

#include "linear_tiles.h"
#include "quantized.h"

namespace distllm {

enum class Product : int { kFma = 0, kBf16Dot = 1, kWordDot = 2, kByteDot = 3 };  // the first two as quantized.py has them

// An input: a float, a pair of bf16, a pair of int16 or four bytes.
template <Product product>
using InputOf = std::conditional_t<product == Product::kFma, float, int32_t>;
template <Product product>
constexpr int kNumbersPerInput = product == Product::kFma ? 1 : product == Product::kByteDot ? 4 : 2;

// Whether inputs are whole numbers, which meet the codes themselves.
template <Product product>
constexpr bool kIsWhole = product == Product::kWordDot || product == Product::kByteDot;

// What codes are widened to.
template <Product product>
constexpr Kind kWidenedKind = product == Product::kFma ? Kind::kFloat32 : Kind::kBf16Dot;

// One span of P panels: its inputs begin .. begin + depth, its codes, widened where the product asks for that.
template <int P>
struct Span {
  int begin, depth;
  F32x16 scale[P];
  F32x16 zero[P];  // minus the zero points
  const uint32_t* codes[P];
  const void* widened[P];
};

// total[r][p * 16 ..] += scale * (span of inputs times widened panels). Eight inputs a round: so few rounds make up a
// span that their number is foreseen.
template <Product product, int R, int P>
void add_widened(const InputOf<product>* inputs, const Span<P>& span, float* total) {
  constexpr Kind kind = kWidenedKind<product>;
  constexpr int kStep = kNumbersPerInput<product>;
  const typename Panel<kind>::Weight* panels[P];
  unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { panels[p] = (const typename Panel<kind>::Weight*)span.widened[p]; });
  Tile<R, P> tile;
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA { tile.sum[i / P][i % P] = zeros(); });
  for (int k = 0; k < span.depth; k += kDepthMultiple) {
    unrolled<kDepthMultiple / kStep>([&](auto) DISTLLM_INLINE_LAMBDA {
      accumulate<kind>(tile, panels, Inputs<InputOf<product>, 1, R>{inputs}, kStep, InCache{});
      unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { panels[p] += kStep * 16; });
      inputs += R;
    });
  }
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    float* const at = total + i * 16;
    store(at, fma(tile.sum[i / P][i % P], span.scale[i % P], load(at)));
  });
}

// Of rows rounded to whole numbers: each row's sum over the span and, with words, its scale.
struct RoundedInputs {
  const float *sums, *scales;  // [row * stride]
  int stride;
};

// The same over the codes themselves.
template <bool is_scaled, int R, int P>
DISTLLM_INLINE void add_whole(const I32x16 (&sum)[R][P], const Span<P>& span, const RoundedInputs& rounded, float* total) {
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    constexpr int r = i / P, p = i % P;
    const F32x16 shift = broadcast(rounded.sums[r * rounded.stride]);
    const F32x16 product = fma(span.zero[p], shift, as_floats(sum[r][p]));
    F32x16 scale = span.scale[p];
    if constexpr (is_scaled) scale = scale * broadcast(rounded.scales[r * rounded.stride]);
    store(total + i * 16, fma(product, scale, load(total + i * 16)));
  });
}

template <int R, int P>
void add_bytes(const int32_t* inputs, const Span<P>& span, const RoundedInputs& rounded, float* total) {
  I32x16 sum[R][P];
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA { sum[i / P][i % P] = broadcast_word(0); });
  for (int step = 0; step < span.depth / 4; ++step) {
    I32x16 weight[P];
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      __builtin_prefetch(span.codes[p] + step * 16 + kCodesAhead);
      weight[p] = load_words(span.codes[p] + step * 16);
    });
    unrolled<R>([&](auto r) DISTLLM_INLINE_LAMBDA {
      const int32_t x = inputs[step * R + r];
      unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { sum[r][p] = dot_quads(sum[r][p], weight[p], x); });
    });
  }
  add_whole<false>(sum, span, rounded, total);
}

// Sums of whole numbers are exact, so few rows sum in two chains, which do not wait for one another.
template <Codes codes, int R, int P>
void add_words(const int32_t* inputs, const Span<P>& span, const RoundedInputs& rounded, float* total) {
  constexpr int kPairs = kCodesPerWord<codes> / 2, kChains = R * P * kParts <= kMaxAccumulators / 2 ? 2 : 1;
  I32x16 sum[kChains][R][P];
  unrolled<kChains * R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    sum[i / (R * P)][i / P % R][i % P] = broadcast_word(0);
  });
  const int num_words = span.depth / kCodesPerWord<codes>;
  for (int step = 0; step < num_words; ++step, inputs += kPairs * R) {
    I32x16 words[P];
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      __builtin_prefetch(span.codes[p] + step * 16 + kCodesAhead);
      words[p] = load_words(span.codes[p] + step * 16);
    });
    unrolled<kPairs>([&](auto i) DISTLLM_INLINE_LAMBDA {
      I32x16 weight[P];
      unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { weight[p] = code_pairs<codes, i>(words[p]); });
      unrolled<R>([&](auto r) DISTLLM_INLINE_LAMBDA {
        const int32_t x = inputs[i * R + r];
        auto& chain = sum[i % kChains][r];
        unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { chain[p] = dot_words(chain[p], weight[p], x); });
      });
    });
  }
  if constexpr (kChains == 2)
    unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
      unrolled<kParts>([&](auto part) DISTLLM_INLINE_LAMBDA {
        sum[0][i / P][i % P].part[part] += sum[1][i / P][i % P].part[part];
      });
    });
  add_whole<true>(sum[0], span, rounded, total);
}

template <Product product, int P>
using AddSpan = void (*)(const InputOf<product>*, const Span<P>&, const RoundedInputs&, float*);

template <Product product, Codes codes, int R, int P>
void add_span(const InputOf<product>* inputs, const Span<P>& span, [[maybe_unused]] const RoundedInputs& rounded,
              float* total) {
  if constexpr (product == Product::kByteDot)
    add_bytes<R, P>(inputs, span, rounded, total);
  else if constexpr (product == Product::kWordDot)
    add_words<codes, R, P>(inputs, span, rounded, total);
  else
    add_widened<product, R, P>(inputs, span, total);
}

template <Product product, Codes codes, int P, int... R>
AddSpan<product, P> add_span_for(int rows, std::integer_sequence<int, R...>) {
  static constexpr AddSpan<product, P> table[] = {add_span<product, codes, R + 1, P>...};
  return table[rows - 1];
}

// Only words of codes are read by what depends on their kind.
template <Product product, Codes codes, int P>
AddSpan<product, P> add_span_for(int rows) {
  constexpr Codes kRead = product == Product::kWordDot ? codes : Codes::kInt8;
  return add_span_for<product, kRead, P>(rows, std::make_integer_sequence<int, kMaxTileRows<P>>{});
}

}  // namespace distllm
