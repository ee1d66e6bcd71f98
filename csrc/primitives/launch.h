// Puts a kernel on a stream. Everything is allocated here, at evaluation; the
// task that the stream runs only computes.

#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/cores.h"
#include "kernels/partition.h"
#include "kernels/team.h"
#include "mlx/backend/cpu/encoder.h"
#include "primitives/memory.h"
#include "primitives/operand.h"

namespace mlx_recurrent {

// `sets` are calls of one shape; `partition` is that of all together.
template <class Args>
void launch(
    const mx::Stream& stream,
    const kernels::Kernel<Args>& kernel,
    std::vector<Args> sets,
    const kernels::Partition& partition,
    std::shared_ptr<Operands> operands) {
  struct Task {
    kernels::Kernel<Args> kernel;
    std::vector<Args> sets;
    kernels::Partition each;
    bool apart; // each thread makes whole calls
    std::shared_ptr<Operands> operands;
    size_t bytes; // of scratch memory for a call
    Scratch scratch;
    std::atomic<size_t> next;

    static void run(const kernels::Member& member, void* task) {
      Task& t = *static_cast<Task*>(task);
      if (!t.apart) {
        for (size_t i = 0; i < t.sets.size(); ++i) {
          if (i > 0 && member.count > 1) {
            member.wait(member.barrier, member.index);
          }
          t.kernel.run(t.sets[i], t.each, member, t.scratch.data());
        }
        return;
      }
      char* scratch = t.scratch.data() + member.index * t.bytes;
      kernels::Member alone{0, 1, nullptr, nullptr};
      for (size_t i; (i = t.next.fetch_add(1)) < t.sets.size();) {
        t.kernel.run(t.sets[i], t.each, alone, scratch);
      }
    }
  };
  if (sets.empty()) {
    return;
  }
  bool apart = partition.split == kernels::Split::sets;
  kernels::Partition each =
      apart ? kernels::Partition{kernels::Split::none, 1, 1} : partition;
  size_t bytes = kernel.scratch(sets[0], each);
  // Not an aggregate's parentheses, which Clang 14 does not know.
  std::shared_ptr<Task> task(new Task{
      kernel,
      std::move(sets),
      each,
      apart,
      std::move(operands),
      bytes,
      Scratch(bytes * (apart ? partition.threads : 1)),
      {0}});
  int most = partition.threads;
  mx::cpu::get_command_encoder(stream).dispatch([task, most] {
    int threads = most > 1 ? std::min(most, kernels::cores_now()) : most;
    kernels::run_team(threads, Task::run, task.get());
  });
}

inline const kernels::TypedKernels& kernels_for(const mx::array& a) {
  return kernels::table()->types[static_cast<int>(kernel_type(a.dtype()))];
}

// Raises where the BLAS that was asked for cannot be used.
inline void expect_blas() {
  if (kernels::blas().fault[0]) {
    throw std::runtime_error(kernels::blas().fault);
  }
}

// What large float32 products go through; null: the kernels alone.
inline kernels::Sgemm sgemm() {
  expect_blas();
  return kernels::blas().sgemm;
}

inline kernels::Machine machine_now() {
  return kernels::this_machine(kernels::num_threads());
}

} // namespace mlx_recurrent
