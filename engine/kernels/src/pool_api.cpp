// Making and ending thread pools, and what the CPU can do.

#include "api.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace distllm {
namespace {

#if defined(__x86_64__)

// Which registers the operating system saves: bit 1 xmm, 2 ymm, 5..7 the parts of zmm and masks.
uint64_t saved_registers() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

bool has_bits(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

// 0 portable, 1 AVX2 + FMA, 2 AVX-512 (F, BW, DQ, VL), 3 AVX-512 with dot products of
// bf16 and of bytes (VNNI).
int best_level() {
  uint32_t a, b, c, d;
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has_bits(c, kFma | kOsxsave | kAvx)) return 0;
  const uint64_t saved = saved_registers();
  constexpr uint32_t kAvx2 = 1u << 5, kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, kBf16 = 1u << 5;
  if (!has_bits(saved, 0x6) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has_bits(b, kAvx2)) return 0;
  if (!has_bits(saved, 0xe6) || !has_bits(b, kAvx512)) return 1;
  const bool has_vnni = has_bits(c, 1u << 11);
  return has_vnni && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has_bits(a, kBf16) ? 3 : 2;
}

#else

int best_level() { return 0; }

#endif

}  // namespace
}  // namespace distllm

using namespace distllm;

// The highest instruction level that this CPU and its operating system run; ops.py names them.
DISTLLM_API int distllm_best_level() { return best_level(); }

// A pool of num_threads threads, the caller counted, or null if they cannot be had.
DISTLLM_API Pool* distllm_pool_new(int num_threads) {
  try {
    return new Pool(num_threads);
  } catch (...) {
    return nullptr;
  }
}

DISTLLM_API void distllm_pool_delete(Pool* pool) { delete pool; }
