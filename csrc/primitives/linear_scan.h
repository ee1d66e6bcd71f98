// The linear scan, which every derivative of a recurrence is made of.

#pragma once

#include "primitives/course.h"

namespace mlx_recurrent {

// The operands of, with u the result before step t in the run, `hidden` at
// first and `hidden0` where an episode starts,
//   y_t = s_t + alpha_t u + beta_t V (gamma_t u)
// or transposed, with n the step after t in the run,
//   y_t = s_t + alpha_n y_n + gamma_n V^T (beta_n y_n).
// Nothing passes where the course truncates; a term whose factor is 0 is
// absent; in the padding nothing is read, and y is zero. With any number of
// leading axes of sets (S...): s and the factors are (S..., ..., L, H), V is
// (S..., H, H), hidden (S..., ..., H), hidden0 (S..., H). An absent alpha is 0,
// beta and gamma 1, hidden and hidden0, which only the first form has, 0. An
// axis along which the course flips is one of the sets.
enum class ScanSlot : int {
  s,
  V,
  alpha,
  beta,
  gamma,
  hidden,
  hidden0,
  lengths,
  reset
};

const SlotKind& kind_of(ScanSlot slot);

// `inputs` without those of the course, and the course.
mx::array linear_scan(
    Slotted<ScanSlot> inputs,
    const Course& course,
    bool transposed,
    const mx::Stream& stream);

// What a linear scan has beside its arrays.
struct LinearScanForm {
  bool transposed;
  Slots<ScanSlot> inputs;
  CourseForm course;

  bool operator==(const LinearScanForm&) const = default;
};

class LinearScan : public CpuPrimitive {
 public:
  LinearScan(const mx::Stream& stream, const LinearScanForm& form)
      : CpuPrimitive(stream), form_(form) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(LinearScan)

 private:
  // The inputs for products, which read all places: factors that are zero in
  // the padding.
  Slotted<ScanSlot> outside(const Arrays& inputs);

  LinearScanForm form_;
};

// factor * a, where an absent factor is 1.
mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& stream);

} // namespace mlx_recurrent
