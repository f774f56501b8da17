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
  F32x16 zero[P];        // minus the zero points
  I32x16 zero_pairs[P];  // the zero points, twice in a word
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

// The same over the codes themselves and bytes; input_sums[r * stride] is the sum of row r's inputs in the span.
template <int R, int P>
void add_bytes(const int32_t* inputs, const Span<P>& span, const float* input_sums, int stride, float* total) {
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
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    float* const at = total + i * 16;
    const F32x16 shift = broadcast(input_sums[(i / P) * stride]);
    const F32x16 exact = fma(span.zero[i % P], shift, as_floats(sum[i / P][i % P]));  // all three below 2^24
    store(at, fma(exact, span.scale[i % P], load(at)));
  });
}

// The same over words; row r's inputs are times input_scales[r * stride]. Sums of whole numbers are exact, so few rows sum
// in two chains, which do not wait for one another.
template <Codes codes, int R, int P>
void add_words(const int32_t* inputs, const Span<P>& span, const float* input_scales, int stride, float* total) {
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
      unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { weight[p] = code_pairs<codes, i>(words[p], span.zero_pairs[p]); });
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
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    float* const at = total + i * 16;
    const F32x16 scale = span.scale[i % P] * broadcast(input_scales[(i / P) * stride]);
    store(at, fma(as_floats(sum[0][i / P][i % P]), scale, load(at)));
  });
}

template <Product product, int P>
using AddSpan = void (*)(const InputOf<product>*, const Span<P>&, const float*, int, float*);

template <Product product, Codes codes, int R, int P>
void add_span(const InputOf<product>* inputs, const Span<P>& span, [[maybe_unused]] const float* of_rows,
              [[maybe_unused]] int stride, float* total) {
  if constexpr (product == Product::kByteDot)
    add_bytes<R, P>(inputs, span, of_rows, stride, total);
  else if constexpr (product == Product::kWordDot)
    add_words<codes, R, P>(inputs, span, of_rows, stride, total);
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
