// What a cell makes of one unit at one step, and back: all that one cell has of
// its own. A new cell is one more entry.

#pragma once

#include "kernels/kernels.h"
#include "uncertain.h"

namespace kernel_tests {

using mlx_recurrent::kernels::Activation;
using mlx_recurrent::kernels::CellKind;
using mlx_recurrent::kernels::Type;

constexpr int kMostSlabs = 4;
constexpr int kMostStates = 2;

// Of an Elman cell: f, which may be a program (see traced.h).
struct Nonlinearity {
  Activation activation;
  int64_t program;
};

// One unit at one step.
struct Unit {
  Nonlinearity f;
  Type type;               // that states are kept in
  Uncertain z[kMostSlabs]; // of each slab what Wxh gives, with its bias
  Uncertain u[kMostSlabs]; // what Whh gives; 0 where there is no state before
  double bhn;
  double q[kMostStates]; // the states before
  // The states after, as a kernel left them; null where they are not those that
  // the cell gives.
  const double* after[kMostStates];
};

struct UnitResult {
  Uncertain y[kMostStates]; // the states that the cell gives
  Uncertain saved[kMostSlabs];
};

// Cotangents of what a unit sees.
struct UnitCotangents {
  Uncertain z[kMostSlabs], u[kMostSlabs], q[kMostStates];
};

struct Cell {
  int slabs;  // blocks of H rows in Wxh and Whh
  int states; // the first is the output, and what Whh sees
  int saved;  // blocks of what the forward pass keeps for the backward pass
  bool has_bhn;
  UnitResult (*step)(const Unit& unit, Rounding rounding);
  // From the cotangents of the states that the cell gives.
  UnitCotangents (*pull)(
      const Unit& unit,
      const Uncertain (&d)[kMostStates],
      Rounding rounding);
};

const Cell& cell_of(CellKind kind);

// A traced activation of an input, and its derivative there.
Uncertain traced_value(int64_t program, Uncertain a, Rounding rounding);
Uncertain traced_slope(int64_t program, Uncertain a, Rounding rounding);

} // namespace kernel_tests
