// out [T, N] = x [T, K] * weight [N, K]^T + bias over a quantized weight (quantized.h).
//
// Order of sums, the same for every T, tile and thread: K is cut into groups, these into spans of at most 64; a span
// is summed over its whole-number weights, k in order, and added to the total times the group's scale, spans in order.
// With dynamic activations a row is rounded to whole numbers first (round_rows.h). Then every sum of a span is a whole
// number below 2^24, exact in any order, so byte dot products and float sums give equal bits.

#include <numeric>

#include "api.h"
#include "quantized_span.h"
#include "round_rows.h"

namespace distllm {
namespace {

struct Call {
  LinearCall linear;
  const void* scales;
  DType scale_type;
  const uint8_t* zeros;  // or null
  int group;             // inputs of a group, a multiple of 8

  int padded, num_groups;  // inputs with padding, and their groups

  int num_spans() const { return num_groups * ((group + kWidenedSpan - 1) / kWidenedSpan); }
};

// body(index, group, begin, end) for the spans of inputs in order. Without a division: it runs for every few panels.
template <class F>
DISTLLM_INLINE void for_each_span(const Call& call, const F& body) {
  int index = 0;
  for (int group = 0, begin = 0; group < call.num_groups; ++group) {
    const int end = std::min(begin + call.group, call.padded);
    for (; begin < end; begin += kWidenedSpan) body(index++, group, begin, std::min(begin + kWidenedSpan, end));
    begin = end;
  }
}

// What a call reads: x itself, or its rounded rows with the sums [rows][spans] of their parts.
template <class T>
struct Source {
  const T* x;
  ptrdiff_t stride;
  int depth;
  const int32_t* sums;
};

// Rounded rows, already padded with zeros, as words of four bytes [padded / 4][rows].
[[maybe_unused]] void quad_tile(const int8_t* x, ptrdiff_t stride, int rows, int padded, int32_t* to) {
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < padded; k += 4) std::memcpy(&to[(size_t)(k / 4) * rows + r], x + r * stride + k, 4);
}

template <Product product, class T>
void arrange_tile(const Source<T>& source, int row, int rows, int padded, InputOf<product>* to) {
  const T* const x = source.x + row * source.stride;
  if constexpr (product == Product::kFma)
    widen_tile(x, source.stride, rows, source.depth, padded, to);
  else if constexpr (product == Product::kBf16Dot)
    pair_tile(x, source.stride, rows, source.depth, padded, to);
  else
    quad_tile(x, source.stride, rows, padded, to);
}

// Inputs [begin, end), all of one group, without what is widened of them.
template <Codes codes, int P>
DISTLLM_INLINE Span<P> span_of(const Call& call, size_t panel, int group, int begin, int end) {
  Span<P> span{begin, end - begin, {}, {}, {}, {}};
  for (size_t p = 0; p < P; ++p) {
    const size_t at = ((panel + p) * (size_t)call.num_groups + (size_t)group) * 16;
    const bool is_float = call.scale_type == DType::kFloat32;
    span.scale[p] = is_float ? load((const float*)call.scales + at) : load((const uint16_t*)call.scales + at);
    const I32x16 zero = call.zeros ? load_bytes(call.zeros + at) : broadcast_word(codes == Codes::kInt4 ? 8 : 128);
    span.zero[p] = zeros() - as_floats(zero);
    const size_t word = ((panel + p) * (size_t)call.padded + (size_t)begin) / kCodesPerWord<codes>;
    span.codes[p] = (const uint32_t*)call.linear.weight + word * 16;
  }
  return span;
}

// Tiles [first, last) times P panels from `panel` on.
template <Product product, Codes codes, int P>
void multiply(const Call& call, const Tiling& tiles, int first, int last, const InputOf<product>* inputs,
              const int32_t* sums, size_t panel) {
  alignas(64) float total[kBlockRows * P * 16];
  using Weight = typename Panel<kWidenedKind<product>>::Weight;
  alignas(64) Weight widened[product == Product::kByteDot ? 1 : P * kWidenedSpan * 16];
  const int first_row = tiles.begin(first), rows = tiles.begin(last) - first_row, num_spans = call.num_spans();
  std::fill_n(total, rows * P * 16, 0.0f);
  for_each_span(call, [&](int index, int group, int begin, int end) {
    Span<P> span = span_of<codes, P>(call, panel, group, begin, end);
    if constexpr (product != Product::kByteDot)
      for (int p = 0; p < P; ++p) {
        widen_codes<codes>(span.codes[p], span.zero[p], span.depth, widened + p * kWidenedSpan * 16);
        span.widened[p] = widened + p * kWidenedSpan * 16;
      }
    for (int tile = first; tile < last; ++tile) {
      const int row = tiles.begin(tile), size = tiles.size(tile);
      const int skipped = (row * call.padded + begin * size) / kNumbersPerInput<product>;
      const int32_t* const own = sums ? sums + row * num_spans + index : nullptr;
      add_span_for<product, P>(size)(inputs + skipped, span, own, num_spans, total + (row - first_row) * P * 16);
    }
  });
  const int feature = (int)panel * kPanelWidth, features = std::min(P * kPanelWidth, call.linear.features - feature);
  if (call.linear.out_type == DType::kFloat32)
    finish<float>(call.linear, total, P * 16, first_row, rows, feature, features);
  else
    finish<uint16_t>(call.linear, total, P * 16, first_row, rows, feature, features);
}

// All rows times all panels in groups of P, the last few panels one by one.
template <Product product, Codes codes, int P, class T>
void run_groups(Session& session, const Call& call, const Source<T>& source) {
  const Tiling tiles(call.linear.rows, kMaxTileRows<P>);
  const size_t row_size = (size_t)call.padded / kNumbersPerInput<product>;
  auto* const inputs =
      session.scratch<InputOf<product>>(session.num_threads(), (size_t)call.linear.rows * row_size);
  const auto arrange = [&](int tile, int) {
    const int row = tiles.begin(tile);
    arrange_tile<product>(source, row, tiles.size(tile), call.padded, inputs + (size_t)row * row_size);
  };
  if ((size_t)call.linear.rows * row_size >= 16384)
    session.for_each(tiles.count, arrange);
  else
    for (int tile = 0; tile < tiles.count; ++tile) arrange(tile, 0);
  const Tiling blocks(tiles.count, kBlockRows / kMaxTileRows<P>);
  const size_t panels = num_panels((size_t)call.linear.features), groups = (panels + P - 1) / P;
  session.for_each((int)groups * blocks.count, [&](int unit, int) {
    const size_t panel = (size_t)(unit / blocks.count) * P;
    const int first = blocks.begin(unit % blocks.count), last = blocks.begin(unit % blocks.count + 1);
    if (panel + P <= panels) return multiply<product, codes, P>(call, tiles, first, last, inputs, source.sums, panel);
    for (size_t rest = panel; rest < panels; ++rest)
      multiply<product, codes, 1>(call, tiles, first, last, inputs, source.sums, rest);
  });
}

// Wide groups for few rows, tall tiles for many, as in linear.cpp. The bits are the same in all cases.
template <Product product, Codes codes, int P, class T>
void run(Session& session, const Call& call, const Source<T>& source) {
  if constexpr (P > 1) {
    const size_t groups = num_panels((size_t)call.linear.features) / P;
    const size_t units = groups * (size_t)Tiling(call.linear.rows, kBlockRows).count;
    const bool too_tall = P > kTallPanels && call.linear.rows > kMaxTileRows<P>;
    if (too_tall || units < 6 * (size_t)session.num_threads())
      return run<product, codes, P / 2>(session, call, source);
  }
  if constexpr (kMaxTileRows<P> >= 1) run_groups<product, codes, P>(session, call, source);
}

// Rounds every row of x, with the scratch memory of thread 0 and its scales in `call`.
template <class T>
Source<int8_t> round_rows(Session& session, const T* x, Call& call) {
  const size_t rows = (size_t)call.linear.rows, padded = (size_t)call.padded, spans = (size_t)call.num_spans();
  float* const scales = session.scratch<float>(0, rows + rows * spans + rows * padded / sizeof(float));
  auto* const sums = (int32_t*)(scales + rows);
  auto* const codes = (int8_t*)(sums + rows * spans);
  session.for_each(call.linear.rows, [&](int row, int) {
    int8_t* const own = codes + (size_t)row * padded;
    scales[row] = round_row(x + row * call.linear.x_stride, call.linear.depth, (int)padded, own);
    for_each_span(call, [&](int index, int, int begin, int end) {
      sums[(size_t)row * spans + (size_t)index] = std::accumulate(own + begin, own + end, 0);
    });
  });
  call.linear.row_scales = scales;
  return {codes, (ptrdiff_t)padded, (int)padded, sums};
}

template <class T>
void run_rounded(Session& session, Call call) {
  const Source<int8_t> source = round_rows(session, (const T*)call.linear.x, call);
  constexpr Product product = kHasByteDot ? Product::kByteDot : Product::kFma;
  run<product, Codes::kInt8, kMaxPanels>(session, call, source);
}

template <Codes codes>
void run_codes(Session& session, const Call& call, Product product) {
  const LinearCall& linear = call.linear;
  if (linear.x_type == DType::kFloat32) {
    const Source<float> source{(const float*)linear.x, linear.x_stride, linear.depth, nullptr};
    return run<Product::kFma, codes, kMaxPanels>(session, call, source);
  }
  const Source<uint16_t> source{(const uint16_t*)linear.x, linear.x_stride, linear.depth, nullptr};
  if constexpr (kHasBf16Dot)
    if (product == Product::kBf16Dot) return run<Product::kBf16Dot, codes, kMaxPanels>(session, call, source);
  (void)product;
  run<Product::kFma, codes, kMaxPanels>(session, call, source);
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// `is_rounded` asks for dynamic activations, which go with kInt8 alone. kBf16Dot holds for bf16 inputs; others meet
// the weights by kFma. `group` is a multiple of 8, or at least the depth.
DISTLLM_API int distllm_quantized_linear(Pool* pool, int product, int codes, int is_rounded, const void* x,
                                         ptrdiff_t x_stride, int x_type, const void* weight, const void* scales,
                                         int scale_type, const uint8_t* zeros, int group, const void* bias,
                                         int bias_type, void* out, ptrdiff_t out_stride, int out_type, int rows,
                                         int depth, int features) {
  const Call call{{x, x_stride, (DType)x_type, weight, bias, (DType)bias_type, out, out_stride, (DType)out_type, rows,
                   depth, features},
                  scales, (DType)scale_type, zeros, padded_codes(group), padded_codes(depth),
                  (padded_codes(depth) + padded_codes(group) - 1) / padded_codes(group)};
  return guarded([&] {
    Session session(*pool);
    if (is_rounded)
      return call.linear.x_type == DType::kFloat32 ? run_rounded<float>(session, call)
                                                   : run_rounded<uint16_t>(session, call);
    switch ((Codes)codes) {
      case Codes::kInt8:
        return run_codes<Codes::kInt8>(session, call, (Product)product);
      case Codes::kInt4:
        return run_codes<Codes::kInt4>(session, call, (Product)product);
      case Codes::kFloat8:
        return run_codes<Codes::kFloat8>(session, call, (Product)product);
    }
  });
}
