// The layout of a packed weight [N, K]: panels of 16 output features one after the other, N and K padded with zeros.
//
//   panel j = features 16j .. 16j + 15, contiguous, 16 * padded_depth(K) weights, laid out as panel.h draws
#pragma once

#include <cstddef>

namespace distllm {

constexpr int kPanelWidth = 16;

inline size_t num_panels(size_t features) { return (features + kPanelWidth - 1) / kPanelWidth; }
inline size_t padded_depth(size_t depth) { return (depth + 1) / 2 * 2; }
inline size_t panel_size(size_t depth) { return padded_depth(depth) * kPanelWidth; }

// Where feature n, input k of a weight lies: in units of weights.
template <class T>
inline size_t packed_index(size_t n, size_t k, size_t depth) {
  const size_t panel = n / kPanelWidth * panel_size(depth), lane = n % kPanelWidth;
  if (sizeof(T) == 4) return panel + k * kPanelWidth + lane;
  return panel + k / 2 * (2 * kPanelWidth) + lane * 2 + k % 2;
}

}  // namespace distllm
