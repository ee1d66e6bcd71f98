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
// Leading axes may be those of sets, which are calls of one shape: `of_set`
// gives the rows of one.
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

  // (..., L): every axis but the last becomes the rows.
  kernels::Sequence flags(const mx::array& a);

  // (sets..., M, K) and (sets..., H): that of one set.
  static kernels::Matrix matrix(const mx::array& a, int64_t set);
  static kernels::Vector vector(const mx::array& a, int64_t set);

  // Where each row of the first `leading` axes begins, in elements.
  const int64_t* offsets(const mx::array& a, int leading);

 private:
  std::vector<std::vector<int64_t>> offsets_;
  std::vector<std::shared_ptr<const void>> owners_;
};

// Of the rows of all sets, those of one set of N rows.
kernels::Sequence of_set(kernels::Sequence all, int64_t set, int64_t N);
// Of results that lie one set after another, those of one set.
void* of_set(const mx::array& out, int64_t set, int64_t sets);

// The number of elements of the axes from `first` up to `last`.
int64_t size_between(const mx::array& a, int first, int last);

// Whether the kernels have this type; `kernel_type` is its name there.
bool has_kernels(mx::Dtype dtype);
kernels::Type kernel_type(mx::Dtype dtype);

// What an element of this type is computed in, and its bytes.
mx::Dtype compute_dtype(mx::Dtype dtype);
int compute_bytes(mx::Dtype dtype);

} // namespace mlx_recurrent
