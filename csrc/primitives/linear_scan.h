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
struct LinearScanInputs {
  mx::array s;
  mx::array V;
  std::optional<mx::array> alpha;
  std::optional<mx::array> beta;
  std::optional<mx::array> gamma;
  std::optional<mx::array> hidden;
  std::optional<mx::array> hidden0;
  Course course;
};

mx::array linear_scan(
    LinearScanInputs inputs,
    bool transposed,
    const mx::Stream& stream);

// What a linear scan has beside its arrays.
struct LinearScanForm {
  bool transposed;
  bool has_alpha;
  bool has_beta;
  bool has_gamma;
  bool has_hidden;
  bool has_hidden0;
  CourseForm course;

  bool operator==(const LinearScanForm&) const = default;

  // Where an input stands among the arrays; -1 where it is absent.
  static constexpr int s = 0;
  static constexpr int V = 1;
  int alpha() const {
    return has_alpha ? 2 : -1;
  }
  int beta() const {
    return has_beta ? 2 + has_alpha : -1;
  }
  int gamma() const {
    return has_gamma ? 2 + has_alpha + has_beta : -1;
  }
  int hidden() const {
    return has_hidden ? 2 + has_alpha + has_beta + has_gamma : -1;
  }
  int hidden0() const {
    return has_hidden0 ? inputs() - 1 : -1;
  }
  // Before the course's arrays.
  int inputs() const {
    return 2 + has_alpha + has_beta + has_gamma + has_hidden + has_hidden0;
  }
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
  LinearScanInputs unpack(const Arrays& inputs) const;
  // The inputs for products, which read all places: factors that are zero in
  // the padding.
  LinearScanInputs outside(const Arrays& inputs);

  LinearScanForm form_;
};

// factor * a, where an absent factor is 1.
mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& stream);

} // namespace mlx_recurrent
