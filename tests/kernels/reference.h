// What the kernels compute, slow and obvious: loops over indices, in float64.
// Arrays are row-major; a null array is a term that is absent. A term whose
// factor is 0 is absent as well.

#pragma once

#include <vector>

#include "cells.h"
#include "runs.h"
#include "threefry.h"
#include "uncertain.h"

namespace kernel_tests {

typedef std::vector<Uncertain> Numbers;

// With G slabs of the cell: x (N, L, D), Wxh (G H, D), bias (G H), Whh (G H,
// H), bhn (H), leak (H); of each state the first ones (N, H) and those that
// episodes start from (H). Where it is `projected` there is no Wxh.
struct Layer {
  int64_t N, L, D, H;
  CellKind kind;
  Nonlinearity f;
  bool projected;
  const double* x;
  const double* Wxh;
  const double* bias;
  const double* Whh;
  const double* bhn;
  const double* first[kMostStates];
  const double* starts[kMostStates];
  const double* leak;
  Runs runs;
  Chances chances;
  Type type; // of operands and states

  const Cell& cell() const {
    return cell_of(kind);
  }
};

// Of each state of the cell all that a pass left, (N, L, H).
typedef std::vector<double> States[kMostStates];

struct Results {
  Numbers states[kMostStates];
  Numbers saved; // (N, L, blocks of H)
};

// What each step gives from the states before it in `states`: so that errors do
// not add up over time, and what is allowed of each is small. Zero where a row
// has no step.
Results next_states(
    const Layer& layer,
    const States& states,
    Rounding rounding);

struct Gradients {
  Numbers dx, dWxh, dbias, dWhh, dbhn, dleak;
  Numbers dfirst[kMostStates], dstarts[kMostStates];
};

// Cotangents: of all states (N, L, H), and of each row's after its last step,
// or what stands for it where there is none (N, H). Null: zero.
struct Cotangents {
  const double* states[kMostStates];
  const double* last[kMostStates];
};

// Of the sum of the cotangents times what they are of.
Gradients gradients(
    const Layer& layer,
    const States& states,
    const Cotangents& cotangents,
    Rounding rounding);

// From one state, or slab of V, to a state; without a factor it is one.
struct Path {
  int to, from;
  const double* factor; // (N, L, H)
};

// With u[j] state j of the step before in the run, or of `hidden`, or of
// `hidden0`, and n the step after,
//   y_t[i] = s_t[i] + sum A_t u[j] + sum B_t V_k (gamma_t u[0]), or transposed
//   y_t[j] = s_t[j] + sum A_n y_n[i], and y_t[0] + gamma_n V_k^T (B_n y_n[i]),
// over the paths of A from j to i, and of B from k to i. s, hidden and hidden0
// have an entry for each state: (N, L, H), (N, H), (H); V (slabs * H, H).
struct LinearScan {
  int64_t N, L, H;
  int slabs;
  bool transposed;
  std::vector<const double*> s;
  const double* V;
  std::vector<Path> A, B;
  const double* gamma;
  std::vector<const double*> hidden;
  std::vector<const double*> hidden0;
  Runs runs;
};
// Of each state.
std::vector<Numbers> linear_scan(const LinearScan& scan, Rounding rounding);

// x (rows, K) times w (M, K) transposed, and bias (M).
Numbers product(
    int64_t rows,
    int64_t K,
    int64_t M,
    const double* x,
    const double* w,
    const double* bias,
    Rounding rounding);

// A traced activation of each of `inputs`, and its derivative times
// `cotangents`.
Numbers traced_values(
    int64_t program,
    const std::vector<double>& inputs,
    Rounding rounding);
Numbers traced_products(
    int64_t program,
    const std::vector<double>& inputs,
    const std::vector<double>& cotangents,
    Rounding rounding);

// The sum over rows of a (rows, M) outer b (rows, K).
Numbers outer_sum(
    int64_t rows,
    int64_t M,
    int64_t K,
    const double* a,
    const double* b,
    Rounding rounding);

} // namespace kernel_tests
