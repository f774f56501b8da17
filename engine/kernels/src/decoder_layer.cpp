// A whole decoder layer of the Llama pattern in one call, of the operations and in the order of fused.py, so to the
// same bits. What it saves is the way back to Python between them.

#include "decoder_layer.h"

#include "bf16.h"
#include "elementwise.h"
#include "operations.h"

namespace distllm {
namespace {

size_t element_size(int type) { return (DType)type == DType::kFloat32 ? 4 : 2; }

// Where the rows between two operations lie in a step's scratch memory. Those of attention and of the MLP take turns:
//
//   | normed | summed | qkv  turned  attended   |
//                     | gate_up  gated          |
class Scratch {
 public:
  Scratch(const DecoderLayer& layer, int num_rows) : element_((size_t)num_rows * element_size(layer.type)) {
    const size_t heads = (size_t)(layer.num_heads + 2 * layer.num_kv_heads) * (size_t)layer.head_dim;
    normed = take((size_t)layer.qkv.depth);
    summed = take((size_t)layer.qkv.depth);
    const size_t common = end_;
    qkv = take(heads);
    turned = take(layer.query_norm.weight ? heads : 0);
    attended = take((size_t)layer.out.depth);
    const size_t attention_end = end_;
    end_ = common;
    gate_up = take((size_t)layer.gate_up.features);
    gated = take((size_t)layer.down.depth);
    size = std::max(end_, attention_end);
  }

  size_t normed, summed, qkv, turned, attended, gate_up, gated, size;  // in bytes

 private:
  size_t take(size_t width) {
    const size_t begin = end_;
    end_ += (element_ * width + 63) / 64 * 64;
    return begin;
  }

  size_t element_;  // bytes of one column
  size_t end_ = 0;
};

template <class T>
void add_rows(Session& session, const T* a, const T* b, T* out, int num_rows, int width) {
  for_each_row(session, num_rows, width, [&](int row) {
    const size_t begin = (size_t)row * (size_t)width;
    for (int i = 0; i < width; i += 16) {
      const int count = std::min(16, width - i);
      store_first(out + begin + i, load_first(a + begin + i, count) + load_first(b + begin + i, count), count);
    }
  });
}

class Run {
 public:
  Run(Pool* pool, const DecoderLayer& layer, const LayerCache& cache, const LayerStep& step)
      : pool_(pool), layer_(layer), cache_(cache), step_(step), scratch_(layer, step.num_rows) {}

  // 0, or -1 when memory ran out. x and y are contiguous; they may be the same rows.
  int operator()(const void* x, void* y) const {
    const int width = layer_.qkv.depth;
    void *const normed = at(scratch_.normed), *const summed = at(scratch_.summed), *const gated = at(scratch_.gated);
    const bool failed = norm(layer_.input_norm, x, width, normed, 1, width) || attention(normed, normed) ||
                        add(x, normed, summed) || norm(layer_.mlp_norm, summed, width, normed, 1, width) ||
                        multiply(layer_.gate_up, normed, at(scratch_.gate_up)) ||
                        distllm_gated(pool_, layer_.activation, at(scratch_.gate_up), layer_.gate_up.features,
                                      layer_.type, gated, step_.num_rows, layer_.down.depth) ||
                        multiply(layer_.down, gated, normed) || add(summed, normed, y);
    return failed ? -1 : 0;
  }

 private:
  void* at(size_t byte) const { return (char*)step_.scratch + byte; }

  // Rows of `heads` heads each.
  int norm(const NormWeight& norm, const void* x, ptrdiff_t row_stride, void* out, int heads, int width) const {
    return distllm_rms_norm(pool_, x, row_stride, width, layer_.type, norm.weight, norm.type,
                            norm.is_gemma, norm.eps, out, step_.num_rows, heads, width);
  }

  int multiply(const Product& by, const void* x, void* out) const {
    const int type = layer_.type;
    if (by.scales)
      return distllm_quantized_linear(pool_, by.kind, by.codes, by.is_rounded, x, by.depth, type, by.weight, by.scales,
                                      by.scale_type, by.zeros, by.group, by.bias, by.bias_type, out, by.features, type,
                                      step_.num_rows, by.depth, by.features);
    return distllm_linear(pool_, by.kind, x, by.depth, type, by.weight, by.bias, by.bias_type, out, by.features, type,
                          step_.num_rows, by.depth, by.features);
  }

  int rotate(void* x, int heads, ptrdiff_t row_stride) const {
    return distllm_rotary(pool_, x, row_stride, layer_.head_dim, layer_.type, step_.cos, step_.sin,
                          step_.rotary_stride, step_.num_rows, heads, step_.rotary_width);
  }

  int attention(const void* x, void* out) const {
    const int dim = layer_.head_dim, heads = layer_.num_heads, kv_heads = layer_.num_kv_heads;
    const ptrdiff_t stride = (ptrdiff_t)(heads + 2 * kv_heads) * dim;
    char* const qkv = (char*)at(scratch_.qkv);
    const size_t head_bytes = (size_t)dim * element_size(layer_.type);
    char* const projected_keys = qkv + (size_t)heads * head_bytes;
    char* const values = projected_keys + (size_t)kv_heads * head_bytes;
    if (multiply(layer_.qkv, x, qkv)) return -1;
    if (!layer_.query_norm.weight) {
      if (rotate(qkv, heads + kv_heads, stride)) return -1;
      return attend(qkv, stride, projected_keys, stride, values, stride, out);
    }
    const ptrdiff_t query_stride = (ptrdiff_t)heads * dim, key_stride = (ptrdiff_t)kv_heads * dim;
    char* const query = (char*)at(scratch_.turned);
    char* const keys = query + (size_t)step_.num_rows * (size_t)heads * head_bytes;
    if (norm(layer_.query_norm, qkv, stride, query, heads, dim) ||
        norm(layer_.key_norm, projected_keys, stride, keys, kv_heads, dim) || rotate(query, heads, query_stride) ||
        rotate(keys, kv_heads, key_stride))
      return -1;
    return attend(query, query_stride, keys, key_stride, values, stride, out);
  }

  int attend(const void* query, ptrdiff_t query_stride, const void* keys, ptrdiff_t key_stride, const void* values,
             ptrdiff_t value_stride, void* out) const {
    const int dim = layer_.head_dim, heads = layer_.num_heads, kv_heads = layer_.num_kv_heads;
    if (cache_.codes ? distllm_write_kv_codes(pool_, keys, key_stride, dim, values, value_stride, dim, layer_.type,
                                              cache_.keys, cache_.values, cache_.codes, cache_.key_scales,
                                              cache_.value_scales, step_.slots, step_.num_rows, kv_heads, dim, dim)
                     : distllm_write_kv(pool_, keys, key_stride, dim, values, value_stride, dim, layer_.type,
                                        cache_.keys, cache_.values, cache_.type, step_.slots, step_.num_rows, kv_heads,
                                        dim, dim))
      return -1;
    void* const attended = at(scratch_.attended);
    if (distllm_attend(pool_, cache_.kind, query, query_stride, dim, layer_.type, cache_.keys, cache_.values, attended,
                       (ptrdiff_t)heads * dim, dim, step_.query_starts, step_.num_computed, step_.block_tables,
                       step_.table_stride, step_.num_sequences, heads, kv_heads, dim, dim, layer_.scale, layer_.softcap,
                       layer_.window, layer_.sinks, cache_.codes, cache_.key_scales, cache_.value_scales))
      return -1;
    return multiply(layer_.out, attended, out);
  }

  int add(const void* a, const void* b, void* out) const {
    return guarded([&] {
      Session session(*pool_);
      const int rows = step_.num_rows, width = layer_.qkv.depth;
      if ((DType)layer_.type == DType::kFloat32)
        add_rows(session, (const float*)a, (const float*)b, (float*)out, rows, width);
      else
        add_rows(session, (const uint16_t*)a, (const uint16_t*)b, (uint16_t*)out, rows, width);
    });
  }

  Pool* pool_;
  const DecoderLayer& layer_;
  const LayerCache& cache_;
  const LayerStep& step_;
  Scratch scratch_;
};

}  // namespace
}  // namespace distllm

using namespace distllm;

// Bytes of scratch memory that a step of num_rows rows needs.
DISTLLM_API size_t distllm_decoder_layer_scratch(const DecoderLayer* layer, int num_rows) {
  return Scratch(*layer, num_rows).size;
}

DISTLLM_API int distllm_decoder_layer(Pool* pool, const DecoderLayer* layer, const LayerCache* cache,
                                      const LayerStep* step, const void* x, void* y) {
  return Run(pool, *layer, *cache, *step)(x, y);
}
