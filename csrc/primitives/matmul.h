// Products over whole sequences, closed under differentiation: the derivatives
// of each are made of the other. All operands may have leading axes of sets
// (S...), each with its own product.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

// x (S..., ..., K) times w (S..., M, K) transposed, plus bias (S..., M):
// (S..., ..., M).
mx::array matmul(
    const mx::array& x,
    const mx::array& w,
    const std::optional<mx::array>& bias,
    const mx::Stream& stream);

// The sum over all axes between of a (S..., ..., M) outer b (S..., ..., K):
// (S..., M, K), where S are the first `sets` axes.
mx::array outer_sum(
    const mx::array& a,
    const mx::array& b,
    int sets,
    const mx::Stream& stream);

// A row (S..., M) for each of the axes between of `like` (S..., ..., K):
// (S..., ..., M).
mx::array repeated_row(
    const mx::array& row,
    const mx::array& like,
    const mx::Stream& stream);

// Its transpose: the sum over all axes between of a (S..., ..., M), where S are
// the first `sets` axes: (S..., M).
mx::array row_sum(const mx::array& a, int sets, const mx::Stream& stream);

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
  OuterSum(const mx::Stream& stream, int sets)
      : CpuPrimitive(stream), sets_(sets) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(OuterSum)

 private:
  int sets_;
};

} // namespace mlx_recurrent
