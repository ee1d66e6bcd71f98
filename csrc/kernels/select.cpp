// Chooses the instruction set once, when the library is first used.

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__aarch64__)
extern const mlx_recurrent::kernels::KernelTable mlx_recurrent_kernels_neon;
#else
extern const mlx_recurrent::kernels::KernelTable mlx_recurrent_kernels_baseline;
#endif
#if defined(__x86_64__)
extern const mlx_recurrent::kernels::KernelTable mlx_recurrent_kernels_avx2;
extern const mlx_recurrent::kernels::KernelTable mlx_recurrent_kernels_avx512;
#endif

namespace mlx_recurrent::kernels {

namespace {

#if defined(__x86_64__)
// F16C, which Clang's __builtin_cpu_supports did not know before version 18.
// What it needs of the operating system AVX2 needs too.
bool converts_halves() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

// From the most capable to the least.
struct Candidates {
  static constexpr int kMost = 8;
  const KernelTable* list[kMost];
  int count = 0;
  char names[kMost * 16] = ""; // names of up to 14 letters

  Candidates() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") &&
        __builtin_cpu_supports("fma") && converts_halves();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl");
    add(&mlx_recurrent_kernels_avx512, avx512);
    add(&mlx_recurrent_kernels_avx2, avx2);
#endif
#if defined(__aarch64__)
    add(&mlx_recurrent_kernels_neon, true);
#else
    add(&mlx_recurrent_kernels_baseline, true);
#endif
  }

  void add(const KernelTable* table, bool supported) {
    if (!supported || count == kMost) {
      return;
    }
    list[count++] = table;
    if (names[0]) {
      std::strcat(names, ", ");
    }
    std::strcat(names, table->isa);
  }
};

const Candidates& candidates() {
  static const Candidates all;
  return all;
}

const KernelTable* choose() {
  const Candidates& all = candidates();
  const char* forced = std::getenv("MLX_RECURRENT_ISA");
  if (!forced || !*forced) {
    return all.list[0];
  }
  for (int i = 0; i < all.count; ++i) {
    if (std::strcmp(forced, all.list[i]->isa) == 0) {
      return all.list[i];
    }
  }
  return nullptr;
}

} // namespace

const KernelTable* table() {
  static const KernelTable* chosen = choose();
  return chosen;
}

const char* available_isas() {
  return candidates().names;
}

} // namespace mlx_recurrent::kernels
