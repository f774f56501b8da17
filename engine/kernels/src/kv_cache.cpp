// Writing keys and values into their slots, and the bounds of slots and block tables.

#include <algorithm>
#include <vector>

#include "operations.h"
#include "bf16.h"
#include "kv_codes.h"

namespace distllm {
namespace {

constexpr int kRowsPerUnit = 16;

struct Rows {
  const void* data;
  ptrdiff_t row_stride, head_stride;
};

struct Call {
  Rows keys, values;
  void *key_cache, *value_cache;
  const int64_t* slots;
  KvLayout layout;
  int num_rows;
};

template <class From, class To>
void write_row(const Call& call, int row) {
  const size_t block = (size_t)call.slots[row] / kBlockTokens, offset = (size_t)call.slots[row] % kBlockTokens;
  for (int head = 0; head < call.layout.num_kv_heads; ++head) {
    const From* key = (const From*)call.keys.data + row * call.keys.row_stride + head * call.keys.head_stride;
    To* const keys = (To*)call.key_cache + call.layout.key_at(block, head);
    for (int d = 0; d < call.layout.key_dim; ++d)
      convert(key[d], keys[packed_index<To>(offset, (size_t)d, (size_t)call.layout.key_dim)]);
    const From* value = (const From*)call.values.data + row * call.values.row_stride + head * call.values.head_stride;
    To* const values = (To*)call.value_cache + call.layout.value_at(block, head);
    for (int d = 0; d < call.layout.value_dim; ++d)
      convert(value[d], values[call.layout.value_index<To>(d, (int)offset)]);
  }
}

template <class From>
void write_codes(const Call& call, KvCodes codes, float* key_scales, float* value_scales, int row) {
  const size_t block = (size_t)call.slots[row] / kBlockTokens, offset = (size_t)call.slots[row] % kBlockTokens;
  const KvLayout& layout = call.layout;
  std::vector<uint8_t> encoded((size_t)std::max(layout.key_dim, layout.value_dim) + 16);
  for (int head = 0; head < layout.num_kv_heads; ++head) {
    const size_t scale = (block * (size_t)layout.num_kv_heads + (size_t)head) * kBlockTokens + offset;
    const From* key = (const From*)call.keys.data + row * call.keys.row_stride + head * call.keys.head_stride;
    key_scales[scale] = encode_kv(codes, key, layout.key_dim, encoded.data());
    uint8_t* const keys = (uint8_t*)call.key_cache + layout.key_at(block, head);
    for (int d = 0; d < layout.key_dim; ++d)
      keys[packed_index<uint16_t>(offset, (size_t)d, (size_t)layout.key_dim)] = encoded[(size_t)d];
    const From* value = (const From*)call.values.data + row * call.values.row_stride + head * call.values.head_stride;
    value_scales[scale] = encode_kv(codes, value, layout.value_dim, encoded.data());
    uint8_t* const values = (uint8_t*)call.value_cache + layout.value_at(block, head);
    for (int d = 0; d < layout.value_dim; ++d) values[layout.value_index<uint16_t>(d, (int)offset)] = encoded[(size_t)d];
  }
}

template <class Body>
void for_each_row_of(Session& session, const Call& call, const Body& body) {
  session.for_each((call.num_rows + kRowsPerUnit - 1) / kRowsPerUnit, [&](int unit, int) {
    const int end = std::min(call.num_rows, (unit + 1) * kRowsPerUnit);
    for (int row = unit * kRowsPerUnit; row < end; ++row) body(row);
  });
}

template <class From, class To>
void write(Session& session, const Call& call) {
  for_each_row_of(session, call, [&](int row) { write_row<From, To>(call, row); });
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// The first row whose slot is not in a cache of num_blocks blocks, or -1.
DISTLLM_API int distllm_first_bad_slot(const int64_t* slots, int num_rows, int64_t num_blocks) {
  for (int row = 0; row < num_rows; ++row)
    if (slots[row] < 0 || slots[row] >= num_blocks * kBlockTokens) return row;
  return -1;
}

// The first sequence whose rows or blocks are out of bounds, or -1.
DISTLLM_API int distllm_first_bad_sequence(const int32_t* query_starts, const int32_t* num_computed,
                                           const int32_t* block_tables, ptrdiff_t table_stride, int table_width,
                                           int num_sequences, int num_rows, int64_t num_blocks) {
  for (int s = 0; s < num_sequences; ++s) {
    const int64_t rows = (int64_t)query_starts[s + 1] - query_starts[s];
    if (query_starts[s] < 0 || rows < 0 || query_starts[s + 1] > num_rows || num_computed[s] < 0) return s;
    const int64_t blocks = rows == 0 ? 0 : (num_computed[s] + rows + kBlockTokens - 1) / kBlockTokens;
    if (blocks > table_width) return s;
    for (int64_t i = 0; i < blocks; ++i) {
      const int32_t block = block_tables[s * table_stride + i];
      if (block < 0 || block >= num_blocks) return s;
    }
  }
  return -1;
}

// Stores keys [num_rows, heads, key_dim] and values [num_rows, heads, value_dim], strided, at their slots. No two rows
// may share a slot.
DISTLLM_API int distllm_write_kv(Pool* pool, const void* keys, ptrdiff_t key_row_stride, ptrdiff_t key_head_stride,
                                 const void* values, ptrdiff_t value_row_stride, ptrdiff_t value_head_stride,
                                 int dtype, void* key_cache, void* value_cache, int cache_dtype, const int64_t* slots,
                                 int num_rows, int num_kv_heads, int key_dim, int value_dim) {
  const Call call{{keys, key_row_stride, key_head_stride},
                  {values, value_row_stride, value_head_stride},
                  key_cache,
                  value_cache,
                  slots,
                  {num_kv_heads, key_dim, value_dim},
                  num_rows};
  const bool from_float = (DType)dtype == DType::kFloat32, to_float = (DType)cache_dtype == DType::kFloat32;
  return guarded([&] {
    Session session(*pool);
    if (from_float && to_float)
      write<float, float>(session, call);
    else if (from_float)
      write<float, uint16_t>(session, call);
    else if (to_float)
      write<uint16_t, float>(session, call);
    else
      write<uint16_t, uint16_t>(session, call);
  });
}

// The same as codes with their scales.
DISTLLM_API int distllm_write_kv_codes(Pool* pool, const void* keys, ptrdiff_t key_row_stride,
                                       ptrdiff_t key_head_stride, const void* values, ptrdiff_t value_row_stride,
                                       ptrdiff_t value_head_stride, int dtype, void* key_cache, void* value_cache,
                                       int codes, float* key_scales, float* value_scales, const int64_t* slots,
                                       int num_rows, int num_kv_heads, int key_dim, int value_dim) {
  const Call call{{keys, key_row_stride, key_head_stride},
                  {values, value_row_stride, value_head_stride},
                  key_cache,
                  value_cache,
                  slots,
                  {num_kv_heads, key_dim, value_dim},
                  num_rows};
  return guarded([&] {
    Session session(*pool);
    for_each_row_of(session, call, [&](int row) {
      if ((DType)dtype == DType::kFloat32)
        write_codes<float>(call, (KvCodes)codes, key_scales, value_scales, row);
      else
        write_codes<uint16_t>(call, (KvCodes)codes, key_scales, value_scales, row);
    });
  });
}
