// What the engine knows of a cell: how many pre-activations a unit has, of
// which kinds, and how they lie in its weights and in scratch memory.

#pragma once

#include "elman.h"
#include "gru.h"
#include "kernels.h"
#include "lstm.h"

namespace mlx_recurrent::kernels {

// A cell that is a program: its shape is known when it runs.
struct ProgramCell {};

template <class Cell>
constexpr CellShape shape_as() {
  return {
      Cell::state_only,
      Cell::shared,
      Cell::input_only,
      Cell::states,
      Cell::saved};
}

// Whether it is a program.
template <class Cell>
constexpr bool is_program() {
  return __is_same(Cell, ProgramCell);
}

// Whether it is more than one pre-activation, whose place the state takes.
template <class Cell>
constexpr bool is_gated() {
  if constexpr (is_program<Cell>()) {
    return true;
  } else {
    return shape_as<Cell>().slabs() > 1;
  }
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

// The shape of a cell, which is known before but of a program.
template <class Cell>
struct ShapeOf {
  static constexpr CellShape shape = shape_as<Cell>();
  static constexpr int most_states = shape.states;

  explicit ShapeOf(const CellShape&) {
  }
};

template <>
struct ShapeOf<ProgramCell> {
  const CellShape shape;
  static constexpr int most_states = kMostStates;

  explicit ShapeOf(const CellShape& shape) : shape(shape) {
  }
};

// How many slabs of the state, or of the input, it has; 0: that is known when
// it runs.
template <class Cell>
constexpr int state_slabs_of() {
  if constexpr (is_program<Cell>()) {
    return 0;
  } else {
    return shape_as<Cell>().state_slabs();
  }
}

template <class Cell>
constexpr int input_slabs_of() {
  if constexpr (is_program<Cell>()) {
    return 0;
  } else {
    return shape_as<Cell>().input_slabs();
  }
}

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

inline CellShape shape_of(const RecurrenceArgs& layer) {
  return layer.kind == CellKind::program ? layer.programs->shape
                                         : shape_of(layer.kind);
}

} // namespace mlx_recurrent::kernels
