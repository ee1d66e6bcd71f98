#include "machine_speed.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "team.h"

namespace mlx_recurrent::kernels {

namespace {

constexpr int kRuns = 9;
constexpr double kRunSeconds = 2e-3;

double now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void wait(const Member& member) {
  if (member.count > 1) {
    member.wait(member.barrier, member.index);
  }
}

// Floats on a cache line of their own.
class Buffer {
 public:
  Buffer(size_t count, float value)
      : data_(
            static_cast<float*>(
                ::operator new(count * sizeof(float), std::align_val_t{128}))) {
    std::uninitialized_fill_n(data_, count, value);
  }
  Buffer(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : data_(other.data_) {
    other.data_ = nullptr;
  }
  ~Buffer() {
    ::operator delete(data_, std::align_val_t{128});
  }
  float* data() const {
    return data_;
  }

 private:
  float* data_;
};

// The most that `loop(member, rounds)` gets done a second by a team. It
// returns how much it did.
template <class Loop>
double best_rate(int threads, const Loop& loop) {
  struct Run {
    const Loop& loop;
    int64_t rounds;
    double seconds;
    double done[kMostThreads];
    int count;
  };
  auto run = std::make_unique<Run>(Run{loop, 1, 0, {}, 0});
  auto work = [](const Member& member, void* context) {
    Run& r = *static_cast<Run*>(context);
    wait(member);
    double start = now();
    r.done[member.index] = r.loop(member, r.rounds);
    wait(member);
    if (member.index == 0) {
      r.seconds = now() - start;
      r.count = member.count;
    }
  };
  do {
    run->rounds *= 2;
    run_team(threads, work, run.get());
  } while (run->seconds < kRunSeconds);
  double best = 0;
  for (int i = 0; i < kRuns; ++i) {
    run_team(threads, work, run.get());
    double done = 0;
    for (int member = 0; member < run->count; ++member) {
      done += run->done[member];
    }
    best = done / run->seconds > best ? done / run->seconds : best;
  }
  return best;
}

std::vector<Buffer> buffers(int count, size_t floats, float value) {
  std::vector<Buffer> all;
  for (int i = 0; i < count; ++i) {
    all.emplace_back(floats, value);
  }
  return all;
}

} // namespace

double multiply_add_rate(int threads) {
  threads = threads > 0 ? threads : 1;
  // x / 2 + 1/2 stays near 1.
  std::vector<Buffer> operands = buffers(threads, 64, 0.5f);
  return best_rate(threads, [&](const Member& member, int64_t rounds) {
    return table()->measure.multiply_add(rounds, operands[member.index].data());
  });
}

double read_rate(int threads, size_t bytes) {
  threads = threads > 0 ? threads : 1;
  size_t count = bytes / sizeof(float) / 256 * 256;
  count = count == 0 ? 256 : count;
  std::vector<Buffer> data = buffers(threads, count, 1.0f);
  std::vector<Buffer> sinks = buffers(threads, 64, 0.0f);
  return best_rate(threads, [&](const Member& member, int64_t rounds) {
    table()->measure.read(
        rounds,
        data[member.index].data(),
        static_cast<int64_t>(count),
        sinks[member.index].data());
    return static_cast<double>(rounds) * static_cast<double>(count) *
        sizeof(float);
  });
}

double tanh_seconds() {
  // Within the first cache, and of every magnitude that matters.
  constexpr int64_t count = 2048;
  Buffer data(count, 0), out(count, 0);
  for (int64_t i = 0; i < count; ++i) {
    data.data()[i] = 4.0f * static_cast<float>(i - count / 2) / (count / 2);
  }
  double rate = best_rate(1, [&](const Member&, int64_t rounds) {
    table()->measure.tanh(rounds, data.data(), count, out.data());
    return static_cast<double>(rounds * count);
  });
  return 1 / rate;
}

double exchange_seconds() {
  struct alignas(128) Line {
    std::atomic<int> turn{0};
  };
  Line line;
  auto pass_on = [&](int mine, int next) {
    for (int spent = 0; line.turn.load(std::memory_order_acquire) != mine;) {
      // The other's core may be taken away, or be this one.
      if (++spent > 100000) {
        std::this_thread::yield();
      }
    }
    line.turn.store(next, std::memory_order_release);
  };
  bool alone = false;
  double rate = best_rate(2, [&](const Member& member, int64_t rounds) {
    if (member.count < 2) {
      alone = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    } else {
      for (int64_t round = 0; round < rounds; ++round) {
        pass_on(member.index, 1 - member.index);
      }
    }
    return member.index == 0 ? static_cast<double>(rounds) : 0.0;
  });
  return alone ? 0 : 1 / rate;
}

} // namespace mlx_recurrent::kernels
