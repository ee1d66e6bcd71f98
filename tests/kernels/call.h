// One call of a kernel by a team, in scratch memory of exactly the size that it
// asks for.

#pragma once

#include "kernels/kernels.h"
#include "kernels/team.h"
#include "operand.h"

namespace kernel_tests {

// False where something was written beside the scratch memory.
template <class Args>
bool call(
    const Kernel<Args>& kernel,
    const Args& args,
    const Partition& partition,
    int members,
    size_t offset = 16) {
  Guarded scratch(kernel.scratch(args, partition), offset);
  struct Task {
    const Kernel<Args>& kernel;
    const Args& args;
    const Partition& partition;
    char* scratch;
  } task = {kernel, args, partition, scratch.data()};
  run_team(
      members,
      [](const Member& member, void* context) {
        Task& t = *static_cast<Task*>(context);
        t.kernel.run(t.args, t.partition, member, t.scratch);
      },
      &task);
  return scratch.intact();
}

} // namespace kernel_tests
