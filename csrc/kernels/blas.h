// Large products by a BLAS of the process, where there is one that is faster
// than the kernels' own: which it is, and which products go through it.

#pragma once

#include <stdint.h>

namespace mlx_recurrent::kernels {

// cblas_sgemm, with 32-bit integers.
using Sgemm = void (*)(
    int order,
    int transpose_a,
    int transpose_b,
    int rows,
    int columns,
    int terms,
    float alpha,
    const float* a,
    int lda,
    const float* b,
    int ldb,
    float beta,
    float* c,
    int ldc);

struct Blas {
  Sgemm sgemm = nullptr; // null: the kernels do without
  const char* name = ""; // of its file
  char fault[512] = "";  // why the one that was asked for cannot be used
};

// The library that the environment variable MLX_RECURRENT_BLAS names, or with
// "none" none; by default Accelerate on macOS, and none elsewhere. Found once.
const Blas& blas();

// Whether a product of `rows` rows of `terms` with as many columns goes through
// a BLAS: the rule of sizes, the same for every product.
bool by_blas(int64_t rows, int64_t terms, int64_t columns);

// The rows that such a rule is asked about where a chunk of time is multiplied.
int64_t rows_of_chunk(int64_t rows, int64_t steps);

} // namespace mlx_recurrent::kernels
