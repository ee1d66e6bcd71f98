#include "blas.h"

#include <dlfcn.h>
#include <stdio.h>

#include <cstdlib>
#include <cstring>

namespace mlx_recurrent::kernels {

namespace {

constexpr int kRowMajor = 101;
constexpr int kAsItIs = 111;
constexpr int kTransposed = 112;

// A BLAS copies its operands and starts in about a microsecond, in which the
// kernels do 50,000 multiplications and additions on one core. With 2**20 they
// take 20 times as long; and less than this on a side leaves a matrix unit,
// which works on tiles of 16 x 16 and more, half empty.
constexpr int64_t kLeastWork = int64_t{1} << 20;
constexpr int64_t kLeastSide = 32;
// Sizes are ints there.
constexpr int64_t kMostSide = int64_t{1} << 30;
// A chunk of time has about so many rows.
constexpr int64_t kChunkRows = 256;

// Whether small integers are multiplied as they should: another library may
// have another function of that name.
bool multiplies(Sgemm sgemm) {
  constexpr int rows = 3, terms = 5, columns = 4;
  float a[rows * terms], b[terms * columns];
  for (int i = 0; i < rows * terms; ++i) {
    a[i] = static_cast<float>(i % 7 - 3);
  }
  for (int i = 0; i < terms * columns; ++i) {
    b[i] = static_cast<float>(i % 5 - 2);
  }
  // The same of `a` and of its transpose, whose columns are its rows.
  float turned[terms * rows];
  for (int i = 0; i < rows * terms; ++i) {
    turned[i % terms * rows + i / terms] = a[i];
  }
  for (int transposed = 0; transposed < 2; ++transposed) {
    float c[rows * columns];
    for (float& start : c) {
      start = 1;
    }
    sgemm(
        kRowMajor,
        transposed ? kTransposed : kAsItIs,
        kAsItIs,
        rows,
        columns,
        terms,
        1.0f,
        transposed ? turned : a,
        transposed ? rows : terms,
        b,
        columns,
        1.0f,
        c,
        columns);
    for (int i = 0; i < rows * columns; ++i) {
      float expected = 1;
      for (int k = 0; k < terms; ++k) {
        expected += a[i / columns * terms + k] * b[k * columns + i % columns];
      }
      if (c[i] != expected) {
        return false;
      }
    }
  }
  return true;
}

Blas find() {
  Blas found;
  const char* asked = std::getenv("MLX_RECURRENT_BLAS");
  const char* name = asked && *asked ? asked : nullptr;
#if defined(__APPLE__)
  if (!name) {
    name = "/System/Library/Frameworks/Accelerate.framework/Accelerate";
  }
#endif
  if (!name || std::strcmp(name, "none") == 0) {
    return found;
  }
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  const char* why = library ? nullptr : dlerror();
  Sgemm sgemm = nullptr;
  if (library) {
    void* symbol = dlsym(library, "cblas_sgemm");
    if (!symbol) { // as SciPy's copy of OpenBLAS calls it
      symbol = dlsym(library, "scipy_cblas_sgemm");
    }
    sgemm = reinterpret_cast<Sgemm>(symbol);
    why = !sgemm             ? "it has no cblas_sgemm"
        : !multiplies(sgemm) ? "its cblas_sgemm gives wrong products"
                             : nullptr;
  }
  if (!why) {
    found.sgemm = sgemm;
    found.name = name;
  } else if (asked && *asked) {
    snprintf(
        found.fault,
        sizeof(found.fault),
        "The environment variable MLX_RECURRENT_BLAS must be the path of a "
        "library with cblas_sgemm, or \"none\", but is \"%.160s\": %.200s.",
        name,
        why);
  }
  return found;
}

} // namespace

const Blas& blas() {
  static const Blas found = find();
  return found;
}

bool by_blas(int64_t rows, int64_t terms, int64_t columns) {
  // For tests, whose products are small.
  static const bool always = std::getenv("MLX_RECURRENT_BLAS_ALWAYS");
  auto fits = [](int64_t side) {
    return side >= (always ? 1 : kLeastSide) && side <= kMostSide;
  };
  if (!fits(rows) || !fits(terms) || !fits(columns)) {
    return false;
  }
  double work = static_cast<double>(rows) * static_cast<double>(terms) *
      static_cast<double>(columns);
  return always || work >= static_cast<double>(kLeastWork);
}

int64_t rows_of_chunk(int64_t rows, int64_t steps) {
  if (rows >= kChunkRows) {
    return rows;
  }
  int64_t all = steps < kChunkRows ? rows * steps : kChunkRows;
  return all < kChunkRows ? all : kChunkRows;
}

} // namespace mlx_recurrent::kernels
