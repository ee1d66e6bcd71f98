#include "primitives/operand.h"

#include <stdexcept>

namespace mlx_recurrent {

namespace {

// Where set number `set` of the first `axes` axes begins.
const char* set_data(const mx::array& a, int axes, int64_t set) {
  int64_t offset = 0;
  for (int axis = axes - 1; axis >= 0; --axis) {
    offset += set % a.shape(axis) * a.strides(axis);
    set /= a.shape(axis);
  }
  return a.data<char>() + offset * static_cast<int64_t>(a.itemsize());
}

} // namespace

int64_t size_between(const mx::array& a, int first, int last) {
  int64_t size = 1;
  for (int i = first; i < last; ++i) {
    size *= a.shape(i);
  }
  return size;
}

kernels::Sequence of_set(kernels::Sequence all, int64_t set, int64_t N) {
  if (all.data) {
    all.row_offsets += set * N;
  }
  return all;
}

void* of_set(const mx::array& out, int64_t set, int64_t sets) {
  return const_cast<char*>(out.data<char>()) +
      set * (static_cast<int64_t>(out.nbytes()) / sets);
}

const int64_t* Operands::offsets(const mx::array& a, int leading) {
  std::vector<int64_t> found(size_between(a, 0, leading));
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

kernels::Sequence Operands::flags(const mx::array& a) {
  int axes = static_cast<int>(a.ndim()) - 1;
  return {a.data<char>(), offsets(a, axes), a.strides(-1), 0};
}

kernels::Matrix Operands::matrix(const mx::array& a, int64_t set) {
  int axes = static_cast<int>(a.ndim()) - 2;
  return kernels::Matrix{set_data(a, axes, set), a.strides(-2), a.strides(-1)};
}

kernels::Vector Operands::vector(const mx::array& a, int64_t set) {
  int axes = static_cast<int>(a.ndim()) - 1;
  return kernels::Vector{set_data(a, axes, set), a.strides(-1)};
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

mx::Dtype compute_dtype(mx::Dtype dtype) {
  return dtype == mx::float64 ? mx::float64 : mx::float32;
}

int compute_bytes(mx::Dtype dtype) {
  return dtype == mx::float64 ? 8 : 4;
}

} // namespace mlx_recurrent
