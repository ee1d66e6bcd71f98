#include "partition.h"

#include <unistd.h>

namespace mlx_recurrent::kernels {

namespace {

// Rates of a current server core. Only their ratios matter: they decide where
// one way to share becomes cheaper than another, never a result.
constexpr double kFlopsPerSecond = 200e9; // float32, one core
constexpr double kLevel1Bandwidth = 400e9;
constexpr double kLevel2Bandwidth = 120e9;
constexpr double kLevel3Bandwidth = 60e9;
constexpr double kBarrierSeconds = 0.3e-6;
// What an instruction on one element costs, in the time of such operations: a
// few, or some dozens where it is transcendental.
constexpr double kFlopsPerInstruction = 16;
// Waking a parked thread, and what a call must save to be worth it.
constexpr double kWakeSeconds = 8e-6;

double bandwidth(double bytes, const Machine& machine) {
  // A matrix shares its cache with the states, so it gets three quarters.
  if (bytes <= 0.75 * machine.level1_bytes) {
    return kLevel1Bandwidth;
  }
  return bytes <= 0.75 * machine.level2_bytes ? kLevel2Bandwidth
                                              : kLevel3Bandwidth;
}

double larger(double a, double b) {
  return a > b ? a : b;
}

int smaller(int64_t a, int64_t b) {
  return static_cast<int>(a < b ? a : b);
}

constexpr Partition kAlone = {Split::none, 1, 1};

// Whether `flops` are worth waking a thread for.
bool worth_sharing(double flops, const Machine& machine) {
  return machine.threads > 1 && flops / kFlopsPerSecond > 2 * kWakeSeconds;
}

// From the partition of one call of so many `flops`, that of `sets` of them.
Partition together(
    const Partition& one,
    int64_t sets,
    double flops,
    const Machine& machine) {
  bool enough = one.split == Split::none || sets >= machine.threads;
  bool apart = sets > 1 && enough && worth_sharing(sets * flops, machine);
  return apart ? Partition{Split::sets, smaller(sets, machine.threads), 1}
               : one;
}

[[maybe_unused]] int64_t cache_bytes(int name, int64_t otherwise) {
  long found = name >= 0 ? sysconf(name) : -1;
  return found > 0 ? found : otherwise;
}

Partition one_recurrence(
    int64_t N,
    int64_t H,
    int slabs,
    double flops,
    int compute_bytes,
    const Machine& machine) {
  double row_flops = 2.0 * slabs * H * H;
  double step_flops = N * row_flops;
  if (!worth_sharing(flops, machine)) {
    return kAlone;
  }
  double rate = kFlopsPerSecond * 4 / compute_bytes;
  double weights = static_cast<double>(compute_bytes) * slabs * H * H;
  double alone =
      larger(step_flops / rate, weights / bandwidth(weights, machine));
  int threads = machine.threads;
  int slices = smaller(N, threads);
  int64_t rows = (N + slices - 1) / slices;
  double by_batch =
      larger(rows * row_flops / rate, weights / bandwidth(weights, machine));
  // A thread with less than a panel of columns would only wait.
  threads = smaller(threads, H / 64);
  if (threads < 2) {
    threads = 1;
  }
  double own = weights / threads;
  double by_units =
      larger(step_flops / threads / rate, own / bandwidth(own, machine)) +
      kBarrierSeconds;
  // Sharing a step must save a fifth: one thread needs no luck with the
  // scheduler.
  if (slices > 1 && by_batch <= by_units && by_batch < 0.8 * alone) {
    return Partition{Split::batch, slices, slices};
  }
  if (threads > 1 && by_units < 0.8 * alone) {
    return Partition{Split::units, threads, 1};
  }
  return kAlone;
}

} // namespace

Machine this_machine(int threads) {
#if defined(_SC_LEVEL1_DCACHE_SIZE) && defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t level1 = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
  static const int64_t level2 = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20);
#else
  static const int64_t level1 = 64 << 10;
  static const int64_t level2 = 1 << 20;
#endif
  return Machine{threads, level1, level2};
}

Partition partition_recurrence(
    int64_t N,
    int64_t L,
    int64_t D,
    int64_t H,
    int compute_bytes,
    const Machine& machine,
    int64_t sets,
    int state_slabs,
    int input_slabs) {
  double flops =
      L * (2.0 * state_slabs * N * H * H + 2.0 * input_slabs * N * H * D);
  // A step without a product costs something too.
  int slabs = state_slabs > 0 ? state_slabs : 1;
  Partition one = one_recurrence(N, H, slabs, flops, compute_bytes, machine);
  return one.split == Split::batch ? one : together(one, sets, flops, machine);
}

Partition partition_matmul(
    int64_t rows,
    int64_t K,
    int64_t M,
    const Machine& machine,
    int64_t sets) {
  double flops = 2.0 * rows * K * M;
  if (!worth_sharing(flops, machine)) {
    return together(kAlone, sets, flops, machine);
  }
  // A thread's rows fill at least a few tiles; else it takes columns.
  constexpr int64_t kLeastRows = 24;
  if (rows >= kLeastRows * machine.threads) {
    return Partition{Split::batch, machine.threads, machine.threads};
  }
  Partition one{Split::units, machine.threads, 1};
  return together(one, sets, flops, machine);
}

Partition partition_outer_sum(
    int64_t terms,
    int64_t M,
    int64_t K,
    const Machine& machine,
    int64_t sets) {
  double flops = 2.0 * terms * M * K;
  Partition one = worth_sharing(flops, machine)
      ? Partition{Split::batch, smaller(M, machine.threads), 1}
      : kAlone;
  return together(one, sets, flops, machine);
}

Partition partition_pointwise(
    int64_t count,
    int instructions,
    const Machine& machine) {
  double flops = kFlopsPerInstruction * count * instructions;
  if (!worth_sharing(flops, machine)) {
    return kAlone;
  }
  return Partition{Split::batch, machine.threads, machine.threads};
}

} // namespace mlx_recurrent::kernels
