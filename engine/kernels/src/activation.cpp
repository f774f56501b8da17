// Gated activations: out = activation(gate) * up of rows [gate | up]. The activation is rounded to the rows' type before
// it is multiplied, as transformers' MLPs do.

#include "operations.h"
#include "bf16.h"
#include "elementwise.h"
#include "vector_math.h"

namespace distllm {
namespace {

enum class Activation : int { kSilu = 0, kGeluTanh = 1 };  // the numbers that ops.py passes

DISTLLM_INLINE F32x16 silu(const F32x16& x) { return x / (broadcast(1.0f) + exp(zeros() - x)); }

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
DISTLLM_INLINE F32x16 gelu_tanh(const F32x16& x) {
  const F32x16 inner = fma(broadcast(0.044715f) * x, x * x, x);
  return x / (broadcast(1.0f) + exp(broadcast(-1.5957691216f) * inner));
}

template <Activation activation, class T>
void gate_row(const T* gate, T* out, int width) {
  for (int i = 0; i < width; i += 16) {
    const int count = std::min(16, width - i);
    const F32x16 x = load_first(gate + i, count), up = load_first(gate + width + i, count);
    const F32x16 active = activation == Activation::kSilu ? silu(x) : gelu_tanh(x);
    store_first(out + i, rounded_to<T>(active) * up, count);
  }
}

template <class T>
void gate(Session& session, Activation activation, const T* x, ptrdiff_t stride, T* out, int num_rows, int width) {
  for_each_row(session, num_rows, width, [&](int row) {
    const T* const from = x + row * stride;
    T* const to = out + (size_t)row * (size_t)width;
    if (activation == Activation::kSilu)
      gate_row<Activation::kSilu>(from, to, width);
    else
      gate_row<Activation::kGeluTanh>(from, to, width);
  });
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// x [num_rows, 2 * width] -> out [num_rows, width], contiguous.
DISTLLM_API int distllm_gated(Pool* pool, int activation, const void* x, ptrdiff_t stride, int dtype, void* out,
                              int num_rows, int width) {
  return guarded([&] {
    Session session(*pool);
    if ((DType)dtype == DType::kFloat32)
      gate(session, (Activation)activation, (const float*)x, stride, (float*)out, num_rows, width);
    else
      gate(session, (Activation)activation, (const uint16_t*)x, stride, (uint16_t*)out, num_rows, width);
  });
}
