// What ops.py calls: plain C functions on pointers, sizes and strides (in elements). The binding has checked shapes,
// types and bounds. Each returns 0, or -1 when memory ran out.
#pragma once

#include <cstdint>
#include <new>

#include "pool.h"

#define DISTLLM_API extern "C" __attribute__((visibility("default")))

namespace distllm {

template <class F>
int guarded(F&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

}  // namespace distllm
