// The random factors of zoneout and dropout as arrays of the graph, for what
// does not draw them itself. They have no derivative.

#pragma once

#include "kernels/kernels.h"
#include "primitives/primitive.h"

namespace mlx_recurrent {

// In the shape and dtype of `like` (S..., ..., L, features): of zoneout 1 where
// a unit is updated and 0 where it keeps its state; of a dropout, which is
// constant over L and takes no memory along it, 0 or 1 / (1 - probability). The
// key is uint32 (S..., 2). Row n of a set draws as row n % rows.
mx::array mask(
    const mx::array& key,
    const mx::array& like,
    kernels::Drawn what,
    double probability,
    int64_t rows,
    const mx::Stream& stream);

// Inputs: the key and `like`.
class Mask : public CpuPrimitive {
 public:
  Mask(
      const mx::Stream& stream,
      kernels::Drawn what,
      double probability,
      int64_t rows)
      : CpuPrimitive(stream),
        what_(what),
        probability_(probability),
        rows_(rows) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(Mask)

 private:
  kernels::Drawn what_;
  double probability_;
  int64_t rows_;
};

} // namespace mlx_recurrent
