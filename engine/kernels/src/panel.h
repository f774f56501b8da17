// The one inner loop of linear layers and attention: rows of inputs times panels of sixteen channels.
//
//   float32 panel            bf16 panel (pairs of k side by side)
//   k=0: c0 c1 ... c15       k=0,1: c0 c0' c1 c1' ... c15 c15'
//   k=1: c0 c1 ... c15       k=2,3: ...
//
// For a linear layer a channel is an output feature and k an input feature; for scores a channel is a token of a
// block and k a dimension of the head; for the weighted sum a channel is a dimension and k a token.
// Order of sums: each accumulator takes k = 0, 1, 2, ... one after the other, whatever R and P, so the bits of a
// row do not depend on the tile it is in.
#pragma once

#include <cstddef>
#include <type_traits>

#include "bf16.h"

namespace distllm {

enum class Kind : int { kFloat32 = 0, kBf16 = 1, kBf16Dot = 2, kInt8 = 3 };  // the numbers that ops.py passes

// What one panel stores, what one input is, and what they are summed in. bf16 dot products take inputs as pairs of
// bf16 in one word; int8 panels, laid out as those of bf16, take pairs of int16, and their sums are whole numbers.
template <Kind>
struct Panel {
  using Weight = uint16_t;
  using Input = float;
  using Sum = F32x16;
};
template <>
struct Panel<Kind::kFloat32> {
  using Weight = float;
  using Input = float;
  using Sum = F32x16;
};
template <>
struct Panel<Kind::kBf16Dot> {
  using Weight = uint16_t;
  using Input = int32_t;
  using Sum = F32x16;
};
template <>
struct Panel<Kind::kInt8> {
  using Weight = int8_t;
  using Input = int32_t;
  using Sum = I32x16;
};

// How many inputs one step of the inner loop takes.
template <Kind kind>
constexpr int kInputsPerStep = std::is_same_v<typename Panel<kind>::Input, int32_t> ? 2 : 1;

// Most rows of a tile that is P panels wide.
template <int P>
constexpr int kMaxTileRows = kMaxAccumulators / (P * kParts) < 12 ? kMaxAccumulators / (P * kParts) : 12;

template <int R, int P, class Sum = F32x16>
struct Tile {
  Sum sum[R][P];
};

// Input of row r at step k: at[r * RowStride + k * StepStride]. A step is one k, or one pair of k for dot products.
template <class T, int RowStride, int StepStride>
struct Inputs {
  const T* at;
  DISTLLM_INLINE T operator()(int r, int step) const { return at[r * RowStride + (ptrdiff_t)step * StepStride]; }
};

template <int R, int P, class X>
DISTLLM_INLINE void step_of_one(Tile<R, P>& tile, const F32x16 (&weight)[P], X inputs, int k) {
  unrolled<R>([&](auto r) DISTLLM_INLINE_LAMBDA {
    const F32x16 x = broadcast(inputs(r, k));
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { tile.sum[r][p] = fma(weight[p], x, tile.sum[r][p]); });
  });
}

// Panels in memory, to be fetched ahead of use. Near the end of its run each of the P streams goes on at the place
// `skip` bytes further, where the next group of panels begins.
template <int P>
struct Streamed {
  static constexpr size_t kAhead = 4096 / P;
  size_t skip;
  DISTLLM_INLINE void fetch(int, const void* at, size_t, size_t bytes_left) const {
    __builtin_prefetch((const char*)at + kAhead + (bytes_left > kAhead ? 0 : skip));
  }
};

// Panels that are in the first-level cache already.
struct InCache {
  DISTLLM_INLINE void fetch(int, const void*, size_t, size_t) const {}
};

// Panels scattered in memory: while one is read, line by line, so is another fetched that is wanted soon.
template <int P>
struct Scattered {
  const void* soon[P];
  DISTLLM_INLINE void fetch(int p, const void*, size_t byte, size_t) const {
    __builtin_prefetch((const char*)soon[p] + byte, 0, 2);  // into the second level: a span may fill the first
  }
};

template <int R, int P, class X, class Source>
DISTLLM_INLINE void accumulate_float32(Tile<R, P>& tile, const float* const (&panels)[P], X inputs, int depth,
                                       Source source) {
  F32x16 weight[P];
  for (int k = 0; k < depth; ++k) {
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      const float* const at = panels[p] + (size_t)k * 16;
      source.fetch(p, at, (size_t)k * 64, (size_t)(depth - k) * 64);
      weight[p] = load(at);
    });
    step_of_one(tile, weight, inputs, k);
  }
}

// Panels of bf16 pairs, or of codes that load_pairs decodes.
template <class Pairs, int R, int P, class X, class Source>
DISTLLM_INLINE void accumulate_bf16(Tile<R, P>& tile, const Pairs* const (&panels)[P], X inputs, int depth,
                                    Source source) {
  F32x16 weight[P];
  for (int k = 0; k + 1 < depth; k += 2) {
    Bf16Pairs pairs[P];
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      const Pairs* const at = panels[p] + (size_t)k * 16;
      source.fetch(p, at, (size_t)k * 16 * sizeof(Pairs), (size_t)(depth - k) * 16 * sizeof(Pairs));
      pairs[p] = load_pairs(at);
    });
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { weight[p] = low_halves(pairs[p]); });
    step_of_one(tile, weight, inputs, k);
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { weight[p] = high_halves(pairs[p]); });
    step_of_one(tile, weight, inputs, k + 1);
  }
  if (depth % 2) {
    const size_t last = (size_t)(depth - 1) * 16;
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { weight[p] = low_halves(load_pairs(panels[p] + last)); });
    step_of_one(tile, weight, inputs, depth - 1);
  }
}

template <int R, int P, class X>
DISTLLM_INLINE void dot_step(Tile<R, P>& tile, const Bf16Pairs (&weight)[P], X inputs, int step) {
  unrolled<R>([&](auto r) DISTLLM_INLINE_LAMBDA {
    const int32_t x = inputs(r, step);
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { tile.sum[r][p] = dot_pairs(tile.sum[r][p], weight[p], x); });
  });
}

template <class Pairs, int R, int P, class X, class Source>
DISTLLM_INLINE void accumulate_dot(Tile<R, P>& tile, const Pairs* const (&panels)[P], X inputs, int depth,
                                   Source source) {
  Bf16Pairs weight[P];
  for (int step = 0; step < depth / 2; ++step) {
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      const Pairs* const at = panels[p] + (size_t)step * 32;
      source.fetch(p, at, (size_t)step * 32 * sizeof(Pairs), (size_t)(depth - 2 * step) * 16 * sizeof(Pairs));
      weight[p] = load_pairs(at);
    });
    dot_step(tile, weight, inputs, step);
  }
  if (depth % 2) {
    const size_t last = (size_t)(depth - 1) * 16;
    unrolled<P>(
        [&](auto p) DISTLLM_INLINE_LAMBDA { weight[p] = without_high_halves(load_pairs(panels[p] + last)); });
    dot_step(tile, weight, inputs, depth / 2);
  }
}

// Two steps a round, which read one line of a panel.
template <int R, int P, class X, class Source>
DISTLLM_INLINE void accumulate_int8(Tile<R, P, I32x16>& tile, const int8_t* const (&panels)[P], X inputs, int depth,
                                    Source source) {
  const auto step = [&](int k) DISTLLM_INLINE_LAMBDA {
    I32x16 weight[P];
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { weight[p] = load_byte_pairs(panels[p] + (size_t)k * 16); });
    unrolled<R>([&](auto r) DISTLLM_INLINE_LAMBDA {
      const int32_t x = inputs(r, k / 2);
      unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { tile.sum[r][p] = dot_words(tile.sum[r][p], weight[p], x); });
    });
  };
  int k = 0;
  for (; k + 2 < depth; k += 4) {
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      source.fetch(p, panels[p] + (size_t)k * 16, (size_t)k * 16, (size_t)(depth - k) * 16);
    });
    step(k);
    step(k + 2);
  }
  if (k < depth) step(k);
}

// tile += inputs * panels over k = 0 .. depth - 1. An odd depth reads the last pair's lower half only;
// of int8 panels it is even.
template <Kind kind, class Weight, int R, int P, class X, class Source>
DISTLLM_INLINE void accumulate(Tile<R, P, typename Panel<kind>::Sum>& tile, const Weight* const (&panels)[P], X inputs,
                               int depth, Source source) {
  if constexpr (kind == Kind::kFloat32)
    accumulate_float32(tile, panels, inputs, depth, source);
  else if constexpr (kind == Kind::kBf16)
    accumulate_bf16(tile, panels, inputs, depth, source);
  else if constexpr (kind == Kind::kInt8)
    accumulate_int8(tile, panels, inputs, depth, source);
  else
    accumulate_dot(tile, panels, inputs, depth, source);
}

}  // namespace distllm
