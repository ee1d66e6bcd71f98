// The products of product.h by a BLAS: the matrix is then packed whole, row by
// row, its slabs side by side in whole panels of columns.

#pragma once

#include "product.h"

namespace {

using mlx_recurrent::kernels::by_blas;
using mlx_recurrent::kernels::Sgemm;

// What stands in cblas.h.
constexpr int kRowMajor = 101;
constexpr int kAsItIs = 111;
constexpr int kTransposed = 112;

// A result that is consumed and not kept, by parts of so many numbers.
constexpr int64_t kPartRows = 64;
constexpr int64_t kPartColumns = 128;

// As pack_as, into a whole matrix.
template <class T>
static void pack_whole(
    const Panels<T>& to,
    const PanelPlace& place,
    const Element<T>* data,
    int64_t k_stride,
    int64_t j_stride,
    int64_t K,
    int64_t M,
    int64_t first,
    int64_t last) {
  typedef Compute<T> C;
  constexpr int64_t block = 16; // both sides of it stay in a cache
  int64_t padded = panel_count<C>(M) * kPanel<C>;
  C* rows =
      reinterpret_cast<C*>(to.data) + place.from * to.ld + place.index * padded;
  int64_t j0 = first * kPanel<C>;
  int64_t j1 = last * kPanel<C>;
  for (int64_t k0 = 0; k0 < K + place.padding; k0 += block) {
    int64_t k1 = minimum(k0 + block, K + place.padding);
    for (int64_t j = j0; j < j1; j += block) {
      for (int64_t column = j; column < minimum(j + block, j1); ++column) {
        for (int64_t k = k0; k < k1; ++k) {
          rows[k * to.ld + column] = k < K && column < M
              ? load_one<T>(data + k * k_stride + column * j_stride)
              : C(0);
        }
      }
    }
  }
}

INLINE void call_sgemm(
    Sgemm sgemm,
    bool transposes,
    int64_t rows,
    int64_t columns,
    int64_t terms,
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    bool adds,
    float* c,
    int64_t ldc) {
  sgemm(
      kRowMajor,
      transposes ? kTransposed : kAsItIs,
      kAsItIs,
      static_cast<int>(rows),
      static_cast<int>(columns),
      static_cast<int>(terms),
      1.0f,
      a,
      static_cast<int>(lda),
      b,
      static_cast<int>(ldb),
      adds ? 1.0f : 0.0f,
      c,
      static_cast<int>(ldc));
}

// `rows` rows and `width` columns of a product, from their own first numbers.
static void multiply_part(
    Sgemm sgemm,
    int64_t rows,
    int64_t K,
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    const Sums<float>& sums,
    int64_t width) {
  if (sums.start && sums.start != sums.result) {
    for (int64_t m = 0; m < rows; ++m) {
      __builtin_memcpy(
          sums.result + m * sums.stride,
          sums.start + m * sums.start_stride,
          width * sizeof(float));
    }
  }
  call_sgemm(
      sgemm,
      false,
      rows,
      width,
      K,
      a,
      lda,
      b,
      ldb,
      sums.start,
      sums.result,
      sums.stride);
}

// As multiply; the results of several slabs are always kept.
template <class T, class Consume>
static void multiply_whole(
    int slabs,
    int64_t rows,
    int64_t K,
    const float* a,
    int64_t lda,
    const Panels<T>& panels,
    int64_t M,
    int64_t first,
    int64_t last,
    const Sums<float>& sums,
    int64_t slab_stride,
    Consume consume) {
  constexpr int64_t lanes = Simd<float>::lanes;
  int64_t padded = panel_count<float>(M) * kPanel<float>;
  int64_t column = first * kPanel<float>;
  int64_t end = minimum(last * kPanel<float>, M);
  const float* matrix = reinterpret_cast<const float*>(panels.data);
  if (rows == 0 || column >= end) {
    return;
  }
  if (sums.result) {
    int64_t width = ceil_div(end - column, lanes) * lanes;
    for (int slab = 0; slab < slabs; ++slab) {
      multiply_part(
          panels.sgemm,
          rows,
          K,
          a,
          lda,
          matrix + slab * padded + column,
          panels.ld,
          sums.at(0, column + slab * slab_stride),
          width);
    }
    float* values = sums.result + column;
    consume(Tile<float>{values, sums.stride, 0, rows, column, end - column});
    return;
  }
  alignas(64) float part[kPartRows * kPartColumns];
  for (; column < end; column += kPartColumns) {
    int64_t columns = minimum(kPartColumns, end - column);
    for (int64_t row = 0; row < rows; row += kPartRows) {
      int64_t count = minimum(kPartRows, rows - row);
      Sums<float> to = sums.at(row, column);
      to.result = part;
      to.stride = kPartColumns;
      multiply_part(
          panels.sgemm,
          count,
          K,
          a + row * lda,
          lda,
          matrix + column,
          panels.ld,
          to,
          ceil_div(columns, lanes) * lanes);
      consume(Tile<float>{part, kPartColumns, row, count, column, columns});
    }
  }
}

// sums (rows, columns) += a^T b, of a (K, rows) and b (K, columns).
INLINE void add_outer(
    Sgemm sgemm,
    int64_t K,
    int64_t rows,
    int64_t columns,
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    float* sums,
    int64_t ld) {
  if (K > 0 && rows > 0 && columns > 0) {
    call_sgemm(sgemm, true, rows, columns, K, a, lda, b, ldb, true, sums, ld);
  }
}

} // namespace
