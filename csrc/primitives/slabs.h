// Slabs, which lie side by side along the features of an array, one by one: for
// any shape, where MLX's slices keep that of the first call in a shapeless
// function. Closed under differentiation.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

// Slab k of as many of a (..., slabs * H): (..., H). No copy.
mx::array slab(const mx::array& a, int k, int slabs, const mx::Stream& stream);

// All of them.
std::vector<std::optional<mx::array>> parted(
    const mx::array& a,
    int slabs,
    const mx::Stream& stream);

// The transpose: slabs (..., H) side by side, zero where one is absent; at
// least one is there.
mx::array joined(
    const std::vector<std::optional<mx::array>>& slabs,
    const mx::Stream& stream);

class Slab : public CpuPrimitive {
 public:
  Slab(const mx::Stream& stream, int k, int slabs)
      : CpuPrimitive(stream), k_(k), slabs_(slabs) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(Slab)

 private:
  int k_;
  int slabs_;
};

// Inputs: the slabs that are there.
class Joined : public CpuPrimitive {
 public:
  Joined(const mx::Stream& stream, Ints places, int slabs)
      : CpuPrimitive(stream), places_(std::move(places)), slabs_(slabs) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(Joined)

 private:
  Ints places_; // of each input
  int slabs_;
};

} // namespace mlx_recurrent
