// The thread pool alone: every member runs once, barriers hold, and nothing
// waits for ever, whatever is done to the process. A test that hangs is ended
// by SIGALRM; the last line then names it.
//
//   check_team [NAME...]    all tests, or those named

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "expect.h"
#include "kernels/cores.h"
#include "kernels/team.h"

#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif
#if defined(THREAD_SANITIZER) || defined(__SANITIZE_ADDRESS__)
#define SANITIZER 1
#endif

namespace {

using namespace mlx_recurrent::kernels;

constexpr unsigned kWatchdogSeconds = 100;

void meet(const Member& member) {
  if (member.count > 1) {
    member.wait(member.barrier, member.index);
  }
}

// A call whose members meet `rounds` times, and each time see what all others
// wrote before. Plain memory: the barrier alone orders it.
struct Rounds {
  int rounds;
  int late = -1; // the member that comes late to each of them
  int count = 0;
  int runs[kMostThreads] = {};
  int written[kMostThreads] = {};

  static void work(const Member& member, void* context) {
    Rounds& my = *static_cast<Rounds*>(context);
    ++my.runs[member.index];
    if (member.index == 0) {
      my.count = member.count;
    }
    for (int r = 1; r <= my.rounds; ++r) {
      if (member.index == my.late) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      my.written[member.index] = r;
      meet(member);
      for (int i = 0; i < member.count; ++i) {
        EXPECT(my.written[i] == r);
      }
      meet(member);
    }
  }
};

// Returns how many members there were.
int run_rounds(int threads, int rounds, int late = -1) {
  Rounds my{.rounds = rounds, .late = late};
  run_team(threads, Rounds::work, &my);
  EXPECT(my.count >= 1 && my.count <= threads);
  for (int i = 0; i < kMostThreads; ++i) {
    EXPECT(my.runs[i] == (i < my.count ? 1 : 0));
  }
  return my.count;
}

void teams_of_every_size() {
  for (int threads = 1; threads <= 8; ++threads) {
    for (int call = 0; call < 50; ++call) {
      // Nobody else asks for the threads, so they are to be had.
      EXPECT(run_rounds(threads, call % 7) == threads);
    }
  }
}

void many_barriers() {
  run_rounds(2, 20'000);
  run_rounds(5, 500);
}

void more_threads_than_cores() {
  EXPECT(run_rounds(64, 10) == 64);
  EXPECT(run_rounds(100'000, 1) == kMostThreads);
  EXPECT(run_rounds(2, 10) == 2);
}

// As if the scheduler had taken its core away.
void late_member() {
  for (int late = 0; late < 4; ++late) {
    EXPECT(run_rounds(4, 3, late) == 4);
  }
}

void callers_at_once() {
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([i] {
      for (int call = 0; call < 100; ++call) {
        run_rounds(2 + (i + call) % 4, 3);
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
}

void call_within_a_call() {
  run_team(
      3,
      [](const Member& member, void*) {
        meet(member);
        // The threads are taken: each member is a team of its own.
        EXPECT(run_rounds(3, 2) == 1);
        meet(member);
      },
      nullptr);
}

void number_of_threads() {
  int before = num_threads();
  EXPECT(before >= 1 && before == usable_cores());
  set_num_threads(7);
  EXPECT(num_threads() == 7);
  set_num_threads(100'000);
  EXPECT(num_threads() == kMostThreads);
  set_num_threads(before);
}

#if defined(__APPLE__)
// The workers have the class of what a user waits for; a caller keeps its own.
void class_of_service() {
  qos_class_t before = qos_class_self();
  run_team(
      2,
      [](const Member& member, void*) {
        EXPECT(
            member.index == 0 || qos_class_self() == QOS_CLASS_USER_INITIATED);
      },
      nullptr);
  EXPECT(qos_class_self() == before);
}
#endif

// Runs `work` in a child, which must end well.
template <class Work>
void in_child(Work work) {
  std::fflush(stdout);
  pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    alarm(kWatchdogSeconds);
    work();
    std::_Exit(0);
  }
  int status = -1;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

[[maybe_unused]] void fork_before_first_use() {
  in_child([] { EXPECT(run_rounds(3, 10) == 3); });
}

[[maybe_unused]] void fork_after_first_use() {
  EXPECT(run_rounds(3, 10) == 3);
  in_child([] {
    EXPECT(run_rounds(4, 10) == 4);
    in_child([] { EXPECT(run_rounds(2, 10) == 2); });
    EXPECT(run_rounds(4, 10) == 4);
  });
  EXPECT(run_rounds(3, 10) == 3);
}

// The child is a copy of a pool that is busy.
[[maybe_unused]] void fork_during_a_call() {
  std::atomic<bool> done{false};
  std::thread caller([&] {
    while (!done.load()) {
      run_rounds(3, 5);
    }
  });
  for (int i = 0; i < 20; ++i) {
    in_child([] { EXPECT(run_rounds(3, 5) == 3); });
  }
  done.store(true);
  caller.join();
}

#if defined(__linux__)
// Runs a team of 8 where so many more bytes of addresses are to be had, in a
// process that had no threads yet.
void with_memory(rlim_t bytes, int most) {
  in_child([=] {
    long pages = 0;
    std::FILE* file = std::fopen("/proc/self/statm", "r");
    EXPECT(file && std::fscanf(file, "%ld", &pages) == 1);
    std::fclose(file);
    rlim_t limit =
        static_cast<rlim_t>(pages) * static_cast<rlim_t>(getpagesize()) + bytes;
    rlimit limits = {limit, limit};
    EXPECT(setrlimit(RLIMIT_AS, &limits) == 0);
    EXPECT(run_rounds(8, 10) <= most);
    EXPECT(run_rounds(8, 10) <= most);
  });
}

// Where threads cannot be started the team is smaller.
[[maybe_unused]] void no_memory_for_threads() {
  with_memory(0, 1); // not even for the pool
  with_memory(1 << 20, 1);
  with_memory(20 << 20, 4);
}

// All members on one core: whoever waits must let the others run.
[[maybe_unused]] void one_core() {
  in_child([] {
    cpu_set_t set;
    EXPECT(sched_getaffinity(0, sizeof set, &set) == 0);
    int core = 0;
    while (!CPU_ISSET(core, &set)) {
      ++core;
    }
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    EXPECT(sched_setaffinity(0, sizeof set, &set) == 0);
    EXPECT(cores_now() == 1 && usable_cores() == 1);
    EXPECT(run_rounds(2, 1000) == 2);
    EXPECT(run_rounds(8, 100) == 8);
    cpu_set_t after;
    EXPECT(sched_getaffinity(0, sizeof after, &after) == 0);
    EXPECT(CPU_EQUAL(&set, &after));
  });
}
#endif

struct Test {
  const char* name;
  void (*run)();
};

const Test kTests[] = {
// The first two need a process without threads. A sanitizer takes all addresses
// there are, and the one of threads allows none in a child.
#if !defined(SANITIZER) && defined(__linux__)
    {"no_memory_for_threads", no_memory_for_threads},
#endif
#if !defined(THREAD_SANITIZER)
    {"fork_before_first_use", fork_before_first_use},
#endif
    {"teams_of_every_size", teams_of_every_size},
    {"many_barriers", many_barriers},
    {"more_threads_than_cores", more_threads_than_cores},
    {"late_member", late_member},
    {"callers_at_once", callers_at_once},
    {"call_within_a_call", call_within_a_call},
    {"number_of_threads", number_of_threads},
#if defined(__APPLE__)
    {"class_of_service", class_of_service},
#endif
#if !defined(THREAD_SANITIZER)
    {"fork_after_first_use", fork_after_first_use},
    {"fork_during_a_call", fork_during_a_call},
#if defined(__linux__)
    {"one_core", one_core},
#endif
#endif
};

} // namespace

int main(int count, char** names) {
  for (const Test& test : kTests) {
    bool named = count == 1;
    for (int i = 1; i < count; ++i) {
      named |= std::strcmp(names[i], test.name) == 0;
    }
    if (!named) {
      continue;
    }
    std::printf("%s", test.name);
    std::fflush(stdout);
    auto start = std::chrono::steady_clock::now();
    alarm(kWatchdogSeconds);
    test.run();
    alarm(0);
    std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - start;
    std::printf(" %.2f s\n", seconds.count());
  }
  return 0;
}
