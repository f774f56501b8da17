// Where ranks that share memory wait for each other.

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstddef>

#include "api.h"
#include "relax.h"

namespace distllm {
namespace {

constexpr std::chrono::microseconds kSpin{50};  // ranks of one model seldom arrive further apart

bool all_have_come(const int64_t* counters, ptrdiff_t stride, int size, int64_t count) {
  for (int rank = 0; rank < size; ++rank)
    if (__atomic_load_n(counters + rank * stride, __ATOMIC_ACQUIRE) < count) return false;
  return true;
}

}  // namespace
}  // namespace distllm

using namespace distllm;

// Returns when no rank's counter is below that of `rank`. Spins at first, then leaves the core to others: they may
// share it with this rank.
DISTLLM_API void distllm_meet(const int64_t* counters, ptrdiff_t stride, int rank, int size) {
  const int64_t count = __atomic_load_n(counters + rank * stride, __ATOMIC_ACQUIRE);
  const auto give_up = std::chrono::steady_clock::now() + kSpin;
  while (!all_have_come(counters, stride, size, count)) {
    if (std::chrono::steady_clock::now() < give_up)
      relax();
    else
      sched_yield();
  }
}
