#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <thread>

#include "cores.h"

namespace mlx_recurrent::kernels {

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins for a while, then sleeps: a member whose core is taken away must not be
// waited for at the price of the core it needs. Who sleeps gets a core before
// those that never do; who yields comes after all of them, and where several
// spin on each core a step then takes as long as their turns.
class Patience {
 public:
  explicit Patience(std::chrono::microseconds spins) : spins_(spins) {
  }

  void spend() {
    if (turns_ < 0) {
      timespec shortly{0, 1000}; // of which the system makes 50 us or more
      nanosleep(&shortly, nullptr);
      return;
    }
    relax();
    if (++turns_ % 64 == 0) {
      auto now = std::chrono::steady_clock::now();
      if (turns_ == 64) {
        begun_ = now;
      } else if (now - begun_ > spins_) {
        turns_ = -1;
      }
    }
  }

 private:
  std::chrono::microseconds spins_;
  std::chrono::steady_clock::time_point begun_;
  int turns_ = 0;
};

// Members of a step are done at nearly the same time, those of a batch are not.
constexpr std::chrono::microseconds kSpinsOfStep{100};
constexpr std::chrono::microseconds kSpinsOfCall{1000};

// Each member writes its own line and reads those of the others, so that one
// exchange of lines is all that a barrier costs.
struct alignas(128) Place {
  std::atomic<uint32_t> arrived{0};
};

struct Team {
  Place places[kMostThreads];
  int count = 0;
};

void wait_for_team(void* barrier, int index) {
  Team* team = static_cast<Team*>(barrier);
  uint32_t epoch =
      team->places[index].arrived.load(std::memory_order_relaxed) + 1;
  team->places[index].arrived.store(epoch, std::memory_order_release);
  for (int i = 0; i < team->count; ++i) {
    Patience patience(kSpinsOfStep);
    while (static_cast<int32_t>(
               team->places[i].arrived.load(std::memory_order_acquire) -
               epoch) < 0) {
      patience.spend();
    }
  }
}

class Pool {
 public:
  // False where the threads are busy with another call.
  bool try_run(int threads, void (*work)(const Member&, void*), void* context) {
    if (busy_.test_and_set(std::memory_order_acquire)) {
      return false;
    }
    int count = 1 + provide(threads - 1);
    work_ = work;
    context_ = context;
    team_.count = count;
    for (int i = 0; i < count; ++i) {
      team_.places[i].arrived.store(0, std::memory_order_relaxed);
    }
    running_.store(count - 1, std::memory_order_relaxed);
    avoid_this_core(count - 1);
    for (int i = 0; i < count - 1; ++i) {
      workers_[i].calls.fetch_add(1, std::memory_order_release);
      workers_[i].calls.notify_one();
    }
    work(Member{0, count, wait_for_team, &team_}, context);
    Patience patience(kSpinsOfCall);
    while (running_.load(std::memory_order_acquire) != 0) {
      patience.spend();
    }
    busy_.clear(std::memory_order_release);
    return true;
  }

 private:
  struct alignas(128) Worker {
    std::atomic<uint32_t> calls{0};
    pthread_t thread; // its threads never end
    int avoids = -1;
  };

  // Starts workers up to `wanted`; returns how many there are, at most that.
  int provide(int wanted) {
    while (started_ < wanted) {
      // Signals belong to the program's own threads.
      sigset_t all, before;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
      bool failed = false;
      try {
        std::thread worker(&Pool::serve, this, started_);
        workers_[started_].thread = worker.native_handle();
        worker.detach();
      } catch (...) { // no thread, or no memory for one
        failed = true;
      }
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      if (failed) {
        return started_;
      }
      ++started_;
    }
    return wanted;
  }

  void serve(int index) {
#if defined(__APPLE__)
    // A thread without a class is moved to the slow cores after minutes.
    pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
#endif
    Worker& me = workers_[index];
    uint32_t seen = 0;
    for (;;) {
      // Layers often follow each other: look out for a while before parking.
      for (int i = 0;
           i < 2000 && me.calls.load(std::memory_order_acquire) == seen;
           ++i) {
        relax();
      }
      me.calls.wait(seen, std::memory_order_acquire);
      seen = me.calls.load(std::memory_order_acquire);
      work_(Member{index + 1, team_.count, wait_for_team, &team_}, context_);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  // A worker that wakes up on the caller's core waits there for milliseconds
  // while the caller waits for it; so for this call it may run anywhere else.
  void avoid_this_core(int count) {
#if defined(__linux__)
    int core = sched_getcpu();
    for (int i = 0; i < count; ++i) {
      Worker& worker = workers_[i];
      if (core < 0 || worker.avoids == core) {
        continue;
      }
      cpu_set_t set;
      if (sched_getaffinity(0, sizeof(set), &set) != 0) {
        continue;
      }
      CPU_CLR(core, &set);
      if (CPU_COUNT(&set) > 0 &&
          pthread_setaffinity_np(worker.thread, sizeof(set), &set) == 0) {
        worker.avoids = core;
      }
    }
#else
    (void)count;
#endif
  }

  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  int started_ = 0;
  void (*work_)(const Member&, void*) = nullptr;
  void* context_ = nullptr;
  Team team_;
  std::atomic<int> running_{0};
  Worker workers_[kMostThreads];
};

// Never destroyed: its threads may outlive the static objects. A forked child
// has none of the threads, so it starts with a new pool.
std::atomic<Pool*> the_pool{nullptr};

Pool* pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found) {
    return found;
  }
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
  });
  Pool* fresh = new (std::nothrow) Pool;
  if (!fresh) {
    return nullptr;
  }
  if (the_pool.compare_exchange_strong(found, fresh)) {
    return fresh;
  }
  delete fresh;
  return found;
}

std::atomic<int> chosen_threads{0};

} // namespace

void run_team(
    int threads,
    void (*work)(const Member& member, void* context),
    void* context) {
  if (threads > 1) {
    Pool* shared = pool();
    if (shared &&
        shared->try_run(
            threads < kMostThreads ? threads : kMostThreads, work, context)) {
      return;
    }
  }
  work(Member{0, 1, nullptr, nullptr}, context);
}

int num_threads() {
  int chosen = chosen_threads.load(std::memory_order_relaxed);
  if (chosen == 0) {
    chosen = usable_cores();
    chosen_threads.store(chosen, std::memory_order_relaxed);
  }
  return chosen;
}

void set_num_threads(int n) {
  chosen_threads.store(
      n < kMostThreads ? n : kMostThreads, std::memory_order_relaxed);
}

} // namespace mlx_recurrent::kernels
