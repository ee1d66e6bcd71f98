// MLX's scheduler across a fork.
//
// Fault: a child forked while a thread holds the scheduler's locks waits for
// them for ever, one forked while tasks are under way waits for these, and
// nothing tells which streams have lost their thread: to ask one would be to
// wait for its answer.
// MLX: 0.32.0 to 0.32.4.
// Shown by: test_fork_while_others_compute,
//   test_fork_while_mlx_has_much_to_do,
//   test_forked_child_is_told_what_to_do

#pragma once

#include <vector>

namespace mlx_recurrent {

// MLX makes it where it is first asked for; a fork is not the place.
void make_scheduler();

// Before a fork: no other thread is then in the middle of what its locks
// protect. In the parent they are given back.
void hold_scheduler();
void give_scheduler_back();

// In the child, which is one thread: makes it usable, and returns the streams
// whose threads were left behind. None where MLX does not tell.
std::vector<int> renew_scheduler();

} // namespace mlx_recurrent
