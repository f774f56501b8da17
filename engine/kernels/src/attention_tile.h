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

  int position(int row) const { return first_position + row / group; }
};

// One span of one sequence and kv head: what a tile of rows reads.
template <class Weight>
struct Span {
  int begin;
  const Weight* keys[kSpanBlocks];
  const Weight* values[kSpanBlocks];
  const Weight* next_keys[kSpanBlocks];  // of the next span, or of this one where it is the last
  const Weight* next_values[kSpanBlocks];
  Weight tails[kSpanBlocks][kValuePanelSize];  // the narrow last panel of the values, widened
  float key_scales[kSpanTokens], value_scales[kSpanTokens];  // of codes alone
};

template <Kind kind>
int query_steps(int key_dim) {
  return (int)padded_depth((size_t)key_dim) / (kind == Kind::kBf16Dot ? 2 : 1);
}

template <Kind kind, int R, int P, class Weight>
void score_blocks(const typename Panel<kind>::Input* query, const Weight* const* keys, const Weight* const* next_keys,
                  int depth, float* scores) {
  const Weight* panels[P];
  Scattered<P> next;
  unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
    panels[p] = keys[p];
    next.soon[p] = next_keys[p];
  });
  Tile<R, P> tile;
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA { tile.sum[i / P][i % P] = zeros(); });
  accumulate<kind>(tile, panels, Inputs<typename Panel<kind>::Input, 1, R>{query}, depth, next);
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    store(scores + (i / P) * kScoreStride + (i % P) * 16, tile.sum[i / P][i % P]);
  });
}

// Sets scores of tokens outside [first, end) of the span to -inf.
inline void mask(float* scores, int first, int end, int num_tokens) {
  std::fill(scores, scores + std::clamp(first, 0, num_tokens), kMasked);
  std::fill(scores + std::clamp(end, 0, num_tokens), scores + num_tokens, kMasked);
}

inline void cap(float* scores, int num_tokens, float scale, float softcap) {
  const F32x16 factor = broadcast(scale), limit = broadcast(softcap), inverse = broadcast(1.0f / softcap);
  for (int i = 0; i < num_tokens; i += 16) {
    const F32x16 score = load(scores + i) * factor;
    store(scores + i, softcap == 0.0f ? score : limit * tanh(score * inverse));
  }
}

inline float top_of(const float* scores, int num_tokens, float top) {
  F32x16 highest = broadcast(top);
  for (int i = 0; i < num_tokens; i += 16) highest = max(highest, load(scores + i));
  return max_of_lanes(highest);
}

// scores = exp(scores - top); returns their sum.
inline float exponentiate(float* scores, int num_tokens, float top) {
  F32x16 sum = zeros();
  for (int i = 0; i < num_tokens; i += 16) {
    const F32x16 weight = exp(load(scores + i) - broadcast(top));
    store(scores + i, weight);
    sum = sum + weight;
  }
  return sum_of_lanes(sum);
}

// Turns a tile's scores into weights and keeps each row's highest score and total; rescale[r] is the factor by which
// row r's earlier sums shrink.
template <Kind kind, int R>
void weigh(const AttentionCall& call, const Unit<kind>& unit, int row, int begin, int num_tokens, float* scores,
           float* rescale) {
  float drop[16] = {};
  for (int r = 0; r < R; ++r) {
    float* const own = scores + r * kScoreStride;
    const int position = unit.position(row + r), first = call.window ? position - call.window + 1 : 0;
    cap(own, num_tokens, call.scale, call.softcap);
    mask(own, first - begin, position + 1 - begin, num_tokens);
    const float before = unit.top[row + r];
    unit.top[row + r] = top_of(own, num_tokens, before);
    drop[r] = before - unit.top[row + r];
  }
  store(rescale, exp(load(drop)));
  for (int r = 0; r < R; ++r) {
    const float sum = exponentiate(scores + r * kScoreStride, num_tokens, unit.top[row + r]);
    unit.total[row + r] = unit.total[row + r] * rescale[r] + sum;
  }
}

// sums of P panels of dimensions = sums * rescale + weights * values
template <Kind kind, int R, int P, class Weight>
void add_values(const typename Panel<kind>::Input* weights, const Weight* const* values,
                const Weight* const* next_values, size_t offset, int num_tokens, const float* rescale, float* sums,
                int sums_stride) {
  constexpr int kPerStep = kind == Kind::kBf16Dot ? 2 : 1;
  Tile<R, P> tile;
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    tile.sum[i / P][i % P] = load(sums + (i / P) * sums_stride + (i % P) * 16) * broadcast(rescale[i / P]);
  });
  for (int token = 0; token < num_tokens; token += kBlockTokens) {
    const Weight* panels[P];
    Scattered<P> next;
    unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA {
      panels[p] = values[token / kBlockTokens] + offset + p * kValuePanelSize;
      next.soon[p] = next_values[token / kBlockTokens] + offset + p * kValuePanelSize;
    });
    const Inputs<typename Panel<kind>::Input, kScoreStride / kPerStep, 1> inputs{weights + token / kPerStep};
    accumulate<kind>(tile, panels, inputs, std::min(kBlockTokens, num_tokens - token), next);
  }
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    store(sums + (i / P) * sums_stride + (i % P) * 16, tile.sum[i / P][i % P]);
  });
}

// scores[r] *= scales, token by token; 0 stays 0, whatever lies in a slot that a row does not see.
template <int R>
void scale_tokens(float* scores, const float* scales, int num_tokens) {
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < num_tokens; i += 16) {
      const F32x16 own = load(scores + r * kScoreStride + i);
      const F32x16 magnitude = max(zeros() - own, own);
      store(scores + r * kScoreStride + i, zero_where_below(magnitude, 1e-38f, own * load(scales + i)));
    }
}

// Weights as the inputs of add_values: floats as they are, or rounded to pairs of bf16.
template <Kind kind, int R>
auto as_inputs(float* scores, int num_tokens, int32_t* pairs) {
  if constexpr (kind == Kind::kBf16Dot) {
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < num_tokens; i += 16)
        store((uint16_t*)(pairs + r * (kScoreStride / 2)) + i, load(scores + r * kScoreStride + i));
    return (const int32_t*)pairs;
  } else {
    (void)num_tokens, (void)pairs;
    return (const float*)scores;
  }
}

// One tile of R rows over one span.
template <Kind kind, int R>
void attend_tile(const AttentionCall& call, const Unit<kind>& unit, int row, const Span<typename Panel<kind>::Weight>& span) {
  const int tokens = std::min(kSpanTokens, unit.position(row + R - 1) + 1 - span.begin);
  const int blocks = (tokens + kBlockTokens - 1) / kBlockTokens, depth = (int)padded_depth((size_t)call.layout.key_dim);
  alignas(64) float scores[R * kScoreStride];
  alignas(64) int32_t pairs[kind == Kind::kBf16Dot ? R * kScoreStride / 2 : 1];
  alignas(64) float rescale[16];
  const auto* const query = unit.query + (size_t)row * query_steps<kind>(call.layout.key_dim);
  int block = 0;
  for (; block + kWidth <= blocks; block += kWidth)
    score_blocks<kind, R, kWidth>(query, span.keys + block, span.next_keys + block, depth, scores + block * 16);
  for (; block < blocks; ++block) score_blocks<kind, R, 1>(query, span.keys + block, span.next_keys + block, depth, scores + block * 16);
  if (call.codes != KvCodes::kNone) scale_tokens<R>(scores, span.key_scales, blocks * kBlockTokens);
  weigh<kind, R>(call, unit, row, span.begin, blocks * kBlockTokens, scores, rescale);
  if (call.codes != KvCodes::kNone) scale_tokens<R>(scores, span.value_scales, blocks * kBlockTokens);
  const auto* const weights = as_inputs<kind, R>(scores, blocks * kBlockTokens, pairs);
  float* const sums = unit.sums + (size_t)row * unit.padded_values;
  const int full = call.layout.full_value_panels(), stride = unit.padded_values;
  int panel = 0;
  const auto offset = [](int p) { return (size_t)p * kValuePanelSize; };
  for (; panel + kWidth <= full; panel += kWidth)
    add_values<kind, R, kWidth>(weights, span.values, span.next_values, offset(panel), tokens, rescale, sums + panel * 16, stride);
  for (; panel < full; ++panel)
    add_values<kind, R, 1>(weights, span.values, span.next_values, offset(panel), tokens, rescale, sums + panel * 16, stride);
  if (call.layout.value_tail() == 0) return;
  const typename Panel<kind>::Weight* tails[kSpanBlocks];
  for (int i = 0; i < kSpanBlocks; ++i) tails[i] = span.tails[i];
  add_values<kind, R, 1>(weights, tails, tails, 0, tokens, rescale, sums + panel * 16, stride);
}

template <Kind kind>
using AttendTile = void (*)(const AttentionCall&, const Unit<kind>&, int, const Span<typename Panel<kind>::Weight>&);

template <Kind kind, int... R>
AttendTile<kind> attend_tile_for(int rows, std::integer_sequence<int, R...>) {
  static constexpr AttendTile<kind> table[] = {attend_tile<kind, R + 1>...};
  return table[rows - 1];
}

}  // namespace distllm
