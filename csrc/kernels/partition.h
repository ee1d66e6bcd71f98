// How a call is shared out among threads: a pure function of its shape, the
// number of threads and the caches. `sets` calls of one shape go together;
// where one of them would not divide the batch, each thread makes whole calls,
// which needs no barriers, if there are enough.

#pragma once

#include "kernels.h"

namespace mlx_recurrent::kernels {

struct Machine {
  int threads;
  int64_t level1_bytes; // of one core's private caches
  int64_t level2_bytes;
};

// The caches of this machine, or common sizes where it does not say.
Machine this_machine(int threads);

// A recurrence over N rows and L steps with H hidden and D input features (0
// where the input is projected already), of elements computed in
// `compute_bytes`. A hidden feature has so many pre-activations that Whh adds
// to, and that Wxh does.
Partition partition_recurrence(
    int64_t N,
    int64_t L,
    int64_t D,
    int64_t H,
    int compute_bytes,
    const Machine& machine,
    int64_t sets = 1,
    int state_slabs = 1,
    int input_slabs = 1);

// A product of `rows` rows of K with a matrix (M, K).
Partition partition_matmul(
    int64_t rows,
    int64_t K,
    int64_t M,
    const Machine& machine,
    int64_t sets = 1);

// A sum of `terms` outer products (M, K).
Partition partition_outer_sum(
    int64_t terms,
    int64_t M,
    int64_t K,
    const Machine& machine,
    int64_t sets = 1);

// A program of `instructions` over `count` elements.
Partition partition_pointwise(
    int64_t count,
    int instructions,
    const Machine& machine);

} // namespace mlx_recurrent::kernels
