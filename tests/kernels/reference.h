// What the kernels compute, slow and obvious: loops over indices, in float64.
// Arrays are row-major; a null array is a term that is absent.

#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "uncertain.h"

namespace kernel_tests {

using mlx_recurrent::kernels::Activation;

typedef std::vector<Uncertain> Numbers;

// x (N, L, D), Wxh (H, D), bias (H), Whh (H, H), hidden (N, H). Where it is
// `projected` there is no Wxh.
struct Layer {
  int64_t N, L, D, H;
  Activation activation;
  int64_t program; // of a traced activation: see traced.h
  bool projected;
  const double* x;
  const double* Wxh;
  const double* bias;
  const double* Whh;
  const double* hidden;
};

// Each state (N, L, H) from the one before it in `states`: so that errors do
// not add up over time, and what is allowed of each is small.
Numbers next_states(
    const Layer& layer,
    const std::vector<double>& states,
    Rounding rounding);

struct Gradients {
  Numbers dx, dWxh, dbias, dWhh, dhidden;
};

// Of the sum of dstates * states, both (N, L, H), and of dstate (N, H) times
// the last of them, or what stands for it where there are no steps.
Gradients gradients(
    const Layer& layer,
    const std::vector<double>& states,
    const double* dstates,
    const double* dstate,
    Rounding rounding);

// y_t = s_t + beta_t * V (gamma_p * y_p), p the step before t in the direction
// of the run; at first `hidden` stands for gamma_p * y_p.
struct LinearScan {
  int64_t N, L, H;
  bool reverse;
  const double* s;
  const double* V;
  const double* beta;
  const double* gamma;
  const double* hidden;
};
Numbers linear_scan(const LinearScan& scan, Rounding rounding);

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
