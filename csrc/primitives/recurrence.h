// The nonlinear scan with its input projection, and its first derivative in one
// pass. Every further derivative is made of linear scans and products.

#pragma once

#include "kernels/kernels.h"
#include "primitives/primitive.h"

namespace mlx_recurrent {

// What a recurrence computes, beside its arrays.
struct RecurrenceForm {
  kernels::Activation activation;
  bool projected; // x is z already; there is no Wxh and no bias
  bool has_bias;
  bool has_hidden;
  int keep_every; // 0: all states; k: every k-th and the last

  bool operator==(const RecurrenceForm&) const = default;

  // Where an input stands among the arrays; -1 where it is absent.
  static constexpr int x = 0;
  static constexpr int Whh = 1;
  int Wxh() const {
    return projected ? -1 : 2;
  }
  int bias() const {
    return has_bias ? 3 : -1;
  }
  int hidden() const {
    return has_hidden ? 2 + !projected + has_bias : -1;
  }
  int inputs() const {
    return 2 + !projected + has_bias + has_hidden;
  }
};

// The states (..., L, H) of h_t = f(Wxh x_t + bias + Whh h_{t-1}), or those
// that `keep_every` keeps, (..., ceil(L / keep_every), H). Without Wxh, x is
// the projected input (..., L, H).
mx::array recurrence(
    const mx::array& x,
    const std::optional<mx::array>& Wxh,
    const std::optional<mx::array>& bias,
    const mx::array& Whh,
    const std::optional<mx::array>& hidden,
    kernels::Activation activation,
    int keep_every,
    const mx::Stream& stream);

// Wxh x_t + bias + Whh previous, (..., H): what the activation is called with at
// step t, where `previous` is the state before it, if there is one.
mx::array pre_activation(
    const mx::array& x,
    const std::optional<mx::array>& Wxh,
    const std::optional<mx::array>& bias,
    const mx::array& Whh,
    const std::optional<mx::array>& previous,
    int t,
    const mx::Stream& stream);

class Recurrence : public CpuPrimitive {
 public:
  Recurrence(const mx::Stream& stream, RecurrenceForm form)
      : CpuPrimitive(stream), form_(form) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(Recurrence)

 private:
  RecurrenceForm form_;
};

// Inputs: those of the recurrence, its kept states and their cotangent.
// Outputs: the cotangents of the inputs that `wanted` lists.
class RecurrenceVJP : public CpuPrimitive {
 public:
  RecurrenceVJP(const mx::Stream& stream, RecurrenceForm form, Ints wanted)
      : CpuPrimitive(stream), form_(form), wanted_(std::move(wanted)) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(RecurrenceVJP)

 private:
  // The same outputs, made of linear scans and products.
  Arrays composed(const Arrays& inputs) const;

  RecurrenceForm form_;
  Ints wanted_;
};

} // namespace mlx_recurrent
