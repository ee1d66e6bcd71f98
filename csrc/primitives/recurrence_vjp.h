// The first derivative of the recurrence in one pass. Every further one is made
// of linear scans and products.

#pragma once

#include "primitives/recurrence.h"

namespace mlx_recurrent {

// What a derivative computes: `wanted` lists the inputs of the recurrence whose
// cotangents are its outputs. Its inputs are those of the recurrence, what that
// left, and the cotangents that are not zero.
struct BackwardForm {
  RecurrenceForm layer;
  Slots<RecurrenceSlot> inputs;
  std::vector<RecurrenceSlot> wanted;

  bool operator==(const BackwardForm&) const = default;
};

Arrays backward(
    const BackwardForm& form,
    const Arrays& inputs,
    const mx::Stream& s);

class RecurrenceVJP : public CpuPrimitive {
 public:
  RecurrenceVJP(const mx::Stream& stream, BackwardForm form)
      : CpuPrimitive(stream), form_(std::move(form)) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(RecurrenceVJP)

 private:
  // The same, made of linear scans and products. So many of the first axes of
  // the batch are not summed over.
  Arrays composed(
      const Arrays& inputs,
      const std::vector<RecurrenceSlot>& wanted,
      int more_sets) const;

  BackwardForm form_;
};

} // namespace mlx_recurrent
