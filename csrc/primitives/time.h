// Steps of a sequence as operations of the graph, for any number of steps:
// MLX's slices keep that of the first call in a shapeless function. Closed
// under differentiation.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

// The first or the last step.
enum class End : int { first, last };

// Along the time axis of y (..., L, H): the value of the step before each, in
// the direction of the run; `first` (..., H), or zero, stands before all.
mx::array step_before(
    const mx::array& y,
    const std::optional<mx::array>& first,
    bool reverse,
    const mx::Stream& stream);

// The step at one end of y (..., L, H): (..., H). Where there are no steps,
// `otherwise` (..., H), or zero.
mx::array step_at(
    const mx::array& y,
    End end,
    const std::optional<mx::array>& otherwise,
    const mx::Stream& stream);

// Zeros in the shape of `like` (..., L, H), but for `step` (..., H) at one end.
mx::array only_at(
    const mx::array& step,
    End end,
    const mx::array& like,
    const mx::Stream& stream);

// Inputs: y, and what stands before all where that is not zero.
class StepBefore : public CpuPrimitive {
 public:
  StepBefore(const mx::Stream& stream, bool reverse)
      : CpuPrimitive(stream), reverse_(reverse) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(mlx_recurrent.StepBefore)

 private:
  bool reverse_;
};

// Inputs: y, and what stands for a step where there are none.
class StepAt : public CpuPrimitive {
 public:
  StepAt(const mx::Stream& stream, End end) : CpuPrimitive(stream), end_(end) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(mlx_recurrent.StepAt)

 private:
  End end_;
};

// Inputs: the step and `like`.
class OnlyAt : public CpuPrimitive {
 public:
  OnlyAt(const mx::Stream& stream, End end) : CpuPrimitive(stream), end_(end) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(mlx_recurrent.OnlyAt)

 private:
  End end_;
};

} // namespace mlx_recurrent
