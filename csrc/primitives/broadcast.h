// Arrays whose shape follows from another array, at evaluation: what MLX has
// for this keeps the shapes of the first call in a shapeless function. Closed
// under differentiation.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

// An array of `value` in the shape of `like`, with `features` in place of the
// last axis unless that is negative. It takes no memory.
mx::array filled(
    const mx::array& like,
    float value,
    const mx::Stream& stream,
    int features = -1);

// x with its axes before the last `x_tail` broadcast together with those of
// `like` before its last `like_tail`. No copy.
mx::array widen(
    const mx::array& x,
    int x_tail,
    const mx::array& like,
    int like_tail,
    const mx::Stream& stream);

class Filled : public CpuPrimitive {
 public:
  Filled(const mx::Stream& stream, float value, int features)
      : CpuPrimitive(stream), value_(value), features_(features) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(mlx_recurrent.Filled)

 private:
  float value_;
  int features_;
};

// Inputs: x and `like`, with the same number of axes before their tails.
class Widen : public CpuPrimitive {
 public:
  Widen(const mx::Stream& stream, int x_tail, int like_tail)
      : CpuPrimitive(stream), x_tail_(x_tail), like_tail_(like_tail) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(mlx_recurrent.Widen)

 private:
  int x_tail_;
  int like_tail_;
};

// The transpose of Widen. Inputs: x, and `like` with the same number of axes;
// x is summed over the axes where `like` has size 1.
class Narrow : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(mlx_recurrent.Narrow)
  DEFINE_DEFAULT_IS_EQUIVALENT()
};

} // namespace mlx_recurrent
