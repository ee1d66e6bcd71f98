#include "mlx_faults/scheduler.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <unordered_map>

#include "mlx/scheduler.h"

namespace mlx_recurrent {

using mlx::core::scheduler::Scheduler;
using mlx::core::scheduler::scheduler;
using mlx::core::scheduler::StreamThread;

void make_scheduler() {
  scheduler();
}

#if defined(MLX_HAS_SCHEDULER_MEMBERS)

namespace {

struct Private {
  std::unordered_map<int, std::unique_ptr<StreamThread>>& threads;
  std::shared_mutex& threads_lock;
  int& tasks;
  std::mutex& tasks_lock;
  std::condition_variable& task_done;
};
Private private_of(Scheduler& scheduler);

// An explicit instantiation may name private members.
template <auto... members>
struct Members {
  friend Private private_of(Scheduler& scheduler) {
    return {scheduler.*members...};
  }
};
template struct Members<
    &Scheduler::threads_,
    &Scheduler::threads_mtx_,
    &Scheduler::n_active_tasks_,
    &Scheduler::mtx,
    &Scheduler::completion_cv>;

} // namespace

void hold_scheduler() {
  Private held = private_of(scheduler());
  held.threads_lock.lock();
  held.tasks_lock.lock();
}

void give_scheduler_back() {
  Private held = private_of(scheduler());
  held.tasks_lock.unlock();
  held.threads_lock.unlock();
}

std::vector<int> renew_scheduler() {
  Private held = private_of(scheduler());
  held.tasks_lock.unlock();
  // It knows its owner by a number that is another one in the child.
  new (&held.threads_lock) std::shared_mutex;
  // An evaluation waits where many tasks are under way; here nobody runs them.
  held.tasks = 0;
  new (&held.task_done) std::condition_variable;
  std::vector<int> lost;
  for (const auto& [index, thread] : held.threads) {
    lost.push_back(index);
  }
  return lost;
}

#else

void hold_scheduler() {
}

void give_scheduler_back() {
}

std::vector<int> renew_scheduler() {
  return {};
}

#endif

} // namespace mlx_recurrent
