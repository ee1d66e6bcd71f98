// Rows of features as they lie in memory, copied by the graph's own primitives.

#pragma once

#include <cstring>

#include "kernels/kernels.h"

namespace mlx_recurrent {

// One row of features, of elements of `item` bytes; from null: zeros.
inline void copy_row(
    char* to,
    const char* from,
    int64_t stride,
    int64_t count,
    int64_t item) {
  if (!from) {
    std::memset(to, 0, count * item);
  } else if (stride == 1) {
    std::memcpy(to, from, count * item);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * item, from + i * stride * item, item);
    }
  }
}

// Where the features of row n at step t begin.
inline const char* features_at(
    const kernels::Sequence& s,
    int64_t n,
    int64_t t,
    int64_t item) {
  return static_cast<const char*>(s.data) +
      (s.row_offsets[n] + t * s.step_stride) * item;
}

} // namespace mlx_recurrent
