// What the engine knows of a cell: how many pre-activations a unit has, of
// which kinds, and how they lie in its weights and in scratch memory.

#pragma once

#include "elman.h"
#include "gru.h"
#include "kernels.h"
#include "lstm.h"

namespace mlx_recurrent::kernels {

// Slabs are pre-activations of all units. Those that Whh alone gives come first
// in scratch memory, then those of both, then those of Wxh alone, so that each
// weight's are together. In the weights those of both come first.
struct CellShape {
  int state_only, shared, input_only;
  int states; // the first is the output, and what Whh sees
  int saved;  // what the derivative starts from, of each unit

  constexpr int state_slabs() const {
    return state_only + shared;
  }
  constexpr int input_slabs() const {
    return shared + input_only;
  }
  constexpr int slabs() const {
    return state_only + shared + input_only;
  }
  // Which H rows of Whh a slab is.
  constexpr int state_block(int slab) const {
    return slab < state_only ? shared + slab : slab - state_only;
  }
};

template <class Cell>
constexpr CellShape shape_as() {
  return {
      Cell::state_only,
      Cell::shared,
      Cell::input_only,
      Cell::states,
      Cell::saved};
}

// Whether it is more than one pre-activation, whose place the state takes.
template <class Cell>
constexpr bool is_gated() {
  return shape_as<Cell>().slabs() > 1;
}

// Whether its activation is a program.
template <class Cell>
constexpr bool is_traced() {
  if constexpr (is_gated<Cell>()) {
    return false;
  } else {
    return Cell::activation == Activation::traced;
  }
}

constexpr int kMostStates = 2;
constexpr int kMostSlabs = 4;

constexpr CellShape shape_of(CellKind kind) {
  switch (kind) {
    case CellKind::gru:
      return shape_as<Gru>();
    case CellKind::lstm:
      return shape_as<Lstm>();
    default:
      return shape_as<Elman<Activation::tanh>>();
  }
}

} // namespace mlx_recurrent::kernels
