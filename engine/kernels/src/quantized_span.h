// The inner step of quantized linear layers: a tile of rows times one span of P panels, scaled and added to totals.
// quantized_linear.cpp says what spans are and in which order everything is summed.
#pragma once

#include <type_traits>

#include "linear_tiles.h"
#include "quantized.h"

namespace distllm {

enum class Product : int { kFma = 0, kBf16Dot = 1, kByteDot = 2 };  // the numbers that quantized.py passes

// An input: a float, a pair of bf16 or four bytes.
template <Product product>
using InputOf = std::conditional_t<product == Product::kFma, float, int32_t>;
template <Product product>
constexpr int kNumbersPerInput = product == Product::kFma ? 1 : product == Product::kBf16Dot ? 2 : 4;

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

// The same over the codes themselves; input_sums[r * stride] is the sum of row r's inputs in the span.
template <int R, int P>
void add_bytes(const int32_t* inputs, const Span<P>& span, const int32_t* input_sums, int stride, float* total) {
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
    const F32x16 shift = broadcast((float)input_sums[(i / P) * stride]);
    const F32x16 exact = fma(span.zero[i % P], shift, as_floats(sum[i / P][i % P]));  // all three below 2^24
    store(at, fma(exact, span.scale[i % P], load(at)));
  });
}

template <Product product, int P>
using AddSpan = void (*)(const InputOf<product>*, const Span<P>&, const int32_t*, int, float*);

template <Product product, int R, int P>
void add_span(const InputOf<product>* inputs, const Span<P>& span, const int32_t* sums, int stride, float* total) {
  if constexpr (product == Product::kByteDot)
    add_bytes<R, P>(inputs, span, sums, stride, total);
  else
    add_widened<product, R, P>(inputs, span, total);
}

template <Product product, int P, int... R>
AddSpan<product, P> add_span_for(int rows, std::integer_sequence<int, R...>) {
  static constexpr AddSpan<product, P> table[] = {add_span<product, R + 1, P>...};
  return table[rows - 1];
}

template <Product product, int P>
AddSpan<product, P> add_span_for(int rows) {
  return add_span_for<product, P>(rows, std::make_integer_sequence<int, kMaxTileRows<P>>{});
}

}  // namespace distllm
