// The operations that a decoder layer is made of, as their own files describe them.
#pragma once

#include "api.h"

DISTLLM_API int distllm_rms_norm(distllm::Pool* pool, const void* x, ptrdiff_t x_row_stride, ptrdiff_t x_head_stride,
                                 int dtype, const void* weight, int weight_dtype, int gemma, float eps, void* out,
                                 int num_rows, int num_heads, int width);

DISTLLM_API int distllm_linear(distllm::Pool* pool, int kind, const void* x, ptrdiff_t x_stride, int x_type,
                               const void* weight, const void* bias, int bias_type, void* out, ptrdiff_t out_stride,
                               int out_type, int rows, int depth, int features);

DISTLLM_API int distllm_quantized_linear(distllm::Pool* pool, int product, int codes, int is_rounded, const void* x,
                                         ptrdiff_t x_stride, int x_type, const void* weight, const void* scales,
                                         int scale_type, const uint8_t* zeros, int group, const void* bias,
                                         int bias_type, void* out, ptrdiff_t out_stride, int out_type, int rows,
                                         int depth, int features);

DISTLLM_API int distllm_rotary(distllm::Pool* pool, void* x, ptrdiff_t row_stride, ptrdiff_t head_stride, int dtype,
                               const void* cos, const void* sin, ptrdiff_t table_stride, int num_rows, int num_heads,
                               int width);

DISTLLM_API int distllm_write_kv(distllm::Pool* pool, const void* keys, ptrdiff_t key_row_stride,
                                 ptrdiff_t key_head_stride, const void* values, ptrdiff_t value_row_stride,
                                 ptrdiff_t value_head_stride, int dtype, void* key_cache, void* value_cache,
                                 int cache_dtype, const int64_t* slots, int num_rows, int num_kv_heads, int key_dim,
                                 int value_dim);

DISTLLM_API int distllm_write_kv_codes(distllm::Pool* pool, const void* keys, ptrdiff_t key_row_stride,
                                       ptrdiff_t key_head_stride, const void* values, ptrdiff_t value_row_stride,
                                       ptrdiff_t value_head_stride, int dtype, void* key_cache, void* value_cache,
                                       int codes, float* key_scales, float* value_scales, const int64_t* slots,
                                       int num_rows, int num_kv_heads, int key_dim, int value_dim);

DISTLLM_API int distllm_attend(distllm::Pool* pool, int kind, const void* query, ptrdiff_t query_row_stride,
                               ptrdiff_t query_head_stride, int dtype, const void* keys, const void* values, void* out,
                               ptrdiff_t out_row_stride, ptrdiff_t out_head_stride, const int32_t* query_starts,
                               const int32_t* num_computed, const int32_t* block_tables, ptrdiff_t table_stride,
                               int num_sequences, int num_heads, int num_kv_heads, int key_dim, int value_dim,
                               float scale, float softcap, int window, const float* sinks, int codes,
                               const float* key_scales, const float* value_scales);

DISTLLM_API int distllm_gated(distllm::Pool* pool, int activation, const void* x, ptrdiff_t stride, int dtype,
                              void* out, int num_rows, int width);
