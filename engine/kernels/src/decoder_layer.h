// What decoder_layer.py describes a layer, its cache and a step by. Strides are in elements, types as DType numbers
// them. The fields have the order and the types of the ctypes structures there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace distllm {

struct NormWeight {
  const void* weight;  // null: no norm
  int32_t type;
  int32_t is_gemma;
  float eps;
};

// A linear layer's weight: of linear.cpp if `scales` is null, else of quantized_linear.cpp.
struct Product {
  const void* weight;
  const void* bias;  // may be null
  const void* scales;
  const uint8_t* zeros;
  int32_t kind;  // Kind, or the quantized Product
  int32_t bias_type, scale_type, codes, is_rounded, group;
  int32_t depth, features;
};

//   h = x + out(attend(rotate(norm(qkv(input_norm(x))))))      the norm of query and key heads where there is one
//   y = h + down(activation(gate) * up),  [gate | up] = gate_up(mlp_norm(h))
struct DecoderLayer {
  NormWeight input_norm, mlp_norm, query_norm, key_norm;
  Product qkv, out, gate_up, down;
  const float* sinks;
  float scale, softcap;
  int32_t window, activation, type;
  int32_t num_heads, num_kv_heads, head_dim;
};

struct LayerCache {
  void *keys, *values;
  float *key_scales, *value_scales;
  int32_t type, codes, kind;  // KvCodes and Kind of its attention
};

struct LayerStep {
  const void *cos, *sin;
  const int64_t* slots;
  const int32_t *query_starts, *num_computed, *block_tables;
  void* scratch;
  ptrdiff_t rotary_stride, table_stride;
  int32_t rotary_width, num_rows, num_sequences;
};

}  // namespace distllm
