// Attention of a mixed batch of prefill and decode rows over block tables, without gathering the cache.
//
// A row is one (token, query head). Rows of one kv head are cut into units (kUnitRows); a unit walks the blocks of its
// sequence in spans of 64 tokens (aligned to position 0), so its rows share what they read:
//
//   for each span:  scores [rows, 64] = query * keys         panels of keys: channel = token
//                   softcap, mask, online softmax
//                   sums [rows, value_dim] += scores * values  panels of values: channel = dimension
//
// Order of sums: a score takes dimensions in order; a span's exponentials are summed by lane, blocks in order, then
// over lanes; sums take tokens in order, rescaled once a span. Tokens that a row does not see weigh exactly 0 and
// leave its bits alone, so neither chunking, nor the rows around it, nor threads change them. Over int8 codes a query is
// rounded to whole numbers, and so are its weights, span by span: those sums are exact.

#include <algorithm>
#include <vector>

#include "operations.h"
#include "attention_tile.h"

namespace distllm {
namespace {

constexpr int kUnitRows = 48, kWidenedUnitRows = 96;  // the latter where a unit widens what it reads
constexpr float kLowest = -3.0e38f;

// Query tokens [token, token + count) of one sequence.
struct TokenRun {
  int sequence, token, count;
};

DISTLLM_INLINE float as_float(float x) { return x; }
DISTLLM_INLINE float as_float(uint16_t x) { return float_from_bf16(x); }

// Tiles of a unit: as even as can be, at most kTileRows rows each.
template <class F>
void for_each_tile(int num_rows, const F& body) {
  const int tiles = (num_rows + kTileRows - 1) / kTileRows;
  for (int i = 0, row = 0; i < tiles; ++i) {
    const int rows = num_rows / tiles + (i < num_rows % tiles);
    body(row, rows);
    row += rows;
  }
}

// Rounds x [dim] to pairs of whole numbers, `stride` words apart; returns their scale. They are small enough for 32
// bits to hold the sum of their products with int8 codes.
template <class T>
float round_query(const T* x, int dim, int stride, int32_t* pairs) {
  const float most = std::min(kMostWord, (float)((INT32_MAX - (1 << 24)) / 127 / dim));
  const auto [largest, not_finite] = range_of(x, dim);
  const F32x16 inverse = broadcast(largest > 1e-30f ? most / largest : 0.0f);
  for (int d = 0; d < dim; d += 16) {
    const int count = std::min(16, dim - d);
    int32_t words[8];
    store_words((int16_t*)words, round(load_first(x + d, count) * inverse));
    for (int i = 0; 2 * i < count; ++i) pairs[(d / 2 + i) * stride] = words[i];
  }
  return largest / most + not_finite;
}

// Arranges a unit's query rows tile by tile for the panels' inner loop.
template <Kind kind, class T>
void arrange_query(const AttentionCall& call, const TokenRun& run, int kv_head, const Unit<kind>& unit) {
  const int first_row = call.query_starts[run.sequence] + run.token, key_dim = call.layout.key_dim;
  const int steps = query_steps<kind>(key_dim);
  [[maybe_unused]] const float factor = call.codes == KvCodes::kFloat8 ? kFloat8InputUnit : 1.0f;
  for_each_tile(unit.num_rows, [&](int row, int rows) {
    auto* const to = unit.query + (size_t)row * steps;
    for (int r = 0; r < rows; ++r) {
      const int token = first_row + (row + r) / unit.group, head = kv_head * unit.group + (row + r) % unit.group;
      const T* const from = (const T*)call.query + token * call.query_row_stride + head * call.query_head_stride;
      if constexpr (kind == Kind::kInt8) {
        unit.query_scale[row + r] = round_query(from, key_dim, rows, to + r);
      } else if constexpr (kind == Kind::kBf16Dot) {
        const auto scaled = [&](int d) -> uint32_t {
          return d == key_dim ? 0 : factor == 1.0f ? from[d] : bf16_from_float(as_float(from[d]) * factor);
        };
        for (int d = 0; d < key_dim; d += 2) to[(d / 2) * rows + r] = (int32_t)(scaled(d) | scaled(d + 1) << 16);
      } else {
        for (int d = 0; d < steps; ++d) to[d * rows + r] = d < key_dim ? as_float(from[d]) * factor : 0.0f;
      }
    }
  });
}

template <class T>
void store_row(const AttentionCall& call, const float* sums, float total, T* to) {
  const F32x16 divisor = broadcast(call.codes == KvCodes::kFloat8 ? total / kFloat8Rest : total);
  for (int d = 0; d < call.layout.value_dim; d += 16)  // + 0: a weight of 0 may have turned -0 into 0
    store_first(to + d, load(sums + d) / divisor + zeros(), std::min(16, call.layout.value_dim - d));
}

template <Kind kind, class T>
void store_unit(const AttentionCall& call, const TokenRun& run, int kv_head, const Unit<kind>& unit) {
  for (int row = 0; row < unit.num_rows; ++row) {
    const int token = call.query_starts[run.sequence] + run.token + row / unit.group;
    const int head = kv_head * unit.group + row % unit.group;
    T* const to = (T*)call.out + token * call.out_row_stride + head * call.out_head_stride;
    store_row(call, unit.sums + (size_t)row * unit.padded_values, unit.total[row], to);
  }
}

// Sets the scales of the tokens of a block, the i-th of its span; those of `next` are fetched.
template <class Weight>
void set_scales(const AttentionCall& call, int kv_head, size_t block, size_t next, int i, Span<Weight>& span) {
  const bool is_float8 = call.codes == KvCodes::kFloat8;
  const F32x16 key_unit = broadcast(call.scale * (is_float8 ? kFloat8Rest : 1.0f));
  const F32x16 value_unit = broadcast(is_float8 ? kFloat8InputUnit : 1.0f);
  const auto at = [&](size_t b) { return (b * (size_t)call.layout.num_kv_heads + (size_t)kv_head) * kBlockTokens; };
  __builtin_prefetch(call.key_scales + at(next));
  __builtin_prefetch(call.value_scales + at(next));
  store(span.score_factors + i * kBlockTokens, load(call.key_scales + at(block)) * key_unit);
  store(span.value_scales + i * kBlockTokens, load(call.value_scales + at(block)) * value_unit);
}

// Sets the span that begins at token `begin` of a sequence of `end` tokens, with all but its scales.
template <class Weight>
void set_span(const AttentionCall& call, int sequence, int kv_head, int begin, int end, Span<Weight>& span) {
  span.begin = begin;
  const KvLayout& layout = call.layout;
  const int32_t* const table = call.block_tables + sequence * call.table_stride;
  const auto keys = [&](int i) { return (const Weight*)call.keys + layout.key_at((size_t)table[i], kv_head); };
  const auto values = [&](int i) { return (const Weight*)call.values + layout.value_at((size_t)table[i], kv_head); };
  const int num_blocks = (end + kBlockTokens - 1) / kBlockTokens, first = begin / kBlockTokens;
  for (int i = 0; i < kSpanBlocks && first + i < num_blocks; ++i) {
    const int block = first + i, next = block + kSpanBlocks < num_blocks ? block + kSpanBlocks : block;
    span.keys[i] = keys(block);
    span.values[i] = values(block);
    span.next_keys[i] = keys(next);
    span.next_values[i] = values(next);
    if (layout.value_tail()) layout.widen_tail(span.values[i], span.tails[i]);
    if (call.codes != KvCodes::kNone) set_scales(call, kv_head, (size_t)table[block], (size_t)table[next], i, span);
  }
  span.num_blocks = std::min(kSpanBlocks, num_blocks - first);
}

// The same span with its FP8 codes widened into `room`.
void widen(const KvLayout& layout, const Span<Float8>& codes, uint16_t* room, Span<uint16_t>& span) {
  span.begin = codes.begin;
  for (int i = 0; i < codes.num_blocks; ++i) {
    widen_float8(codes.keys[i], codes.next_keys[i], layout.key_size(), room);
    span.keys[i] = span.next_keys[i] = room;
    room += layout.key_size();
    widen_float8(codes.values[i], codes.next_values[i], layout.value_size(), room);
    span.values[i] = span.next_values[i] = room;
    room += layout.value_size();
    if (layout.value_tail()) layout.widen_tail(span.values[i], span.tails[i]);
  }
  std::copy_n(codes.score_factors, kSpanTokens, span.score_factors);
  std::copy_n(codes.value_scales, kSpanTokens, span.value_scales);
}

// Attends over one span; a tile sits out a span that none of its rows sees.
template <Kind kind, class Weight>
void attend_span(const AttentionCall& call, const Unit<kind>& unit, const Span<Weight>& span) {
  for_each_tile(unit.num_rows, [&](int row, int rows) {
    if (unit.position(row + rows - 1) < span.begin || unit.first_seen(row, call.window) >= span.begin + kSpanTokens) return;
    attend_tile_for<kind, Weight>(rows, std::make_integer_sequence<int, kTileRows>{})(call, unit, row, span);
  });
}

// Walks the spans that any row of the unit sees.
template <class Weight, Kind kind>
void walk(const AttentionCall& call, const TokenRun& run, int kv_head, const Unit<kind>& unit,
          [[maybe_unused]] uint16_t* room) {
  const int end = unit.position(unit.num_rows - 1) + 1;
  Span<Weight> span;
  std::fill_n(span.score_factors, kSpanTokens, call.scale);
  for (int begin = unit.first_seen(0, call.window) / kSpanTokens * kSpanTokens; begin < end; begin += kSpanTokens) {
    set_span(call, run.sequence, kv_head, begin, end, span);
    if constexpr (std::is_same_v<Weight, Float8>)
      if (unit.num_rows > kTileRows) {  // several tiles read it
        Span<uint16_t> widened;
        widen(call.layout, span, room, widened);
        attend_span(call, unit, widened);
        continue;
      }
    attend_span(call, unit, span);
  }
}

template <Kind kind>
struct UnitSizes {
  size_t query, sums, rows, widened;

  UnitSizes(const AttentionCall& call, int max_rows)
      : query((size_t)max_rows * query_steps<kind>(call.layout.key_dim)),
        sums((size_t)max_rows * (size_t)call.layout.padded_value_dim()),
        rows((size_t)max_rows),
        widened(call.codes != KvCodes::kFloat8
                    ? 0
                    : kSpanBlocks * (call.layout.key_size() + call.layout.value_size()) * 2 / sizeof(float)) {}
  size_t total() const { return query + sums + 3 * rows + widened; }
};

template <Kind kind, class T>
void attend_unit(const AttentionCall& call, const TokenRun& run, int kv_head, const UnitSizes<kind>& sizes, float* scratch) {
  const int padded_values = call.layout.padded_value_dim();
  float* const sums = scratch + sizes.query;
  const Unit<kind> unit{run.count * call.group(),
                        call.group(),
                        call.num_computed[run.sequence] + run.token,
                        padded_values,
                        (typename Panel<kind>::Input*)scratch,
                        sums,
                        sums + sizes.sums,
                        sums + sizes.sums + sizes.rows,
                        sums + sizes.sums + 2 * sizes.rows};
  arrange_query<kind, T>(call, run, kv_head, unit);
  std::fill_n(unit.sums, (size_t)unit.num_rows * padded_values, 0.0f);
  for (int row = 0; row < unit.num_rows; ++row) {
    unit.top[row] = call.sinks ? call.sinks[kv_head * unit.group + row % unit.group] : kLowest;
    unit.total[row] = call.sinks ? 1.0f : 0.0f;
  }
  auto* const room = (uint16_t*)(sums + sizes.sums + 3 * sizes.rows);
  if constexpr (std::is_same_v<typename Panel<kind>::Weight, uint16_t>)
    if (call.codes == KvCodes::kFloat8) walk<Float8>(call, run, kv_head, unit, room);
  if (call.codes != KvCodes::kFloat8) walk<typename Panel<kind>::Weight>(call, run, kv_head, unit, room);
  store_unit<kind, T>(call, run, kv_head, unit);
}

// The batch cut into runs of tokens, the longest walks first.
std::vector<TokenRun> token_runs(const AttentionCall& call, int max_tokens) {
  std::vector<TokenRun> runs;
  for (int s = 0; s < call.num_sequences; ++s) {
    const int tokens = call.query_starts[s + 1] - call.query_starts[s];
    for (int first = 0; first < tokens; first += max_tokens)
      runs.push_back({s, first, std::min(max_tokens, tokens - first)});
  }
  const auto cost = [&](const TokenRun& run) {
    return (int64_t)run.count * (call.num_computed[run.sequence] + run.token + run.count);
  };
  std::stable_sort(runs.begin(), runs.end(), [&](const auto& a, const auto& b) { return cost(a) > cost(b); });
  return runs;
}

template <Kind kind, class T>
void attend(Session& session, const AttentionCall& call) {
  const int unit_rows = call.codes == KvCodes::kFloat8 ? kWidenedUnitRows : kUnitRows;
  const int max_tokens = std::max(1, unit_rows / call.group());
  const std::vector<TokenRun> runs = token_runs(call, max_tokens);
  const UnitSizes<kind> sizes(call, max_tokens * call.group());
  std::vector<float*> scratch((size_t)session.num_threads());
  for (int i = 0; i < session.num_threads(); ++i) scratch[(size_t)i] = session.scratch<float>(i, sizes.total());
  const int heads = call.layout.num_kv_heads;
  session.for_each((int)runs.size() * heads, [&](int unit, int thread) {
    attend_unit<kind, T>(call, runs[(size_t)(unit / heads)], unit % heads, sizes, scratch[(size_t)thread]);
  });
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// query [rows, num_heads, key_dim] -> out [rows, num_heads, value_dim], both of `dtype`, over caches whose type is that
// of `kind`: int8 codes with scales go with kInt8, float8 ones with kBf16 and kBf16Dot. kBf16Dot needs bf16 queries.
DISTLLM_API int distllm_attend(Pool* pool, int kind, const void* query, ptrdiff_t query_row_stride,
                               ptrdiff_t query_head_stride, int dtype, const void* keys, const void* values, void* out,
                               ptrdiff_t out_row_stride, ptrdiff_t out_head_stride, const int32_t* query_starts,
                               const int32_t* num_computed, const int32_t* block_tables, ptrdiff_t table_stride,
                               int num_sequences, int num_heads, int num_kv_heads, int key_dim, int value_dim,
                               float scale, float softcap, int window, const float* sinks, int codes,
                               const float* key_scales, const float* value_scales) {
  const AttentionCall call{query,           query_row_stride, query_head_stride, keys,      values,         out,
                  out_row_stride,  out_head_stride,  query_starts,      num_computed, block_tables, table_stride,
                  sinks,           {num_kv_heads, key_dim, value_dim},  num_sequences, num_heads,   scale,
                  softcap,         window,           (KvCodes)codes,    key_scales, value_scales};
  const bool is_float = (DType)dtype == DType::kFloat32;
  return guarded([&] {
    Session session(*pool);
    switch ((Kind)kind) {
      case Kind::kFloat32:
        return is_float ? attend<Kind::kFloat32, float>(session, call) : attend<Kind::kFloat32, uint16_t>(session, call);
      case Kind::kBf16:
        return is_float ? attend<Kind::kBf16, float>(session, call) : attend<Kind::kBf16, uint16_t>(session, call);
      case Kind::kBf16Dot:
        if constexpr (kHasBf16Dot) return attend<Kind::kBf16Dot, uint16_t>(session, call);
        return;
      case Kind::kInt8:
        return is_float ? attend<Kind::kInt8, float>(session, call) : attend<Kind::kInt8, uint16_t>(session, call);
    }
  });
}
