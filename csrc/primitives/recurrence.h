// The nonlinear scan with its input projection.

#pragma once

#include "kernels/cell.h"
#include "primitives/course.h"
#include "primitives/traced.h"

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
  hidden,
  cell, // the second state of a cell that has two
  hidden0,
  cell0,
  leak,
  leak_cell, // of the second state, for whose sake alone it is not learned
  key,
  lengths,
  reset,
  mask,
  states, // those that are kept
  cells,
  dstates,
  dcells,
  state, // after the last step
  last_cell,
  dstate,
  dlast_cell,
  saved // for the derivative alone
};

const SlotKind& kind_of(RecurrenceSlot slot);

// What each of a cell's states has.
struct StateSlots {
  RecurrenceSlot hidden, hidden0, leak, states, dstates, state, dstate;
};
constexpr StateSlots state_slots[] = {
    {RecurrenceSlot::hidden,
     RecurrenceSlot::hidden0,
     RecurrenceSlot::leak,
     RecurrenceSlot::states,
     RecurrenceSlot::dstates,
     RecurrenceSlot::state,
     RecurrenceSlot::dstate},
    {RecurrenceSlot::cell,
     RecurrenceSlot::cell0,
     RecurrenceSlot::leak_cell,
     RecurrenceSlot::cells,
     RecurrenceSlot::dcells,
     RecurrenceSlot::last_cell,
     RecurrenceSlot::dlast_cell}};

// What a call returns: all states, the state after the last step, or the
// outputs and that state. Of a cell with two states its outputs are the first,
// and the second stands behind the first.
enum class Returned : int { states, state, both };

// Which states remain beside what is asked for: all, or every k-th and the
// last, where k is a number, or follows from L: the square root, rounded up.
constexpr int all_states = 0;
constexpr int checkpoint_square_root = -1;

// What a recurrence computes, beside its arrays.
struct RecurrenceForm {
  kernels::CellKind kind = kernels::CellKind::elman;
  kernels::Activation activation;                   // of an Elman cell
  std::shared_ptr<const Traced> function = nullptr; // where that is traced
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
    return kernels::shape_of(kind);
  }
  double& probability(kernels::Drawn what) {
    return probabilities.of[static_cast<int>(what)];
  }
  bool keeps_all_states() const {
    return checkpoint_every == all_states;
  }
  bool keeps_all_cells() const {
    return keeps_all_states() && cells_every == all_states;
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
