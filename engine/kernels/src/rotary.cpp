// Rotary position embedding in place, rotate-half convention of transformers:
//
//   x' = x * cos + rotate_half(x) * sin,  rotate_half([a | b]) = [-b | a]
//
// over the first `width` dimensions of each head; both products and the sum are rounded to x's type.

#include "operations.h"
#include "bf16.h"
#include "elementwise.h"

namespace distllm {
namespace {

template <class T>
void rotate_head(T* x, const T* cos, const T* sin, int half) {
  for (int i = 0; i < half; i += 16) {
    const int count = std::min(16, half - i);
    const F32x16 a = load_first(x + i, count), b = load_first(x + half + i, count);
    const auto turned = [&](const F32x16& own, const F32x16& other, int at) DISTLLM_INLINE_LAMBDA {
      const F32x16 straight = own * load_first(cos + at, count), across = other * load_first(sin + at, count);
      return rounded_to<T>(straight) + rounded_to<T>(across);
    };
    const F32x16 first = turned(a, zeros() - b, i), second = turned(b, a, half + i);
    store_first(x + i, first, count);
    store_first(x + half + i, second, count);
  }
}

template <class T>
void rotate(Session& session, T* x, ptrdiff_t row_stride, ptrdiff_t head_stride, const T* cos, const T* sin,
            ptrdiff_t table_stride, int num_rows, int num_heads, int width) {
  for_each_row(session, num_rows, num_heads * width, [&](int row) {
    for (int head = 0; head < num_heads; ++head)
      rotate_head(x + row * row_stride + head * head_stride, cos + row * table_stride, sin + row * table_stride,
                  width / 2);
  });
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// x [num_rows, num_heads, at least width] strided; cos and sin [num_rows, width] of x's type, rows table_stride apart.
DISTLLM_API int distllm_rotary(Pool* pool, void* x, ptrdiff_t row_stride, ptrdiff_t head_stride, int dtype,
                               const void* cos, const void* sin, ptrdiff_t table_stride, int num_rows, int num_heads,
                               int width) {
  return guarded([&] {
    Session session(*pool);
    if ((DType)dtype == DType::kFloat32)
      rotate(session, (float*)x, row_stride, head_stride, (const float*)cos, (const float*)sin, table_stride, num_rows,
             num_heads, width);
    else
      rotate(session, (uint16_t*)x, row_stride, head_stride, (const uint16_t*)cos, (const uint16_t*)sin, table_stride,
             num_rows, num_heads, width);
  });
}
