// out [T, N] = x [T, K] * weight [N, K]^T + bias over a packed weight.
//
// Order of sums, the same for every T, tile and thread: K is cut into spans of 512; within a span one accumulator
// takes k in order (panel.h); spans are added to the total in order, then the bias. So K may be walked span by span
// for all rows of a block while the span of the panels stays in the first-level cache.
//
//   inputs, packed for the call: tiles of R rows, each [padded K][R] (or [padded K / 2][R] pairs)
//   a unit of work: one group of P panels times one block of rows

#include "operations.h"
#include "linear_tiles.h"

namespace distllm {
namespace {

constexpr int kSpan = 512;

// total[r][p * 16 ..] += span of inputs times span of panels; `skip` as Streamed says
template <Kind kind, int R, int P>
void add_span(const void* inputs, const void* panels, size_t panel_stride, int depth, size_t skip, float* total) {
  using Weight = typename Panel<kind>::Weight;
  using Input = typename Panel<kind>::Input;
  const Weight* panel[P];
  unrolled<P>([&](auto p) DISTLLM_INLINE_LAMBDA { panel[p] = (const Weight*)panels + p * panel_stride; });
  Tile<R, P> tile;
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA { tile.sum[i / P][i % P] = zeros(); });
  accumulate<kind>(tile, panel, Inputs<Input, 1, R>{(const Input*)inputs}, depth, Streamed<P>{skip});
  unrolled<R * P>([&](auto i) DISTLLM_INLINE_LAMBDA {
    float* const at = total + i * 16;
    store(at, load(at) + tile.sum[i / P][i % P]);
  });
}

using AddSpan = void (*)(const void*, const void*, size_t, int, size_t, float*);

template <Kind kind, int P, int... R>
AddSpan add_span_for(int rows, std::integer_sequence<int, R...>) {
  static constexpr AddSpan table[] = {add_span<kind, R + 1, P>...};
  return table[rows - 1];
}

template <Kind kind, int P>
AddSpan add_span_for(int rows) {
  return add_span_for<kind, P>(rows, std::make_integer_sequence<int, kMaxTileRows<P>>{});
}

template <Kind kind>
void arrange_inputs(Session& session, const LinearCall& call, const Tiling& tiles, typename Panel<kind>::Input* to) {
  const auto arrange = [&](int tile, int) {
    const int row = tiles.begin(tile), rows = tiles.size(tile);
    const int padded = (int)padded_depth((size_t)call.depth);
    auto* const at = to + (size_t)row * input_size<kind>(call.depth);
    const ptrdiff_t from = row * call.x_stride;
    if constexpr (kind == Kind::kBf16Dot)
      pair_tile((const uint16_t*)call.x + from, call.x_stride, rows, call.depth, padded, at);
    else if (call.x_type == DType::kFloat32)
      widen_tile((const float*)call.x + from, call.x_stride, rows, call.depth, padded, at);
    else
      widen_tile((const uint16_t*)call.x + from, call.x_stride, rows, call.depth, padded, at);
  };
  if ((size_t)call.rows * (size_t)call.depth >= 16384) return session.for_each(tiles.count, arrange);
  for (int tile = 0; tile < tiles.count; ++tile) arrange(tile, 0);
}

// Tiles [first, last) times P panels from `panel` on.
template <Kind kind, int P>
void multiply(const LinearCall& call, const Tiling& tiles, int first, int last, const typename Panel<kind>::Input* inputs,
              size_t panel) {
  alignas(64) float total[kBlockRows * P * 16];
  const int begin = tiles.begin(first), rows = tiles.begin(last) - begin;
  std::fill_n(total, rows * P * 16, 0.0f);
  const size_t stride = panel_size((size_t)call.depth);
  const auto* const panels = (const typename Panel<kind>::Weight*)call.weight + panel * stride;
  const int step = kind == Kind::kBf16Dot ? 2 : 1;
  for (int k = 0; k < call.depth; k += kSpan) {
    const int depth = std::min(kSpan, (int)padded_depth((size_t)(call.depth - k)));
    const size_t skip = k + kSpan < call.depth ? 0 : (P - 1) * stride * sizeof(*panels);
    for (int tile = first; tile < last; ++tile) {
      const int row = tiles.begin(tile), size = tiles.size(tile);
      const auto* const x = inputs + (size_t)row * input_size<kind>(call.depth) + (size_t)(k / step) * size;
      add_span_for<kind, P>(size)(x, panels + (size_t)k * 16, stride, depth, skip, total + (row - begin) * P * 16);
    }
  }
  const int feature = (int)panel * kPanelWidth, features = std::min(P * kPanelWidth, call.features - feature);
  if (call.out_type == DType::kFloat32)
    finish<float>(call, total, P * 16, begin, rows, feature, features);
  else
    finish<uint16_t>(call, total, P * 16, begin, rows, feature, features);
}

// All rows times all panels in groups of P, the last few panels one by one.
template <Kind kind, int P>
void run_groups(Session& session, const LinearCall& call) {
  const Tiling tiles(call.rows, kMaxTileRows<P>);
  auto* const inputs = session.scratch<typename Panel<kind>::Input>(
      session.num_threads(), (size_t)call.rows * input_size<kind>(call.depth));
  arrange_inputs<kind>(session, call, tiles, inputs);
  const Tiling blocks(tiles.count, kBlockRows / kMaxTileRows<P>);
  const size_t panels = num_panels((size_t)call.features), groups = (panels + P - 1) / P;
  session.for_each((int)groups * blocks.count, [&](int unit, int) {
    const size_t panel = (size_t)(unit / blocks.count) * P;
    const int block = unit % blocks.count;
    const int first = blocks.begin(block), last = blocks.begin(block + 1);
    if (panel + P <= panels) return multiply<kind, P>(call, tiles, first, last, inputs, panel);
    for (size_t rest = panel; rest < panels; ++rest) multiply<kind, 1>(call, tiles, first, last, inputs, rest);
  });
}

// Few rows want wide groups, to keep the adders busy; many rows want tall tiles. Where a weight has too few panels
// for all threads, groups are narrower. The bits are the same in all cases.
template <Kind kind, int P>
void run(Session& session, const LinearCall& call) {
  if constexpr (P > 1) {
    const size_t groups = num_panels((size_t)call.features) / P;
    const size_t units = groups * (size_t)Tiling(call.rows, kBlockRows).count;
    const bool too_tall = P > kTallPanels && call.rows > kMaxTileRows<P>;
    if (too_tall || units < 6 * (size_t)session.num_threads()) return run<kind, P / 2>(session, call);
  }
  if constexpr (kMaxTileRows<P> >= 1) run_groups<kind, P>(session, call);
}

}  // namespace
}  // namespace distllm

using namespace distllm;

DISTLLM_API int distllm_linear(Pool* pool, int kind, const void* x, ptrdiff_t x_stride, int x_type, const void* weight,
                               const void* bias, int bias_type, void* out, ptrdiff_t out_stride, int out_type, int rows,
                               int depth, int features) {
  const LinearCall call{x,   x_stride,   (DType)x_type,   weight, bias,  (DType)bias_type,
                  out, out_stride, (DType)out_type, rows,   depth, features};
  return guarded([&] {
    Session session(*pool);
    switch ((Kind)kind) {
      case Kind::kFloat32:
        return run<Kind::kFloat32, kMaxPanels>(session, call);
      case Kind::kBf16:
        return run<Kind::kBf16, kMaxPanels>(session, call);
      case Kind::kBf16Dot:
        if constexpr (kHasBf16Dot) return run<Kind::kBf16Dot, kMaxPanels>(session, call);
        return;
      case Kind::kInt8:
        return;  // quantized_linear.cpp
    }
  });
}
