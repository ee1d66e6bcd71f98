// An elementwise function of whole arrays, closed under differentiation: its
// derivative is one too.

#pragma once

#include "primitives/primitive.h"
#include "primitives/traced.h"

namespace mlx_recurrent {

// f(a, ...), of the shape and dtype that all arguments have.
mx::array pointwise(
    const Arrays& arguments,
    std::shared_ptr<const Traced> function,
    const mx::Stream& stream);

// The derivative by an argument.
mx::array pointwise_slope(
    const Arrays& arguments,
    int by,
    const std::shared_ptr<const Traced>& function,
    const mx::Stream& stream);

// Computes a program of evaluated inputs that are rows of elements, on a
// stream. `owner` holds the program until it has run; null where it is always
// there.
void run_program(
    const kernels::Program& program,
    const Arrays& inputs,
    mx::array& out,
    const mx::Stream& stream,
    std::shared_ptr<const void> owner = nullptr);

class Pointwise : public CpuPrimitive {
 public:
  Pointwise(const mx::Stream& stream, std::shared_ptr<const Traced> function)
      : CpuPrimitive(stream), function_(std::move(function)) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(Pointwise)

 private:
  mx::array scaled_slope(const Arrays& primals, int by, const mx::array& d);

  std::shared_ptr<const Traced> function_;
};

} // namespace mlx_recurrent
