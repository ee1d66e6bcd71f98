// The nonlinear scan with its input projection, and its first derivative in one
// pass. Every further derivative is made of linear scans and products.

#pragma once

#include "kernels/kernels.h"
#include "primitives/course.h"
#include "primitives/primitive.h"
#include "primitives/traced.h"

namespace mlx_recurrent {

// What a call returns: all states, the state after the last step, or both.
enum class Returned : int { states, state, both };

// Which states remain beside what is asked for: all, or every k-th and the
// last, where k is a number, or follows from L: the square root, rounded up.
constexpr int all_states = 0;
constexpr int checkpoint_square_root = -1;

// What a recurrence computes, beside its arrays. Weights, which are all but x,
// hidden and the course, may have leading axes of sets (S...), all the same,
// and then all arrays have them.
struct RecurrenceForm {
  kernels::Activation activation;
  bool projected = false; // x is z already; there is no Wxh and no bias
  bool has_bias = false;
  bool has_hidden = false;
  bool has_hidden0 = false;
  bool has_leak = false;
  CourseForm course;
  // Probabilities; a key is there where one is not 0.
  double zoneout = 0;
  double recurrent_dropout = 0;
  double input_dropout = 0;
  // So many of the first axes of the batch hold calls that draw the same.
  int repeated_axes = 0;
  int checkpoint_every = all_states; // k, or one of the above
  // Of the states of every k-th step only what a derivative needs that is cut
  // to blocks of k steps.
  bool latest_checkpoint = false;
  // Whether what the activation was given stays for the derivative, where that
  // needs it; if not, it is computed again.
  bool keep_preactivations = true;
  bool returns_state = false; // the state after the last step is an output
  std::shared_ptr<const Traced> function; // where the activation is traced

  bool operator==(const RecurrenceForm&) const = default;

  bool has_key() const {
    return zoneout > 0 || recurrent_dropout > 0 || input_dropout > 0;
  }

  // Where an input stands among the arrays; -1 where it is absent. The course's
  // are the last.
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
  int hidden0() const {
    return has_hidden0 ? 2 + !projected + has_bias + has_hidden : -1;
  }
  int leak() const {
    return has_leak ? numbers() - 1 : -1;
  }
  int key() const {
    return has_key() ? numbers() : -1;
  }
  // Those that have the call's dtype, and derivatives.
  int numbers() const {
    return 2 + !projected + has_bias + has_hidden + has_hidden0 + has_leak;
  }
  int inputs() const {
    return numbers() + has_key() + course.inputs();
  }
  // The form where one more axis is mapped: of sets, or of the batch.
  RecurrenceForm mapped(bool more_sets) const {
    RecurrenceForm form = *this;
    if (more_sets) {
      form.course = with_axis_at(course, 0);
    } else {
      form.repeated_axes += has_key();
    }
    return form;
  }
  // Whether an input is one for each row.
  bool is_of_rows(int i) const {
    return i == x || (has_hidden && i == hidden()) ||
        i >= numbers() + has_key();
  }
  // Outputs: the states, the state where it is returned, and what the
  // activation was given, for the derivative alone: it is computed where a
  // derivative refers to it.
  int preactivations() const {
    bool needed = function || has_leak;
    return needed && keep_preactivations && checkpoint_every == all_states
        ? 1 + returns_state
        : -1;
  }
  // The number of axes of sets, but for one that is mapped.
  int sets(const Arrays& inputs, const Ints& axes) const {
    return static_cast<int>(inputs[Whh].ndim()) - 2 - (axes[Whh] >= 0);
  }
};

// The arrays of a call.
struct RecurrenceInputs {
  mx::array x;
  mx::array Whh;
  std::optional<mx::array> Wxh;
  std::optional<mx::array> bias;
  std::optional<mx::array> hidden;
  std::optional<mx::array> hidden0;
  std::optional<mx::array> leak;
  std::optional<mx::array> key; // uint32 (S..., 2)
  Course course;
};

// The states (..., L, H) of the recurrence that kernels.h describes, at their
// places in time, or where they are not returned those that a derivative starts
// again from, every `checkpoint_every`-th or, where that is 0, as many as take
// the least memory; and where it is asked for the state of each row after its
// last step (..., H): `hidden`, or zero, where it has no steps. More outputs
// are for derivatives alone. Without Wxh, x is the projected input (..., L, H).
// `form` says the rest; what follows from the arrays and from these arguments
// is taken from them.
Arrays recurrence(
    const RecurrenceInputs& inputs,
    RecurrenceForm form,
    Returned returned,
    int checkpoint_every,
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
