// The linear scan, which every derivative of a recurrence is made of.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

// The operands of y_t = s_t + beta_t * V (gamma_p * y_p), p being the step
// before t in the direction of the run; the first step takes `hidden` for
// gamma_p * y_p. With any number of leading axes of sets (S...): s, beta and
// gamma are (S..., ..., L, H), V is (S..., H, H), hidden (S..., ..., H).
struct LinearScanInputs {
  mx::array s;
  mx::array V;
  std::optional<mx::array> beta;
  std::optional<mx::array> gamma;
  std::optional<mx::array> hidden;
};

mx::array linear_scan(
    const LinearScanInputs& inputs,
    bool reverse,
    const mx::Stream& stream);

class LinearScan : public CpuPrimitive {
 public:
  LinearScan(
      const mx::Stream& stream,
      bool reverse,
      bool has_beta,
      bool has_gamma,
      bool has_hidden)
      : CpuPrimitive(stream),
        reverse_(reverse),
        has_beta_(has_beta),
        has_gamma_(has_gamma),
        has_hidden_(has_hidden) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(LinearScan)

 private:
  LinearScanInputs unpack(const Arrays& inputs) const;
  // Where an input stands among the arrays; -1 where it is absent.
  int beta() const {
    return has_beta_ ? 2 : -1;
  }
  int gamma() const {
    return has_gamma_ ? 2 + has_beta_ : -1;
  }
  int hidden() const {
    return has_hidden_ ? 2 + has_beta_ + has_gamma_ : -1;
  }

  bool reverse_;
  bool has_beta_;
  bool has_gamma_;
  bool has_hidden_;
};

// factor * a, where an absent factor is 1.
mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& stream);

} // namespace mlx_recurrent
