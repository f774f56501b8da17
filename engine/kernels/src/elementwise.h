// Sharing rows out over threads for operations that touch each element once.
#pragma once

#include <algorithm>

#include "pool.h"

namespace distllm {

// body(row) for each of num_rows rows of `width` elements; small work stays on the caller's thread.
template <class F>
void for_each_row(Session& session, int num_rows, int width, const F& body) {
  constexpr int kElementsPerUnit = 8192;
  const int rows = std::max(1, kElementsPerUnit / std::max(width, 1));
  session.for_each((num_rows + rows - 1) / rows, [&](int unit, int) {
    const int end = std::min(num_rows, (unit + 1) * rows);
    for (int row = unit * rows; row < end; ++row) body(row);
  });
}

}  // namespace distllm
