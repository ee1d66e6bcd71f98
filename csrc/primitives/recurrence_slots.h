// The arrays of the recurrence and of its derivative as the kernels take them.

#pragma once

#include "kernels/partition.h"
#include "primitives/recurrence.h"

namespace mlx_recurrent {

// A slot, or those of all states, and where the kernels' arguments have it.
struct RecurrenceRow {
  RecurrenceSlot slot;
  SlotKind kind;
  Place<kernels::RecurrenceArgs> layer;    // an input of the recurrence
  Place<kernels::BackwardArgs> backward;   // one that its derivative adds
  Target<kernels::ForwardArgs> output;     // of the recurrence
  Target<kernels::BackwardArgs> cotangent; // what the derivative gives for it
};

const RecurrenceRow& row_of(RecurrenceSlot slot);

// Where the arguments have what is written of a slot.
template <class Args>
void*& target(Args& args, const Target<Args>& target, RecurrenceSlot slot) {
  if (auto one = std::get_if<void* Args::*>(&target)) {
    return args.**one;
  }
  using kernels::kMostStates;
  auto all = std::get<void*(Args::*)[kMostStates]>(target);
  return (args.*all)[parts_of(slot).state];
}

// The sets of weights, and what one call has of each operand.
struct RecurrenceSizes {
  int axes; // leading, of the sets
  int64_t sets, N, L, D, H;
  kernels::CellShape cell = kernels::shape_of(kernels::CellKind::elman);
};

RecurrenceSizes sizes_of(const RecurrenceForm& form, const Arrays& inputs);

// Raises where the first of these inputs do not fit each other.
Shapes shapes_of(
    const RecurrenceForm& form,
    const Arrays& inputs,
    const char* primitive);

// Whether operands of a projected call need no judgement and no conversion: of
// one floating dtype, in shapes that fit with nothing to broadcast.
bool is_plain(const Slotted<RecurrenceSlot>& operands, kernels::CellKind kind);

// The arguments of each set.
std::vector<kernels::RecurrenceArgs> arguments(
    const RecurrenceForm& form,
    const Arrays& inputs,
    const RecurrenceSizes& sizes,
    Operands& operands);

kernels::Partition partition_of(
    const RecurrenceSizes& sizes,
    mx::Dtype dtype,
    bool projected = false);

} // namespace mlx_recurrent
