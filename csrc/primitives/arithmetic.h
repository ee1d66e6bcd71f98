// MLX's arithmetic on arrays of one shape, and its sum over rows, under rules
// of their own: MLX's keep the shapes of the first call in a shapeless
// function, as soon as a derivative is differentiated. Closed under
// differentiation.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

mx::array add(const mx::array& a, const mx::array& b, const mx::Stream& s);
mx::array subtract(const mx::array& a, const mx::array& b, const mx::Stream& s);
mx::array multiply(const mx::array& a, const mx::array& b, const mx::Stream& s);

// The sum over all axes between of a (S..., ..., M), where S are the first
// `sets` axes: (S..., M).
mx::array row_sum(const mx::array& a, int sets, const mx::Stream& stream);

class Arithmetic : public CpuPrimitive {
 public:
  enum class Operation : int { add, subtract, multiply };

  Arithmetic(const mx::Stream& stream, Operation operation)
      : CpuPrimitive(stream), operation_(operation) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(Arithmetic)

 private:
  Operation operation_;
};

// The sum with axes of size 1 in place of those that it is over.
class RowSum : public CpuPrimitive {
 public:
  RowSum(const mx::Stream& stream, int sets)
      : CpuPrimitive(stream), sets_(sets) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(RowSum)

 private:
  int sets_;
};

} // namespace mlx_recurrent
