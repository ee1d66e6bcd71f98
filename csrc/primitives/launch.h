// Puts a kernel on a stream. Everything is allocated here, at evaluation; the
// task that the stream runs only computes.

#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include "kernels/partition.h"
#include "kernels/team.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
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
    mx::allocator::Data scratch;
  };
  mx::allocator::Data scratch =
      mx::allocator::malloc(kernel.scratch(args, partition));
  if (!scratch.buffer().raw_ptr()) {
    throw std::bad_alloc();
  }
  auto task = std::make_shared<Task>(
      Task{kernel, args, partition, std::move(operands), std::move(scratch)});
  mx::cpu::get_command_encoder(stream).dispatch([task] {
    kernels::run_team(
        std::min(task->partition.threads, kernels::cores_now()),
        [](const kernels::Member& member, void* context) {
          Task& t = *static_cast<Task*>(context);
          t.kernel.run(
              t.args,
              t.partition,
              member,
              static_cast<char*>(t.scratch.buffer().raw_ptr()));
        },
        task.get());
  });
}

inline const kernels::TypedKernels& kernels_for(const mx::array& a) {
  return kernels::table()->types[static_cast<int>(kernel_type(a.dtype()))];
}

inline kernels::Machine machine_now() {
  return kernels::this_machine(kernels::num_threads());
}

// A large result is new memory at each call, and touching it a small page at a
// time costs more than computing it: ask for huge pages before the first write.
inline void allocate(mx::array& out) {
  mx::allocator::Data data = mx::allocator::malloc(out.nbytes());
  if (out.nbytes() > 0 && !data.buffer().raw_ptr()) {
    throw std::bad_alloc();
  }
  out.set_data(std::move(data));
#if defined(__linux__)
  constexpr size_t kLarge = size_t{32} << 20;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (out.nbytes() >= kLarge) {
    uintptr_t first = reinterpret_cast<uintptr_t>(out.data<char>());
    uintptr_t last = (first + out.nbytes()) & ~(kHugePage - 1);
    first = (first + kHugePage - 1) & ~(kHugePage - 1);
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

} // namespace mlx_recurrent
