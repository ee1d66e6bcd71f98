// Products over whole sequences, closed under differentiation: the derivatives
// of each are made of the other.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

// x (..., K) times w (M, K) transposed, plus bias (M,): (..., M).
mx::array matmul(
    const mx::array& x,
    const mx::array& w,
    const std::optional<mx::array>& bias,
    const mx::Stream& stream);

// The sum over all leading axes of a (..., M) outer b (..., K): (M, K).
mx::array outer_sum(
    const mx::array& a,
    const mx::array& b,
    const mx::Stream& stream);

class Matmul : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(Matmul)
  DEFINE_DEFAULT_IS_EQUIVALENT()
};

class OuterSum : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(OuterSum)
  DEFINE_DEFAULT_IS_EQUIVALENT()
};

} // namespace mlx_recurrent
