// The threads that share a call: persistent, parked when idle.

#pragma once

#include "kernels.h"

namespace mlx_recurrent::kernels {

// Runs work(member, context) once for each member of a team of at most
// `threads`, the calling thread being the first of them, and returns when all
// are done. Where the threads are busy with another call, or cannot be had, the
// team is smaller; work must be right for a team of any size.
void run_team(
    int threads,
    void (*work)(const Member& member, void* context),
    void* context);

// The most threads a call may use; at first `usable_cores` (cores.h).
int num_threads();
void set_num_threads(int n); // at least 1; at most kMostThreads are used

constexpr int kMostThreads = 256;

} // namespace mlx_recurrent::kernels
