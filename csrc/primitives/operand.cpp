#include "primitives/operand.h"

#include <stdexcept>

namespace mlx_recurrent {

int64_t leading_size(const mx::array& a, int axes) {
  int64_t size = 1;
  for (int i = 0; i < axes; ++i) {
    size *= a.shape(i);
  }
  return size;
}

const int64_t* Operands::offsets(const mx::array& a, int leading) {
  std::vector<int64_t> found(leading_size(a, leading));
  std::vector<int> index(leading, 0);
  int64_t offset = 0;
  for (int64_t& entry : found) {
    entry = offset;
    for (int axis = leading - 1; axis >= 0; --axis) {
      offset += a.strides(axis);
      if (++index[axis] < a.shape(axis)) {
        break;
      }
      offset -= a.strides(axis) * a.shape(axis);
      index[axis] = 0;
    }
  }
  offsets_.push_back(std::move(found));
  return offsets_.back().data();
}

kernels::Sequence Operands::sequence(const mx::array& a) {
  int ndim = static_cast<int>(a.ndim());
  return kernels::Sequence{
      a.data<char>(), offsets(a, ndim - 2), a.strides(-2), a.strides(-1)};
}

kernels::Sequence Operands::rows(const mx::array& a) {
  int ndim = static_cast<int>(a.ndim());
  return kernels::Sequence{
      a.data<char>(), offsets(a, ndim - 1), 0, a.strides(-1)};
}

kernels::Matrix Operands::matrix(const mx::array& a) {
  return kernels::Matrix{a.data<char>(), a.strides(0), a.strides(1)};
}

kernels::Vector Operands::vector(const mx::array& a) {
  return kernels::Vector{a.data<char>(), a.strides(0)};
}

bool has_kernels(mx::Dtype dtype) {
  return dtype == mx::float32 || dtype == mx::float64 || dtype == mx::float16 ||
      dtype == mx::bfloat16;
}

kernels::Type kernel_type(mx::Dtype dtype) {
  if (dtype == mx::float32) {
    return kernels::Type::float32;
  }
  if (dtype == mx::float64) {
    return kernels::Type::float64;
  }
  if (dtype == mx::float16) {
    return kernels::Type::float16;
  }
  if (dtype == mx::bfloat16) {
    return kernels::Type::bfloat16;
  }
  throw std::invalid_argument("mlx_recurrent: no kernel for this dtype");
}

int compute_bytes(mx::Dtype dtype) {
  return dtype == mx::float64 ? 8 : 4;
}

} // namespace mlx_recurrent
