// Packing a weight into panels, and reading rows back.

#include <algorithm>

#include "api.h"
#include "bf16.h"
#include "packed.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace distllm {
namespace {

template <class T>
struct Source {
  const T* data;
  ptrdiff_t row_stride, column_stride;
  size_t rows, depth;
};

// Panels are written in runs of 16 words (one cache line); rows of the source are read in runs of 16 words too.
void pack_line(const Source<float>& source, size_t first_row, size_t rows, float* panel) {
  for (size_t k0 = 0; k0 < source.depth; k0 += 16) {
    const size_t k1 = std::min(k0 + 16, source.depth);
    for (size_t r = 0; r < rows; ++r) {
      const float* from = source.data + (ptrdiff_t)(first_row + r) * source.row_stride;
      for (size_t k = k0; k < k1; ++k) panel[k * 16 + r] = from[(ptrdiff_t)k * source.column_stride];
    }
  }
}

void pack_line(const Source<uint16_t>& source, size_t first_row, size_t rows, uint16_t* panel) {
  const bool contiguous = source.column_stride == 1;
  for (size_t k0 = 0; k0 < source.depth; k0 += 32) {
    const size_t k1 = std::min(k0 + 32, source.depth);
    for (size_t r = 0; r < rows; ++r) {
      const uint16_t* from = source.data + (ptrdiff_t)(first_row + r) * source.row_stride;
      uint16_t* to = panel + r * 2;
      size_t k = k0;
      if (contiguous)
        for (; k + 1 < k1; k += 2) std::memcpy(to + k * 16, from + k, 4);
      for (; k < k1; ++k) to[k / 2 * 32 + k % 2] = from[(ptrdiff_t)k * source.column_stride];
    }
  }
}

// Rows first_row .. of the packed weight come from this source; other lanes of its first and last panel stay.
template <class T>
void pack(Session& session, const Source<T>& source, size_t first_row, T* packed) {
  const size_t first = first_row / kPanelWidth, last = num_panels(first_row + source.rows);
  session.for_each((int)(last - first), [&](int unit, int) {
    const size_t panel = first + (size_t)unit;
    const size_t begin = std::max(panel * kPanelWidth, first_row);
    const size_t end = std::min((panel + 1) * kPanelWidth, first_row + source.rows);
    T* const to = packed + panel * panel_size(source.depth);
    const size_t lane = begin - panel * kPanelWidth;
    pack_line(source, begin - first_row, end - begin, to + lane * (sizeof(T) == 4 ? 1 : 2));
  });
}

template <class T>
void read_rows(Session& session, const T* packed, size_t depth, const int64_t* ids, size_t count, T* out) {
  session.for_each((int)count, [&](int unit, int) {
    const size_t row = (size_t)ids[unit];
    T* const to = out + (size_t)unit * depth;
    for (size_t k = 0; k < depth; ++k) to[k] = packed[packed_index<T>(row, k, depth)];
  });
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// Bytes of a packed weight [features, depth].
DISTLLM_API size_t distllm_packed_bytes(size_t features, size_t depth, int dtype) {
  return num_panels(features) * panel_size(depth) * ((DType)dtype == DType::kFloat32 ? 4 : 2);
}

// Asks for huge pages under memory that will be streamed. A hint: nothing depends on it.
DISTLLM_API void distllm_advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  const uintptr_t page = 4096, begin = ((uintptr_t)memory + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)memory + bytes) / page * page;
  if (end > begin) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// Puts source [rows, depth] at rows first_row .. of `packed`, which was zeroed before its first source.
DISTLLM_API int distllm_pack(Pool* pool, const void* source, ptrdiff_t row_stride, ptrdiff_t column_stride, size_t rows,
                             size_t depth, int dtype, size_t first_row, void* packed) {
  return guarded([&] {
    Session session(*pool);
    if ((DType)dtype == DType::kFloat32)
      pack(session, Source<float>{(const float*)source, row_stride, column_stride, rows, depth}, first_row,
           (float*)packed);
    else
      pack(session, Source<uint16_t>{(const uint16_t*)source, row_stride, column_stride, rows, depth}, first_row,
           (uint16_t*)packed);
  });
}

// out [count, depth] = rows `ids` of a packed weight.
DISTLLM_API int distllm_read_rows(Pool* pool, const void* packed, size_t depth, int dtype, const int64_t* ids,
                                  size_t count, void* out) {
  return guarded([&] {
    Session session(*pool);
    if ((DType)dtype == DType::kFloat32)
      read_rows(session, (const float*)packed, depth, ids, count, (float*)out);
    else
      read_rows(session, (const uint16_t*)packed, depth, ids, count, (uint16_t*)out);
  });
}
