#include "mlx_faults/stream_threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_set>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "mlx_faults/file_readers.h"
#include "mlx_faults/scheduler.h"

namespace mlx_recurrent {

namespace {

std::atomic<int> fork_count{0};
std::atomic<bool> any_lost{false};
std::vector<int> lost_streams; // written in a new child, which is one thread

void after_fork_in_child() {
  fork_count.fetch_add(1);
  lost_streams = renew_scheduler();
  any_lost.store(!lost_streams.empty());
}

bool is_lost(const mx::Stream& stream) {
  return any_lost.load(std::memory_order_relaxed) &&
      stream.device == mx::Device::cpu &&
      std::find(lost_streams.begin(), lost_streams.end(), stream.index) !=
      lost_streams.end();
}

[[noreturn]] void refuse_lost(const mx::Stream& stream) {
  std::ostringstream text;
  text << "[mlx_recurrent] " << stream
       << " has no thread in this process, which was forked after MLX had used "
          "the stream: an evaluation on it would never end. Begin the child "
          "with mx.set_default_stream(mx.new_stream(mx.cpu)), and with "
          "mx.random.seed(...) where it draws random numbers, and evaluate "
          "before the fork what it needs; or start processes by "
          "multiprocessing.set_start_method(\"spawn\").";
  throw std::runtime_error(text.str());
}

[[noreturn]] void refuse_key(const mx::Stream& stream) {
  std::ostringstream text;
  text << "[mlx_recurrent] The key of random numbers was made before this "
          "process was forked, on "
       << stream
       << ", which has no thread here: they would never be there. Begin the "
          "child with mx.random.seed(...), beside "
          "mx.set_default_stream(mx.new_stream(mx.cpu)), before it makes "
          "layers or draws; a key of your own evaluate before the fork.";
  throw std::runtime_error(text.str());
}

bool is_pending(const mx::array& a) {
  return a.status() != mx::array::Status::available && a.has_primitive();
}

// Why this thread cannot use a stream, in MLX's words.
std::optional<std::string> obstacle_of(const mx::Stream& stream) {
  if (stream.device != mx::Device::cpu) {
    return std::nullopt;
  }
  try {
    mx::cpu::get_command_encoder(stream);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return std::nullopt;
}

[[noreturn]] void refuse_thread(const std::string& obstacle) {
  throw std::runtime_error(
      "[mlx_recurrent] " + obstacle +
      " Only the thread that made an array can compute it. Before another one "
      "uses it call mx.eval(array) there, or for a layer's weights "
      "mx.eval(layer.parameters()).");
}

void expect_thread_of(const mx::array& pending) {
  const mx::Stream& stream = pending.primitive().stream();
  if (any_lost.load(std::memory_order_relaxed)) {
    if (reads_file(pending.primitive())) {
      expect_file_readers();
    }
    expect_thread(stream);
  }
  if (auto obstacle = obstacle_of(stream)) {
    refuse_thread(*obstacle);
  }
}

// Each draw makes a key of the one before, in a chain that may be long.
void expect_key(mx::array key) {
  for (int i = 0; i < 10'000 && is_pending(key) && !key.inputs().empty(); ++i) {
    if (is_lost(key.primitive().stream())) {
      refuse_key(key.primitive().stream());
    }
    key = mx::array(key.inputs()[0]);
  }
}

// The nearest first.
void expect_threads(const std::vector<mx::array>& arrays, size_t most_seen) {
  std::deque<mx::array> next(arrays.begin(), arrays.end());
  std::unordered_set<std::uintptr_t> seen;
  while (!next.empty() && seen.size() < most_seen) {
    mx::array a = next.front();
    next.pop_front();
    if (is_pending(a) && seen.insert(a.id()).second) {
      expect_thread_of(a);
      if (std::strcmp(a.primitive().name(), "RandomBits") == 0) {
        expect_key(a.inputs()[0]);
      }
      next.insert(next.end(), a.inputs().begin(), a.inputs().end());
    }
  }
}

} // namespace

void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] {
    make_scheduler();
    pthread_atfork(hold_scheduler, give_scheduler_back, after_fork_in_child);
  });
}

void expect_thread(const mx::Stream& stream) {
  if (is_lost(stream)) {
    refuse_lost(stream);
  }
}

mx::Stream stream_of(const mx::StreamOrDevice& stream) {
  mx::Stream found = mx::to_stream(stream);
  expect_thread(found);
  return found;
}

void expect_threads(const std::vector<mx::array>& arrays) {
  expect_threads(arrays, std::numeric_limits<size_t>::max());
}

void expect_after_fork(const std::vector<mx::array>& arrays) {
  if (any_lost.load(std::memory_order_relaxed)) {
    expect_threads(arrays, 200);
  }
}

void expect_operands(
    const std::vector<mx::array>& operands,
    const mx::Stream& s) {
  expect_after_fork(operands);
  const mx::array* next[32];
  int seen = 0;
  auto see = [&](const std::vector<mx::array>& arrays) {
    for (const mx::array& a : arrays) {
      if (is_pending(a) && seen < 32) {
        next[seen++] = &a;
      }
    }
  };
  see(operands);
  for (int i = 0; i < seen; ++i) {
    const mx::Stream& stream = next[i]->primitive().stream();
    if (stream != s) {
      auto obstacle = obstacle_of(stream);
      // Who works on another thread's stream leaves the evaluation to it.
      if (obstacle && !obstacle_of(s)) {
        refuse_thread(*obstacle);
      }
    }
    if (next[i]->inputs().size() <= 2) {
      see(next[i]->inputs());
    }
  }
}

std::optional<mx::Stream> lost_stream() {
  if (!any_lost.load(std::memory_order_relaxed)) {
    return std::nullopt;
  }
  return mx::Stream(lost_streams.front(), mx::Device::cpu);
}

int forks() {
  return fork_count.load(std::memory_order_relaxed);
}

} // namespace mlx_recurrent
