// MLX arrays as the kernels' operands: pointers, offsets and strides, with no
// copy of what they point to.

#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "mlx/array.h"

namespace mlx_recurrent {

namespace mx = mlx::core;

// Holds the row offsets, and whatever else a kernel's operands point to.
class Operands {
 public:
  // Keeps what an operand points to beside arrays.
  void hold(std::shared_ptr<const void> owner) {
    owners_.push_back(std::move(owner));
  }

  // (..., L, features): the axes before the last two become the rows.
  kernels::Sequence sequence(const mx::array& a);
  // (..., features): every axis but the last becomes the rows, of one step.
  kernels::Sequence rows(const mx::array& a);

  static kernels::Matrix matrix(const mx::array& a);
  static kernels::Vector vector(const mx::array& a);

 private:
  const int64_t* offsets(const mx::array& a, int leading);

  std::vector<std::vector<int64_t>> offsets_;
  std::vector<std::shared_ptr<const void>> owners_;
};

// The number of elements of the first `axes` axes.
int64_t leading_size(const mx::array& a, int axes);

// Whether the kernels have this type; `kernel_type` is its name there.
bool has_kernels(mx::Dtype dtype);
kernels::Type kernel_type(mx::Dtype dtype);

// The bytes of what an element of this type is computed in.
int compute_bytes(mx::Dtype dtype);

} // namespace mlx_recurrent
