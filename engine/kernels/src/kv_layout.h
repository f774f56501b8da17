// The layout of a layer's KV cache, in elements of its type (float32 or bf16). A block holds 16 tokens.
//
//   keys    [block][kv head][padded key_dim * 16]   one panel: channel = token, k = dimension
//   values  [block][kv head][value_dim * 16]        panels: channel = dimension, k = token
//
// Panels are drawn in panel.h. The last panel of values is only as wide as there are dimensions left; it is widened
// for the inner loop while it is read. Padded key dimensions are zero from allocation on and are never written.
#pragma once

#include "packed.h"

namespace distllm {

constexpr int kBlockTokens = 16;
constexpr size_t kValuePanelSize = kBlockTokens * kPanelWidth;

struct KvLayout {
  int num_kv_heads, key_dim, value_dim;

  size_t key_size() const { return panel_size((size_t)key_dim); }
  size_t value_size() const { return (size_t)value_dim * kBlockTokens; }
  size_t key_at(size_t block, int head) const { return (block * (size_t)num_kv_heads + (size_t)head) * key_size(); }
  size_t value_at(size_t block, int head) const { return (block * (size_t)num_kv_heads + (size_t)head) * value_size(); }

  int full_value_panels() const { return value_dim / kPanelWidth; }
  int value_tail() const { return value_dim % kPanelWidth; }
  int padded_value_dim() const { return (int)num_panels((size_t)value_dim) * kPanelWidth; }

  // Where one token's dimension lies among the values of its block and head.
  template <class T>
  size_t value_index(int dim, int token) const {
    const int panel = dim / kPanelWidth, lane = dim % kPanelWidth;
    const size_t width = panel < full_value_panels() ? kPanelWidth : (size_t)value_tail();
    const size_t base = (size_t)panel * kValuePanelSize;
    if (sizeof(T) == 4) return base + (size_t)token * width + (size_t)lane;
    return base + (size_t)(token / 2) * width * 2 + (size_t)lane * 2 + (size_t)(token % 2);
  }

  // The last, narrow panel of a block's values as a whole panel with zeros beside.
  template <class T>
  void widen_tail(const T* values, T* panel) const {
    const size_t pairs = sizeof(T) == 4 ? 1 : 2, width = (size_t)value_tail() * pairs;
    const T* from = values + (size_t)full_value_panels() * kValuePanelSize;
    for (size_t step = 0; step < kBlockTokens / pairs; ++step, from += width, panel += kPanelWidth * pairs) {
      for (size_t i = 0; i < kPanelWidth * pairs; ++i) panel[i] = i < width ? from[i] : T(0);
    }
  }
};

}  // namespace distllm
