// Arithmetic on arrays of one shape, under rules of its own: MLX's keep the
// shapes of the first call in a shapeless function, as soon as a derivative is
// differentiated. Closed under differentiation.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

mx::array add(const mx::array& a, const mx::array& b, const mx::Stream& s);
mx::array multiply(const mx::array& a, const mx::array& b, const mx::Stream& s);

class Arithmetic : public CpuPrimitive {
 public:
  enum class Operation : int { add, multiply };

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

} // namespace mlx_recurrent
