// What this machine can do at most, measured when asked: each figure is the
// best of several short runs, since nothing makes a run too fast.

#pragma once

#include <stddef.h>

namespace mlx_recurrent::kernels {

// Floating-point operations a second of float32 multiply-adds on `threads`.
double multiply_add_rate(int threads);

// Bytes a second that `threads` read together, each from `bytes` of its own.
double read_rate(int threads, size_t bytes);

// Seconds for one element of the project's tanh, on one thread.
double tanh_seconds();

// Seconds for a cache line to go to another core and back; 0 where a team of
// two cannot be had.
double exchange_seconds();

} // namespace mlx_recurrent::kernels
