// What every primitive of this package has in common.

#pragma once

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlx_recurrent {

namespace mx = mlx::core;
// For the macros of mlx/primitives.h.
using mx::array;

using Arrays = std::vector<mx::array>;
using Ints = std::vector<int>;

// MLX cannot write an external primitive to a file. All that its error says is
// this name up to the first space, so the name says what to do.
#define DEFINE_OWN_NAME(PRIMITIVE)                      \
  const char* name() const override {                   \
    return "mlx_recurrent." #PRIMITIVE                  \
           "(export-inside-mlx_recurrent.exporting())"; \
  }

// A primitive's name without that advice.
inline std::string short_name(const char* name) {
  std::string whole(name);
  return whole.substr(0, whole.find('('));
}

class CpuPrimitive : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error(short_name(name()) + " runs on CPU streams only.");
  }
};

// The shape of `a` with its last `replaced` axes replaced by `tail`.
inline mx::Shape with_tail(
    const mx::array& a,
    int replaced,
    std::initializer_list<int> tail) {
  mx::Shape shape(a.shape().begin(), a.shape().end() - replaced);
  for (int size : tail) {
    shape.push_back(size);
  }
  return shape;
}

// A cotangent or tangent as one of `model`: MLX does not see to it that the
// dtype is the same, and a rule of the user's may return a smaller shape.
inline mx::array matched(
    const mx::array& a,
    const mx::array& model,
    const mx::Stream& s) {
  mx::array typed = mx::astype(a, model.dtype(), s);
  return typed.shape() == model.shape()
      ? typed
      : mx::broadcast_arrays({typed, model}, s)[0];
}

// Whether the first `axes` axes of both have the same sizes.
inline bool same_sets(const mx::array& a, const mx::array& b, int axes) {
  return std::equal(
      a.shape().begin(), a.shape().begin() + axes, b.shape().begin());
}

// With the last two axes exchanged.
inline mx::array transposed(const mx::array& a, const mx::Stream& s) {
  return mx::swapaxes(a, -1, -2, s);
}

// Raised where operands do not fit: the last guard before their memory is read,
// also when a shapeless function is called again with other shapes.
inline void expect(bool fits, const char* primitive) {
  if (!fits) {
    throw std::invalid_argument(
        "[" + short_name(primitive) +
        "] the shapes or dtypes of the operands do not fit each other.");
  }
}

} // namespace mlx_recurrent
