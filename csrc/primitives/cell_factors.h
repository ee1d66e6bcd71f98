// The Jacobian of one step of a gated cell, from its formulas.

#pragma once

#include "kernels/cell.h"
#include "primitives/cell_program.h"
#include "primitives/linear_scan.h"

namespace mlx_recurrent {

// A unit's factors, as arrays along time: to a state from a state before, and
// to a state from a pre-activation. What is not there is zero.
struct CellFactors {
  std::vector<ScanPath> states;
  std::vector<ScanPath> slabs;
  std::vector<ScanPath> parameters; // of a program
};

// Of the pre-activations, in the order of kernels::CellShape, and of the states
// before. Where a state keeps units, `updated` is 1 for those that it does not
// keep, and 0.
CellFactors factors_of(
    kernels::CellKind kind,
    const Arrays& slabs,
    const Arrays& before,
    const StateArrays& updated,
    const mx::Stream& stream);

// The same of a program, whose parameters lie side by side.
CellFactors factors_of(
    const CellProgram& program,
    const Arrays& slabs,
    const Arrays& before,
    const std::optional<mx::array>& parameters,
    const StateArrays& updated,
    const mx::Stream& stream);

} // namespace mlx_recurrent
