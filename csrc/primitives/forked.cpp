#include "primitives/forked.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "mlx/primitives.h"
#include "mlx/scheduler.h"
#include "mlx/utils.h"

namespace mlx_recurrent {

namespace {

using mx::scheduler::Scheduler;

// MLX does not tell which streams have a thread, and to ask one would be to
// wait for its answer. An explicit instantiation may name private members; the
// package is built for one exact version of MLX.
using Threads =
    std::unordered_map<int, std::unique_ptr<mx::scheduler::StreamThread>>;
Threads& threads_of(Scheduler& scheduler);

template <auto threads>
struct Members {
  friend Threads& threads_of(Scheduler& scheduler) {
    return scheduler.*threads;
  }
};
template struct Members<&Scheduler::threads_>;

std::atomic<bool> any_lost{false};
std::vector<int> lost_streams; // written in a new child, which is one thread

void after_fork_in_child() {
  lost_streams.clear();
  for (const auto& [index, thread] : threads_of(mx::scheduler::scheduler())) {
    lost_streams.push_back(index);
  }
  any_lost.store(!lost_streams.empty());
}

bool is_lost(const mx::Stream& stream) {
  return stream.device == mx::Device::cpu &&
      std::find(lost_streams.begin(), lost_streams.end(), stream.index) !=
      lost_streams.end();
}

[[noreturn]] void refuse(const mx::Stream& stream) {
  std::ostringstream text;
  text << "[mlx_recurrent] " << stream
       << " has no thread in this process, which was forked after MLX had used "
          "the stream: an evaluation on it would never end. Begin the child "
          "with mx.set_default_stream(mx.new_stream(mx.cpu)) and evaluate "
          "before the fork what it needs, or start processes by "
          "multiprocessing.set_start_method(\"spawn\").";
  throw std::runtime_error(text.str());
}

} // namespace

void watch_forks() {
  static std::once_flag once;
  std::call_once(
      once, [] { pthread_atfork(nullptr, nullptr, after_fork_in_child); });
}

void expect_thread(const mx::Stream& stream) {
  if (any_lost.load(std::memory_order_relaxed) && is_lost(stream)) {
    refuse(stream);
  }
}

void expect_threads(const std::vector<mx::array>& arrays) {
  if (!any_lost.load(std::memory_order_relaxed)) {
    return;
  }
  // The nearest first, and no more than so many: a loop that evaluates late
  // would walk through all that it made at each of its steps.
  constexpr size_t kMostSeen = 200;
  std::deque<mx::array> next(arrays.begin(), arrays.end());
  std::unordered_set<std::uintptr_t> seen;
  while (!next.empty() && seen.size() < kMostSeen) {
    mx::array a = next.front();
    next.pop_front();
    if (a.status() == mx::array::Status::available || !a.has_primitive() ||
        !seen.insert(a.id()).second) {
      continue;
    }
    if (is_lost(a.primitive().stream())) {
      refuse(a.primitive().stream());
    }
    next.insert(next.end(), a.inputs().begin(), a.inputs().end());
  }
}

} // namespace mlx_recurrent
