// The nonlinear scan with its input projection.

#pragma once

#include "kernels/cell.h"
#include "primitives/cell_program.h"
#include "primitives/course.h"

namespace mlx_recurrent {

// The arrays of a recurrence and of its derivative: inputs of both, what the
// recurrence leaves, and the cotangents of that. Weights may have leading axes
// of sets (S...), all the same, and then all arrays have them.
enum class RecurrenceSlot : int {
  x, // z where there is no Wxh
  Whh,
  Wxh,
  bias,
  bhn,
  parameters, // of a cell that is a program, side by side
  key,
  lengths,
  reset,
  mask,
  // Of each state. Only that of an Elman cell has a leak that may be learned.
  hidden,
  hidden0 = hidden + kernels::kMostStates,
  leak = hidden0 + kernels::kMostStates,
  states = leak + kernels::kMostStates,  // those that are kept
  state = states + kernels::kMostStates, // after the last step
  dstates = state + kernels::kMostStates,
  dstate = dstates + kernels::kMostStates,
  saved = dstate + kernels::kMostStates // for the derivative alone
};

template <>
inline constexpr size_t most_slots<RecurrenceSlot> =
    static_cast<size_t>(RecurrenceSlot::saved) + 1;

const SlotKind& kind_of(RecurrenceSlot slot);

// That of a state, from the first one's.
constexpr RecurrenceSlot nth(RecurrenceSlot first, int state) {
  return static_cast<RecurrenceSlot>(static_cast<int>(first) + state);
}

// A slot as that of the first state and the number of its own.
struct SlotOfState {
  RecurrenceSlot first;
  int state = 0;
};
SlotOfState parts_of(RecurrenceSlot slot);

// What a call returns: all states, the state after the last step, or the
// outputs and that state. Of a cell with several states its outputs are the
// first, and the others stand behind it.
enum class Returned : int { states, state, both };

// Which states remain beside what is asked for: all, or every k-th and the
// last, where k is a number, or follows from L: the square root, rounded up.
constexpr int all_states = 0;
constexpr int checkpoint_square_root = -1;

// What a recurrence computes, beside its arrays.
struct RecurrenceForm {
  kernels::CellKind kind = kernels::CellKind::elman;
  kernels::Activation activation;                       // of an Elman cell
  std::shared_ptr<const Traced> function = nullptr;     // where that is traced
  std::shared_ptr<const CellProgram> program = nullptr; // a cell that is one
  CourseForm course;
  kernels::Probabilities probabilities{}; // a key is there where one is not 0
  int checkpoint_every = all_states;      // k, or one of the above
  // Of the second state, where all of the first are kept: k, or all.
  int cells_every = all_states;

  // What follows, from the arrays and from what is asked for.
  Slots<RecurrenceSlot> inputs;
  Slots<RecurrenceSlot> outputs;
  // Of the states of every k-th step only what a derivative needs that is cut
  // to blocks of k steps.
  bool latest_checkpoint = false;
  // So many of the first axes of the batch hold calls that draw the same.
  int repeated_axes = 0;

  bool operator==(const RecurrenceForm&) const = default;

  kernels::CellShape shape() const {
    return program ? program->shape() : kernels::shape_of(kind);
  }
  double& probability(kernels::Drawn what) {
    return probabilities.of[static_cast<int>(what)];
  }
  bool keeps_all_states() const {
    return checkpoint_every == all_states;
  }
  bool keeps_all_of(int state) const {
    return keeps_all_states() && (state == 0 || cells_every == all_states);
  }
  // x is z already; there is no Wxh and no bias.
  bool projected() const {
    return !inputs.has(RecurrenceSlot::Wxh);
  }
  // The form where one more axis is mapped: of sets, or of the batch.
  RecurrenceForm mapped(bool more_sets) const {
    RecurrenceForm form = *this;
    if (more_sets) {
      form.course = with_axis_at(course, 0);
    } else {
      form.repeated_axes += inputs.has(RecurrenceSlot::key);
    }
    return form;
  }
  // The number of axes of sets, but for one that is mapped.
  int sets(const Arrays& arrays, const Ints& axes) const {
    int Whh = inputs.index(RecurrenceSlot::Whh);
    return static_cast<int>(arrays[Whh].ndim()) - 2 - (axes[Whh] >= 0);
  }
};

// The recurrence that kernels.h describes: the states (..., L, H) at their
// places in time, the state of each row after its last step (..., H), which is
// `hidden`, or zero, where it has none, or both. Where the states are not
// returned those remain that a derivative starts again from: every
// `checkpoint_every`-th or, where that is 0, as many as take the least memory.
// Of `form` what follows from these arguments is taken from them.
Arrays recurrence(
    const Slotted<RecurrenceSlot>& inputs,
    RecurrenceForm form,
    Returned returned,
    const mx::Stream& stream);

// All outputs for the first of these inputs, which are in the form's order.
Arrays outputs_of(
    const RecurrenceForm& form,
    Arrays inputs,
    const mx::Stream& stream);
// All states, of each of the cell's, and nothing else.
Arrays states_of(
    RecurrenceForm form,
    const Arrays& inputs,
    const mx::Stream& stream);

// Wxh x_t + bias + Whh previous, (..., H): what the activation is called with
// at step t, where `previous` is the state before it, if there is one.
mx::array pre_activation(
    const Slotted<RecurrenceSlot>& inputs,
    const std::optional<mx::array>& previous,
    int t,
    const mx::Stream& stream);

class Recurrence : public CpuPrimitive {
 public:
  Recurrence(const mx::Stream& stream, RecurrenceForm form)
      : CpuPrimitive(stream), form_(std::move(form)) {
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

} // namespace mlx_recurrent
