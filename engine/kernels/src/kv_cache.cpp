// Writing keys and values into their slots, and the bounds of slots and block tables.

#include <algorithm>

#include "api.h"
#include "bf16.h"
#include "kv_layout.h"

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

template <class From, class To>
void write(Session& session, const Call& call) {
  session.for_each((call.num_rows + kRowsPerUnit - 1) / kRowsPerUnit, [&](int unit, int) {
    const int end = std::min(call.num_rows, (unit + 1) * kRowsPerUnit);
    for (int row = unit * kRowsPerUnit; row < end; ++row) write_row<From, To>(call, row);
  });
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
