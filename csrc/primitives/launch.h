// Puts a kernel on a stream. Everything is allocated here, at evaluation; the
// task that the stream runs only computes.

#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/partition.h"
#include "kernels/team.h"
#include "mlx/backend/cpu/encoder.h"
#include "primitives/memory.h"
#include "primitives/operand.h"

namespace mlx_recurrent {

template <class Args>
void launch(
    const mx::Stream& stream,
    const kernels::Kernel<Args>& kernel,
    const Args& args,
    const kernels::Partition& partition,
    std::shared_ptr<Operands> operands) {
  struct Task {
    kernels::Kernel<Args> kernel;
    Args args;
    kernels::Partition partition;
    std::shared_ptr<Operands> operands;
    Scratch scratch;

    static void run(const kernels::Member& member, void* task) {
      Task& t = *static_cast<Task*>(task);
      t.kernel.run(t.args, t.partition, member, t.scratch.data());
    }
  };
  // Not an aggregate's parentheses, which Clang 14 does not know.
  std::shared_ptr<Task> task(new Task{
      kernel,
      args,
      partition,
      std::move(operands),
      Scratch(kernel.scratch(args, partition))});
  mx::cpu::get_command_encoder(stream).dispatch([task] {
    int threads = task->partition.threads;
    if (threads > 1) {
      threads = std::min(threads, kernels::cores_now());
    }
    kernels::run_team(threads, Task::run, task.get());
  });
}

inline const kernels::TypedKernels& kernels_for(const mx::array& a) {
  return kernels::table()->types[static_cast<int>(kernel_type(a.dtype()))];
}

inline kernels::Machine machine_now() {
  return kernels::this_machine(kernels::num_threads());
}

} // namespace mlx_recurrent
