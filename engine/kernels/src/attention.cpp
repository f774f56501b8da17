// Attention of a mixed batch of prefill and decode rows over block tables, without gathering the cache.
//
// A row is one (token, query head). Rows of one kv head are cut into units of up to 48; a unit walks the blocks of its
// sequence in spans of 64 tokens (aligned to position 0), so its rows share what they read:
//
//   for each span:  scores [rows, 64] = query * keys         panels of keys: channel = token
//                   softcap, mask, online softmax
//                   sums [rows, value_dim] += scores * values  panels of values: channel = dimension
//
// Order of sums: a score takes dimensions in order; a span's exponentials are summed by lane, blocks in order, then
// over lanes; sums take tokens in order, rescaled once a span. Tokens that a row does not see weigh exactly 0 and
// leave its bits alone, so neither chunking, nor the rows around it, nor threads change them.

#include <algorithm>
#include <vector>

#include "api.h"
#include "attention_tile.h"

namespace distllm {
namespace {

constexpr int kUnitRows = 48;
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

// Arranges a unit's query rows tile by tile for the panels' inner loop.
template <Kind kind, class T>
void arrange_query(const AttentionCall& call, const TokenRun& run, int kv_head, const Unit<kind>& unit) {
  const int first_row = call.query_starts[run.sequence] + run.token, key_dim = call.layout.key_dim;
  const int steps = query_steps<kind>(key_dim);
  for_each_tile(unit.num_rows, [&](int row, int rows) {
    auto* const to = unit.query + (size_t)row * steps;
    for (int r = 0; r < rows; ++r) {
      const int token = first_row + (row + r) / unit.group, head = kv_head * unit.group + (row + r) % unit.group;
      const T* const from = (const T*)call.query + token * call.query_row_stride + head * call.query_head_stride;
      if constexpr (kind == Kind::kBf16Dot) {
        for (int d = 0; d < key_dim; d += 2) {
          const uint32_t low = from[d], high = d + 1 < key_dim ? from[d + 1] : 0;
          to[(d / 2) * rows + r] = (int32_t)(low | high << 16);
        }
      } else {
        for (int d = 0; d < steps; ++d) to[d * rows + r] = d < key_dim ? as_float(from[d]) : 0.0f;
      }
    }
  });
}

template <class T>
void store_row(const AttentionCall& call, const float* sums, float total, T* to) {
  const F32x16 divisor = broadcast(total);
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

// The blocks of a span widened from their codes into `widened`, with the scales of their tokens.
template <KvCodes codes>
void widen_span(const AttentionCall& call, int sequence, int kv_head, int begin, int end, uint16_t* widened,
                Span<uint16_t>& span) {
  span.begin = begin;
  const KvLayout& layout = call.layout;
  const int32_t* const table = call.block_tables + sequence * call.table_stride;
  const int num_blocks = (end + kBlockTokens - 1) / kBlockTokens, first = begin / kBlockTokens;
  const auto keys = [&](int i) { return (const uint8_t*)call.keys + layout.key_at((size_t)table[i], kv_head); };
  const auto values = [&](int i) { return (const uint8_t*)call.values + layout.value_at((size_t)table[i], kv_head); };
  for (int i = 0; i < kSpanBlocks && first + i < num_blocks; ++i) {
    const int block = first + i, next = block + kSpanBlocks < num_blocks ? block + kSpanBlocks : block;
    uint16_t* const own_keys = widened + (size_t)i * (layout.key_size() + layout.value_size());
    uint16_t* const own_values = own_keys + layout.key_size();
    widen_kv<codes>(keys(block), keys(next), layout.key_size(), own_keys);
    widen_kv<codes>(values(block), values(next), layout.value_size(), own_values);
    span.keys[i] = span.next_keys[i] = own_keys;
    span.values[i] = span.next_values[i] = own_values;
    if (layout.value_tail()) layout.widen_tail(span.values[i], span.tails[i]);
    const size_t scale = ((size_t)table[block] * (size_t)layout.num_kv_heads + (size_t)kv_head) * kBlockTokens;
    std::copy_n(call.key_scales + scale, kBlockTokens, span.key_scales + i * kBlockTokens);
    std::copy_n(call.value_scales + scale, kBlockTokens, span.value_scales + i * kBlockTokens);
  }
}

template <class Weight>
void set_span(const AttentionCall& call, int sequence, int kv_head, int begin, int end, Span<Weight>& span) {
  span.begin = begin;
  const int32_t* const table = call.block_tables + sequence * call.table_stride;
  const auto keys = [&](int i) { return (const Weight*)call.keys + call.layout.key_at((size_t)table[i], kv_head); };
  const auto values = [&](int i) { return (const Weight*)call.values + call.layout.value_at((size_t)table[i], kv_head); };
  const int num_blocks = (end + kBlockTokens - 1) / kBlockTokens, first = begin / kBlockTokens;
  for (int i = 0; i < kSpanBlocks && first + i < num_blocks; ++i) {
    const int next = first + i + kSpanBlocks < num_blocks ? first + i + kSpanBlocks : first + i;
    span.keys[i] = keys(first + i);
    span.values[i] = values(first + i);
    span.next_keys[i] = keys(next);
    span.next_values[i] = values(next);
    if (call.layout.value_tail()) call.layout.widen_tail(span.values[i], span.tails[i]);
  }
}

// Walks the spans that any row of the unit sees; a tile sits out the spans that none of its rows see.
template <Kind kind>
void walk(const AttentionCall& call, const TokenRun& run, int kv_head, const Unit<kind>& unit,
          [[maybe_unused]] uint16_t* widened) {
  const int end = unit.position(unit.num_rows - 1) + 1;
  const auto first_seen = [&](int row) { return call.window ? std::max(0, unit.position(row) - call.window + 1) : 0; };
  Span<typename Panel<kind>::Weight> span;
  for (int begin = first_seen(0) / kSpanTokens * kSpanTokens; begin < end; begin += kSpanTokens) {
    if constexpr (kind != Kind::kFloat32) {
      if (call.codes == KvCodes::kInt8)
        widen_span<KvCodes::kInt8>(call, run.sequence, kv_head, begin, end, widened, span);
      else if (call.codes == KvCodes::kFloat8)
        widen_span<KvCodes::kFloat8>(call, run.sequence, kv_head, begin, end, widened, span);
    }
    if (call.codes == KvCodes::kNone) set_span(call, run.sequence, kv_head, begin, end, span);
    for_each_tile(unit.num_rows, [&](int row, int rows) {
      if (unit.position(row + rows - 1) < begin || first_seen(row) >= begin + kSpanTokens) return;
      attend_tile_for<kind>(rows, std::make_integer_sequence<int, kTileRows>{})(call, unit, row, span);
    });
  }
}

template <Kind kind>
struct UnitSizes {
  size_t query, sums, rows, widened;

  UnitSizes(const AttentionCall& call, int max_rows)
      : query((size_t)max_rows * query_steps<kind>(call.layout.key_dim)),
        sums((size_t)max_rows * (size_t)call.layout.padded_value_dim()),
        rows((size_t)max_rows),
        widened(call.codes == KvCodes::kNone
                    ? 0
                    : kSpanBlocks * (call.layout.key_size() + call.layout.value_size()) * 2 / sizeof(float)) {}
  size_t total() const { return query + sums + 2 * rows + widened; }
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
                        sums + sizes.sums + sizes.rows};
  arrange_query<kind, T>(call, run, kv_head, unit);
  std::fill_n(unit.sums, (size_t)unit.num_rows * padded_values, 0.0f);
  for (int row = 0; row < unit.num_rows; ++row) {
    unit.top[row] = call.sinks ? call.sinks[kv_head * unit.group + row % unit.group] : kLowest;
    unit.total[row] = call.sinks ? 1.0f : 0.0f;
  }
  walk(call, run, kv_head, unit, (uint16_t*)(sums + sizes.sums + 2 * sizes.rows));
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
  const int max_tokens = std::max(1, kUnitRows / call.group());
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
// of `kind`, or are codes with scales, which go with kBf16 and kBf16Dot. kBf16Dot needs bf16 queries.
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
    }
  });
}
