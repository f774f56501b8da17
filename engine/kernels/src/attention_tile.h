// One tile of attention rows over one span of a sequence: scores, online softmax, weighted values.
// attention.cpp says what rows and spans are and in which order everything is summed.
#pragma once

#include <algorithm>
#include <limits>

#include "kv_codes.h"
#include "panel.h"
#include "vector_math.h"

namespace distllm {

constexpr int kSpanBlocks = 4;
constexpr int kSpanTokens = kSpanBlocks * kBlockTokens;
constexpr int kScoreStride = kSpanTokens + 16;  // apart from a power of two, which would share cache sets
constexpr int kWidth = kParts == 1 ? 4 : 1;  // panels side by side in a tile
constexpr int kTileRows = kMaxTileRows<kWidth>;
constexpr float kMasked = -std::numeric_limits<float>::infinity();

struct AttentionCall {
  const void* query;
  ptrdiff_t query_row_stride, query_head_stride;
  const void *keys, *values;
  void* out;
  ptrdiff_t out_row_stride, out_head_stride;
  const int32_t *query_starts, *num_computed, *block_tables;
  ptrdiff_t table_stride;
  const float* sinks;  // [heads], or null
  KvLayout layout;
  int num_sequences, num_heads;
  float scale, softcap;  // softcap 0: none
  int window;            // 0: none
  KvCodes codes;         // of keys and values; kNone: they are of the kind's own type
  const float *key_scales, *value_scales;  // [block][kv head][16], with codes
  int group() const { return num_heads / layout.num_kv_heads; }
};

// One unit's rows and what they have summed so far.
template <Kind kind>
struct Unit {
  int num_rows, group, first_position, padded_values;
  typename Panel<kind>::Input* query;  // tiles of [key steps][rows of the tile]
  float *sums, *top, *total;           // [rows][padded_values], [rows], [rows]
  float* query_scale;                  // [rows], of rounded queries alone

  int position(int row) const { return first_position + row / group; }
  int first_seen(int row, int window) const { return window ? std::max(0, position(row) - window + 1) : 0; }
};

// One span of one sequence and kv head: what a tile of rows reads.
template <class Weight>
struct Span {
  int begin, num_blocks;
  const Weight* keys[kSpanBlocks];
  const Weight* values[kSpanBlocks];
  const Weight* next_keys[kSpanBlocks];  // of the next span, or of this one where it is the last
  const Weight* next_values[kSpanBlocks];
  Weight tails[kSpanBlocks][kValuePanelSize];  // the narrow last panel of the values, made whole
  float score_factors[kSpanTokens];  // by which products become scores
  float value_scales[kSpanTokens];   // of codes alone
};

template <Kind kind>
int query_steps(int key_dim) {
  return (int)padded_depth((size_t)key_dim) / kInputsPerStep<kind>;
}

template <Kind kind>
using SumOf = typename Panel<kind>::Sum;

template <class Sum>
DISTLLM_INLINE Sum no_sum() {
  if constexpr (std::is_same_v<Sum, I32x16>) return broadcast_word(0);
  else return zeros();
}

template <Kind kind, int R, int P, class Weight>
void score_blocks(const typename Panel<kind>::Input* query, [[maybe_unused]] const float* query_scale,
                  const Weight* const* keys, const Weight* const* next_keys, int depth, float* scores) {
  const Weight* panels[P];
  Scattered<P> next;
  unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
    panels[p] = keys[p];
    next.soon[p] = next_keys[p];
  });
  Tile<R, P, SumOf<kind>> tile;
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA { tile.sum[i / P][i % P] = no_sum<SumOf<kind>>(); });
  accumulate<kind>(tile, panels, Inputs<typename Panel<kind>::Input, 1, R>{query}, depth, next);
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    float* const to = scores + (i / P) * kScoreStride + (i % P) * 16;
    if constexpr (kind == Kind::kInt8)
      store(to, as_floats(tile.sum[i / P][i % P]) * broadcast(query_scale[i / P]));
    else
      store(to, tile.sum[i / P][i % P]);
  });
}

// Sets scores of tokens outside [first, end) of the span to -inf.
inline void mask(float* scores, int first, int end, int num_tokens) {
  std::fill(scores, scores + std::clamp(first, 0, num_tokens), kMasked);
  std::fill(scores + std::clamp(end, 0, num_tokens), scores + num_tokens, kMasked);
}

inline void cap(float* scores, int num_tokens, const float* factors, float softcap) {
  const F32x16 limit = broadcast(softcap), inverse = broadcast(1.0f / softcap);
  for (int i = 0; i < num_tokens; i += 16) {
    const F32x16 score = load(scores + i) * load(factors + i);
    store(scores + i, softcap == 0.0f ? score : limit * tanh(score * inverse));
  }
}

inline float top_of(const float* scores, int num_tokens, float top) {
  F32x16 highest = broadcast(top);
  for (int i = 0; i < num_tokens; i += 16) highest = max(highest, load(scores + i));
  return max_of_lanes(highest);
}

// scores = exp(scores - top); returns their sum. They are multiplied by `scales`, unless that is null, token by token:
// what is too small to be seen beside 1 becomes 0, and 0 stays 0 whatever lies in a slot that a row does not see.
inline float exponentiate(float* scores, int num_tokens, float top, const float* scales) {
  F32x16 sum = zeros();
  for (int i = 0; i < num_tokens; i += 16) {
    const F32x16 weight = exp(load(scores + i) - broadcast(top));
    store(scores + i, scales ? zero_where_below(weight, 1e-18f, weight * load(scales + i)) : weight);
    sum = sum + weight;
  }
  return sum_of_lanes(sum);
}

// Turns a tile's scores into weights and keeps each row's highest score and total; rescale[r] is the factor by which
// row r's earlier sums shrink.
template <Kind kind, int R, class Weight>
void weigh(const AttentionCall& call, const Unit<kind>& unit, int row, const Span<Weight>& span, int num_tokens,
           float* scores, float* rescale) {
  const float* const scales = call.codes == KvCodes::kNone ? nullptr : span.value_scales;
  float drop[16] = {};
  for (int r = 0; r < R; ++r) {
    float* const own = scores + r * kScoreStride;
    const int position = unit.position(row + r), first = call.window ? position - call.window + 1 : 0;
    cap(own, num_tokens, span.score_factors, call.softcap);
    mask(own, first - span.begin, position + 1 - span.begin, num_tokens);
    const float before = unit.top[row + r];
    unit.top[row + r] = top_of(own, num_tokens, before);
    drop[r] = before - unit.top[row + r];
  }
  store(rescale, exp(load(drop)));
  for (int r = 0; r < R; ++r) {
    const float sum = exponentiate(scores + r * kScoreStride, num_tokens, unit.top[row + r], scales);
    unit.total[row + r] = unit.total[row + r] * rescale[r] + sum;
  }
}

// A tile's weights as the inputs of add_values, and by what each row's earlier sums and new products are multiplied.
template <Kind kind>
struct Weights {
  const typename Panel<kind>::Input* inputs;  // [rows][kScoreStride / kInputsPerStep]
  const float *rescale, *scale;               // [rows]; `scale` of rounded weights alone
};

// sums of P panels of dimensions = sums * rescale + weights * values
template <Kind kind, int R, int P, class Weight>
void add_values(const Weights<kind>& weights, const Weight* const* values, const Weight* const* next_values,
                size_t offset, int num_tokens, float* sums, int sums_stride) {
  constexpr int kPerStep = kInputsPerStep<kind>;
  const auto rescaled = [&](int i) DISTLLM_INLINE_LAMBDA {
    return load(sums + (i / P) * sums_stride + (i % P) * 16) * broadcast(weights.rescale[i / P]);
  };
  Tile<R, P, SumOf<kind>> tile;
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    if constexpr (kind == Kind::kInt8)
      tile.sum[i / P][i % P] = broadcast_word(0);
    else
      tile.sum[i / P][i % P] = rescaled(i);
  });
  for (int token = 0; token < num_tokens; token += kBlockTokens) {
    const Weight* panels[P];
    Scattered<P> next;
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      panels[p] = values[token / kBlockTokens] + offset + p * kValuePanelSize;
      next.soon[p] = next_values[token / kBlockTokens] + offset + p * kValuePanelSize;
    });
    const Inputs<typename Panel<kind>::Input, kScoreStride / kPerStep, 1> inputs{weights.inputs + token / kPerStep};
    const int seen = kind == Kind::kInt8 ? kBlockTokens : std::min(kBlockTokens, num_tokens - token);
    accumulate<kind>(tile, panels, inputs, seen, next);
  }
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    float* const to = sums + (i / P) * sums_stride + (i % P) * 16;
    if constexpr (kind == Kind::kInt8)
      store(to, fma(as_floats(tile.sum[i / P][i % P]), broadcast(weights.scale[i / P]), rescaled(i)));
    else
      store(to, tile.sum[i / P][i % P]);
  });
}

// Weights as the inputs of add_values: floats as they are, or rounded to pairs of bf16, or to whole numbers in pairs.
template <Kind kind, int R>
const typename Panel<kind>::Input* as_inputs(const float* weights, int num_tokens, int32_t* pairs, float* scales) {
  if constexpr (kInputsPerStep<kind> == 1) return weights;
  for (int r = 0; r < R; ++r) {
    const float* const from = weights + r * kScoreStride;
    int32_t* const to = pairs + r * (kScoreStride / 2);
    if constexpr (kind == Kind::kInt8)
      scales[r] = round_words(from, num_tokens, to);
    else
      for (int i = 0; i < num_tokens; i += 16) store((uint16_t*)to + i, load(from + i));
  }
  (void)num_tokens, (void)scales;
  return (const typename Panel<kind>::Input*)pairs;
}

// One tile of R rows over one span.
template <Kind kind, int R, class Weight>
void attend_tile(const AttentionCall& call, const Unit<kind>& unit, int row, const Span<Weight>& span) {
  const int tokens = std::min(kSpanTokens, unit.position(row + R - 1) + 1 - span.begin);
  const int blocks = (tokens + kBlockTokens - 1) / kBlockTokens, depth = (int)padded_depth((size_t)call.layout.key_dim);
  alignas(64) float scores[R * kScoreStride];
  alignas(64) int32_t pairs[kInputsPerStep<kind> == 2 ? R * kScoreStride / 2 : 1];
  alignas(64) float rescale[16], weight_scale[16];
  const auto* const query = unit.query + (size_t)row * query_steps<kind>(call.layout.key_dim);
  const float* const query_scale = unit.query_scale + row;
  int block = 0;
  for (; block + kWidth <= blocks; block += kWidth)
    score_blocks<kind, R, kWidth>(query, query_scale, span.keys + block, span.next_keys + block, depth, scores + block * 16);
  for (; block < blocks; ++block)
    score_blocks<kind, R, 1>(query, query_scale, span.keys + block, span.next_keys + block, depth, scores + block * 16);
  weigh<kind, R>(call, unit, row, span, blocks * kBlockTokens, scores, rescale);
  const Weights<kind> weights{as_inputs<kind, R>(scores, blocks * kBlockTokens, pairs, weight_scale), rescale,
                              weight_scale};
  float* const sums = unit.sums + (size_t)row * unit.padded_values;
  const int full = call.layout.full_value_panels(), stride = unit.padded_values;
  int panel = 0;
  const auto offset = [](int p) { return (size_t)p * kValuePanelSize; };
  for (; panel + kWidth <= full; panel += kWidth)
    add_values<kind, R, kWidth>(weights, span.values, span.next_values, offset(panel), tokens, sums + panel * 16, stride);
  for (; panel < full; ++panel)
    add_values<kind, R, 1>(weights, span.values, span.next_values, offset(panel), tokens, sums + panel * 16, stride);
  if (call.layout.value_tail() == 0) return;
  const Weight* tails[kSpanBlocks];
  for (int i = 0; i < kSpanBlocks; ++i) tails[i] = span.tails[i];
  add_values<kind, R, 1>(weights, tails, tails, 0, tokens, sums + panel * 16, stride);
}

template <Kind kind, class Weight>
using AttendTile = void (*)(const AttentionCall&, const Unit<kind>&, int, const Span<Weight>&);

template <Kind kind, class Weight, int... R>
AttendTile<kind, Weight> attend_tile_for(int rows, std::integer_sequence<int, R...>) {
  static constexpr AttendTile<kind, Weight> table[] = {attend_tile<kind, R + 1, Weight>...};
  return table[rows - 1];
}

}  // namespace distllm
