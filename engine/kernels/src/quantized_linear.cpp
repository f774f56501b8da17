// out [T, N] = x [T, K] * weight [N, K]^T + bias over a quantized weight (quantized.h).
//
// Order of sums, the same for every T, tile and thread: K is cut into groups, these into spans of at most 64; a span
// is summed over its whole-number weights, k in order, and added to the total times the group's scale, spans in order.
// Inputs of bf16 are rounded to 16 bits first, each span of a row by a power of two of its own, and with dynamic activations
// each row to 8 bits (round_rows.h). Then every sum of a span is a whole number, exact in any order, so byte and word dot
// products give equal bits on every level that has fused multiply-add.

#include <numeric>

#include "operations.h"
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

// What a call reads: x itself, or its rounded rows, padded with zeros, with something of each span [rows][spans]: the sum of
// bytes, the scale of words.
template <class T>
struct Source {
  const T* x;
  ptrdiff_t stride;
  int depth;
  const float* of_spans = nullptr;
};

// Rounded rows as words of four bytes [padded / 4][rows].
[[maybe_unused]] void quad_tile(const int8_t* x, ptrdiff_t stride, int rows, int padded, int32_t* to) {
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < padded; k += 4) std::memcpy(&to[(size_t)(k / 4) * rows + r], x + r * stride + k, 4);
}

// Rounded rows as pairs of int16 [padded / 2][rows], paired as code_pairs pairs codes.
template <Codes codes>
void word_tile(const int16_t* x, ptrdiff_t stride, int rows, int padded, int32_t* to) {
  constexpr int kCount = kCodesPerWord<codes>, kApart = kCount / 2;
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < padded; k += kCount)
      for (int i = 0; i < kApart; ++i) {
        const int16_t *const low = x + r * stride + k + i, *const high = low + kApart;
        to[(size_t)(k / 2 + i) * rows + r] = (int32_t)((uint16_t)*low | (uint32_t)(uint16_t)*high << 16);
      }
}

template <Product product, Codes codes, class T>
void arrange_tile(const Source<T>& source, int row, int rows, int padded, InputOf<product>* to) {
  const T* const x = source.x + row * source.stride;
  if constexpr (product == Product::kFma)
    widen_tile(x, source.stride, rows, source.depth, padded, to);
  else if constexpr (product == Product::kBf16Dot)
    pair_tile(x, source.stride, rows, source.depth, padded, to);
  else if constexpr (product == Product::kWordDot)
    word_tile<codes>(x, source.stride, rows, padded, to);
  else
    quad_tile(x, source.stride, rows, padded, to);
}

// Inputs [begin, end), all of one group, without what is widened of them.
template <Codes codes, int P>
DISTLLM_INLINE Span<P> span_of(const Call& call, size_t panel, int group, int begin, int end) {
  Span<P> span{begin, end - begin, {}, {}, {}, {}, {}};
  for (size_t p = 0; p < P; ++p) {
    const size_t at = ((panel + p) * (size_t)call.num_groups + (size_t)group) * 16;
    const bool is_float = call.scale_type == DType::kFloat32;
    span.scale[p] = is_float ? load((const float*)call.scales + at) : load((const uint16_t*)call.scales + at);
    const I32x16 zero = call.zeros ? load_bytes(call.zeros + at) : broadcast_word(codes == Codes::kInt4 ? 8 : 128);
    span.zero[p] = zeros() - as_floats(zero);
    unrolled<kParts>([&](auto i) DISTLLM_INLINE_LAMBDA {
      span.zero_pairs[p].part[i] = zero.part[i] | zero.part[i] << 16;
    });
    const size_t word = ((panel + p) * (size_t)call.padded + (size_t)begin) / kCodesPerWord<codes>;
    span.codes[p] = (const uint32_t*)call.linear.weight + word * 16;
  }
  return span;
}

// Tiles [first, last) times P panels from `panel` on.
template <Product product, Codes codes, int P>
void multiply(const Call& call, const Tiling& tiles, int first, int last, const InputOf<product>* inputs,
              const float* of_spans, size_t panel) {
  alignas(64) float total[kBlockRows * P * 16];
  using Weight = typename Panel<kWidenedKind<product>>::Weight;
  alignas(64) Weight widened[kIsWhole<product> ? 1 : P * kWidenedSpan * 16];
  const int first_row = tiles.begin(first), rows = tiles.begin(last) - first_row, num_spans = call.num_spans();
  std::fill_n(total, rows * P * 16, 0.0f);
  for_each_span(call, [&](int index, int group, int begin, int end) {
    Span<P> span = span_of<codes, P>(call, panel, group, begin, end);
    if constexpr (!kIsWhole<product>)
      for (int p = 0; p < P; ++p) {
        widen_codes<codes>(span.codes[p], span.zero[p], span.depth, widened + p * kWidenedSpan * 16);
        span.widened[p] = widened + p * kWidenedSpan * 16;
      }
    for (int tile = first; tile < last; ++tile) {
      const int row = tiles.begin(tile), size = tiles.size(tile);
      const int skipped = (row * call.padded + begin * size) / kNumbersPerInput<product>;
      const float* const own = of_spans ? of_spans + row * num_spans + index : nullptr;
      add_span_for<product, codes, P>(size)(inputs + skipped, span, own, num_spans, total + (row - first_row) * P * 16);
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
    arrange_tile<product, codes>(source, row, tiles.size(tile), call.padded, inputs + (size_t)row * row_size);
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
    if (panel + P <= panels) return multiply<product, codes, P>(call, tiles, first, last, inputs, source.of_spans, panel);
    for (size_t rest = panel; rest < panels; ++rest)
      multiply<product, codes, 1>(call, tiles, first, last, inputs, source.of_spans, rest);
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

// Room in the scratch memory of thread 0 for rounded rows, with what is kept of each span and row.
template <class Code>
struct RoundedRows {
  size_t padded, spans;
  float* of_spans;    // [rows][spans]
  float* row_scales;  // [rows]
  Code* codes;        // [rows][padded]

  RoundedRows(Session& session, const Call& call) : padded((size_t)call.padded), spans((size_t)call.num_spans()) {
    const size_t rows = (size_t)call.linear.rows;
    of_spans = session.scratch<float>(0, rows * (spans + 1) + rows * padded * sizeof(Code) / sizeof(float));
    row_scales = of_spans + rows * spans;
    codes = (Code*)(row_scales + rows);
  }
  Code* row(int i) const { return codes + (size_t)i * padded; }
};

// Each row as whole numbers of 8 bits times a scale, which goes to the call.
template <class Code, class T>
Source<Code> round_whole_rows(Session& session, const T* x, Call& call) {
  const RoundedRows<Code> rounded(session, call);
  session.for_each(call.linear.rows, [&](int row, int) {
    Code* const own = rounded.row(row);
    rounded.row_scales[row] = round_row(x + row * call.linear.x_stride, call.linear.depth, call.padded, own);
    for_each_span(call, [&](int index, int, int begin, int end) {
      const bool is_bytes = sizeof(Code) == 1;
      const float kept = is_bytes ? (float)std::accumulate(own + begin, own + end, 0) : 1.0f;
      rounded.of_spans[(size_t)row * rounded.spans + (size_t)index] = kept;
    });
  });
  call.linear.row_scales = rounded.row_scales;
  return {rounded.codes, (ptrdiff_t)call.padded, call.padded, rounded.of_spans};
}

// Each span of a row as whole numbers of 16 bits times a scale.
Source<int16_t> round_spans(Session& session, const Call& call) {
  const RoundedRows<int16_t> rounded(session, call);
  session.for_each(call.linear.rows, [&](int row, int) {
    const uint16_t* const x = (const uint16_t*)call.linear.x + row * call.linear.x_stride;
    for_each_span(call, [&](int index, int, int begin, int end) {
      const size_t at = (size_t)row * rounded.spans + (size_t)index;
      const int given = std::max(0, std::min(end, call.linear.depth) - begin);
      rounded.of_spans[at] = round_span(x + begin, given, end - begin, rounded.row(row) + begin);
    });
  });
  return {rounded.codes, (ptrdiff_t)call.padded, call.padded, rounded.of_spans};
}

template <class T>
void run_rounded(Session& session, Call call) {
  const auto* const x = (const T*)call.linear.x;
  if constexpr (kHasByteDot)
    run<Product::kByteDot, Codes::kInt8, kMaxPanels>(session, call, round_whole_rows<int8_t>(session, x, call));
  else
    run<Product::kWordDot, Codes::kInt8, kMaxPanels>(session, call, round_whole_rows<int16_t>(session, x, call));
}

template <Codes codes>
void run_codes(Session& session, const Call& call, [[maybe_unused]] Product product) {
  const LinearCall& linear = call.linear;
  if (linear.x_type == DType::kFloat32) {
    const Source<float> source{(const float*)linear.x, linear.x_stride, linear.depth};
    return run<Product::kFma, codes, kMaxPanels>(session, call, source);
  }
  if constexpr (codes != Codes::kFloat8)
    return run<Product::kWordDot, codes, kMaxPanels>(session, call, round_spans(session, call));
  const Source<uint16_t> source{(const uint16_t*)linear.x, linear.x_stride, linear.depth};
  if constexpr (codes == Codes::kFloat8 && kHasBf16Dot)
    if (product == Product::kBf16Dot) return run<Product::kBf16Dot, codes, kMaxPanels>(session, call, source);
  if constexpr (codes == Codes::kFloat8) run<Product::kFma, codes, kMaxPanels>(session, call, source);
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// `is_rounded` asks for dynamic activations, which go with kInt8 alone. `product` is how bf16 inputs meet kFloat8: by kFma
// or kBf16Dot. `group` is a multiple of 8, or at least the depth.
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
