// Arithmetic on arrays of one shape, under rules of its own: MLX's keep the
// shapes of the first call in a shapeless function, as soon as a derivative is
// differentiated. Closed under differentiation.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

mx::array add(const mx::array& a, const mx::array& b, const mx::Stream& s);
mx::array multiply(const mx::array& a, const mx::array& b, const mx::Stream& s);

// mask * b, and 0 where the mask is 0, whatever b is there. Only b has a
// derivative.
mx::array gate(const mx::array& mask, const mx::array& b, const mx::Stream& s);

class Arithmetic : public CpuPrimitive {
 public:
  enum class Operation : int { add, multiply, gate };

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
  // The derivative by input i, which is that times `change`; absent where it
  // is 0.
  std::optional<mx::array> moved(
      const Arrays& primals,
      int i,
      const mx::array& change);

  Operation operation_;
};

} // namespace mlx_recurrent
