// Root-mean-square norm of rows, with the roundings of transformers' modules:
//
//   Llama  weight * (x / rms).to(dtype)                  rounded before and after the weight
//   Gemma  (x.float() / rms * (1 + weight)).to(dtype)    rounded once
//
// Order of sums: squares by lane, sixteen at a time in order, then over lanes.

#include <cmath>

#include "operations.h"
#include "bf16.h"
#include "elementwise.h"

namespace distllm {
namespace {

struct Call {
  const void* x;
  ptrdiff_t x_row_stride, x_head_stride;
  const void* weight;
  void* out;  // contiguous
  int num_rows, num_heads, width;
  float eps;
};

template <class T>
float inverse_rms(const T* x, int width, float eps) {
  F32x16 squares = zeros();
  for (int i = 0; i < width; i += 16) {
    const F32x16 own = load_first(x + i, std::min(16, width - i));
    squares = fma(own, own, squares);
  }
  return 1.0f / std::sqrt(sum_of_lanes(squares) / (float)width + eps);
}

template <class T, class W, bool gemma>
void norm_row(const T* x, const W* weight, T* out, int width, float eps) {
  const F32x16 factor = broadcast(inverse_rms(x, width, eps));
  for (int i = 0; i < width; i += 16) {
    const int count = std::min(16, width - i);
    const F32x16 normed = load_first(x + i, count) * factor, own = load_first(weight + i, count);
    store_first(out + i, gemma ? normed * (broadcast(1.0f) + own) : own * rounded_to<T>(normed), count);
  }
}

template <class T, class W, bool gemma>
void norm(Session& session, const Call& call) {
  for_each_row(session, call.num_rows * call.num_heads, call.width, [&](int row) {
    const T* const x =
        (const T*)call.x + row / call.num_heads * call.x_row_stride + row % call.num_heads * call.x_head_stride;
    norm_row<T, W, gemma>(x, (const W*)call.weight, (T*)call.out + (size_t)row * (size_t)call.width, call.width,
                          call.eps);
  });
}

template <class T, class W>
void norm(Session& session, const Call& call, bool gemma) {
  gemma ? norm<T, W, true>(session, call) : norm<T, W, false>(session, call);
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// out [num_rows, num_heads, width], contiguous, of x's type.
DISTLLM_API int distllm_rms_norm(Pool* pool, const void* x, ptrdiff_t x_row_stride, ptrdiff_t x_head_stride, int dtype,
                                 const void* weight, int weight_dtype, int gemma, float eps, void* out, int num_rows,
                                 int num_heads, int width) {
  const Call call{x, x_row_stride, x_head_stride, weight, out, num_rows, num_heads, width, eps};
  const bool x_float = (DType)dtype == DType::kFloat32, weight_float = (DType)weight_dtype == DType::kFloat32;
  return guarded([&] {
    Session session(*pool);
    if (x_float)
      weight_float ? norm<float, float>(session, call, gemma) : norm<float, uint16_t>(session, call, gemma);
    else
      weight_float ? norm<uint16_t, float>(session, call, gemma) : norm<uint16_t, uint16_t>(session, call, gemma);
  });
}
