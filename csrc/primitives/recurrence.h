// The nonlinear scan with its input projection, and its first derivative in one
// pass. Every further derivative is made of linear scans and products.

#pragma once

#include "kernels/kernels.h"
#include "primitives/primitive.h"
#include "primitives/traced.h"

namespace mlx_recurrent {

// Which states remain beside what is asked for: all, or every k-th and the
// last, where k is a number, or follows from L: the square root, rounded up.
constexpr int keep_all = 0;
constexpr int keep_square_root = -1;

// What a recurrence computes, beside its arrays. Weights may have leading axes
// of sets (S...), all the same, and x and hidden then have them too.
struct RecurrenceForm {
  kernels::Activation activation;
  bool projected; // x is z already; there is no Wxh and no bias
  bool has_bias;
  bool has_hidden;
  int keep_every;     // k, or one of the above
  bool returns_state; // the state after the last step is a second output
  std::shared_ptr<const Traced> function; // where the activation is traced

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
  // Outputs: the states, the state where it is returned, and what a traced
  // activation was given, for the derivative alone: it is computed where a
  // derivative refers to it.
  int preactivations() const {
    return function && keep_every == keep_all ? 1 + returns_state : -1;
  }
  // The number of axes of sets, but for one that is mapped.
  int sets(const Arrays& inputs, const Ints& axes) const {
    return static_cast<int>(inputs[Whh].ndim()) - 2 - (axes[Whh] >= 0);
  }
};

// The states (..., L, H) of h_t = f(Wxh x_t + bias + Whh h_{t-1}), or those
// that `keep_every` keeps, and where it is asked for the state after the last
// step (..., H): `hidden`, or zero, where there are no steps. More outputs are
// for derivatives alone. Without Wxh, x is
// the projected input (..., L, H). `function` is f where the activation is
// traced.
Arrays recurrence(
    const mx::array& x,
    const std::optional<mx::array>& Wxh,
    const std::optional<mx::array>& bias,
    const mx::array& Whh,
    const std::optional<mx::array>& hidden,
    kernels::Activation activation,
    int keep_every,
    bool returns_state,
    std::shared_ptr<const Traced> function,
    const mx::Stream& stream);

// Wxh x_t + bias + Whh previous, (..., H): what the activation is called with
// at step t, where `previous` is the state before it, if there is one.
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

// What a derivative computes: `wanted` lists the inputs whose cotangents are
// its outputs. Its inputs are those of the recurrence, the states that it left,
// the cotangents that are not zero, and what a traced activation was given.
struct BackwardForm {
  RecurrenceForm layer;
  bool of_states; // (..., L, H)
  bool of_state;  // (..., H)
  Ints wanted;

  bool operator==(const BackwardForm&) const = default;

  int states() const {
    return layer.inputs();
  }
  int dstates() const {
    return of_states ? states() + 1 : -1;
  }
  int dstate() const {
    return of_state ? states() + 1 + of_states : -1;
  }
  int preactivations() const {
    return layer.preactivations() < 0 ? -1
                                      : states() + 1 + of_states + of_state;
  }
};

Arrays backward(
    const BackwardForm& form,
    const Arrays& inputs,
    const mx::Stream& stream);

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
  Arrays composed(const Arrays& inputs, const Ints& wanted, int more_sets)
      const;

  BackwardForm form_;
};

} // namespace mlx_recurrent
